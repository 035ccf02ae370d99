"""Where tasks are kept: the same for SQLite and PostgreSQL.

What the databases do differently is in storage/sqlite.py and storage/postgresql/. All writes go
through one thread of the process, which does together what waits together; an acknowledged write
is persisted to disk.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from storage.claims import Claim, Claims, Move, Quota, Sending, Slots
from storage.clock import Clock
from storage.creation import Created, CreateLimits, Creation, Creations, Existing, LimitReached
from storage.engine import Engine
from storage.errors import StorageUnavailableError
from storage.models import Models, StoredModel
from storage.observed import Observe, unobserved
from storage.reads import Reads
from storage.saves import Saves
from storage.shared import Shared
from storage.statements import ACCOUNT
from storage.task import Lane, Task
from storage.threads import ThreadState

Result = TypeVar("Result")


class Store(Reads):
    """The tasks of one database.

    Attributes:
        written_time: When the database was last written to, by the monotonic clock.
        on_change: Called in the event loop after a commit of new tasks or visible changes.
    """

    def __init__(
        self, engine: Engine, observe: Observe = unobserved, ping_seconds: float = 1.0
    ) -> None:
        super().__init__(engine, observe)
        self._ping_seconds = ping_seconds
        self.written_time = time.monotonic()
        self.on_change: Callable[[], None] = _ignore_change
        self._creations = Creations(engine)
        self._saves = Saves(engine, self._creations.moved)
        self._slots = Slots(engine)
        self._shared = Shared(engine)
        self._models = Models(engine)
        self._claims = Claims(engine, self._slots, self._saves.save_each)

    @property
    def shared(self) -> bool:
        """Whether other processes may work on the same tasks."""
        return self._engine.shared

    @property
    def is_listening(self) -> bool:
        """Whether hints of other processes arrive at this moment."""
        return self._engine.is_listening

    @property
    def misses_hints(self) -> bool:
        """Whether hints of other processes are expected, but do not arrive at this moment."""
        return self._engine.uses_hints and not self._engine.is_listening

    def threads(self) -> list[ThreadState]:
        """Return the state of every thread that must run."""
        return self._engine.threads()

    def now(self) -> float:
        """Return the time by the clock that all processes on the database share."""
        return self._engine.clock.now()

    @property
    def clock(self) -> Clock:
        """The clock that all processes on the database share."""
        return self._engine.clock

    async def close(self) -> None:
        """Finish the writes that wait, and close every connection."""
        await self._engine.close()

    # --- writes of callers and of the poller ---

    async def create(self, task: Task, limits: CreateLimits) -> Created | Existing | LimitReached:
        """Store a new task, unless its request_id is known already or a limit is reached.

        The request_id comes first: a limit never refuses a known one.
        """
        return await self._write(
            "create",
            self._creations.store_each,
            Creation(task, limits),
            self._keep_created,
            disposable=True,
        )

    async def check(self, task: Task, limits: CreateLimits) -> Existing | LimitReached | None:
        """Return what would prevent `create` from storing a new task, or None."""
        return await self._write(
            "check", self._creations.check_each, Creation(task, limits), _no_task_changed
        )

    async def save(self, before: Task, after: Task) -> Task | None:
        """Store the snapshot that a move made of `before`, and return it with its new version.

        None if `before` is no longer the current one.
        """
        saved = await self._write(
            "save",
            self._saves.save_each,
            (before, after),
            lambda saved: self._keep_saved(before, saved),
        )
        if saved and saved.revision > before.revision:
            self._engine.hint([saved])
            self.on_change()
        return saved

    async def claim(self, lane: Lane, now: float, limit: int, move: Move, quota: Quota) -> Claim:
        """Take due tasks of a lane, longest due first, and store what `move` makes of each.

        Those whose last poll failed come after the others, unless they are long overdue: they
        leave half of the quota to tasks that can be read.

        The move must change the due time or the lane, so that nobody takes the task again
        meanwhile. Each takes a slot of the quota; those for which none is free stay in the lane.

        Raises:
            CommitUnknownError: The claim may have been committed; `result` is the claim.
        """
        request = (lane, now, limit, move, quota)
        return await self._write("claim", self._claims.due_each, request, self._keep_claimed)

    async def claim_in_turns(self, now: float, sending: Sending) -> Claim:
        """Take due tasks of the submit lane, as `sending` describes.

        Raises:
            CommitUnknownError: The claim may have been committed; `result` is the claim.
        """
        claim = await self._write(
            "claim_in_turns", self._claims.in_turns_each, (now, sending), self._keep_claimed
        )
        if claim.tasks:
            self._engine.hint(claim.tasks)
            self.on_change()
        return claim

    async def renew(self, tasks: Iterable[Task], due_time: float) -> list[Task]:
        """Postpone the tasks that are still as they were claimed; return those."""
        return await self._write(
            "renew", lambda _: [self._saves.renew(tasks, due_time)], on_result=self._recent.keep
        )

    async def take_slot(self, quota: Quota, now: float) -> float:
        """Take a slot of a quota; return 0, or when the next one is free."""
        taken, next_time = await self._write(
            "take_slot", lambda _: [self._slots.take(quota, 1, now)], on_result=_no_task_changed
        )
        return 0.0 if taken else next_time

    async def add_slots(self, quota: Quota) -> None:
        """Make the slots of a quota that do not exist yet."""
        await self._write("add_slots", self._slots.add, quota, _no_task_changed)

    async def callback_secrets(self, proposed: bytes) -> list[bytes]:
        """Return the secrets of callback URLs: the first makes them, all of them verify.

        Args:
            proposed: Kept as the first one if there is none yet. If several processes propose one
                at the same time, one of them wins.
        """
        return await self._write(
            "callback_secrets", self._shared.callback_secrets_each, proposed, _no_task_changed
        )

    async def hold_account(self, now: float, refused_after: float) -> float:
        """Record that the account is refused; return since when it is held.

        Args:
            now: When it was refused.
            refused_after: A hold that was last confirmed before this time is over.
        """
        request = (now, refused_after)
        return await self._write(
            "hold_account", self._shared.hold_account_each, request, _no_task_changed
        )

    async def release_account(self) -> None:
        """Record that the account is accepted again."""
        await self._execute(
            "release_account", self._sql.holds.release, ACCOUNT, on_result=_no_task_changed
        )

    # --- the provider's models ---

    async def add_models(self, models: Sequence[StoredModel]) -> None:
        """Store models that are new, or that the provider's catalogue has never confirmed."""
        await self._write("add_models", self._models.add_each, models, _no_task_changed)

    async def save_models(self, models: Sequence[StoredModel]) -> None:
        """Store new and changed models."""
        await self._write("save_models", self._models.save_each, models, _no_task_changed)

    async def confirm_models(self, now: float) -> None:
        """Record that the provider's catalogue lists every model that is not retired."""
        await self._write("confirm_models", self._models.confirm_each, now, _no_task_changed)

    # --- upkeep ---

    async def make_abandoned_due(self, now: float) -> None:
        """Make due what waits for workers that are gone: for the start of the only process."""
        await self._execute("make_abandoned_due", self._sql.lanes.make_abandoned_due, now, now)

    async def limit_due_times(self, lane: Lane, latest: float, due_time: float) -> None:
        """Make tasks of a lane due at a time if they are due after `latest`."""
        await self._execute(
            "limit_due_times", self._sql.lanes.limit_due_times, due_time, lane, latest
        )

    async def limit_leases(self, latest: float, due_time: float) -> None:
        """Let leases of tasks that are being sent end at a time if they end after `latest`."""
        await self._execute(
            "limit_leases", self._sql.lanes.limit_leases, due_time, Lane.POLL, latest
        )

    async def make_polls_due(self, now: float) -> None:
        """Make due the polls that an outage postponed, now that the provider answers again.

        Tasks with more than one setback wait: their polls failed while others were answered.
        """
        await self._execute("make_polls_due", self._sql.lanes.make_polls_due, now, now)

    async def purge(self, ended_before: float, limit: int) -> int:
        """Delete the oldest tasks that ended, and changed last, before a time; return how many.

        Their request_ids are forgotten. Tasks that may still be delivered late are kept.
        """
        return await self._execute(
            "purge", self._sql.purges.ended, ended_before, ended_before, limit
        )

    async def purge_each(self, tasks: Sequence[Task]) -> int:
        """Delete these tasks, unless they have changed; return how many were deleted."""
        execute, sql = self._engine.execute, self._sql.purges.one
        return await self._write(
            "purge",
            lambda _: [sum(execute(sql, task.id, task.version).rowcount for task in tasks)],
        )

    async def purge_cancelled(self, caller: str, ended_before: float, limit: int) -> int:
        """Delete the oldest cancelled tasks of a caller that ended before a time; return how many.

        Their request_ids are forgotten.
        """
        return await self._execute("purge", self._sql.purges.cancelled, caller, ended_before, limit)

    async def ping(self) -> None:
        """Raise StorageUnavailableError unless the database can be written to now."""
        try:
            async with asyncio.timeout(self._ping_seconds):
                await self._execute(
                    "ping", self._engine.touch, on_result=_no_task_changed, disposable=True
                )
                self.written_time = time.monotonic()
        except TimeoutError:
            raise StorageUnavailableError("the database is busy") from None

    # --- the way to the engine ---

    async def _write(
        self,
        operation: str,
        batch: Callable[[Sequence[Any]], Sequence[Result]],
        argument: Any = None,
        on_result: Callable[[Result], None] | None = None,
        *,
        disposable: bool = False,
    ) -> Result:
        """Run a write in the writer's thread; see `Worker.run`.

        Without `on_result` the whole cache is dropped, as any task may have changed.
        """
        forget_all = self._recent.forget_all
        with self._observed(operation):
            return await self._engine.writer.run(
                batch,
                argument,
                on_result or (lambda _: forget_all()),
                forget_all,
                disposable=disposable,
            )

    async def _execute(
        self,
        operation: str,
        sql: str,
        *params: object,
        on_result: Callable[[int], None] | None = None,
        disposable: bool = False,
    ) -> int:
        """Run one statement that writes; return how many rows it changed."""
        execute = self._engine.execute
        return await self._write(
            operation,
            lambda _: [int(execute(sql, *params).rowcount)],
            on_result=on_result,
            disposable=disposable,
        )

    # --- the cache ---

    def _keep_created(self, result: Created | Existing | LimitReached) -> None:
        self.written_time = time.monotonic()
        if not isinstance(result, LimitReached):
            self._recent.keep([result.task])
            self.on_change()

    def _keep_claimed(self, claim: Claim) -> None:
        self._recent.keep(claim.tasks)

    def _keep_saved(self, before: Task, saved: Task | None) -> None:
        self.written_time = time.monotonic()
        if saved is None:  # the cached snapshot is not the current one
            self._recent.forget(before.id)
        else:
            self._recent.keep([saved])


def _ignore_change() -> None:
    """Do nothing after a change."""


def _no_task_changed(result: object) -> None:
    del result
