"""Which rows this version may work on: replicas of a newer version may store others.

During an upgrade, and after one that was undone, two versions work on one database. The older one
shows the tasks of the newer one, but claims and saves none of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from storage.task import Lane, Stage, Status

STATUSES = {status.value: status for status in Status}
STAGES: dict[str | None, Stage | None] = {None: None} | {stage.value: stage for stage in Stage}
LANES: frozenset[str | None] = frozenset({None, *(lane.value for lane in Lane)})


@dataclass(frozen=True, slots=True)
class Known:
    """What this process knows.

    Attributes:
        needs: What a task may need, usually its model; None knows everything.
    """

    needs: frozenset[str] | None = None

    def includes(self, model: str, needs: str | None) -> bool:
        """Return whether the process knows what a task needs."""
        return self.needs is None or (needs or model) in self.needs

    @property
    def condition(self) -> str:
        """The SQL condition for the rows that the process may work on.

        It is a CASE because PostgreSQL assumes that one is true for half of the rows. It would
        expect few rows from the list of models, and sort all of them instead of using an index.
        """
        needs = ""
        if self.needs is not None:
            names = _list(sorted(self.needs))
            needs = (
                f" WHEN needs IS NULL THEN model IN {names} WHEN needs NOT IN {names} THEN FALSE"
            )
        return (
            f"CASE WHEN status NOT IN {_list(Status)} THEN FALSE"
            f" WHEN stage NOT IN {_list(Stage)} THEN FALSE{needs} ELSE TRUE END"
        )


def _list(names: Iterable[str]) -> str:
    """Return names of our own as a list in SQL."""
    return "({})".format(", ".join(f"'{name}'" for name in names))
