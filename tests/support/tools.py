"""The programs that `make tools` builds."""

import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT


def tool(name: str) -> Path:
    """Return the path of a tool, or skip the test if it is not built."""
    path = ROOT / ".tools" / name
    if not path.exists():
        pytest.skip(f"NOT TESTED WITH {name.upper()}: `make tools` builds it")
    return path


def try_tool(name: str, *arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a tool, or skip the test if it is not built."""
    return subprocess.run(
        [str(tool(name)), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def run_tool(name: str, *arguments: str, folder: Path = ROOT) -> str:
    """Run a tool that must succeed, and return its output."""
    done = try_tool(name, *arguments, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
