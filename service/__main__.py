"""`python -m service`: serve until SIGTERM or SIGINT.

Exit codes: 0 after a clean stop, 2 for bad settings, 1 when it cannot start.
"""

import asyncio
import signal
import sys

import structlog
import uvloop

from service.logs import configure_logs
from service.server import StartError, running
from service.settings import Settings, SettingsError, load_settings
from storage.errors import StorageConfigError, StorageError

EXIT_FAILED = 1
EXIT_BAD_SETTINGS = 2

log = structlog.get_logger()


def main() -> int:
    """Run the service; return the exit code."""
    try:
        settings = load_settings()
    except SettingsError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the log's form is one of the settings
        return EXIT_BAD_SETTINGS
    configure_logs(settings.log_format, settings.log_level)
    try:
        uvloop.run(serve(settings))
    except StorageConfigError as error:
        log.critical("cannot start", error=str(error))
        return EXIT_BAD_SETTINGS
    except (StartError, StorageError) as error:
        log.critical("cannot start", error=str(error))
        return EXIT_FAILED
    return 0


async def serve(settings: Settings) -> None:
    """Serve until the process is told to stop."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with running(settings):
        await stopped.wait()
    log.info("stopped")


if __name__ == "__main__":
    sys.exit(main())
