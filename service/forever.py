"""The loop of everything that runs in the background."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from service.outage_log import RETRY_SECONDS, OutageLog
from storage.errors import StorageUnavailableError

log = structlog.get_logger()


async def forever(
    run_once: Callable[[], Awaitable[object]],
    name: str,
    pause_seconds: float,
    outage_log: OutageLog,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Run, pause and run again, until cancelled or stopped, even if a run fails.

    Args:
        run_once: One run.
        name: What the log calls it.
        pause_seconds: Between two runs; longer after a run that failed.
        outage_log: Logs that the database is unavailable.
        stopped: Checked before each run.
    """
    while not stopped():
        pause = pause_seconds
        try:
            await run_once()
        except StorageUnavailableError as error:
            outage_log.failed(f"storage unavailable, the {name} waits", error)
            pause = max(pause, RETRY_SECONDS)
        except Exception:
            log.exception("iteration failed", loop=name)
            pause = max(pause, RETRY_SECONDS)
        await asyncio.sleep(pause)
