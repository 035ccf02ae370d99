"""What goes wrong with the store, and the one place where the drivers' errors are translated.

StorageError                 (base)
  StorageUnavailableError    the database is away; nothing is acknowledged, try again later
    ClaimUnknownError        the same, and a claim may or may not have been committed
  StorageConfigError         the database cannot be opened as it is configured
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from peewee import (
    DatabaseError,
    DataError,
    IntegrityError,
    InterfaceError,
    NotSupportedError,
    ProgrammingError,
)
from psycopg2.errors import InsufficientPrivilege, InvalidSchemaName

from storage.task import Task

# What a driver raises for our own mistakes, and not because the database is away.
_BUGS = (DataError, IntegrityError, NotSupportedError, ProgrammingError)
# Though of the same kind, these are for who runs the database to mend.
_OPERATORS = (InsufficientPrivilege, InvalidSchemaName)


class StorageError(Exception):
    """Base of what goes wrong with the store."""


class StorageUnavailableError(StorageError):
    """The database is away, full or locked. Nothing was acknowledged."""


class ClaimUnknownError(StorageUnavailableError):
    """The database went away while a claim was committed.

    Attributes:
        tasks: What was claimed, if it was: then `Store.get` returns the very same.
    """

    def __init__(self, message: str, tasks: Sequence[Task]) -> None:
        super().__init__(message)
        self.tasks = tasks


class StorageConfigError(StorageError):
    """The database cannot be opened as it is configured."""


def is_unavailable(error: BaseException) -> bool:
    """Whether a driver's error says that the database is away, or does not let us."""
    if not isinstance(error, (DatabaseError, InterfaceError)):
        return False
    return not isinstance(error, _BUGS) or isinstance(getattr(error, "orig", None), _OPERATORS)


def translated(error: BaseException) -> StorageUnavailableError | None:
    """Return a driver's error in our words, if it says that the database is away."""
    if not is_unavailable(error):
        return None
    words = " ".join(str(error).split())
    return StorageUnavailableError(f"{type(error).__name__}: {words}")


@contextmanager
def storage_errors() -> Iterator[None]:
    """Translate the drivers' errors."""
    try:
        yield
    except (DatabaseError, InterfaceError) as error:
        if unavailable := translated(error):
            raise unavailable from error
        raise
