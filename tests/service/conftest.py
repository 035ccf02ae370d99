"""The service in this process, on each database."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from providers.kie.simulator import Simulator
from tests.support.harness import Serve, Service, serving
from tests.support.uploading import STREAM, UploadHost


@pytest.fixture
async def service(tmp_path: Path, kie: Simulator, database_url: str) -> AsyncIterator[Service]:
    """The service with the settings that most tests want, on each database."""
    async with serving(tmp_path, kie, database_url=database_url) as running_service:
        yield running_service


@pytest.fixture
def serve(tmp_path: Path, kie: Simulator, database_url: str) -> Serve:
    """Start the service with other settings; again on the same database for a restart."""

    def start(**settings: Any) -> AbstractAsyncContextManager[Service]:
        return serving(tmp_path, kie, database_url=database_url, **settings)

    return start


@pytest.fixture
async def host() -> AsyncIterator[UploadHost]:
    """An upload host on a socket."""
    host = UploadHost()
    app = web.Application(client_max_size=1 << 40)
    app.router.add_post(STREAM, host.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield host
    await runner.cleanup()


@pytest.fixture
async def hosted(serve: Serve, host: UploadHost) -> AsyncIterator[Service]:
    """The service in front of that upload host."""
    async with serve(kie_upload_url=host.url) as service:
        yield service
