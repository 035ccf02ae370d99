"""The programs that `make tools` builds."""

from pathlib import Path

import pytest

from tests.support.paths import ROOT


def tool(name: str) -> Path:
    """Return the path of a tool, or skip the test if it is not built."""
    path = ROOT / ".tools" / name
    if not path.exists():
        pytest.skip(f"NOT TESTED WITH {name.upper()}: `make tools` builds it")
    return path
