"""Measure how late the event loop runs its timers."""

import asyncio
import time

from service.metrics import Metrics

INTERVAL_SECONDS = 0.25


async def measure_loop_lag(metrics: Metrics) -> None:
    """Record the event loop's lag several times a second, until cancelled."""
    while True:
        planned = time.monotonic() + INTERVAL_SECONDS
        await asyncio.sleep(INTERVAL_SECONDS)
        metrics.loop_lagged(max(0.0, time.monotonic() - planned))
