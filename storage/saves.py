"""Compare-and-set: a snapshot is stored only if the one it was made from is still current.

All of this runs in the writer's thread, inside its transaction.
"""

from collections.abc import Callable, Iterable, Sequence

from storage.engine import Change, Engine
from storage.rows import FIXED_COLUMNS, result_of, row_of
from storage.task import Task


class Saves:
    """Stores changed snapshots."""

    def __init__(self, engine: Engine, on_saved: Callable[[Task, Task], None]) -> None:
        """Keep what is needed.

        Args:
            engine: The database.
            on_saved: Called with the snapshots before and after each change.
        """
        self._engine = engine
        self._on_saved = on_saved

    def save_each(self, changes: Sequence[tuple[Task, Task]]) -> list[Task | None]:
        """Store changes (before, after); return each snapshot with its new version.

        None if `before` is no longer the current snapshot.
        """
        assert not any(before.of_newer_version for before, _ in changes), "it is never changed"
        saved = [after._replace(version=before.version + 1) for before, after in changes]
        found = self._engine.save(
            [_change(before, after) for (before, _), after in zip(changes, saved, strict=True)]
        )
        for (before, after), was_current in zip(changes, found, strict=True):
            if was_current:
                self._on_saved(before, after)
        return [task if there else None for task, there in zip(saved, found, strict=True)]

    def renew(self, tasks: Iterable[Task], due_time: float) -> list[Task]:
        """Postpone the tasks that are still current, without a new version; return those."""
        execute, sql = self._engine.execute, self._engine.sql.tasks.renew
        return [
            task._replace(due_time=due_time)
            for task in tasks
            if execute(sql, due_time, task.id, task.version).rowcount
        ]


def _change(before: Task, after: Task) -> Change:
    return Change(
        columns=row_of(after)[FIXED_COLUMNS:],
        task_id=before.id,
        version=before.version,
        is_visible=before.revision != after.revision,
        has_result=result_of(before) != result_of(after),
    )
