"""The real service, as a client sees it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from providers.kie.simulator import Simulator
from tests.support.harness import serving


@pytest.fixture
async def address(tmp_path: Path, kie: Simulator) -> AsyncIterator[str]:
    """The address of the real service."""
    url = f"sqlite:///{tmp_path}/generation.db"
    async with serving(tmp_path, kie, database_url=url) as service:
        yield service.address
