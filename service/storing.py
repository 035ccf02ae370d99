"""The work on tasks whose results are copied into our own storage.

    store        copy the results of a task in STORING, then end it
    poll_late    poll for a late delivery; copy it, then add it to the task

A copy is work like any other: the task is claimed, its lease renewed, and its snapshot saved only
if nobody else has changed it. If the process dies, another one claims the task and copies again.
"""

from dataclasses import dataclass
from functools import partial

import structlog

from providers.base import Succeeded
from service.copy_verdicts import CopyVerdicts, not_kept
from service.results.copier import Copier
from service.verdicts import artifacts_of
from service.work import Work
from storage.task import Artifact, Task

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Storing:
    """What is done with a claimed task whose results are kept.

    Attributes:
        work: The work on other tasks.
        copier: Copies results.
        verdicts: Decides what becomes of a task.
    """

    work: Work
    copier: Copier
    verdicts: CopyVerdicts

    async def store(self, task: Task) -> None:
        """Copy the results of a task."""
        artifacts = await self._copy(task, task.artifacts)
        if artifacts is not None:
            await self.work.settle(
                task, lambda current, now: self.verdicts.after_copies(current, artifacts, now)
            )

    async def poll_late(self, task: Task) -> None:
        """Ask for the record of a task that ended without its paid result."""
        await self.work.poll_late(task, self._deliver)

    async def _deliver(self, task: Task, outcome: Succeeded) -> None:
        artifacts = await self._copy(task, artifacts_of(outcome))
        if artifacts is not None:
            log.info("late delivery", artifacts=len(artifacts))
            await self.work.settle(
                task,
                lambda current, now: self.verdicts.after_late_copies(
                    current, outcome, artifacts, now
                ),
            )

    async def _copy(
        self, task: Task, artifacts: tuple[Artifact, ...]
    ) -> tuple[Artifact, ...] | None:
        """Copy results; None if another process has taken over the task meanwhile."""
        is_ours = partial(self.work.leases.is_ours, task)
        seconds = self.verdicts.attempt_seconds(task, self.work.store.now())
        copied = await self.copier.copy_all(task, artifacts, is_ours, seconds)
        if await is_ours():
            return copied
        log.warning("results not stored: another process has taken over the task")
        return None


async def end_without_copies(work: Work, task: Task) -> None:
    """End a task in STORING in a process that does not keep results."""
    await work.settle(task, not_kept)
