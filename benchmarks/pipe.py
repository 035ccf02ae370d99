"""A bare pipe from aiohttp into obstore: what a copy costs at least.

`python -m benchmarks.pipe URL` writes into the bucket of the URL, and answers commands, see
child.py.
"""

import sys
import time

import aiohttp
import obstore
import uvloop

from benchmarks.child import answer_commands
from benchmarks.measure import MIB
from service.results.bucket import PART_BYTES, PARTS_IN_FLIGHT, Bucket
from service.results.places import place_of


class Pipe:
    """Copies from a URL into a bucket."""

    def __init__(self, results_url: str) -> None:
        self._store = Bucket(place_of(results_url)).store

    async def copy(self, *, url: str) -> float:
        """Copy; return the seconds."""
        started = time.monotonic()
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            await obstore.put_async(
                self._store,
                "pipe.mp4",
                response.content.iter_chunked(MIB),
                use_multipart=True,
                chunk_size=PART_BYTES,
                max_concurrency=PARTS_IN_FLIGHT,
            )
        return time.monotonic() - started


async def main() -> None:
    """Answer commands until stdin ends."""
    await answer_commands({"copy": Pipe(sys.argv[1]).copy}, {})


if __name__ == "__main__":
    uvloop.run(main())
