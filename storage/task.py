"""A task and its moves: pure values, no I/O, no clock.

A task has no setters. It changes by named moves, each of which returns the next snapshot; the store
saves that snapshot only if the one it was made from is still current (compare-and-set):

    ACCEPTED --submitting--> SUBMITTING --queued--> QUEUED --progressed--> GENERATING
        ^                       |  |                   |                       |
        +------postponed--------+  +-- unknown         +-------+---------------+
        |                       |      (waits)                 |
    cancelled                refused             succeeded / failed / storing -> STORING -> SUCCESS
        v                       v                              v
      FAILED                  FAILED          SUCCESS / FAILED --delivered_late--> FAILED

The time comes in as `now`, in unix seconds.
"""

from storage.snapshot import Snapshot
from storage.values import Artifact, Copy, Failure, Lane, Stage, Status

__all__ = ["Artifact", "Copy", "Failure", "Lane", "Stage", "Status", "Task"]


class Task(Snapshot):
    """A snapshot of a task, and the moves from it to the next one."""

    __slots__ = ()

    # --- submission ---

    def submitting(self, now: float, due_time: float) -> "Task":
        """ACCEPTED -> SUBMITTING: committed before the paid request is sent.

        If it is still SUBMITTING at `due_time`, its sender is gone and the outcome is unknown.
        """
        assert self.stage is Stage.ACCEPTED, self.stage
        return self._move(now, stage=Stage.SUBMITTING, submit_time=now, due_time=due_time)

    def postponed(self, now: float, due_time: float) -> "Task":
        """SUBMITTING -> ACCEPTED: nothing was bought; it is sent again at `due_time`."""
        assert self.stage is Stage.SUBMITTING, self.stage
        return self._move(
            now,
            stage=Stage.ACCEPTED,
            submit_time=None,
            unknown_time=None,
            candidate_id="",
            due_time=due_time,
            setbacks=self.setbacks + 1,
        )

    def queued(self, provider_task_id: str, now: float, due_time: float) -> "Task":
        """SUBMITTING -> QUEUED: the provider has it."""
        assert self.stage is Stage.SUBMITTING, self.stage
        return self._move(
            now,
            stage=Stage.QUEUED,
            provider_task_id=provider_task_id,
            accept_time=now,
            unknown_time=None,
            due_time=due_time,
            setbacks=0,
        )

    def unknown(self, now: float, due_time: float) -> "Task":
        """Still SUBMITTING; the response was lost. Waits for a callback until `due_time`.

        Not visible to callers.
        """
        assert self.stage is Stage.SUBMITTING, self.stage
        return self._replace(unknown_time=now, due_time=due_time)

    def suspended(self, provider_task_id: str, now: float) -> "Task":
        """ACCEPTED or SUBMITTING -> SUBMITTING: refused, but something suggests that it was bought.

        It is not sent again before the record of `provider_task_id` has been read. It has no
        submit_time, as no request is in progress.
        """
        assert self.stage in {Stage.ACCEPTED, Stage.SUBMITTING}, self.stage
        changes = {"candidate_id": provider_task_id, "due_time": now, "submit_time": None}
        if self.stage is Stage.SUBMITTING:  # callers see no change
            return self._replace(**changes)  # type: ignore[arg-type]
        return self._move(now, stage=Stage.SUBMITTING, **changes)

    def with_candidate(self, candidate_id: str, due_time: float | None) -> "Task":
        """SUBMITTING or FAILED without a provider's id: a callback named a candidate to check.

        Not visible to callers.
        """
        assert not self.provider_task_id, self.provider_task_id
        assert self.stage is Stage.SUBMITTING or self.status is Status.FAILED, self
        return self._replace(candidate_id=candidate_id, due_time=due_time)

    def without_candidate(self, due_time: float | None) -> "Task":
        """The candidate belongs to another task. Not visible to callers."""
        return self._replace(candidate_id="", due_time=due_time)

    def called_back(self, now: float) -> "Task":
        """Its callback has arrived: poll it now, and expect no other callback.

        This applies to a FAILED task, too: its result may have arrived after all. Not visible to
        callers.
        """
        assert self.provider_task_id, self
        return self._replace(candidate_id=self.provider_task_id, due_time=now)

    # --- progress ---

    def progressed(
        self,
        generating: bool,
        percent: int | None,
        now: float,
        credits_consumed: float | None = None,
    ) -> "Task":
        """QUEUED or GENERATING: it has progressed, or its cost is known now.

        Returns the same snapshot if nothing visible changed.
        """
        assert self.stage in {Stage.QUEUED, Stage.GENERATING}, self.stage
        stage = Stage.GENERATING if generating else self.stage
        percent = max(percent or 0, self.progress_percent or 0) if percent is not None else None
        percent = self.progress_percent if percent is None else percent
        cost = self._cost(credits_consumed)
        known = (self.stage, self.progress_percent, self.credits_consumed)
        if (stage, percent, cost) == known:
            return self
        return self._move(now, stage=stage, progress_percent=percent, credits_consumed=cost)

    def scheduled(self, due_time: float, setbacks: int) -> "Task":
        """Postpone it to `due_time`. Not visible to callers."""
        return self._replace(due_time=due_time, setbacks=setbacks)

    # --- the end ---

    def succeeded(
        self,
        artifacts: tuple[Artifact, ...],
        result_json: str,
        credits_consumed: float | None,
        now: float,
        complete_time: float,
    ) -> "Task":
        """QUEUED or GENERATING -> SUCCESS, with its results."""
        assert self.stage in {Stage.QUEUED, Stage.GENERATING}, self.stage
        assert artifacts or result_json, "a success has a result"
        return self._end(
            now,
            status=Status.SUCCESS,
            artifacts=artifacts,
            result_json=result_json,
            credits_consumed=self._cost(credits_consumed),
            complete_time=complete_time,
        )

    def storing(
        self,
        artifacts: tuple[Artifact, ...],
        result_json: str,
        credits_consumed: float | None,
        now: float,
        generated_time: float,
    ) -> "Task":
        """QUEUED or GENERATING -> STORING: there are results, and they are copied from now on."""
        assert self.stage in {Stage.QUEUED, Stage.GENERATING}, self.stage
        assert artifacts, "there is something to copy"
        return self._move(
            now,
            stage=Stage.STORING,
            artifacts=artifacts,
            result_json=result_json,
            credits_consumed=self._cost(credits_consumed),
            generated_time=generated_time,
            due_time=now,
            setbacks=0,
        )

    def partly_stored(self, artifacts: tuple[Artifact, ...], due_time: float) -> "Task":
        """Still STORING: some results could not be copied. Not visible to callers."""
        assert self.stage is Stage.STORING, self.stage
        return self._replace(artifacts=artifacts, due_time=due_time, setbacks=self.setbacks + 1)

    def stored(self, artifacts: tuple[Artifact, ...], now: float) -> "Task":
        """STORING -> SUCCESS: each result has a copy, or the reason why there is none."""
        assert self.stage is Stage.STORING, self.stage
        return self._end(now, status=Status.SUCCESS, artifacts=artifacts, complete_time=now)

    def copied(self, artifacts: tuple[Artifact, ...], now: float) -> "Task":
        """SUCCESS, or FAILED with artifacts: results have copies now that had none at its end."""
        assert self.ended, self.status
        return self._move(now, artifacts=artifacts, generated_time=self.delivery_time)

    def failed(
        self,
        failure: Failure,
        now: float,
        *,
        credits_consumed: float | None = None,
        complete_time: float | None = None,
        late_poll_time: float | None = None,
        result_json: str = "",
    ) -> "Task":
        """-> FAILED.

        At `late_poll_time`, if any, it is polled for a result that may still arrive.
        `result_json` keeps a record of the provider that was not understood.
        """
        assert not self.ended, self.status
        assert self.stage is not Stage.STORING, "its results are paid for"
        return self._end(
            now,
            status=Status.FAILED,
            failure=failure,
            result_json=result_json,
            credits_consumed=self._cost(credits_consumed),
            complete_time=complete_time or now,
            due_time=late_poll_time,
        )

    def adopted_late(self, provider_task_id: str, now: float, due_time: float) -> "Task":
        """FAILED without a provider's id -> FAILED with it: its result may still arrive."""
        assert self.status is Status.FAILED, self.status
        assert not self.provider_task_id, self.provider_task_id
        return self._move(
            now,
            provider_task_id=provider_task_id,
            accept_time=now,
            candidate_id="",
            due_time=due_time,
        )

    def delivered_late(
        self,
        artifacts: tuple[Artifact, ...],
        result_json: str,
        credits_consumed: float | None,
        now: float,
    ) -> "Task":
        """FAILED -> FAILED with artifacts: a paid result is kept. At most once."""
        assert self.status is Status.FAILED, self.status
        assert not self.artifacts, "delivered before"
        return self._move(
            now,
            artifacts=artifacts,
            result_json=result_json,
            credits_consumed=self._cost(credits_consumed),
            due_time=None,
        )

    def uncopied_late(self, now: float, due_time: float) -> "Task":
        """FAILED, and some results that came late could not be copied: they are polled again.

        Not visible to callers.
        """
        assert self.status is Status.FAILED, self.status
        assert not self.artifacts, "delivered before"
        first_seen = now if self.generated_time is None else self.generated_time
        return self._replace(
            generated_time=first_seen, due_time=due_time, setbacks=self.setbacks + 1
        )

    def still_undelivered(self, due_time: float) -> "Task":
        """FAILED, and no result yet: poll again."""
        assert self.status is Status.FAILED, self.status
        return self._replace(due_time=due_time)

    def undeliverable(self) -> "Task":
        """FAILED, and the provider failed as well: no result will arrive."""
        assert self.status is Status.FAILED, self.status
        return self._replace(due_time=None)

    def _cost(self, credits_consumed: float | None) -> float | None:
        """Return the cost that was reported last."""
        return self.credits_consumed if credits_consumed is None else credits_consumed

    def _end(self, now: float, **changes: object) -> "Task":
        return self._move(now, **{"stage": None, "due_time": None, "setbacks": 0} | changes)

    def _move(self, now: float, **changes: object) -> "Task":
        """Return the next revision. Its update_time never decreases, even if the clock was set."""
        changes |= {"revision": self.revision + 1, "update_time": max(now, self.update_time)}
        return self._replace(**changes)  # type: ignore[arg-type]
