"""A provider whose tasks end at once, and that serves their results, at a limited speed if asked.

`python -m benchmarks.media` answers commands, see child.py.
"""

import asyncio
import json
import os
import time
from typing import Any

import uvloop
from aiohttp import web

from benchmarks.child import Command, answer_commands
from benchmarks.measure import MIB

NICE = 10  # in production it is another machine, which takes no CPU from the service
VIDEO = b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom".ljust(MIB, b"x")


class Media:
    """The provider's state.

    Attributes:
        url: Where it is served.
    """

    def __init__(self) -> None:
        self.url = ""
        self._tasks = 0
        self._size_bytes = MIB
        self._results = 1
        self._bytes_per_second = 0.0
        self._downloads: list[float] = []

    # --- HTTP ---

    async def create(self, request: web.Request) -> web.StreamResponse:
        """Accept a task."""
        await request.read()
        self._tasks += 1
        return _envelope({"taskId": f"{self._tasks:032x}"})

    async def record(self, request: web.Request) -> web.StreamResponse:
        """Return the record of a task that has ended, with as many results as `use` said."""
        task_id = request.query["taskId"]
        urls = [f"{self.url}/{task_id}/{index}.mp4" for index in range(self._results)]
        result = json.dumps({"resultUrls": urls})
        return _envelope({"taskId": task_id, "state": "success", "resultJson": result})

    async def file(self, request: web.Request) -> web.StreamResponse:
        """Send a result."""
        self._downloads.append(time.monotonic())
        response = web.StreamResponse(headers={"Content-Type": "video/mp4"})
        response.content_length = self._size_bytes
        await response.prepare(request)
        due = asyncio.get_running_loop().time()
        for _ in range(self._size_bytes // MIB):
            await response.write(VIDEO)
            if self._bytes_per_second:
                due += MIB / self._bytes_per_second
                await asyncio.sleep(due - asyncio.get_running_loop().time())
        return response

    # --- commands ---

    async def use(self, *, size_mib: int, results: int = 1, bytes_per_second: float = 0) -> None:
        """Set what the results of a task are, and how fast each is sent; 0 means no limit."""
        self._size_bytes, self._results = size_mib * MIB, results
        self._bytes_per_second = bytes_per_second

    async def downloads(self) -> list[float]:
        """Return when each download since the last call began."""
        downloads, self._downloads = self._downloads, []
        return downloads


def _envelope(data: Any) -> web.Response:
    return web.json_response({"code": 200, "msg": "success", "data": data})


async def main() -> None:
    """Serve and answer commands until stdin ends."""
    os.nice(NICE)
    media = Media()
    app = web.Application()
    app.router.add_post("/api/v1/jobs/createTask", media.create)
    app.router.add_get("/api/v1/jobs/recordInfo", media.record)
    app.router.add_get("/{task}/{name}", media.file)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    media.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    commands: dict[str, Command] = {"use": media.use, "downloads": media.downloads}
    await answer_commands(commands, {"url": media.url})
    await runner.cleanup()


if __name__ == "__main__":
    uvloop.run(main())
