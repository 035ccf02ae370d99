"""Processes of the service in the folder of a test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.media_host import MediaHost, media_host
from tests.support.processes import Launch, served


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """Start processes in one folder: again for a restart."""
    return lambda **variables: served(tmp_path, **variables)


@pytest.fixture
async def host() -> AsyncIterator[MediaHost]:
    """A provider whose results are files of the test."""
    async with media_host() as host:
        yield host
