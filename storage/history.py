"""Which history of changes a database holds: after a restore it is another one.

Positions of one history mean nothing in another. A restored PostgreSQL may also number its
transactions again from a lower number, so the restored changes would be beyond those that can be
read: they become the oldest ones instead.
"""

import os
from hashlib import blake2b

from peewee import Database

from storage.schema import SecretRow

# The names of two secrets: the random id of the history, and the origin it was written at.
CHANGES = "changes"
CHANGES_ORIGIN = "origin of changes"

EPOCH_BYTES = 8
ID_BYTES = 16

# The id of the cluster, its timeline (which a promotion changes), and the table.
POSTGRESQL_ORIGIN = (
    "(SELECT system_identifier FROM pg_control_system())::text"
    " || ' ' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"
    " || ' ' || 'tasks'::regclass::oid"
)
# Deleted tasks count, too, so that a number is never used twice.
SQLITE_HORIZON = (
    "(SELECT MAX(COALESCE((SELECT MAX(change_xid) FROM tasks), 0),"
    " COALESCE((SELECT MAX(change_xid) FROM purges), 0)) + 1)"
)


def epoch(origin: str, history_id: bytes | None) -> bytes:
    """Return the epoch of a history: a hash of the database's origin and the history's id."""
    text = origin.encode() + b"\0" + bytes(history_id or b"")
    return blake2b(text, digest_size=EPOCH_BYTES).digest()


def settle_history(db: Database, origin: str, *, new: bool = False) -> bool:
    """Begin a new history if the database was restored or `new`; return whether it was begun.

    Args:
        db: The database, in no transaction.
        origin: Identifies where the database is.
        new: Whether to begin one in any case.
    """
    with db.atomic():
        _add(db, CHANGES, os.urandom(ID_BYTES))
        known = _get(db, CHANGES_ORIGIN)
        if not new and known == origin.encode():
            return False
        if known is None:
            _add(db, CHANGES_ORIGIN, origin.encode())
            if not new:
                return False
        _change(db, CHANGES, os.urandom(ID_BYTES))
        _change(db, CHANGES_ORIGIN, origin.encode())
        if db.for_update:
            db.execute_sql(
                "UPDATE tasks SET change_xid = '0' WHERE change_xid >= pg_current_xact_id()"
            )
            db.execute_sql("DELETE FROM purges")
        return True


def _get(db: Database, name: str) -> bytes | None:
    query = SecretRow.select(SecretRow.value).where(SecretRow.name == name)
    rows = list(query.tuples().execute(db))
    return bytes(rows[0][0]) if rows else None


def _add(db: Database, name: str, value: bytes) -> None:
    SecretRow.insert(name=name, value=value).on_conflict_ignore().execute(db)


def _change(db: Database, name: str, value: bytes) -> None:
    SecretRow.update(value=value).where(SecretRow.name == name).execute(db)
