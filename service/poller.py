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
from service.limits import SlidingWindow, Turns
from service.schedule import poll_delay
from service.watch import Hub
from storage.store import StorageUnavailableError, Store
from storage.task import LATE_POLL_SECONDS, Artifact, Failure, Lane, Stage, Task

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
OUTAGE_SILENCES = 3

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

    def __init__(
        self,
        store: Store,
        provider: Provider,
        hub: Hub,
        limits: PollerLimits,
        callback_url: Callable[[str], str] | None = None,
    ) -> None:
        self._callback_url = callback_url
        self._store = store
        self._provider = provider
        self._hub = hub
        self._limits = limits
        self._creates = SlidingWindow(limits.creates_per_10_seconds, CREATES_WINDOW_SECONDS)
        self._status = SlidingWindow(limits.status_per_second, STATUS_WINDOW_SECONDS)
        self._hold = _Hold()
        self._outage = _Outage()
        self._turns = Turns()
        self._sending: set[str] = set()
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
        if saved := await self._store.save(task, cancelled):
            self._hub.publish(saved)

    async def called_back(self, task_id: str, provider_task_id: str) -> bool:
        """Poll a task now, as the provider has called back for it; False if there is no such task.

        `provider_task_id` is what the callback said, or "". It matters only to a task whose create
        had no answer, and is believed only once the provider's record agrees.
        """
        saved = False
        while not saved and (task := self._store.get(task_id)):
            after = _after_callback(task, provider_task_id, time.time())
            if after is None:
                return True
            saved = await self._store.save(task, after) is not None
        self.wake()
        return saved

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
        claimed = await self._claim(lane, now, room)
        if lane is Lane.SUBMIT and claimed:
            self._hold.probe()
        self._window(lane).take(len(claimed), time.time())
        for task in claimed:
            self._hub.publish(task)
            working = asyncio.create_task(self._guarded(work, task))
            self._working.add(working)
            working.add_done_callback(self._finished)

    async def _claim(self, lane: Lane, now: float, room: int) -> list[Task]:
        """Put tasks off, so that they come back if their worker is gone.

        Those to be sent are SUBMITTING from here on, on the disk.
        """
        if lane is Lane.SUBMIT:
            lease_end = now + SUBMIT_LEASE_SECONDS
            return await self._store.claim_in_turns(
                now, room, self._turns.pick, lambda task: task.submitting(now, lease_end)
            )
        lease_end = now + POLL_LEASE_SECONDS
        return await self._store.claim(
            lane, now, room, lambda task: task.scheduled(lease_end, task.setbacks)
        )

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
        self._sending.add(task.id)
        try:
            outcome = await self._send(task)
            self._note(outcome, time.time())
            await self._settle(task, lambda present: self._after_submission(present, outcome))
        finally:
            self._sending.discard(task.id)
            self._hold.probing = False

    async def _send(self, task: Task) -> Submission:
        if task.model in self._limits.disabled_models:
            return Refused("MODEL_UNAVAILABLE", f"{task.model} is disabled here", "")
        callback_url = self._callback_url(task.id) if self._callback_url else None
        return await self._provider.submit(ProviderParams.FromString(task.params), callback_url)

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

    def _after_submission(self, task: Task, outcome: Submission) -> Task | None:
        now = time.time()
        if task.stage is not Stage.SUBMITTING:
            return _adopted(task, outcome, now)
        match outcome:
            case Accepted(provider_task_id):
                called_back = bool(task.hinted_id)
                due_time = now if called_back else now + self._delay(task, 0, now)
                return task.queued(provider_task_id, now, due_time)
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
        if task.unknown_time is None and (wait or task.hinted_id):
            return task.unknown(now, now if task.hinted_id else now + wait)
        sent = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(task.submit_time))
        return task.failed(
            Failure(
                "SUBMISSION_UNKNOWN",
                f"the request of {sent} may or may not have reached the provider, and was not sent"
                f" again: look for a task of {task.model} of that time in the provider's log of the"
                " account",
            ),
            now,
        )

    # --- asking ---

    async def _poll(self, task: Task) -> None:
        if task.stage is Stage.SUBMITTING:
            await self._look_for_orphan(task)
            return
        outcome = await self._provider.poll(task.model, task.provider_task_id)
        await self._see(outcome)
        await self._settle(task, lambda present: self._after_poll(present, outcome))

    async def _look_for_orphan(self, task: Task) -> None:
        """A paid request without an answer: its sender is gone, it waits for a sign, or has one."""
        if task.id in self._sending:
            return  # its sender was only paused; the claim has put the task off
        if not task.hinted_id:
            log.error("a paid request has no answer")
            await self._settle(task, lambda present: self._without_sign(present, task))
            return
        params = ProviderParams.FromString(task.params)
        agrees = await self._provider.recognises(params, task.hinted_id)
        log.info("a callback named a task", provider_task_id=task.hinted_id, agrees=agrees)
        await self._settle(task, lambda present: self._after_recognition(present, task, agrees))

    def _without_sign(self, task: Task, before: Task) -> Task | None:
        return self._without_answer(task, time.time()) if task == before else None

    def _after_recognition(self, task: Task, before: Task, agrees: bool | None) -> Task | None:
        """Bring an orphan home if the provider's record agrees with its request."""
        now = time.time()
        if task != before:
            return None
        if agrees is None:
            setbacks = task.setbacks + 1
            return task.scheduled(now + self._delay(task, setbacks, now), setbacks)
        if task.ended:
            if agrees:
                return task.adopted_late(task.hinted_id, now, now)
            return task.unhinted(None)
        if agrees:
            return task.queued(task.hinted_id, now, now)
        return task.unhinted(
            max(now, (task.unknown_time or now) + self._limits.unknown_wait_seconds)
        )

    async def _see(self, outcome: Poll) -> None:
        """Learn from a poll whether an outage is over; then ask for all that was put off."""
        silent = isinstance(outcome, Weather) and not outcome.answered
        if self._outage.is_over(silent=silent):
            log.info("the provider answers again")
            await self._store.hasten(time.time())
            self.wake()

    def _after_poll(self, task: Task, outcome: Poll) -> Task | None:
        if task.stage not in {Stage.QUEUED, Stage.GENERATING}:
            return None  # a poll that ran beside this one has ended it
        now = time.time()
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
        if not task.provider_task_id:
            await self._look_for_orphan(task)
            return
        outcome = await self._provider.poll(task.model, task.provider_task_id)
        await self._settle(task, lambda present: self._after_late_poll(present, outcome))

    def _after_late_poll(self, task: Task, outcome: Poll) -> Task | None:
        now = time.time()
        if not task.ended or task.artifacts:
            return None
        match outcome:
            case Succeeded() if outcome.urls:
                log.info("a late delivery", artifacts=len(outcome.urls))
                return task.delivered_late(
                    _artifacts(outcome), outcome.result_json, outcome.credits_consumed, now
                )
            case Failed():
                return task.undeliverable()
            case _:
                return task.still_undelivered(now + self._late_delay(task, now))

    def _late_delay(self, task: Task, now: float) -> float:
        """Hourly; but an adopted orphan may be under way just now, like any other task."""
        assert task.failure is not None
        orphan = task.failure.reason == "SUBMISSION_UNKNOWN"
        if orphan and self._age(task, now) < self._limits.task_max_age_seconds:
            return self._delay(task, 0, now)
        return LATE_POLL_SECONDS

    def _delay(self, task: Task, setbacks: int, now: float) -> float:
        usual = self._provider.usual_seconds(task.model)
        return poll_delay(self._limits.poll_interval_seconds, self._age(task, now), usual, setbacks)

    def _age(self, task: Task, now: float) -> float:
        return now - (now if task.accept_time is None else task.accept_time)

    # --- saving ---

    async def _settle(self, task: Task, decide: Callable[[Task], Task | None]) -> None:
        """Store what is decided of a task, and show it.

        The decision is made anew if the task has moved meanwhile; None is to leave it. While the
        database is away it waits, as what was paid for must not be forgotten.
        """
        present: Task | None = task
        while present and (after := decide(present)):
            try:
                if saved := await self._store.save(present, after):
                    self._show(present, saved)
                    return
                present = self._store.get(task.id)
            except StorageUnavailableError as error:
                log.warning("storage unavailable, a snapshot waits", error=str(error))
                await asyncio.sleep(STORAGE_RETRY_SECONDS)
        log.info("nothing left to decide")

    def _show(self, before: Task, after: Task) -> None:
        if after.revision > before.revision:
            self._hub.publish(after)
        if after.ended or (after.due_time or math.inf) < self._next_time:
            self.wake()
        if after.ended and not before.ended:
            reason = after.failure and after.failure.reason
            log.info("task ended", status=after.status, reason=reason)


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


class _Outage:
    """Knows an outage by several silences in a row, and its end by the first answer."""

    def __init__(self) -> None:
        self._silences = 0

    def is_over(self, *, silent: bool) -> bool:
        was_outage = self._silences >= OUTAGE_SILENCES
        self._silences = self._silences + 1 if silent else 0
        return was_outage and not silent


def _after_callback(task: Task, provider_task_id: str, now: float) -> Task | None:
    """Make a task due, as something happened at the provider; None if that changes nothing."""
    if task.provider_task_id:
        return None if task.lane is None else task.scheduled(now, task.setbacks)
    orphaned = task.stage is Stage.SUBMITTING or (
        task.failure is not None and task.failure.reason == "SUBMISSION_UNKNOWN"
    )
    if not orphaned or not provider_task_id or task.hinted_id:
        return None
    answer_may_come = task.stage is Stage.SUBMITTING and task.unknown_time is None
    return task.hinted(provider_task_id, task.due_time if answer_may_come else now)


def _adopted(task: Task, outcome: Submission, now: float) -> Task | None:
    """Keep an answer that came after the task was given up: its result is paid for."""
    match outcome:
        case Accepted(provider_task_id) if task.ended and not task.provider_task_id:
            log.warning("a late answer is adopted", provider_task_id=provider_task_id)
            return task.adopted_late(provider_task_id, now, now)
        case _:
            return None


def _artifacts(outcome: Succeeded) -> tuple[Artifact, ...]:
    return tuple(map(Artifact, outcome.urls, outcome.mime_types))


def _plausible(complete_time: float | None, task: Task, now: float) -> float:
    """Take the provider's word for when a task ended, if its clock and ours can both be right."""
    if complete_time is None or not task.create_time <= complete_time <= now:
        return now
    return complete_time
