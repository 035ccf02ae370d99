"""`python -m service store-results`: copy the results of tasks that ended without copies.

These are the tasks that ended before RESULTS_URL was set, and those whose copies were given up.
The task that ended first comes first, because the provider deletes its results first. Each task is
saved once its copies are complete, so the command can be interrupted and repeated: results that
have a copy are not copied again.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from service.bounds import BOUNDS
from service.callers import Callers
from service.kept import open_origin, open_results
from service.logged_task import logged_task
from service.parts import create_parts, start_background
from service.results.copier import Copier
from service.results.errors import ResultsConfigError
from service.settings import Settings
from storage.store import Store
from storage.task import Artifact, Task

TASKS_AT_ONCE = 16
REPORT_SECONDS = 5.0

Report = Callable[[str], None]


@dataclass(slots=True)
class Progress:
    """What has been done so far.

    Attributes:
        tasks: Tasks that had results without copies.
        copied: Results that were copied.
        copied_bytes: The size of these copies in total.
        not_copied: Results that could not be copied.
        end_time: When the last of these tasks ended.
    """

    tasks: int = 0
    copied: int = 0
    copied_bytes: int = 0
    not_copied: int = 0
    end_time: float = 0.0

    def __str__(self) -> str:
        day = time.strftime("%Y-%m-%d %H:%M", time.gmtime(self.end_time))
        return (
            f"tasks: {self.tasks}; results copied: {self.copied} ({self.copied_bytes} bytes);"
            f" not copied: {self.not_copied}" + (f"; until {day} UTC" if self.tasks else "")
        )


async def store_results(settings: Settings, since: float | None, report: Report) -> Progress:
    """Copy results until all tasks were looked at, and return what was done.

    Args:
        settings: The environment.
        since: Leave out tasks that ended earlier, in unix seconds; None leaves out those whose
            results the provider has deleted.
        report: Called with the progress now and then.

    Raises:
        StorageError: The database cannot be opened.
        ResultsConfigError: Results cannot be kept where RESULTS_URL says.
    """
    async with AsyncExitStack() as stack:
        callers = Callers(settings.auth_tokens_file, BOUNDS.recheck_seconds)
        parts = await create_parts(settings, BOUNDS, callers, stack)
        results = await open_results(parts, open_origin(parts, stack), stack)
        if results is None:
            raise ResultsConfigError("RESULTS_URL must be set: it says where results are kept")
        if since is None:
            since = parts.store.now() - parts.provider.delivery_seconds
        run = _Run(parts.store, results.copier)
        start_background(_report(run.progress, report), stack)
        return await run.run(since)


async def _report(progress: Progress, report: Report) -> None:
    """Report the progress now and then, however long a result takes."""
    while True:
        await asyncio.sleep(REPORT_SECONDS)
        report(str(progress))


class _Run:
    """Copies the results of a few tasks at a time.

    Attributes:
        progress: What has been done so far.
    """

    def __init__(self, store: Store, copier: Copier) -> None:
        self.progress = Progress()
        self._store = store
        self._copier = copier

    async def run(self, since: float) -> Progress:
        after = since, ""
        while tasks := await self._store.ended_after(*after, TASKS_AT_ONCE):
            await asyncio.gather(*map(self._store_one, tasks))
            after = tasks[-1].complete_time or since, tasks[-1].id
        return self.progress

    async def _store_one(self, task: Task) -> None:
        """Copy the results of a task that have no copy."""
        missing = sum(artifact.copy is None for artifact in task.artifacts)
        if not missing or task.of_newer_version:
            return
        logged_task.set(task)
        copied = await self._copier.copy_all(task, task.artifacts, _confirm)
        artifacts = tuple(map(_with_copy, task.artifacts, copied))
        new = [each.copy for each in artifacts if each not in task.artifacts]
        if new and await self._store.save(task, task.copied(artifacts, self._store.now())) is None:
            new = []  # another run has saved the task meanwhile
        progress = self.progress
        progress.tasks += 1
        progress.copied += len(new)
        progress.copied_bytes += sum(copy.size_bytes for copy in new if copy)
        progress.not_copied += missing - len(new)
        progress.end_time = max(progress.end_time, task.complete_time or 0.0)


def _with_copy(before: Artifact, after: Artifact) -> Artifact:
    """Return a result with its copy; unchanged if there is none, as it may be copied later."""
    return after if after.copy else before


async def _confirm() -> bool:
    """Return that a copy may be completed: nobody else works on a task that has ended."""
    return True
