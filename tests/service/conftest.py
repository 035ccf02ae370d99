"""The service in this process, on each database."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from providers.kie.simulator import Simulator
from tests.support.harness import Serve, Service, serving


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
