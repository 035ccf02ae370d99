"""The poller: one loop that sends tasks, asks for them, and is the recovery code as well.

The database is the queue. The loop claims what is due, works on it within bounds, and waits for the
first of: woken, the next due time, stop. It keeps nothing of a task in memory, so that a restart
goes on with the very same loop. It is the only writer of a task after its creation.

    claim (due) -> provider -> outcome -> named move -> save (compare-and-set) -> publish
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from generated.generation.v1.generation_pb2 import ProviderParams
from providers.base import (
    Accepted,
    Failed,
    Poll,
    Postponed,
    Progress,
    Provider,
    Refused,
    Submission,
    Succeeded,
    Unknown,
    Weather,
)
from service.limits import SlidingWindow
from service.schedule import poll_delay
from service.watch import Hub
from storage.store import StorageUnavailableError, Store
from storage.task import Artifact, Failure, Lane, Stage, Task

CREATES_WINDOW_SECONDS = 10.3  # the account's 10 s, and what the way to the provider may vary
STATUS_WINDOW_SECONDS = 1.1  # likewise of 1 s
CONCURRENT_MAX = 256
CLAIM_PAUSE_SECONDS = 0.01  # tasks that fall due together are claimed together
IDLE_SECONDS = 5.0
SUBMIT_LEASE_SECONDS = 120.0  # longer than any paid request takes
POLL_LEASE_SECONDS = 60.0  # longer than any poll takes
STORAGE_RETRY_SECONDS = 1.0
HOLD_SECONDS = 2.0  # after the provider would not take a task; doubles each time
HOLD_MAX_SECONDS = 30.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PollerLimits:
    """What the account and the operator allow; 0 is no limit. Times in seconds."""

    creates_per_10_seconds: int
    status_per_second: int
    running_max: int
    disabled_models: frozenset[str]
    poll_interval_seconds: float
    task_max_age_seconds: float
    unknown_wait_seconds: float


class Poller:
    """Brings every stored task to its end."""

    def __init__(self, store: Store, provider: Provider, hub: Hub, limits: PollerLimits) -> None:
        self._store = store
        self._provider = provider
        self._hub = hub
        self._limits = limits
        self._creates = SlidingWindow(limits.creates_per_10_seconds, CREATES_WINDOW_SECONDS)
        self._status = SlidingWindow(limits.status_per_second, STATUS_WINDOW_SECONDS)
        self._hold = _Hold()
        self._working: set[asyncio.Task[None]] = set()
        self._next_time = 0.0
        self._woken = asyncio.Event()
        self._stopping = False

    # --- the loop ---

    async def run(self) -> None:
        """Work until `stop` is called."""
        await self._resume()
        while not self._stopping:
            self._woken.clear()
            self._next_time = time.time() + STORAGE_RETRY_SECONDS
            try:
                self._next_time = await self.run_once()
            except StorageUnavailableError as error:
                log.warning("storage unavailable, the poller waits", error=str(error))
            except Exception:
                log.exception("the poller stumbled, and goes on")
            await self._wait_until(self._next_time)

    async def run_once(self) -> float:
        """Start work on all that is due and allowed; return when to look again, in unix seconds."""
        next_time = time.time() + IDLE_SECONDS
        for lane, work in self._lanes():
            next_time = min(next_time, await self._serve(lane, work))
        return next_time

    def wake(self) -> None:
        """Look at once: something fell due."""
        self._woken.set()

    async def stop(self, grace_seconds: float) -> None:
        """Start nothing more, finish what is under way within the grace, and give up the rest."""
        self._stopping = True
        self.wake()
        if self._working:
            await asyncio.wait(self._working, timeout=grace_seconds)
        for work in self._working:
            work.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)

    async def cancel(self, task: Task) -> None:
        """Cancel a task that is ACCEPTED, unless it has moved meanwhile.

        It is cancelled or sent, never both.
        """
        cancelled = task.failed(Failure("CANCELLED", "cancelled by its caller"), time.time())
        if await self._store.save(task, cancelled):
            self._hub.publish(cancelled)

    async def _resume(self) -> None:
        """Take up what an earlier process left, and the account's limit as it left it."""
        now = time.time()
        while not self._stopping:
            try:
                await self._store.release(now)
                for sent in await self._store.recent_submit_times(now - CREATES_WINDOW_SECONDS):
                    self._creates.take(1, min(sent, now))
            except StorageUnavailableError as error:
                log.warning("storage unavailable, the poller waits", error=str(error))
                await self._wait_until(time.time() + STORAGE_RETRY_SECONDS)
            else:
                return

    async def _wait_until(self, next_time: float) -> None:
        seconds = max(next_time - time.time(), CLAIM_PAUSE_SECONDS)
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            pass

    # --- lanes ---

    def _lanes(self) -> tuple[tuple[Lane, Callable[[Task], Awaitable[None]]], ...]:
        """First what is new, then what is under way; late deliveries come last."""
        return (
            (Lane.SUBMIT, self._submit),
            (Lane.POLL, self._poll),
            (Lane.LATE, self._poll_late),
        )

    async def _serve(self, lane: Lane, work: Callable[[Task], Awaitable[None]]) -> float:
        """Start work on the due tasks of a lane; return when to look at it again."""
        now = time.time()
        due_time = self._store.next_due_time(lane)
        if due_time is not None and due_time <= now and (room := self._room(lane, now)) > 0:
            await self._start(lane, work, room, now)
            due_time = self._store.next_due_time(lane)
        return math.inf if due_time is None else max(due_time, self._opening_time(lane, now))

    async def _start(
        self, lane: Lane, work: Callable[[Task], Awaitable[None]], room: int, now: float
    ) -> None:
        claimed = await self._store.claim(lane, now, room, lambda task: _claimed(task, lane, now))
        if lane is Lane.SUBMIT and claimed:
            self._hold.probe()
        self._window(lane).take(len(claimed), time.time())
        for task in claimed:
            self._hub.publish(task)
            working = asyncio.create_task(self._guarded(work, task))
            self._working.add(working)
            working.add_done_callback(self._finished)

    def _room(self, lane: Lane, now: float) -> int:
        """Return how many tasks of a lane may be started now."""
        room = min(self._window(lane).free(now), CONCURRENT_MAX - len(self._working))
        if lane is not Lane.SUBMIT:
            return int(room)
        if self._limits.running_max:
            room = min(room, self._limits.running_max - self._store.count(Lane.POLL))
        return int(min(room, self._hold.room(now)))

    def _opening_time(self, lane: Lane, now: float) -> float:
        """Return when a lane may open.

        Never by itself, if the end of some work will wake the loop.
        """
        if len(self._working) >= CONCURRENT_MAX:
            return math.inf
        opening = self._window(lane).next_free_time(now)
        if lane is not Lane.SUBMIT:
            return opening
        running_max = self._limits.running_max
        if running_max and self._store.count(Lane.POLL) >= running_max:
            return math.inf
        return max(opening, self._hold.opening_time())

    def _window(self, lane: Lane) -> SlidingWindow:
        return self._creates if lane is Lane.SUBMIT else self._status

    async def _guarded(self, work: Callable[[Task], Awaitable[None]], task: Task) -> None:
        """Keep one broken task from the others; its claim runs out, and it comes back."""
        with structlog.contextvars.bound_contextvars(task_id=task.id, model=task.model):
            try:
                await work(task)
            except Exception:
                log.exception("work on a task broke off")

    def _finished(self, working: asyncio.Task[None]) -> None:
        if len(self._working) >= CONCURRENT_MAX:
            self.wake()
        self._working.discard(working)

    # --- sending ---

    async def _submit(self, task: Task) -> None:
        """Send the paid request: the task is SUBMITTING by now, on the disk."""
        try:
            outcome = await self._send(task)
        finally:
            self._hold.probing = False
        now = time.time()
        self._note(outcome, now)
        await self._save(task, self._after_submission(task, outcome, now))

    async def _send(self, task: Task) -> Submission:
        if task.model in self._limits.disabled_models:
            return Refused("MODEL_UNAVAILABLE", f"{task.model} is disabled here", "")
        return await self._provider.submit(ProviderParams.FromString(task.params), None)

    def _note(self, outcome: Submission, now: float) -> None:
        """Learn from an outcome whether the provider takes tasks at all."""
        match outcome:
            case Postponed(detail):
                self._hold.extend(now)
                log.warning("the provider takes no tasks now", detail=detail)
            case Unknown(detail):
                log.error("the answer to a paid request is lost", detail=detail)
            case Refused(reason, message, code):
                self._hold.clear()
                log.warning("task refused", reason=reason, message=message, provider_code=code)
            case Accepted(provider_task_id):
                self._hold.clear()
                log.info("task accepted", provider_task_id=provider_task_id)

    def _after_submission(self, task: Task, outcome: Submission, now: float) -> Task:
        match outcome:
            case Accepted(provider_task_id):
                return task.queued(provider_task_id, now, now + self._delay(task, 0, now))
            case Refused(reason, message, code):
                return task.failed(Failure(reason, message, code), now)
            case Postponed():
                return task.postponed(now, max(self._hold.until, now))
            case Unknown():
                return self._without_answer(task, now)

    def _without_answer(self, task: Task, now: float) -> Task:
        """The request may have arrived: wait for a sign of it, if one can come.

        Never send it again.
        """
        wait = self._limits.unknown_wait_seconds
        if task.unknown_time is None and wait:
            return task.unknown(now, now + wait)
        sent = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(task.submit_time))
        return task.failed(
            Failure(
                "SUBMISSION_UNKNOWN",
                f"the request of {sent} may or may not have reached the provider, and was not sent"
                f" again: look for a {task.model} task of that time in the provider's log of the"
                " account",
            ),
            now,
        )

    # --- asking ---

    async def _poll(self, task: Task) -> None:
        if task.stage is Stage.SUBMITTING:  # its sender is gone, or its wait is over
            log.error("a paid request has no answer")
            await self._save(task, self._without_answer(task, time.time()))
            return
        outcome = await self._provider.poll(task.model, task.provider_task_id)
        await self._save(task, self._after_poll(task, outcome, time.time()))

    def _after_poll(self, task: Task, outcome: Poll, now: float) -> Task:
        match outcome:
            case Progress(generating, percent):
                return self._again(task.progressed(generating, percent, now), 0, now, answered=True)
            case Weather(detail, answered):
                log.info("no verdict from a poll", detail=detail, setbacks=task.setbacks)
                return self._again(task, task.setbacks + 1, now, answered=answered)
            case Succeeded() if outcome.urls:
                return task.succeeded(
                    _artifacts(outcome),
                    outcome.result_json,
                    outcome.credits_consumed,
                    now,
                    _plausible(outcome.complete_time, task, now),
                )
            case Succeeded():
                return task.failed(
                    Failure("RESULT_MISSING", "the provider says success and names no result"),
                    now,
                    credits_consumed=outcome.credits_consumed,
                    complete_time=_plausible(outcome.complete_time, task, now),
                    late_delivery=True,
                )
            case Failed():
                return task.failed(
                    Failure("GENERATION_FAILED", outcome.message, outcome.provider_code),
                    now,
                    credits_consumed=outcome.credits_consumed,
                    complete_time=_plausible(outcome.complete_time, task, now),
                )

    def _again(self, task: Task, setbacks: int, now: float, *, answered: bool) -> Task:
        """Ask again later, unless the provider answered that a task too old is still under way."""
        age = self._age(task, now)
        if answered and age > self._limits.task_max_age_seconds:
            words = f"no end within {self._limits.task_max_age_seconds:g} s of its acceptance"
            return task.failed(Failure("TASK_TIMEOUT", words), now, late_delivery=True)
        return task.scheduled(now + self._delay(task, setbacks, now), setbacks)

    async def _poll_late(self, task: Task) -> None:
        """Ask for a result that is paid for, though the task has ended without it."""
        outcome = await self._provider.poll(task.model, task.provider_task_id)
        now = time.time()
        if isinstance(outcome, Succeeded) and outcome.urls:
            log.info("a late delivery", artifacts=len(outcome.urls))
            late = task.delivered_late(
                _artifacts(outcome), outcome.result_json, outcome.credits_consumed, now
            )
            await self._save(task, late)
        else:
            await self._save(task, task.still_undelivered(now))

    def _delay(self, task: Task, setbacks: int, now: float) -> float:
        usual = self._provider.usual_seconds(task.model)
        return poll_delay(self._limits.poll_interval_seconds, self._age(task, now), usual, setbacks)

    def _age(self, task: Task, now: float) -> float:
        return now - (now if task.accept_time is None else task.accept_time)

    # --- saving ---

    async def _save(self, before: Task, after: Task) -> None:
        """Store a snapshot and show it.

        Wait for the database, as what was paid for must not be forgotten.
        """
        while True:
            try:
                saved = await self._store.save(before, after)
                break
            except StorageUnavailableError as error:
                log.warning("storage unavailable, a snapshot waits", error=str(error))
                await asyncio.sleep(STORAGE_RETRY_SECONDS)
        if not saved:
            log.warning("a snapshot came too late", revision=after.revision)
            return
        if after.revision > before.revision:
            self._hub.publish(after)
        if after.ended or (after.due_time or math.inf) < self._next_time:
            self.wake()
        if after.ended and not before.ended:
            log.info(
                "task ended", status=after.status, reason=after.failure and after.failure.reason
            )


class _Hold:
    """Keeps tasks back while the provider takes none; then lets one try before the others."""

    def __init__(self) -> None:
        self.until = 0.0
        self.probing = False
        self._times = 0

    def room(self, now: float) -> float:
        if not self._times:
            return math.inf
        return 0 if self.probing or now < self.until else 1

    def opening_time(self) -> float:
        return math.inf if self.probing else self.until

    def probe(self) -> None:
        self.probing = self._times > 0

    def extend(self, now: float) -> None:
        if now < self.until:
            return  # the answer to a request that was sent before the hold
        self.until = now + min(HOLD_SECONDS * 2.0**self._times, HOLD_MAX_SECONDS)
        self._times += 1

    def clear(self) -> None:
        self.until = 0.0
        self._times = 0


def _claimed(task: Task, lane: Lane, now: float) -> Task:
    """Put a task off, so that it comes back if its worker is gone.

    One to be sent is SUBMITTING from here on.
    """
    if lane is Lane.SUBMIT:
        return task.submitting(now, now + SUBMIT_LEASE_SECONDS)
    return task.scheduled(now + POLL_LEASE_SECONDS, task.setbacks)


def _artifacts(outcome: Succeeded) -> tuple[Artifact, ...]:
    return tuple(map(Artifact, outcome.urls, outcome.mime_types))


def _plausible(complete_time: float | None, task: Task, now: float) -> float:
    """Take the provider's word for when a task ended, if its clock and ours can both be right."""
    if complete_time is None or not task.create_time <= complete_time <= now:
        return now
    return complete_time
