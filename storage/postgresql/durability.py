"""Settings of a database with which acknowledged tasks may be lost."""

from collections.abc import Iterator

from peewee import Database

SETTINGS = (
    "SELECT name, setting FROM pg_settings"
    " WHERE name IN ('fsync', 'synchronous_commit', 'synchronous_standby_names')"
)
# Other users see that these rows exist, but not the state of each.
STANDBYS = "SELECT count(*) FROM pg_stat_replication WHERE state IS DISTINCT FROM 'backup'"


def durability_warnings(db: Database) -> Iterator[str]:
    """Yield what a crash or a fail-over may lose because of the settings of the database."""
    settings = dict(db.execute_sql(SETTINGS).fetchall())
    ((standbys,),) = db.execute_sql(STANDBYS).fetchall()
    commit = settings["synchronous_commit"]
    if settings["fsync"] == "off":
        yield "fsync is off: a power cut or a crash of the machine may corrupt the database"
    if commit == "off":
        yield (
            "synchronous_commit is off: a crash of the database loses tasks that were acknowledged,"
            " and what was paid for; set it to on"
        )
    if not standbys:
        return
    if not settings["synchronous_standby_names"].strip():
        yield (
            "there are standbys, but synchronous_standby_names is empty: a fail-over loses what"
            " the standby has not received, and tasks that were sent may be sent again"
        )
    elif commit == "local":
        yield (
            "synchronous_commit is local, so commits do not wait for the standbys: a fail-over"
            " loses what the standby has not received, and tasks that were sent may be sent again"
        )
