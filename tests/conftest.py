"""Fixtures of all rooms: a simulator on a socket, databases, and ports."""

import gc
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import NoReturn

import pytest

# Read when grpc is imported. Its fork handlers sometimes crash the child while another thread uses
# grpc, and the tests fork to run a server as another user.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"

from providers.kie.simulator import Simulator
from tests.support.harness import INSTANT
from tests.support.postgres import Cluster, PostgresUnavailableError, free_port, new_schema

# A runner that was started in the background ignores SIGINT, and the processes that the tests
# interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

POSTGRESQL_URL = "TEST_DATABASE_URL"  # a database to use; without it each process starts a server
NO_POSTGRESQL = "TEST_DATABASE_MISSING"  # why there is none


def pytest_configure(config: pytest.Config) -> None:
    """Start a PostgreSQL for this process, unless it only hands the tests out to workers.

    Each worker has its own: a transaction that is open in a test hides changes from the others.
    """
    hands_out = not hasattr(config, "workerinput") and config.getoption("numprocesses", 0)
    if hands_out or os.environ.get(POSTGRESQL_URL):
        return
    stack = ExitStack()
    config.add_cleanup(stack.close)
    environment = stack.enter_context(pytest.MonkeyPatch.context())
    try:
        environment.setenv(POSTGRESQL_URL, stack.enter_context(Cluster()).url)
    except PostgresUnavailableError as error:
        environment.setenv(NO_POSTGRESQL, str(error))


def pytest_xdist_auto_num_workers() -> int:
    """Use more workers than cores: the tests wait for half of their time."""
    return (os.cpu_count() or 1) * 2


def pytest_collection_finish() -> None:
    """Leave the thousands of collected tests out of every garbage collection."""
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was not tested: one line, with a count, for each reason."""
    reasons = Counter(report.longrepr[2] for report in terminalreporter.getreports("skipped"))
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"SKIPPED [{count}] {reason.removeprefix('Skipped: ')}")


@pytest.fixture
async def kie() -> AsyncIterator[Simulator]:
    """A simulator of Kie without limits, whose results are available at once."""
    async with Simulator(INSTANT) as simulator:
        yield simulator


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """Contexts that a test opens, closed in reverse order."""
    async with AsyncExitStack() as exits:
        yield exits


@pytest.fixture
def unused_tcp_port_factory() -> Callable[[], int]:
    """Ports for servers: an outgoing connection could take those of pytest-asyncio."""
    return free_port


@pytest.fixture
def unused_tcp_port() -> int:
    """One such port."""
    return free_port()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind: the test runs once on each."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/generation.db"
    url: str = request.getfixturevalue("postgresql_url")
    return url


@pytest.fixture
def postgresql_url() -> Iterator[str]:
    """An empty schema in the PostgreSQL of this process, which its tests share."""
    if (server_url := os.environ.get(POSTGRESQL_URL)) is None:
        _without_postgresql(os.environ[NO_POSTGRESQL])
    with new_schema(server_url) as url:
        yield url


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A running PostgreSQL for one test, which may stop and kill it."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(Cluster())
        except PostgresUnavailableError as error:
            _without_postgresql(str(error))
        yield server


def _without_postgresql(reason: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must have PostgreSQL: {reason}")
    pytest.skip(f"NOT TESTED ON POSTGRESQL: {reason}")
