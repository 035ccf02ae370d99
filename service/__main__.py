"""`python -m service`: serve until a signal to stop; or bring a database up to date, or fill it.

Exit codes: 0 after a clean stop or a command that did it all, 2 for bad settings or arguments, 1
when it cannot start or could not do it all.
"""

import argparse
import asyncio
import ctypes
import gc
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

import structlog
import uvloop

from service.descriptors import raise_limit
from service.logs import configure_logs
from service.server import StartError, running
from service.settings import Settings, SettingsError, load_settings
from storage.errors import StorageConfigError, StorageError
from storage.postgres import is_postgres
from storage.sqlite import sqlite_path
from storage.store import migrate
from storage.transfer import TransferError, carry_over

EXIT_FAILED = 1
EXIT_BAD_SETTINGS = 2
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
KEPT_BYTES = 32 << 20
# How many objects come to life between two searches for unreachable cycles, and how many such
# searches until the next of those that go further back.
COLLECTION_THRESHOLDS = (50_000, 10, 10)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
# Their default is to end the process at once, with paid requests under way. There is nothing to
# reload: the files of tokens and limits are read again when they change.
IGNORED_SIGNALS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

log = structlog.get_logger()


def main(arguments: Sequence[str] = ()) -> int:
    """Run the service or a command; return the exit code."""
    given = _parser().parse_args(arguments)
    try:
        settings = load_settings()
    except SettingsError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the log's form is one of the settings
        return EXIT_BAD_SETTINGS
    configure_logs(settings.log_format, settings.log_level)
    try:
        match given.command:
            case "migrate":
                bring_up_to_date(settings)
            case "import":
                import_tasks(settings, given.source)
            case _:
                if is_postgres(database_url := settings.database_url.get_secret_value()):
                    # Before the loop has the signals: another process's may take its time.
                    migrate(database_url)
                raise_limit()
                _keep_freed_memory()
                uvloop.run(serve(settings))
    except StorageConfigError as error:
        log.critical(given.failure, error=str(error))
        return EXIT_BAD_SETTINGS
    except (StartError, StorageError) as error:
        log.critical(given.failure, error=str(error))
        return EXIT_FAILED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service",
        usage="python -m service [-h] [COMMAND]",
        description="Run the service, or a command on its database. The settings are environment"
        " variables, listed in docs/settings.md.",
    )
    parser.set_defaults(command="serve", failure="cannot start")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", prog="python -m service")
    migrating = commands.add_parser("migrate", help="apply the migrations that DATABASE_URL lacks")
    migrating.set_defaults(command="migrate", failure="cannot migrate")
    importing = commands.add_parser(
        "import", help="copy all tasks of a SQLite file to the PostgreSQL of DATABASE_URL"
    )
    importing.set_defaults(command="import", failure="cannot import")
    importing.add_argument(
        "source", metavar="sqlite:///FILE", help="the file; stop its service first"
    )
    return parser


def bring_up_to_date(settings: Settings) -> None:
    """Apply the migrations that DATABASE_URL lacks, and say which."""
    applied = migrate(settings.database_url.get_secret_value())
    _say(*(f"applied {name}" for name in applied) if applied else ("nothing to apply",))


def import_tasks(settings: Settings, source: str) -> None:
    """Carry the tasks of a SQLite file into DATABASE_URL, and say how many.

    Raises:
        StorageError: Some or all were left behind.
    """
    path = sqlite_path(source)
    if path is None:
        raise StorageConfigError("what is imported must look like sqlite:///generation.db")
    carried = carry_over(path, settings.database_url.get_secret_value())
    _say(f"tasks carried over: {carried.tasks}; there already: {carried.present}")
    for left in carried.left:
        log.error("a task is left behind", task_id=left.task_id, why=left.why)
    if carried.left:
        raise TransferError(f"tasks left behind: {len(carried.left)}")


def _say(*lines: str) -> None:
    print(*lines, sep="\n")  # noqa: T201 - what a command was asked for


async def serve(settings: Settings) -> None:
    """Serve until the process is told to stop."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stopped.set)
    for number in IGNORED_SIGNALS:
        loop.add_signal_handler(number, _log_ignored, number)
    async with running(settings):
        _collect_rarely()
        await stopped.wait()
    log.info("stopped")


def _log_ignored(number: signal.Signals) -> None:
    log.info("signal ignored", signal=number.name)


def _keep_freed_memory() -> None:
    """Keep what one chunk of an upload frees for the next one.

    By default glibc may give it back to the system each time, and every page is a fault again,
    0.2 s a GiB. Where the C library is another one, it decides by itself.
    """
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for threshold in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            mallopt(threshold, KEPT_BYTES)


def _collect_rarely() -> None:
    """Spare the collector what lives as long as the process, and make it look less often.

    Nearly all garbage here is freed by its reference count. Python's own thresholds searched ten
    thousand open streams, and every module, again and again while a change went out to them.
    """
    gc.freeze()
    gc.set_threshold(*COLLECTION_THRESHOLDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
