"""A checkout of an older version, taken from the history of this repository."""

import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from tests.support.paths import ROOT


def checkout(commit: str, folder: Path) -> Path:
    """Write a commit's files into a folder; skip the test where the history does not have it."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode:
        pytest.skip(
            f"THE OLDER VERSION IS NOT TESTED: commit {commit} is not in this clone; fetch the"
            f" whole history (git fetch --unshallow): {archive.stderr.decode().strip()}"
        )
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder
