"""Replicas of the service in this process, on one PostgreSQL."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from providers.kie.simulator import Simulator
from storage.opening import open_store
from storage.store import Store
from tests.support.harness import Service, serving


@pytest.fixture
def fleet(tmp_path: Path, kie: Simulator, postgresql_url: str) -> Callable[..., Any]:
    """Start several replicas in this process, on one database."""

    @asynccontextmanager
    async def start(
        count: int = 3, simulator: Simulator = kie, **settings: Any
    ) -> AsyncIterator[list[Service]]:
        settings = {"database_url": postgresql_url} | settings
        async with AsyncExitStack() as stack:
            running = [serving(tmp_path, simulator, **settings) for _ in range(count)]
            yield [await stack.enter_async_context(replica) for replica in running]

    return start


@pytest.fixture
async def elsewhere(postgresql_url: str) -> AsyncIterator[Store]:
    """Another replica's writes to the database, one move at a time."""
    store = open_store(postgresql_url)
    yield store
    await store.close()
