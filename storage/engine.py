"""What the store needs from a database: only what SQLite and PostgreSQL do differently."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from peewee import Database

from storage.clock import Clock
from storage.statements import Statements
from storage.task import Task
from storage.threads import ThreadState
from storage.worker import WAITING_SECONDS, Worker

Row = Sequence[Any]


@dataclass(frozen=True, slots=True)
class DatabaseTimeouts:
    """How long to wait for a database that is busy or does not answer.

    Attributes:
        sqlite_busy_seconds: For a file that another process has locked.
        lock_milliseconds: For a lock on PostgreSQL.
        statement_milliseconds: For a statement on PostgreSQL.
        silence_seconds: Until a connection to PostgreSQL is cut; a little longer than the server
            may take.
        ping_seconds: For a ping.
        waiting_seconds: How long an operation waits for those before it, until it fails.
        queues_seconds: For reading the queues for /metrics; less than a scraper waits.
    """

    sqlite_busy_seconds: float = 5.0
    lock_milliseconds: int = 2_000
    statement_milliseconds: int = 5_000
    silence_seconds: float = 8.0
    ping_seconds: float = 1.0
    waiting_seconds: float = WAITING_SECONDS
    queues_seconds: float = 2.0


TIMEOUTS = DatabaseTimeouts()


class Change(NamedTuple):
    """A changed row of a task.

    Attributes:
        columns: The values of the columns that may change.
        task_id: The task.
        version: The version that they replace.
        is_visible: Whether there is a new revision.
        has_result: Whether the results have changed, or the task has ended: otherwise only the
            working columns have changed.
    """

    columns: Row
    task_id: str
    version: int
    is_visible: bool
    has_result: bool


class Engine(Protocol):
    """One database.

    Reads are awaited in the event loop. A write is a function that `writer` calls in its thread,
    inside a transaction; there it may use the methods of the second part.
    """

    sql: Statements
    touch: str  # a statement that changes nothing, but fails if the database cannot be written to
    writer: Worker
    origin: str  # identifies the SQLite file; "" on PostgreSQL, which reads it in SQL

    @property
    def db(self) -> Database:
        """The writer's connection, which also prints statements."""

    @property
    def clock(self) -> Clock:
        """The clock that due times are kept by."""

    @property
    def shared(self) -> bool:
        """Whether other processes may work on the database."""

    @property
    def uses_hints(self) -> bool:
        """Whether hints of other processes are expected."""

    @property
    def is_listening(self) -> bool:
        """Whether hints of other processes arrive at this moment."""

    async def get(self, task_id: str) -> Row | None:
        """Return the newest committed row of a task."""

    async def one(self, sql: str, *params: object) -> Row | None:
        """Return the first row of a statement that reads few."""

    async def all(self, sql: str, *params: object) -> list[Row]:
        """Return the rows of a statement that may read many."""

    async def newer(self, ids: Sequence[str], revisions: Sequence[int]) -> list[Row]:
        """Return the rows of those tasks that other processes took past the revision given."""

    async def wait_for_hints(self, timeout: float) -> dict[str, int]:
        """Wait for hints of other processes, at most `timeout` seconds: {task id: revision}."""

    def hint(self, tasks: Sequence[Task]) -> None:
        """Send other processes hints of committed snapshots; they may be lost."""

    def threads(self) -> list[ThreadState]:
        """Return the state of every thread that must run."""

    async def close(self) -> None:
        """Finish the writes that wait, and close every connection."""

    # --- in the writer's thread, inside its transaction ---

    def execute(self, sql: str, *params: object) -> Any:
        """Run a statement; return its cursor."""

    def insert(self, rows: Sequence[Row]) -> list[bool]:
        """Store new rows; return for each whether its request_id was new."""

    def find_requests(self, requests: Sequence[tuple[str, str]]) -> list[Row]:
        """Return the rows of those (caller, request_id) that exist."""

    def save(self, changes: Sequence[Change]) -> list[bool]:
        """Store changed rows; return for each whether the version that it replaces was found."""

    def lock(self, task_ids: Sequence[str], lane: str, now: float) -> list[Row]:
        """Lock those tasks that are due in the lane, and return their rows in the order given.

        Tasks that another process has locked are left out.
        """

    def first_waiting(self, queues: Sequence[tuple[str, str]], now: float, depth: int) -> list[Row]:
        """Return (id, caller, create_time, setbacks, model) of tasks that are due to be sent.

        Only the `depth` oldest of each queue, which is a (caller, model).
        """

    def try_lock(self) -> bool:
        """Try to lock all decisions that depend on a count, until the end of the transaction."""
