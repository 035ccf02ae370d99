"""What gRPC's library logs because of a caller becomes a short line, at most once a second."""

import subprocess
import sys

import pytest

from tests.support.paths import ROOT

PROGRAM = """
import logging
from service.logs import configure_logs
configure_logs({form!r}, "info")
log = logging.getLogger("grpc._cython.cygrpc")
for _ in range(3):
    log.error({message!r}, "secret", exc_info=ValueError("secret"))
"""


def logged(message: str, form: str) -> list[str]:
    """Return what the service logs if the library logs an error three times."""
    program = PROGRAM.format(message=message, form=form)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stderr.splitlines()


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    ("message", "event"),
    [
        ("Invalid encoding on %s", "metadata is not UTF-8"),
        (
            "ExecuteBatchError raised in core by servicer method [%s]",
            "the client left before its response was sent",
        ),
    ],
)
def test_what_a_caller_causes_is_one_line_without_its_content(
    message: str, event: str, form: str
) -> None:
    [line] = logged(message, form)
    assert event in line
    assert "secret" not in line


def test_other_errors_of_the_library_are_logged_each_time() -> None:
    lines = logged("something else: %s", "text")
    assert sum("something else: secret" in line for line in lines) == 3
