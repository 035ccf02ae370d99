"""Errors of the store, and the one place where those of the database drivers are translated.

StorageError                 (base)
  StorageUnavailableError    the database is unavailable; nothing is acknowledged, try again later
    CommitUnknownError       the same, and the write may or may not have been committed
  StorageConfigError         the database cannot be opened as it is configured
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peewee import (
    DatabaseError,
    DataError,
    IntegrityError,
    InterfaceError,
    NotSupportedError,
    ProgrammingError,
)
from psycopg2.errors import InsufficientPrivilege, InvalidSchemaName, QueryCanceled

# What a driver raises for our own mistakes, and not because the database is unavailable.
_BUGS = (DataError, IntegrityError, NotSupportedError, ProgrammingError)
# Drivers count these as such mistakes, but only the operator of the database can fix them.
_OPERATORS = (InsufficientPrivilege, InvalidSchemaName)


class StorageError(Exception):
    """Base of all errors of the store."""


class StorageUnavailableError(StorageError):
    """The database is unavailable, full or locked. Nothing was acknowledged."""


class CommitUnknownError(StorageUnavailableError):
    """The database failed while it committed a write.

    Attributes:
        result: What the write returns if it was committed.
    """

    def __init__(self, error: Exception, result: Any) -> None:
        super().__init__(_words(error))
        self.__cause__ = error
        self.result = result


class StorageConfigError(StorageError):
    """The database cannot be opened as it is configured."""


def is_unavailable(error: BaseException) -> bool:
    """Return whether an error means that the database is unavailable, or refuses us."""
    if not isinstance(error, (DatabaseError, InterfaceError)):
        return False
    return not isinstance(error, _BUGS) or isinstance(getattr(error, "orig", None), _OPERATORS)


def is_statement_timeout(error: BaseException) -> bool:
    """Return whether the database gave up a statement because it took too long."""
    return isinstance(getattr(error, "orig", None), QueryCanceled)


def translated(error: BaseException) -> StorageUnavailableError | None:
    """Return our error for a driver's error, if it means that the database is unavailable."""
    return StorageUnavailableError(_words(error)) if is_unavailable(error) else None


@contextmanager
def storage_errors() -> Iterator[None]:
    """Translate the errors of drivers."""
    try:
        yield
    except (DatabaseError, InterfaceError) as error:
        if unavailable := translated(error):
            raise unavailable from error
        raise


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
