"""The poller: one loop that sends tasks, asks for them, and is the recovery code as well.

The database is the queue. The loop claims what is due, works on it within bounds, and waits for the
first of: woken, the next due time, stop. It keeps nothing of a task in memory, so that a restart,
or another process on the same database, goes on with the very same loop. Pollers are the only
writers of a task after its creation.

    claim (due) -> provider -> outcome -> verdict -> save (compare-and-set) -> publish

A claim is a lease: it puts the task off, and is renewed while its work lasts. Work whose process is
gone is due again when the lease has run out.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import structlog

from generated.generation.v1.generation_pb2 import ProviderParams
from providers.base import (
    Accepted,
    Poll,
    Postponed,
    Provider,
    Recognition,
    Refused,
    Submission,
    Succeeded,
    Unavailable,
    Unknown,
    UnknownState,
    Unreadable,
)
from service.callback_pace import CallbackPace
from service.caller_limits import CallerLimits
from service.holds import Holds
from service.hub import Hub
from service.limits import Turns
from service.metrics import Metrics
from service.outage_log import OutageLog
from service.seen import Seen
from service.verdicts import Verdicts, after_callback
from storage.errors import ClaimUnknownError, StorageUnavailableError
from storage.store import Claim, Quota, RunningMax, Store, Waiting
from storage.task import Failure, Lane, Stage, Task

CREATES_WINDOW_SECONDS = 10.3  # the account's 10 s, and what the way to the provider may vary
STATUS_WINDOW_SECONDS = 1.2  # likewise of 1 s
SLOT_FRESH_SECONDS = 0.15  # a request that starts later than this after its slot takes another
CONCURRENT_MAX = {Lane.SUBMIT: 128, Lane.POLL: 256, Lane.LATE: 16}
POLLS_CLAIMED_MAX = 16  # at a time, so that callbacks get through a burst of due polls
CLAIM_PAUSE_SECONDS = 0.01  # tasks that fall due together are claimed together
PASSED_OVER_SECONDS = 1.0  # between looks for tasks that ended in other processes
PASSED_OVER_PAUSE_SECONDS = 0.1  # between looks for callers whose tasks have to wait
IDLE_SECONDS = 3.0  # what other processes leave behind is found within this time
LEASE_SECONDS = 10.0  # after its holder is gone, a task is due again at the latest
RENEW_SECONDS = 3.0
STORAGE_RETRY_SECONDS = 1.0
HOLD_SECONDS = 2.0  # after the provider would not take a task; doubles each time
HOLD_MAX_SECONDS = 30.0
PROBE_DEPTH = 1_000  # how far behind a task that is always put back another one is found

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class AccountLimits:
    """What the account at the provider allows; 0 is no limit."""

    creates_per_10_seconds: int
    status_per_second: int
    running_max: int
    creates_in_flight_max: int = 0


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
        caller_limits: CallerLimits,
        metrics: Metrics,
        outage_log: OutageLog,
        disabled_models: frozenset[str] = frozenset(),
        callback_url: Callable[[str], str] | None = None,
    ) -> None:
        self._store = store
        self._provider = provider
        self._hub = hub
        self._verdicts = verdicts
        self._metrics = metrics
        self._disabled_models = disabled_models
        self._callback_url = callback_url
        self._running_max = limits.running_max or math.inf
        self._caller_limits = caller_limits
        self._sending_max = limits.creates_in_flight_max or math.inf
        self._busy_max = CONCURRENT_MAX | {
            Lane.SUBMIT: int(min(CONCURRENT_MAX[Lane.SUBMIT], self._sending_max))
        }
        creates = Quota("creates", limits.creates_per_10_seconds, CREATES_WINDOW_SECONDS)
        status = Quota("status", limits.status_per_second, STATUS_WINDOW_SECONDS)
        self._quotas = {Lane.SUBMIT: creates, Lane.POLL: status, Lane.LATE: status}
        self._allowed_times = dict.fromkeys(Lane, 0.0)
        self._running_full = False
        self._passed_over: frozenset[str] = frozenset()
        self._limited_since: dict[Lane, float] = {}
        self._turns = Turns()
        self._holds = Holds(HOLD_SECONDS, HOLD_MAX_SECONDS)
        self._held_back_until = 0.0  # while all that is due is of models that are held
        self._seen = Seen()
        self._sending: set[str] = set()
        self._leases: dict[str, Task] = {}
        self._unconfirmed: list[tuple[Lane, Task]] = []
        self._callbacks = CallbackPace()
        self._working: set[asyncio.Task[None]] = set()
        self._background: list[asyncio.Task[None]] = []
        self._busy: Counter[Lane] = Counter()
        self._due_times = dict.fromkeys(Lane, math.inf)  # as they were read last
        self._sooner: dict[Lane, float] = {}  # and what fell due since
        self._read_time = 0.0
        self._next_time = 0.0
        self._in_touch_since = math.inf
        self._outage_log = outage_log
        self._woken = asyncio.Event()
        self._stopping = False

    # --- the loop ---

    async def run(self) -> None:
        """Work until `stop` is called."""
        self._background.append(asyncio.create_task(self._renew_leases()))
        resumed = False
        while not self._stopping:
            started = time.monotonic()
            self._woken.clear()
            self._next_time = self._store.now() + STORAGE_RETRY_SECONDS
            try:
                if not resumed:
                    await self._resume(self._store.now())
                    resumed = True
                self._next_time = await self.run_once()
                self._outage_log.worked()
            except StorageUnavailableError as error:
                self._in_touch_since = math.inf
                self._outage_log.failed("storage unavailable, the poller waits", error)
            except Exception:
                log.exception("the poller stumbled, and goes on")
            await self._wait_until(self._next_time)
            await asyncio.sleep(started + CLAIM_PAUSE_SECONDS - time.monotonic())

    async def run_once(self) -> float:
        """Start work on all that is due and allowed; return when to look again, in unix seconds."""
        await self._confirm_claims()
        now = self._store.now()
        sooner, self._sooner = self._sooner, {}
        for lane, due_time in sooner.items():
            self._due_times[lane] = min(self._due_times[lane], due_time)
        due = [lane for lane in self._works if self._look_time(lane) <= now]
        for lane in due:
            await self._serve(lane, now)
        if due or now >= self._read_time + IDLE_SECONDS:  # others may have stored tasks, too
            self._due_times = await self._next_due_times()
            self._read_time = now
            self._in_touch_since = min(self._in_touch_since, now)
        return min(now + IDLE_SECONDS, *map(self._look_time, Lane))

    async def _next_due_times(self) -> dict[Lane, float]:
        """Read when each lane has to be looked at; tasks that were passed over are not due."""
        due_times = await self._store.next_due_times()
        if self._passed_over:
            due_times[Lane.SUBMIT] = self._due_times[Lane.SUBMIT]
        return due_times

    def _look_time(self, lane: Lane) -> float:
        return max(self._due_times[lane], self._opening_time(lane))

    def wake(self, lane: Lane | None = None, due_time: float = 0.0) -> None:
        """Look again, in time for a task that falls due in a lane; without one, at once."""
        if lane is not Lane.POLL:
            self._held_back_until = 0.0
        if lane:
            self._sooner[lane] = min(self._sooner.get(lane, math.inf), due_time)
        if due_time < self._next_time:
            self._woken.set()

    def created(self, task: Task) -> None:
        """Send a new task at once, or soon if its caller's earlier tasks have to wait as well."""
        waits = task.caller in self._passed_over
        self.wake(Lane.SUBMIT, self._store.now() + PASSED_OVER_PAUSE_SECONDS if waits else 0.0)

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
        still_working = [*self._working, *self._background]
        for work in still_working:
            work.cancel()
        await asyncio.gather(*still_working, return_exceptions=True)

    async def cancel(self, task: Task) -> None:
        """Cancel a task that is ACCEPTED, unless it has moved meanwhile.

        It is cancelled or sent, never both.
        """
        cancelled = task.failed(Failure("CANCELLED", "cancelled by its caller"), self._store.now())
        if saved := await self._store.save(task, cancelled):
            with structlog.contextvars.bound_contextvars(**_log_fields(task)):
                self._show(task, saved)

    async def called_back(
        self,
        task_id: str,
        provider_task_id: str,
        hosts: frozenset[str] = frozenset(),
        content: int | None = None,
    ) -> bool:
        """Poll a task now, as the provider has called back for it; False if there is no such task.

        At most one poll of a task is under way, and one a second is started. The record may have
        been answered before a further callback was sent, so another poll follows then.

        Args:
            task_id: Ours.
            provider_task_id: What the callback said, or "".
            hosts: Those of the URLs that it named. They are logged if the task ends without a
                result.
            content: The hash of what it said, if anything: a callback that repeats within a second
                what was said before changes nothing.
        """
        self._seen.called_back(task_id, hosts)
        while not self._callbacks.is_repeated(task_id, content, self._store.now()):
            if self._is_being_polled(task_id):
                self._callbacks.came_meanwhile(task_id)
                return True
            if (task := await self._store.get(task_id)) is None:
                return False
            now = self._store.now()
            due_time = self._callbacks.next_time(task_id, now)
            after = after_callback(task, provider_task_id, due_time)
            if after is None or after == task:
                return True
            at_once = (
                due_time <= now
                and after.lane is Lane.POLL
                and bool(after.provider_task_id)
                and self._has_room()
            )
            if at_once:  # before all that is due, and without a claim: this save is one
                after = after.scheduled(now + LEASE_SECONDS, after.setbacks)
            if saved := await self._store.save(task, after):
                if saved.provider_task_id:
                    self._callbacks.note(task_id, due_time, content)
                if at_once and task_id not in self._leases:
                    self._start(Lane.POLL, saved, slot_time=0)
                else:
                    self._note_due(saved)
                return True
        return True

    def _is_being_polled(self, task_id: str) -> bool:
        lease = self._leases.get(task_id)
        return lease is not None and bool(lease.provider_task_id)

    def _has_room(self) -> bool:
        return not self._stopping and self._busy[Lane.POLL] < CONCURRENT_MAX[Lane.POLL]

    async def on_watched(self, task: Task) -> None:
        """Leave a task to its callback no longer, as somebody watches it."""
        if self._callback_url is None:
            return
        present: Task | None = task
        try:
            while present and (after := self._verdicts.after_watch(present, self._store.now())):
                if saved := await self._store.save(present, after):
                    self._note_due(saved)
                    return
                present = await self._store.get(task.id)
        except StorageUnavailableError as error:
            self._outage_log.failed("storage unavailable, a watched task waits", error)

    async def _resume(self, now: float) -> None:
        """Take up what an earlier process left."""
        for quota in {*self._quotas.values()}:
            await self._store.add_slots(quota)
        if not self._store.shared:
            await self._store.release(now)
        self._due_times = await self._store.next_due_times()

    async def _wait_until(self, next_time: float) -> None:
        try:
            async with asyncio.timeout(next_time - self._store.now()):
                await self._woken.wait()
        except TimeoutError:
            pass

    # --- leases ---

    async def _renew_leases(self) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                await self.renew_once()
            except StorageUnavailableError as error:
                self._outage_log.failed("storage unavailable, leases are not renewed", error)
            except Exception:
                log.exception("the renewal of leases stumbled, and goes on")

    async def renew_once(self) -> None:
        """Renew the leases of what is worked on since some time; quick work needs none."""
        now = self._store.now()
        aging = now + LEASE_SECONDS - RENEW_SECONDS
        old = [task for task in self._leases.values() if (task.due_time or math.inf) < aging]
        for task in await self._store.renew(old, now + LEASE_SECONDS) if old else ():
            if task.id in self._leases:
                self._leases[task.id] = task

    async def _confirm_claims(self) -> None:
        """Go on with what was claimed though the answer to its commit was lost.

        It is ours if it is to the last field as we left it: others count versions as we do.
        """
        claims, self._unconfirmed = self._unconfirmed, []
        try:
            present = await asyncio.gather(*(self._store.get(task.id) for _, task in claims))
        except StorageUnavailableError:
            self._unconfirmed = claims
            raise
        for (lane, task), found in zip(claims, present, strict=True):
            if found == task:
                self._start(lane, task, slot_time=0)
        if claims:
            await self.renew_once()

    # --- lanes ---

    @property
    def _works(self) -> dict[Lane, Callable[[Task], Awaitable[None]]]:
        """First what is new, then what is under way; late deliveries come last."""
        return {Lane.SUBMIT: self._submit, Lane.POLL: self._poll, Lane.LATE: self._poll_late}

    async def _serve(self, lane: Lane, now: float) -> None:
        """Start work on the due tasks of a lane."""
        try:
            claim = await self._claim(lane, now, self._room(lane, now))
        except ClaimUnknownError as error:
            self._unconfirmed += [(lane, task) for task in error.tasks]
            raise
        self._in_touch_since = min(self._in_touch_since, now)
        self._allowed_times[lane] = min(claim.next_time, now + IDLE_SECONDS)
        if lane is Lane.SUBMIT:
            self._running_full = claim.next_time == math.inf
            self._passed_over = claim.passed_over
            self._due_times[lane] = min(claim.due_time, now + PASSED_OVER_SECONDS)
            if not claim.tasks and self._holds.probes:
                next_time = self._holds.next_opening_time()
                self._held_back_until = min(next_time, now + IDLE_SECONDS)
        self._note_limits(lane, claim, now)
        for task in claim.tasks:
            self._start(lane, task, slot_time=now)

    def _note_limits(self, lane: Lane, claim: Claim, now: float) -> None:
        if claim.tasks and lane in self._limited_since:
            self._metrics.limiter_waited(lane, now - self._limited_since.pop(lane))
        if claim.next_time:
            self._limited_since.setdefault(lane, now)

    async def _claim(self, lane: Lane, now: float, room: int) -> Claim:
        """Put tasks off, so that they come back if their worker is gone.

        Those to be sent are SUBMITTING from here on, on the disk.
        """
        lease_end = now + LEASE_SECONDS
        if lane is not Lane.SUBMIT:
            return await self._claim_polls(lane, now, room, lease_end)
        claim = await self._store.claim_in_turns(
            now,
            room=room,
            depth=PROBE_DEPTH if self._holds.probes else room,
            admit=self._holds.admitted,
            pick=self._next_in_turn,
            move=lambda task: task.submitting(now, lease_end),
            quota=self._quotas[lane],
            running_max=self._may_run(),
            sending_max=self._sending_max,
            closed_models=self._holds.closed_models(now),
        )
        self._holds.note_sent(claim.tasks)
        for task in claim.tasks:
            self._metrics.task_moved(task.model, Stage.SUBMITTING)
        return claim

    def _may_run(self) -> RunningMax:
        limits = self._caller_limits.table()
        return RunningMax(self._running_max, lambda caller: limits.of(caller).running)

    async def _claim_polls(self, lane: Lane, now: float, room: int, lease_end: float) -> Claim:
        due_times: dict[str, float | None] = {}

        def put_off(task: Task) -> Task:
            due_times[task.id] = task.due_time
            return task.scheduled(lease_end, task.setbacks)

        claim = await self._store.claim(lane, now, room, put_off, self._quotas[lane])
        for task in claim.tasks:
            self._metrics.poll_started(now - (due_times[task.id] or now))
        return claim

    def _next_in_turn(self, waiting: Sequence[Waiting], room: int) -> list[str]:
        if self._holds.probes_any:
            return self._turns.pick_probe(waiting)
        return self._turns.pick(waiting, room)

    def _start(self, lane: Lane, task: Task, slot_time: float) -> None:
        self._hub.publish(task)
        self._busy[lane] += 1
        self._leases[task.id] = task
        if lane is Lane.SUBMIT:
            self._sending.add(task.id)
        working = asyncio.create_task(self._guarded(lane, task, slot_time))
        self._working.add(working)
        working.add_done_callback(self._working.discard)

    async def _guarded(self, lane: Lane, task: Task, slot_time: float) -> None:
        """Keep one broken task from the others; its lease runs out, and it comes back."""
        # The work is an asyncio task of its own, and so are its context variables.
        structlog.contextvars.bind_contextvars(**_log_fields(task))
        try:
            await self._take_fresh_slot(self._quotas[lane], slot_time)
            await self._works[lane](task)
        except Exception:
            log.exception("work on a task broke off")
        finally:
            if lane is Lane.SUBMIT:
                self._sending.discard(task.id)
            if task.id not in self._sending:  # else the lease is its sender's from now on
                self._leases.pop(task.id, None)
            if self._busy[lane] == self._busy_max[lane]:
                self.wake()
            self._busy[lane] -= 1
        if self._callbacks.take_meanwhile(task.id):
            await self._poll_again(task.id)

    async def _poll_again(self, task_id: str) -> None:
        try:
            await self.called_back(task_id, "")
        except StorageUnavailableError as error:
            self._outage_log.failed("storage unavailable, a callback is lost", error)

    async def _take_fresh_slot(self, quota: Quota, slot_time: float) -> None:
        """See that a request starts soon after its slot was taken, which covers it only then."""
        while quota.limit and (now := self._store.now()) - slot_time > SLOT_FRESH_SECONDS:
            try:
                free_time = await self._store.take_slot(quota, now)
            except StorageUnavailableError:
                free_time = now + STORAGE_RETRY_SECONDS
            if free_time:
                await asyncio.sleep(free_time - now)
            else:
                slot_time = now

    def _room(self, lane: Lane, now: float) -> int:
        """Return how many tasks of a lane may be started now."""
        room: float = self._busy_max[lane] - self._busy[lane]
        if lane is Lane.SUBMIT:
            room = min(room, self._holds.room(now))
        else:
            room = min(room, POLLS_CLAIMED_MAX)
        return int(room)

    def _opening_time(self, lane: Lane) -> float:
        """Return when a lane may open by itself; never, if the end of some work will wake us."""
        if self._busy[lane] >= self._busy_max[lane]:
            return math.inf
        if lane is not Lane.SUBMIT:
            return self._allowed_times[lane]
        opening_time = max(self._holds.opening_time(), self._held_back_until)
        return max(self._allowed_times[lane], opening_time)

    # --- sending ---

    async def _submit(self, task: Task) -> None:
        """Send the paid request: the task is SUBMITTING by now, on the disk."""
        try:
            if not await self._is_still_ours(task):
                log.error("a paid request was given up before it was sent")
                return
            outcome = await self._send(task)
            if not isinstance(outcome, Accepted):
                outcome = await self._look_for_purchase(task, outcome)
            self._note(task, outcome)
            hold_until = self._holds.note_answer(task.model, outcome, self._store.now())
            await self._settle(
                task,
                lambda present, now: self._verdicts.after_submission(
                    present, outcome, now, hold_until
                ),
            )
        finally:
            if self._holds.note_end(task.model):
                self.wake()

    async def _is_still_ours(self, task: Task) -> bool:
        """Whether nobody judged the task while this process was paused, and past its lease."""
        while (now := self._store.now()) > ((lease := self._leases[task.id]).due_time or now):
            try:
                renewed = await self._store.renew([lease], now + LEASE_SECONDS)
            except StorageUnavailableError:
                await asyncio.sleep(STORAGE_RETRY_SECONDS)
                continue
            if not renewed:
                return False
            self._leases[task.id] = renewed[0]
        return lease.unknown_time is None

    async def _send(self, task: Task) -> Submission:
        if task.model in self._disabled_models:
            return Refused("MODEL_UNAVAILABLE", f"{task.model} is disabled here", "")
        callback_url = self._callback_url(task.id) if self._callback_url else None
        return await self._provider.submit(ProviderParams.FromString(task.params), callback_url)

    async def _look_for_purchase(self, task: Task, outcome: Submission) -> Submission:
        """Look up the record that a callback, or an answer other than an acceptance, names."""
        assert not isinstance(outcome, Accepted)
        candidate = outcome.provider_task_id
        try:
            if not candidate and (present := await self._store.get(task.id)):
                candidate = present.hinted_id
        except StorageUnavailableError:
            return outcome  # the verdict sees a hint, too, and waits for the database
        if not candidate:
            return outcome
        params = ProviderParams.FromString(task.params)
        found = await self._provider.recognise(params, candidate)
        log.warning(
            "a request that was not accepted names a task",
            provider_task_id=candidate,
            recognition=found.value,
        )
        if found in {Recognition.AGREES, Recognition.SILENT}:
            return Accepted(candidate)
        return replace(outcome, provider_task_id="") if found is Recognition.DIFFERS else outcome

    def _note(self, task: Task, outcome: Submission) -> None:
        match outcome:
            case Postponed(detail):
                log.warning("the provider takes no tasks now", detail=detail)
            case Unknown(detail, answer):
                log.error("the answer to a paid request is lost", detail=detail, answer=answer)
            case Refused(reason, message, code):
                log.warning("task refused", reason=reason, message=message, provider_code=code)
            case Accepted(provider_task_id):
                log.info("task accepted", provider_task_id=provider_task_id)
                self._seen.accepted(task, provider_task_id)

    # --- asking ---

    async def _poll(self, task: Task) -> None:
        """Ask for a task under way."""
        if task.stage is Stage.SUBMITTING:
            await self._look_for_orphan(task)
            return
        outcome = await self._ask(task)
        await self._settle(
            task, lambda present, now: self._verdicts.after_poll(present, outcome, now)
        )
        if self._verdicts.reach.note(outcome, task.setbacks, self._store.now()):
            log.info("the provider answers again")
            await self._store.hasten(self._store.now())
            self.wake(Lane.POLL)
        self._metrics.provider_silent(self._verdicts.reach.silent_seconds(self._store.now()))

    async def _poll_late(self, task: Task) -> None:
        """Ask for a result that is paid for, though the task has ended without it."""
        if not task.provider_task_id:
            await self._look_for_orphan(task)
            return
        outcome = await self._ask(task)
        await self._settle(
            task, lambda present, now: self._verdicts.after_late_poll(present, outcome, now)
        )

    async def _ask(self, task: Task) -> Poll:
        params = ProviderParams.FromString(task.params)
        outcome = await self._provider.poll(task.model, task.provider_task_id, params)
        match outcome:
            case Unavailable(detail) | Unreadable(detail):
                log.info("no verdict from a poll", detail=detail, setbacks=task.setbacks)
                unreadable = isinstance(outcome, Unreadable)
                cause = "unreadable" if unreadable else "unavailable"
                self._metrics.poll_inconclusive(task.model, cause)
            case UnknownState(state):
                self._metrics.poll_inconclusive(task.model, "unknown_state")
                self._seen.state(state)
            case Succeeded(differs=True):
                log.warning("a record repeats another request than ours")
            case _:
                pass
        return outcome

    async def _look_for_orphan(self, task: Task) -> None:
        """A paid request without an answer: its sender is gone, it waits for a sign, or has one."""
        if task.id in self._sending:
            return  # its sender was only paused; the claim has put the task off
        if not task.hinted_id:
            await self._settle(task, self._without_answer)
            return
        params = ProviderParams.FromString(task.params)
        found = await self._provider.recognise(params, task.hinted_id)
        log.info(
            "a callback named a task", provider_task_id=task.hinted_id, recognition=found.value
        )
        await self._settle(
            task, lambda present, now: self._verdicts.after_recognition(present, found, now)
        )

    def _without_answer(self, task: Task, now: float) -> Task | None:
        """Judge a paid request without an answer, once its sender had time to renew its lease."""
        judgement_time = self._in_touch_since + LEASE_SECONDS
        if self._store.shared and now < judgement_time < math.inf and task.unknown_time is None:
            return task.scheduled(judgement_time, task.setbacks) if not task.ended else None
        log.error("a paid request has no answer")
        return self._verdicts.without_answer(task, now)

    # --- saving ---

    async def _settle(self, task: Task, decide: Callable[[Task, float], Task | None]) -> None:
        """Store what is decided of a task, and show it.

        The verdict is given anew if the task has moved meanwhile; None is to leave it, and so is a
        task that is sent anew. While the database is away it waits, as what was paid for must not
        be forgotten.
        """
        present: Task | None = task
        while present and present.submit_time == task.submit_time:
            if (after := decide(present, self._store.now())) is None:
                break
            try:
                if saved := await self._store.save(present, after):
                    self._show(present, saved)
                    return
                present = await self._store.get(task.id)
            except StorageUnavailableError as error:
                self._outage_log.failed("storage unavailable, a snapshot waits", error)
                await asyncio.sleep(STORAGE_RETRY_SECONDS)
        log.info("nothing left to decide")

    def _show(self, before: Task, after: Task) -> None:
        if after.revision > before.revision:
            self._hub.publish(after)
        if before.lane is Lane.POLL and after.lane is not Lane.POLL:
            self._note_room_to_run(after.caller)
        self._note_due(after)
        if after.stage and after.stage is not before.stage:
            self._metrics.task_moved(after.model, after.stage)
        if after.ended:
            self._seen.ended(after)
        if after.ended and not before.ended:
            self._verdicts.learn(after)
            reason = after.failure and after.failure.reason
            self._metrics.task_ended(after.model, after.status, reason or "", after.caller)
            log.info("task ended", status=after.status, **({"reason": reason} if reason else {}))

    def _note_room_to_run(self, caller: str) -> None:
        """Send the next task, if one waited for a task of its caller, or of anybody, to end."""
        if self._running_full:
            self._allowed_times[Lane.SUBMIT] = 0.0
            self.wake()
        if caller in self._passed_over:
            self.wake(Lane.SUBMIT)

    def _note_due(self, task: Task) -> None:
        if task.lane and task.due_time is not None:
            self.wake(task.lane, task.due_time)


def _log_fields(task: Task) -> dict[str, str]:
    """Return what every log line about a task names."""
    return {
        "task_id": task.id,
        "model": task.model,
        "caller": task.caller,
        "prompt_id": task.prompt_id,
    }
