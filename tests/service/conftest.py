"""The service in this process, on each database."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from providers.kie.simulator import Simulator
from tests.support.callers import Caller, Files, Serving, bounds
from tests.support.harness import Serve, Service, serving
from tests.support.uploading import STREAM, UploadHost

# What these modules test does not depend on the database: `make test` runs them on SQLite, and
# `make torture` on PostgreSQL, too. A database of its own costs each test most of its time.
ON_SQLITE = frozenset(
    {
        "callers",
        "caller_limits_file",
        "certificate_callers",
        "certificates",
        "connections",
        "download_artifact",
        "error_size",
        "errors",
        "faults",
        "http",
        "market",
        "metrics",
        "models",
        "params",
        "public_address",
        "reflection",
        "sign_artifact",
        "stalled_readers",
        "tls",
        "tracing",
        "upload_aborts",
        "upload_bounds",
        "upload_rules",
        "uploads",
    }
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the PostgreSQL cases of ON_SQLITE to `make torture`."""
    for item in items:
        is_ours = item.path.parent == Path(__file__).parent
        if (
            is_ours
            and item.path.stem.removeprefix("test_") in ON_SQLITE
            and "postgresql" in item.name
        ):
            item.add_marker(pytest.mark.torture)


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


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Tokens of alice and bob, and no limits."""
    files = Files(tmp_path / "tokens", tmp_path / "limits.toml")
    files.name("alice", "bob")
    files.limit("")
    return files


@pytest.fixture
def serve_both(
    tmp_path: Path,
    kie: Simulator,
    database_url: str,
    files: Files,
) -> Serving:
    """Serve alice and bob with the limits that are given.

    A task is sent only because something wakes the poller, however loaded the machine is.
    """

    @asynccontextmanager
    async def serve(limits: str = "", **settings: Any) -> AsyncIterator[tuple[Caller, Caller]]:
        files.limit(limits)
        given: dict[str, Any] = {
            "auth_tokens_file": files.tokens,
            "caller_limits_file": files.limits,
        }
        given |= {"create_wait_seconds": 0, "database_url": database_url, "bounds": bounds()}
        async with serving(tmp_path, kie, **given | settings) as service:
            yield Caller("alice", service), Caller("bob", service)

    return serve


@pytest.fixture
def port(unused_tcp_port: int) -> int:
    """A free port for the callback server."""
    return unused_tcp_port
