"""The poller: one loop that sends tasks, asks for them, and is the recovery code as well.

The database is the queue. The loop claims what is due, works on it within bounds, and waits for the
first of: woken, the next due time, stop. It keeps nothing of a task in memory, so that a restart
goes on with the very same loop. It is the only writer of a task after its creation.

    claim (due) -> provider -> outcome -> verdict -> save (compare-and-set) -> publish
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from generated.generation.v1.generation_pb2 import ProviderParams
from providers.base import (
    Accepted,
    Poll,
    Postponed,
    Provider,
    Refused,
    Submission,
    Unknown,
    Weather,
)
from service.limits import SlidingWindow, Turns
from service.verdicts import Verdicts, after_callback
from service.watch import Hub
from storage.store import StorageUnavailableError, Store, Waiting
from storage.task import Failure, Lane, Stage, Task

CREATES_WINDOW_SECONDS = 10.3  # the account's 10 s, and what the way to the provider may vary
STATUS_WINDOW_SECONDS = 1.1  # likewise of 1 s
CONCURRENT_MAX = {Lane.SUBMIT: 128, Lane.POLL: 256, Lane.LATE: 16}
CLAIM_PAUSE_SECONDS = 0.01  # tasks that fall due together are claimed together
IDLE_SECONDS = 5.0
SUBMIT_LEASE_SECONDS = 120.0  # longer than any paid request takes
POLL_LEASE_SECONDS = 60.0  # longer than any poll takes
STORAGE_RETRY_SECONDS = 1.0
HOLD_SECONDS = 2.0  # after the provider would not take a task; doubles each time
HOLD_MAX_SECONDS = 30.0
OUTAGE_SILENCES = 3
PROBE_DEPTH = 1_000  # how far behind a task that is always put back another one is found

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class AccountLimits:
    """What the account at the provider allows; 0 is no limit."""

    creates_per_10_seconds: int
    status_per_second: int
    running_max: int


class Poller:
    """Brings every stored task to its end."""

    def __init__(
        self,
        *,
        store: Store,
        provider: Provider,
        hub: Hub,
        verdicts: Verdicts,
        limits: AccountLimits,
        disabled_models: frozenset[str] = frozenset(),
        callback_url: Callable[[str], str] | None = None,
    ) -> None:
        self._store = store
        self._provider = provider
        self._hub = hub
        self._verdicts = verdicts
        self._disabled_models = disabled_models
        self._callback_url = callback_url
        self._running_max = limits.running_max or math.inf
        self._creates = SlidingWindow(limits.creates_per_10_seconds, CREATES_WINDOW_SECONDS)
        self._status = SlidingWindow(limits.status_per_second, STATUS_WINDOW_SECONDS)
        self._turns = Turns()
        self._hold = _Hold()
        self._outage = _Outage()
        self._sending: set[str] = set()
        self._working: set[asyncio.Task[None]] = set()
        self._busy: Counter[Lane] = Counter()
        self._next_time = 0.0
        self._woken = asyncio.Event()
        self._stopping = False

    # --- the loop ---

    async def run(self) -> None:
        """Work until `stop` is called."""
        resumed = False
        while not self._stopping:
            self._woken.clear()
            self._next_time = time.time() + STORAGE_RETRY_SECONDS
            try:
                if not resumed:
                    await self._resume(time.time())
                    resumed = True
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

    def stop(self) -> None:
        """Start nothing more: `run` ends once what it has claimed is under way."""
        self._stopping = True
        self.wake()

    async def finish(self, grace_seconds: float) -> None:
        """Finish what is under way within the grace, and give up the rest; after `run` has ended.

        Before, a claim may still be on its way to being sent.
        """
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

        `provider_task_id` is what the callback said, or "".
        """
        while task := self._store.get(task_id):
            after = after_callback(task, provider_task_id, time.time())
            if after is None:
                return True
            if await self._store.save(task, after):
                self.wake()
                return True
        return False

    async def watched(self, task_id: str) -> None:
        """Leave a task to its callback no longer, as somebody watches it."""
        if self._callback_url is None:
            return
        try:
            while task := self._store.get(task_id):
                after = self._verdicts.after_watch(task, time.time())
                if after is None:
                    return
                if await self._store.save(task, after):
                    self.wake()
                    return
        except StorageUnavailableError:
            return  # the stream goes on, and its next heartbeat says it again

    async def _resume(self, now: float) -> None:
        """Take up what an earlier process left, and the account's limits as it left them."""
        await self._store.release(now)
        for sent in await self._store.recent_submit_times(now - CREATES_WINDOW_SECONDS):
            self._creates.take(1, min(sent, now))
        self._status.fill(now)  # nobody wrote down when it polled last

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
            for task in await self._claim(lane, now, room):
                self._start(lane, work, task)
            due_time = self._store.next_due_time(lane)
        return math.inf if due_time is None else max(due_time, self._opening_time(lane, now))

    async def _claim(self, lane: Lane, now: float, room: int) -> list[Task]:
        """Put tasks off, so that they come back if their worker is gone.

        Those to be sent are SUBMITTING from here on, on the disk.
        """
        if lane is Lane.SUBMIT:
            lease_end = now + SUBMIT_LEASE_SECONDS
            claimed = await self._store.claim_in_turns(
                now,
                PROBE_DEPTH if self._hold.half_open else room,
                lambda waiting: self._next_in_turn(waiting, room),
                lambda task: task.submitting(now, lease_end),
            )
            self._hold.note_sent(len(claimed))
        else:
            lease_end = now + POLL_LEASE_SECONDS
            claimed = await self._store.claim(
                lane, now, room, lambda task: task.scheduled(lease_end, task.setbacks)
            )
        self._window(lane).take(len(claimed), time.time())
        return claimed

    def _next_in_turn(self, waiting: Sequence[Waiting], room: int) -> list[str]:
        if waiting and self._hold.half_open:
            return self._turns.pick_probe(waiting)
        return self._turns.pick(waiting, room)

    def _start(self, lane: Lane, work: Callable[[Task], Awaitable[None]], task: Task) -> None:
        self._hub.publish(task)
        self._busy[lane] += 1
        working = asyncio.create_task(self._guarded(lane, work, task))
        self._working.add(working)
        working.add_done_callback(self._working.discard)

    async def _guarded(
        self, lane: Lane, work: Callable[[Task], Awaitable[None]], task: Task
    ) -> None:
        """Keep one broken task from the others; its claim runs out, and it comes back."""
        with structlog.contextvars.bound_contextvars(task_id=task.id, model=task.model):
            try:
                await work(task)
            except Exception:
                log.exception("work on a task broke off")
            finally:
                if self._busy[lane] == CONCURRENT_MAX[lane]:
                    self.wake()
                self._busy[lane] -= 1

    def _room(self, lane: Lane, now: float) -> int:
        """Return how many tasks of a lane may be started now."""
        room = min(self._window(lane).free(now), CONCURRENT_MAX[lane] - self._busy[lane])
        if lane is Lane.SUBMIT:
            room = min(room, self._hold.room(now), self._running_max - self._running())
        return int(room)

    def _opening_time(self, lane: Lane, now: float) -> float:
        """Return when a lane may open by itself; never, if the end of some work will wake us."""
        if self._busy[lane] >= CONCURRENT_MAX[lane]:
            return math.inf
        opening = self._window(lane).next_free_time(now)
        if lane is not Lane.SUBMIT:
            return opening
        if self._running() >= self._running_max:
            return math.inf
        return max(opening, self._hold.opening_time())

    def _running(self) -> int:
        return 0 if self._running_max == math.inf else self._store.count(Lane.POLL)

    def _window(self, lane: Lane) -> SlidingWindow:
        return self._creates if lane is Lane.SUBMIT else self._status

    # --- sending ---

    async def _submit(self, task: Task) -> None:
        """Send the paid request: the task is SUBMITTING by now, on the disk."""
        self._sending.add(task.id)
        try:
            outcome = await self._send(task)
            self._note(outcome, time.time())
            await self._settle(
                task,
                lambda present, now: self._verdicts.after_submission(
                    present, outcome, now, self._hold.until
                ),
            )
        finally:
            self._sending.discard(task.id)
            self._hold.probing = False

    async def _send(self, task: Task) -> Submission:
        if task.model in self._disabled_models:
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

    # --- asking ---

    async def _poll(self, task: Task) -> None:
        """Ask for a task under way."""
        if task.stage is Stage.SUBMITTING:
            await self._look_for_orphan(task)
            return
        outcome = await self._provider.poll(task.model, task.provider_task_id)
        await self._settle(
            task, lambda present, now: self._verdicts.after_poll(present, outcome, now)
        )
        await self._note_answer(outcome)

    async def _poll_late(self, task: Task) -> None:
        """Ask for a result that is paid for, though the task has ended without it."""
        if not task.provider_task_id:
            await self._look_for_orphan(task)
            return
        outcome = await self._provider.poll(task.model, task.provider_task_id)
        await self._settle(
            task, lambda present, now: self._verdicts.after_late_poll(present, outcome, now)
        )

    async def _look_for_orphan(self, task: Task) -> None:
        """A paid request without an answer: its sender is gone, it waits for a sign, or has one."""
        if task.id in self._sending:
            return  # its sender was only paused; the claim has put the task off
        if not task.hinted_id:
            log.error("a paid request has no answer")
            await self._settle(task, self._verdicts.without_answer)
            return
        params = ProviderParams.FromString(task.params)
        agrees = await self._provider.recognises(params, task.hinted_id)
        log.info("a callback named a task", provider_task_id=task.hinted_id, agrees=agrees)
        await self._settle(
            task, lambda present, now: self._verdicts.after_recognition(present, agrees, now)
        )

    async def _note_answer(self, outcome: Poll) -> None:
        """Learn from a poll whether an outage is over; then ask for all that was put off."""
        silent = isinstance(outcome, Weather) and not outcome.answered
        if self._outage.is_over(silent=silent):
            log.info("the provider answers again")
            await self._store.hasten(time.time())
            self.wake()

    # --- saving ---

    async def _settle(self, task: Task, decide: Callable[[Task, float], Task | None]) -> None:
        """Store what is decided of a task, and show it.

        The verdict is given anew if the task has moved meanwhile; None is to leave it. While the
        database is away it waits, as what was paid for must not be forgotten.
        """
        present: Task | None = task
        while present and (after := decide(present, time.time())):
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
            self._verdicts.learn(after)
            reason = after.failure and after.failure.reason
            log.info("task ended", status=after.status, reason=reason)


class _Hold:
    """Keeps tasks back while the provider takes none; then lets one try before the others."""

    def __init__(self) -> None:
        self.until = 0.0
        self.probing = False
        self._times = 0

    @property
    def half_open(self) -> bool:
        """Whether one task is to try before the others."""
        return self._times > 0

    def room(self, now: float) -> float:
        if not self.half_open:
            return math.inf
        return 0 if self.probing or now < self.until else 1

    def opening_time(self) -> float:
        return math.inf if self.probing else self.until

    def note_sent(self, count: int) -> None:
        self.probing = count > 0 and self.half_open

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
