"""A bare pipe from aiohttp into obstore: what a copy costs at least.

`python -m benchmarks.pipe URL` writes into the bucket of the URL, and answers commands, see
child.py.
"""

import asyncio
import sys
import time
from collections.abc import Sequence

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
        self._copies: list[asyncio.Task[None]] = []

    async def copy(self, *, url: str) -> float:
        """Copy; return the seconds."""
        started = time.monotonic()
        await self._copy(url, 0)
        return time.monotonic() - started

    async def begin(self, *, urls: Sequence[str]) -> None:
        """Begin to copy all of the URLs at the same time."""
        self._copies = [
            asyncio.create_task(self._copy(url, number)) for number, url in enumerate(urls)
        ]

    async def end(self) -> None:
        """Wait for the copies that `begin` began."""
        await asyncio.gather(*self._copies)

    async def _copy(self, url: str, number: int) -> None:
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            await obstore.put_async(
                self._store,
                f"pipe-{number}.mp4",
                response.content.iter_chunked(MIB),
                use_multipart=True,
                chunk_size=PART_BYTES,
                max_concurrency=PARTS_IN_FLIGHT,
            )


async def main() -> None:
    """Answer commands until stdin ends."""
    pipe = Pipe(sys.argv[1])
    await answer_commands({"copy": pipe.copy, "begin": pipe.begin, "end": pipe.end}, {})


if __name__ == "__main__":
    uvloop.run(main())
