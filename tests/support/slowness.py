"""A PostgreSQL in which rows take their time."""

from tests.support.databases import change

DELAY = """
CREATE FUNCTION delay() RETURNS trigger AS
$$ BEGIN PERFORM pg_sleep({seconds}); RETURN NEW; END $$ LANGUAGE plpgsql;
CREATE TRIGGER delay BEFORE {events} ON tasks FOR EACH ROW EXECUTE FUNCTION delay()
"""


def slow_down(database_url: str, row_seconds: float, events: str = "INSERT") -> None:
    """Have every row that is written take a while."""
    change(database_url, DELAY.format(seconds=row_seconds, events=events))


def speed_up(database_url: str) -> None:
    """Undo `slow_down`."""
    change(database_url, "DROP FUNCTION delay CASCADE")
