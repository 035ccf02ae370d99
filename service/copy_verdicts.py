"""What becomes of a task whose results are copied, without I/O."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from providers.base import Succeeded
from storage.task import Artifact, Stage, Task


@dataclass(frozen=True, slots=True)
class CopyBounds:
    """How often copies are tried.

    Attributes:
        retry_seconds: After the first attempt that failed; doubled each time.
        retry_max_seconds: The longest wait.
        last_min_seconds, last_max_seconds: How much longer an attempt may take that is in progress
            when copies are given up: as long as they were tried for, within these limits.
        left_to_others_seconds: How long a process that keeps no results leaves a task to others
            that do: the setting may be changing, one replica after the other.
    """

    retry_seconds: float = 5.0
    retry_max_seconds: float = 3_600.0
    last_min_seconds: float = 10.0
    last_max_seconds: float = 600.0
    left_to_others_seconds: float = 600.0


BOUNDS = CopyBounds()


@dataclass(frozen=True, slots=True)
class CopyVerdicts:
    """Decides whether to try again, or to end a task. Times are unix seconds.

    Each method takes the current task, and returns the snapshot to store, or None to leave it.

    Attributes:
        give_up_seconds: How long copies are tried.
        elapsed_seconds: Returns how long ago a time was, without jumps of the clock.
        bounds: How often copies are tried.
    """

    give_up_seconds: float
    elapsed_seconds: Callable[[float, float], float]
    bounds: CopyBounds = BOUNDS

    def attempt_seconds(self, task: Task, now: float) -> float:
        """Return how long an attempt that begins now may take."""
        first_seen = task.update_time
        if task.stage is not Stage.STORING:
            first_seen = now if task.generated_time is None else task.generated_time
        last_seconds = max(self.give_up_seconds, self.bounds.last_min_seconds)
        return max(0.0, self._left_seconds(first_seen, now)) + min(
            last_seconds, self.bounds.last_max_seconds
        )

    def after_copies(self, task: Task, artifacts: tuple[Artifact, ...], now: float) -> Task | None:
        """Decide on a task in STORING.

        Args:
            task: The current task.
            artifacts: Its results, each with its copy or with the reason why there is none.
            now: The current time.
        """
        if task.stage is not Stage.STORING:
            return None
        left_seconds = self._left_seconds(task.update_time, now)
        if _are_copied(artifacts) or left_seconds <= 0:
            return task.stored(artifacts, now)
        return task.partly_stored(artifacts, now + min(self._backoff(task), left_seconds))

    def after_late_copies(
        self, task: Task, outcome: Succeeded, artifacts: tuple[Artifact, ...], now: float
    ) -> Task | None:
        """Decide on results of a task that has ended without them: they are copied, then added."""
        if not task.ended or task.artifacts:
            return None
        first_seen = now if task.generated_time is None else task.generated_time
        left_seconds = self._left_seconds(first_seen, now)
        if not _are_copied(artifacts) and left_seconds > 0:
            return task.uncopied_late(now, now + min(self._backoff(task), left_seconds))
        return task.delivered_late(artifacts, outcome.result_json, outcome.credits_consumed, now)

    def _left_seconds(self, since: float, now: float) -> float:
        """Return how long copies are still tried, if they have been tried since a time."""
        return self.give_up_seconds - self.elapsed_seconds(since, now)

    def _backoff(self, task: Task) -> float:
        seconds = self.bounds.retry_seconds * 2.0 ** min(task.setbacks, 16)
        return min(seconds, self.bounds.retry_max_seconds)


def not_kept(task: Task, now: float) -> Task | None:
    """End a task in STORING without copies: results are no longer kept."""
    if task.stage is not Stage.STORING:
        return None
    words = "results are no longer copied: RESULTS_URL is not set"
    artifacts = (
        each if each.copy else replace(each, storage_error=words) for each in task.artifacts
    )
    return task.stored(tuple(artifacts), now)


def _are_copied(artifacts: tuple[Artifact, ...]) -> bool:
    return all(artifact.copy for artifact in artifacts)
