"""A cache of the newest snapshots of recently used tasks, where no other process writes.

A SELECT on the event loop releases the GIL; getting it back costs several times the read itself.
Every write updates the cache before its result is known to anyone, so the cache never returns an
older snapshot than one that was shown.
"""

from collections.abc import Iterable

from cachetools import LRUCache

from storage.task import Task

MAX_BYTES = 16 << 20
TASK_BYTES = 1_500  # of a task without its params and result


class RecentTasks:
    """Tasks by id, bounded by their size; the least recently used ones are dropped first."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._tasks: LRUCache[str, Task] = LRUCache(max_bytes, _size)

    def get(self, task_id: str) -> Task | None:
        """Return the newest snapshot, if it is cached."""
        return self._tasks.get(task_id)

    def keep(self, tasks: Iterable[Task]) -> None:
        """Cache committed snapshots."""
        for task in tasks:
            known = self._tasks.get(task.id)
            if known is None or known.version <= task.version:
                try:
                    self._tasks[task.id] = task
                except ValueError:  # larger than the whole cache
                    self.forget(task.id)

    def update(self, tasks: Iterable[Task]) -> None:
        """Cache snapshots that were read, where an older one is cached."""
        self.keep(task for task in tasks if task.id in self._tasks)

    def forget(self, task_id: str) -> None:
        """Drop a task."""
        self._tasks.pop(task_id, None)

    def forget_all(self) -> None:
        """Drop every task: any may have changed."""
        self._tasks.clear()


def _size(task: Task) -> int:
    return TASK_BYTES + len(task.params) + len(task.filled_params) + 2 * len(task.result_json)
