"""Callbacks: the end of each task with a callback URL is POSTed there, signed and retried.

Kie documents a POST with 15 s to answer, up to three retries after a failure, and possibly more
than one delivery. It does not document which answers acknowledge a callback, whether redirects are
followed, or the waits between retries. This simulator assumes: any 2xx, no, and short waits.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time
from collections import Counter
from collections.abc import Callable

import aiohttp

from providers.kie.simulator.exact import Exact
from providers.kie.simulator.faults import CALLING, FaultBook
from providers.kie.simulator.records import callback_of
from providers.kie.simulator.settings import SimulatorSettings
from providers.kie.simulator.tasks import Task

logger = logging.getLogger(__name__)

TIMER_MARGIN_SECONDS = 0.005
"""A timer may fire slightly early; a task must have ended before its callback says so."""

FORGERS_KEY = "a key that the receiver does not have"


def signature(task_id: str, timestamp: str, key: str) -> str:
    """Return base64(HMAC-SHA256(taskId + "." + timestamp, key)); the body is not signed."""
    signed = f"{task_id}.{timestamp}".encode()
    return base64.b64encode(hmac.new(key.encode(), signed, hashlib.sha256).digest()).decode()


class Callbacks:
    """Sends callbacks when they are due, a bounded number at a time."""

    def __init__(self, settings: Callable[[], SimulatorSettings], faults: FaultBook) -> None:
        self._settings = settings
        self._faults = faults
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._deliveries: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(settings().callback_concurrency)
        self._session: aiohttp.ClientSession | None = None
        self.counts: Counter[str] = Counter()
        self._acknowledged: dict[str, None] = {}

    def is_acknowledged(self, task_id: str) -> bool:
        """Return whether a callback of the task was acknowledged."""
        return task_id in self._acknowledged

    def schedule(self, task: Task, now_ms: int) -> None:
        """Schedule the callback of `task` for its end, replacing any earlier schedule."""
        self.forget(task.id)
        if task.callback_url is None or task.ends_ms is None:
            return
        wait_seconds = max(0, task.ends_ms - now_ms) / 1000 + TIMER_MARGIN_SECONDS
        loop = asyncio.get_running_loop()
        self._timers[task.id] = loop.call_later(wait_seconds, self._send, task)

    def forget(self, task_id: str) -> None:
        """Cancel the scheduled callback of a task."""
        if timer := self._timers.pop(task_id, None):
            timer.cancel()

    def forget_all(self) -> None:
        """Cancel all scheduled callbacks and those in progress."""
        for task_id in list(self._timers):
            self.forget(task_id)
        for delivery in self._deliveries:
            delivery.cancel()

    @property
    def waiting(self) -> int:
        """How many callbacks are scheduled or in progress."""
        return len(self._timers) + len(self._deliveries)

    async def idle(self) -> None:
        """Wait until no callback is in progress; scheduled ones do not count."""
        while self._deliveries:
            await asyncio.wait(self._deliveries)

    async def stop(self) -> None:
        """Stop sending, at once."""
        self.forget_all()
        await asyncio.gather(*self._deliveries, return_exceptions=True)
        if self._session:
            await self._session.close()

    def _send(self, task: Task) -> None:
        self._timers.pop(task.id, None)
        delivery = asyncio.get_running_loop().create_task(self._deliver(task))
        self._deliveries.add(delivery)
        delivery.add_done_callback(self._deliveries.discard)

    async def _deliver(self, task: Task) -> None:
        fault = self._faults.take("callback", CALLING, task.kind)
        kind = fault.kind if fault else ""
        if kind == "drop":
            self.counts["dropped"] += 1
            return
        if fault and kind == "delay":
            await asyncio.sleep(fault.seconds)
        exact = fault.exact if fault and kind == "exact" else None
        if exact:
            await asyncio.sleep(exact.delay_seconds)
        copies = 1 + self._settings().callback_duplicates + (kind == "duplicate")
        for _ in range(copies):
            await self._deliver_copy(task, exact, forged=kind == "wrong_signature")

    async def _deliver_copy(self, task: Task, exact: Exact | None, *, forged: bool) -> None:
        for wait_seconds in (0.0, *self._settings().callback_waits):
            await asyncio.sleep(wait_seconds)
            headers = self._headers(task.id, forged=forged)
            body = json.dumps(callback_of(task)).encode()
            if exact:
                headers, body = exact.headers_over(headers), exact.content(taskId=task.id)
            async with self._slots:
                acknowledged = await self._post(task, headers, body)
            if acknowledged:
                self._note_acknowledged(task.id)
                return
        self.counts["failed"] += 1
        logger.warning("simulator: callback of task %s given up", task.id)

    def _note_acknowledged(self, task_id: str) -> None:
        self.counts["acknowledged"] += 1
        self._acknowledged[task_id] = None
        if len(self._acknowledged) > self._settings().tasks_max:
            del self._acknowledged[next(iter(self._acknowledged))]

    async def _post(self, task: Task, headers: dict[str, str], body: bytes) -> bool:
        assert task.callback_url is not None
        self.counts["sent"] += 1
        timeout = aiohttp.ClientTimeout(total=self._settings().callback_timeout_seconds)
        try:
            async with self._opened_session().post(
                task.callback_url,
                data=body,
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
            ) as answer:
                return 200 <= answer.status < 300  # noqa: PLR2004 - the successes of HTTP
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            logger.info("simulator: callback of task %s failed: %s", task.id, type(error).__name__)
            return False

    def _headers(self, task_id: str, *, forged: bool) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        key = FORGERS_KEY if forged else self._settings().webhook_key
        if key is not None:
            timestamp = str(int(time.time()))
            headers["X-Webhook-Timestamp"] = timestamp
            headers["X-Webhook-Signature"] = signature(task_id, timestamp, key)
        return headers

    def _opened_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            # A pooled connection may be dead by the next callback, which would look like a failure.
            connector = aiohttp.TCPConnector(force_close=True, limit=0)
            jar = aiohttp.DummyCookieJar()
            self._session = aiohttp.ClientSession(connector=connector, cookie_jar=jar)
        return self._session
