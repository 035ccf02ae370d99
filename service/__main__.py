"""`python -m service`: serve until a signal, or run a command on the database.

Exit codes: 0 after a clean stop or a command that succeeded, 1 if it cannot start or a command
failed, 2 for invalid settings or arguments.
"""

import os
import signal

IGNORED_SIGNALS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

if __name__ == "__main__":
    # By default they end the process, even with paid requests in progress. There is nothing to
    # reload. Ignore them before the imports, which take half a second; later the event loop logs
    # them.
    for _number in IGNORED_SIGNALS:
        signal.signal(_number, signal.SIG_IGN)
    # gRPC's core writes its own lines to stderr, one for each failed TLS handshake. It reads this
    # when grpc is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import argparse
import asyncio
import ctypes
import gc
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog
import uvloop

from service.descriptors import raise_limit
from service.egress import check_environment
from service.environment import SettingsError, check_serving, load_settings
from service.listen import StartError
from service.logs import configure_logs
from service.refresh_command import refresh_catalogue
from service.results.errors import ResultsConfigError
from service.server import serving
from service.settings import Settings
from service.start_line import log_start
from storage.errors import StorageConfigError, StorageError
from storage.opening import begin_history, migrate
from storage.postgresql.connection import is_postgres
from storage.sqlite import sqlite_path
from storage.transfer import TransferError, import_sqlite

if TYPE_CHECKING:  # imported only where traces are exported
    from service.tracing import Tracing

EXIT_FAILED = 1
EXIT_BAD_SETTINGS = 2
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
KEPT_BYTES = 32 << 20
# How many objects are created between two garbage collections, and how many collections of a
# generation until one of the next older.
COLLECTION_THRESHOLDS = (50_000, 10, 10)

NEEDS_PROVIDER = frozenset({"serve", "store-results", "refresh-catalogue"})  # of the commands
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)

log = structlog.get_logger()


def main(arguments: Sequence[str] = ()) -> int:
    """Run the service or a command, and return the exit code."""
    given = _parser().parse_args(arguments)
    try:
        settings = load_settings()
        if given.command in NEEDS_PROVIDER:
            check_serving(settings)
            check_environment(settings, os.environ)
    except SettingsError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the log format is one of the settings
        return EXIT_BAD_SETTINGS
    configure_logs(settings.log_format, settings.log_level, _trace_fields(settings))
    try:
        match given.command:
            case "migrate":
                bring_up_to_date(settings)
            case "import":
                import_tasks(settings, given.source)
            case "store-results":
                return run_store_results(settings, given.since)
            case "new-epoch":
                begin_history(settings.database_url.get_secret_value())
                _print("streams of all changes start over")
            case "refresh-catalogue":
                succeeded = uvloop.run(refresh_catalogue(settings, _print))
                return 0 if succeeded else EXIT_FAILED
            case _:
                log_start(settings)
                if is_postgres(database_url := settings.database_url.get_secret_value()):
                    # Before the loop handles signals: waiting for another process may take long.
                    migrate(database_url)
                raise_limit()
                _keep_freed_memory()
                uvloop.run(serve(settings, _start_tracing(settings)))
    except (StorageConfigError, ResultsConfigError) as error:
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
    migrating = commands.add_parser("migrate", help="apply the pending migrations of DATABASE_URL")
    migrating.set_defaults(command="migrate", failure="cannot migrate")
    renewing = commands.add_parser(
        "new-epoch",
        help="after DATABASE_URL was restored in place: let streams of changes start over",
    )
    renewing.set_defaults(command="new-epoch", failure="cannot begin a new epoch")
    storing = commands.add_parser(
        "store-results", help="copy the results of tasks that ended without copies to RESULTS_URL"
    )
    storing.set_defaults(command="store-results", failure="cannot store results")
    storing.add_argument(
        "--since",
        type=_unix_time,
        metavar="TIME",
        help="leave out tasks that ended earlier: 2026-11-20 or 2026-11-20T08:00, in UTC unless it"
        " names a zone. By default 14 days ago, as the provider has deleted older results",
    )
    refreshing = commands.add_parser(
        "refresh-catalogue",
        help="read the provider's catalogue of models now, and print what changed (four minutes)",
    )
    refreshing.set_defaults(command="refresh-catalogue", failure="cannot refresh the catalogue")
    importing = commands.add_parser(
        "import", help="copy all tasks of a SQLite file to the PostgreSQL of DATABASE_URL"
    )
    importing.set_defaults(command="import", failure="cannot import")
    importing.add_argument(
        "source", metavar="sqlite:///FILE", help="the file; stop its service first"
    )
    return parser


def bring_up_to_date(settings: Settings) -> None:
    """Apply the pending migrations of DATABASE_URL, and print their names."""
    applied = migrate(settings.database_url.get_secret_value())
    _print(*(f"applied {name}" for name in applied) if applied else ("nothing to apply",))


def import_tasks(settings: Settings, source: str) -> None:
    """Import the tasks of a SQLite file into DATABASE_URL, and print how many.

    Raises:
        StorageError: Some or all tasks were not imported.
    """
    path = sqlite_path(source)
    if path is None:
        raise StorageConfigError("what is imported must look like sqlite:///generation.db")
    result = import_sqlite(path, settings.database_url.get_secret_value())
    _print(f"tasks imported: {result.imported}; imported before: {result.known}")
    for skipped in result.skipped:
        log.error("a task was not imported", task_id=skipped.task_id, reason=skipped.reason)
    if result.skipped:
        raise TransferError(f"tasks not imported: {len(result.skipped)}")


def _unix_time(text: str) -> float:
    """Read a date, or a date and a time."""
    try:
        time = datetime.fromisoformat(text)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        words = "must look like 2026-11-20 or 2026-11-20T08:00"
        raise argparse.ArgumentTypeError(words) from None


def run_store_results(settings: Settings, since: float | None) -> int:
    """Copy results, print the progress, and return the exit code."""
    # The service itself does not need it.
    from service.store_results import store_results  # noqa: PLC0415

    if is_postgres(database_url := settings.database_url.get_secret_value()):
        migrate(database_url)
    try:
        progress = uvloop.run(store_results(settings, since, _print))
    except KeyboardInterrupt:
        _print("interrupted: repeat the command to continue")
        return EXIT_FAILED
    _print(f"done: {progress}")
    return EXIT_FAILED if progress.not_copied else 0


def _print(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)  # noqa: T201 - the output of a command


# Without traces, OpenTelemetry is not loaded: so the imports are in these two functions.


def _trace_fields(settings: Settings) -> Sequence[structlog.types.Processor]:
    """Return what adds traces to log lines."""
    if settings.otel_exporter_otlp_endpoint is None:
        return ()
    from service.tracing import add_trace  # noqa: PLC0415

    return (add_trace,)


def _start_tracing(settings: Settings) -> "Tracing | None":
    if settings.otel_exporter_otlp_endpoint is None:
        return None
    from service.trace_export import start_tracing  # noqa: PLC0415

    return start_tracing(settings.otel_exporter_otlp_endpoint)


async def serve(settings: Settings, tracing: "Tracing | None") -> None:
    """Serve until a signal to stop."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stopped.set)
    for number in IGNORED_SIGNALS:
        loop.add_signal_handler(number, _log_ignored, number)
    async with serving(settings, tracing=tracing):
        _collect_rarely()
        await stopped.wait()
    log.info("stopped")


def _log_ignored(number: signal.Signals) -> None:
    log.info("signal ignored", signal=number.name)


def _keep_freed_memory() -> None:
    """Keep the memory that one chunk of an upload frees for the next one.

    By default glibc may return it to the system each time, and every page is faulted in again,
    0.2 s per GiB. Other C libraries are left at their defaults.
    """
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for threshold in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            mallopt(threshold, KEPT_BYTES)


def _collect_rarely() -> None:
    """Freeze long-lived objects, and raise the thresholds of the garbage collector.

    Nearly all garbage here is freed by its reference count. With Python's defaults, the collector
    would traverse ten thousand open streams, and every module, while a change goes out to them.
    """
    gc.freeze()
    gc.set_threshold(*COLLECTION_THRESHOLDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
