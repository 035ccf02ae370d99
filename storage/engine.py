"""What the store asks of a database: all that SQLite and PostgreSQL do differently, and no more."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from peewee import Database

from storage.statements import Statements
from storage.task import Task

Argument = TypeVar("Argument")
Result = TypeVar("Result")
Row = Sequence[Any]


class Engine(Protocol):
    """One database.

    Reads are awaited in the event loop. A write is a function that the writer's thread calls
    inside a transaction; there it may use the methods of the second part.
    """

    sql: Statements
    touch: str  # the statement that shows that the database can be written to

    @property
    def shared(self) -> bool:
        """Whether other processes may work on the database."""

    @property
    def hinted(self) -> bool:
        """Whether their hints are heard at this moment."""

    @property
    def db(self) -> Database:
        """What prints statements."""

    def now(self) -> float:
        """Return the time by the clock that due times are kept by, in unix seconds."""

    async def get(self, task_id: str) -> Row | None:
        """Return the row of a task, committed after the call at the latest."""

    async def one(self, sql: str, *params: object) -> Row | None:
        """Return the first row of a statement that reads few."""

    async def all(self, sql: str, *params: object) -> list[Row]:
        """Return the rows of a statement that may read many."""

    async def newer(self, ids: Sequence[str], revisions: Sequence[int]) -> list[Row]:
        """Return the rows of those tasks whose revision is above the one beside their id."""

    async def heard(self, timeout: float) -> dict[str, int]:
        """Wait for hints of other processes, at most `timeout` seconds: {task id: revision}."""

    async def write(
        self,
        kind: Callable[[Sequence[Argument]], Sequence[Result]],
        argument: Argument,
        note: Callable[[Result | Exception], None],
    ) -> Result:
        """Have `kind` called in the writer's thread, inside a transaction.

        It gets the arguments of all the writes of its kind that wait, and returns a result of each.
        `note` is told of the result or the error in the event loop, before anybody else is.
        """

    async def close(self) -> None:
        """Finish the writes that wait, and close every connection."""

    # --- in the writer's thread, inside its transaction ---

    def execute(self, sql: str, *params: object) -> Any:
        """Run a statement; return its cursor."""

    def insert(self, rows: Sequence[Row]) -> list[bool]:
        """Store new rows; say of each whether its request_id was new."""

    def find_requests(self, requests: Sequence[tuple[str, str]]) -> list[Row]:
        """Return the rows of those (caller, request_id) that are there."""

    def save(self, changes: Sequence[Row]) -> list[bool]:
        """Store changed columns, each with id and version to find it by; say which were found."""

    def lock(self, task_ids: Sequence[str], lane: str, now: float) -> list[Row]:
        """Return the rows of those tasks, in their order, that are due in the lane and nobody's.

        What somebody else moves at this moment is left out.
        """

    def try_lock(self) -> bool:
        """Whether the transaction may decide by a count, as nobody else does until its end."""

    def hint(self, tasks: Sequence[Task]) -> None:
        """Tell other processes of snapshots that were committed, as fast as it goes, or never."""
