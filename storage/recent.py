"""The newest snapshots of the tasks that were used last, so that most reads need no database.

What is kept here is never older than what was shown. Without other processes every write passes
here, before anybody hears of it. With them only a SUCCESS is kept, as nothing changes it any more.
"""

from collections.abc import Iterable

from cachetools import LRUCache

from storage.task import Status, Task

MAX_BYTES = 32 << 20
TASK_BYTES = 1_000  # of a task without its texts


class RecentTasks:
    """Tasks by their id, bounded by their size; what was used longest ago goes first."""

    def __init__(self, *, shared: bool) -> None:
        self._shared = shared
        self._tasks: LRUCache[str, Task] = LRUCache(MAX_BYTES, _size)

    def get(self, task_id: str) -> Task | None:
        """Return the newest snapshot, if it is known."""
        return self._tasks.get(task_id)

    def keep(self, tasks: Iterable[Task]) -> None:
        """Remember snapshots that are committed."""
        for task in tasks:
            if not self._shared or task.status is Status.SUCCESS:
                known = self._tasks.get(task.id)
                if known is None or known.version <= task.version:
                    self._tasks[task.id] = task

    def update(self, tasks: Iterable[Task]) -> None:
        """Remember snapshots that were read, where an older one is known."""
        self.keep(task for task in tasks if task.id in self._tasks)

    def forget(self, task_id: str) -> None:
        """Read a task again next time."""
        self._tasks.pop(task_id, None)

    def forget_ended(self, before: float) -> None:
        """Forget what ended before a time, in unix seconds: some process purges it."""
        ended = [t.id for t in self._tasks.values() if t.ended and (t.complete_time or 0) < before]
        for task_id in ended:
            del self._tasks[task_id]

    def forget_all(self) -> None:
        """Read every task again: many may have changed, or nobody knows whether."""
        self._tasks.clear()


def _size(task: Task) -> int:
    return TASK_BYTES + len(task.params) + 2 * len(task.result_json)
