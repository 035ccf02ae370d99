"""An empty store on each database."""

from collections.abc import AsyncIterator

import pytest

from storage.opening import open_store
from storage.store import Store


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    """An empty store."""
    store = open_store(database_url)
    yield store
    await store.close()
