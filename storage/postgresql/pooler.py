"""Poolers between the service and PostgreSQL: what they refuse, and what they drop silently."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from peewee import Database, OperationalError

from storage.errors import StorageConfigError

# In the options of a connection; a space in a value is escaped.
SEARCH_PATH = re.compile(r"(?:^|\s)(?:-c\s*|--)search[_-]path=((?:\\.|[^\s\\])*)", re.IGNORECASE)
# How PgBouncer and RDS Proxy refuse the options of a connection.
REFUSED_OPTIONS = re.compile("unsupported startup parameter|command-line options", re.IGNORECASE)
HINTS_ADVICE = (
    "set DATABASE_HINTS=false, which also sends no such options, or connect without the pooler"
)
# Without these, times lose digits on their way here, and nulls in arrays become text.
FORMATS = {"array_nulls": "on", "extra_float_digits": "1"}
SESSION_SETTINGS = "SELECT name, setting FROM pg_settings WHERE name = ANY(%s)"


@contextmanager
def refused_options(advice: str) -> Iterator[None]:
    """Translate the error of a pooler that refuses the options of a connection.

    Args:
        advice: What the operator can do.

    Raises:
        StorageConfigError: The options were refused.
    """
    try:
        yield
    except OperationalError as error:
        words = " ".join(str(error).split())
        if REFUSED_OPTIONS.search(words):
            raise StorageConfigError(f"{advice} (the pooler answers: {words})") from error
        raise


def require_session(db: Database, session: Mapping[str, int | str]) -> None:
    """Refuse a pooler that drops the settings of a session: without them statements have no limit.

    Args:
        db: Connected.
        session: The settings that were asked for; times are in milliseconds.
    """
    found = dict(db.execute_sql(SESSION_SETTINGS, (list(session),)).fetchall())
    dropped = [name for name, value in session.items() if found.get(name) != str(value)]
    if dropped:
        raise StorageConfigError(
            f"the server does not apply {', '.join(dropped)}: a pooler in between drops options;"
            f" {HINTS_ADVICE}"
        )


def require_formats(db: Database) -> None:
    """Refuse a role or a database whose formats lose something, where no session can set them."""
    found = dict(db.execute_sql(SESSION_SETTINGS, (list(FORMATS),)).fetchall())
    if int(found["extra_float_digits"]) < 1 or found["array_nulls"] != "on":
        needed = ", ".join(f"{name} = {value}" for name, value in FORMATS.items())
        raise StorageConfigError(f"the role needs {needed} (ALTER ROLE ... SET ...)")


def require_search_path(db: Database, options: str) -> None:
    """Refuse a database that ignores the schema of the URL: two accounts would share one table."""
    requested = SEARCH_PATH.findall(options)
    if not requested:
        return
    expected = re.sub(r"\\(.)", r"\1", requested[-1])
    ((found, schema),) = db.execute_sql(
        "SELECT current_setting('search_path'), current_schema()"
    ).fetchall()
    if "".join(found.split()) != "".join(expected.split()):
        raise StorageConfigError(
            f"DATABASE_URL asks for the search_path {expected}, but the server uses {found}"
            f" (schema {schema}): a pooler in between drops options; set the search_path of the"
            " role instead (ALTER ROLE ... SET search_path), or connect without the pooler"
        )
