"""Processes of the service in the folder of a test."""

from pathlib import Path

import pytest

from tests.support.processes import Launch, served


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """Start processes in one folder: again for a restart."""
    return lambda **variables: served(tmp_path, **variables)
