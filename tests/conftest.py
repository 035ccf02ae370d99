"""Fixtures: a simulator on a socket, and the real service in front of it."""

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from providers.kie.simulator import Simulator
from tests.harness import INSTANT, Service, serving

# A runner that was started in the background ignores SIGINT, and the processes that the tests
# interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
async def kie() -> AsyncIterator[Simulator]:
    """A Kie look-alike without limits, whose results come at once."""
    async with Simulator(INSTANT) as simulator:
        yield simulator


@pytest.fixture
async def service(tmp_path: Path, kie: Simulator) -> AsyncIterator[Service]:
    """The service with the settings that most tests want."""
    async with serving(tmp_path, kie) as running_service:
        yield running_service


Serve = Callable[..., AbstractAsyncContextManager[Service]]


@pytest.fixture
def serve(tmp_path: Path, kie: Simulator) -> Serve:
    """Start the service with other settings; again on the same database for a restart."""

    def start(**settings: Any) -> AbstractAsyncContextManager[Service]:
        return serving(tmp_path, kie, **settings)

    return start


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """What a test opens in passing, closed in reverse."""
    async with AsyncExitStack() as exits:
        yield exits
