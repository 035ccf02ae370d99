"""The newest snapshots of the tasks that were used last, where no other process writes.

A SELECT on the event loop lets go of the interpreter's lock, which costs several times the read.
Every write passes here before anybody hears of it, so what is kept is never older than what was
shown.
"""

from collections.abc import Iterable

from cachetools import LRUCache

from storage.task import Task

MAX_BYTES = 16 << 20
TASK_BYTES = 1_500  # of a task without its longer texts


class RecentTasks:
    """Tasks by their id, bounded by their size; what was used longest ago goes first."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._tasks: LRUCache[str, Task] = LRUCache(max_bytes, _size)

    def get(self, task_id: str) -> Task | None:
        """Return the newest snapshot, if it is known."""
        return self._tasks.get(task_id)

    def keep(self, tasks: Iterable[Task]) -> None:
        """Remember snapshots that are committed."""
        for task in tasks:
            known = self._tasks.get(task.id)
            if known is None or known.version <= task.version:
                try:
                    self._tasks[task.id] = task
                except ValueError:  # larger than all there is room for
                    self.forget(task.id)

    def update(self, tasks: Iterable[Task]) -> None:
        """Remember snapshots that were read, where an older one is known."""
        self.keep(task for task in tasks if task.id in self._tasks)

    def forget(self, task_id: str) -> None:
        """Read a task again next time."""
        self._tasks.pop(task_id, None)

    def forget_all(self) -> None:
        """Read every task again: many may have changed, or nobody knows whether."""
        self._tasks.clear()


def _size(task: Task) -> int:
    return TASK_BYTES + len(task.params) + 2 * len(task.result_json)
