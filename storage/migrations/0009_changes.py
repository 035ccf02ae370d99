"""Each visible change of a task gets a position, by which a stream of all changes resumes.

On PostgreSQL triggers assign it, so that replicas of an older version leave no gaps. On SQLite the
only process that writes does it itself.
"""

from peewee import PostgresqlDatabase

POSTGRESQL = """
ALTER TABLE tasks ADD COLUMN change_xid XID8 NOT NULL DEFAULT '0';
CREATE TABLE purges (caller TEXT NOT NULL PRIMARY KEY, change_xid XID8 NOT NULL);

CREATE FUNCTION tasks_number_change()
    RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    NEW.change_xid := pg_current_xact_id();
    RETURN NEW;
END
$$;
CREATE TRIGGER tasks_number_insert BEFORE INSERT ON tasks
    FOR EACH ROW EXECUTE FUNCTION tasks_number_change();
CREATE TRIGGER tasks_number_update BEFORE UPDATE OF revision ON tasks
    FOR EACH ROW WHEN (NEW.revision IS DISTINCT FROM OLD.revision)
    EXECUTE FUNCTION tasks_number_change();

CREATE FUNCTION tasks_record_purge()
    RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO purges (caller, change_xid)
    SELECT DISTINCT ON (caller) caller, change_xid FROM purged ORDER BY caller, change_xid DESC
    ON CONFLICT (caller)
    DO UPDATE SET change_xid = GREATEST(purges.change_xid, EXCLUDED.change_xid);
    RETURN NULL;
END
$$;
CREATE TRIGGER tasks_record_purge AFTER DELETE ON tasks REFERENCING OLD TABLE AS purged
    FOR EACH STATEMENT EXECUTE FUNCTION tasks_record_purge();
"""
SQLITE = (
    """ALTER TABLE tasks ADD COLUMN "change_xid" XID8 NOT NULL DEFAULT '0'""",
    'CREATE TABLE "purges" ("caller" TEXT NOT NULL PRIMARY KEY, "change_xid" XID8 NOT NULL)',
    """
    CREATE TRIGGER tasks_record_purge AFTER DELETE ON tasks
    BEGIN
        INSERT INTO purges (caller, change_xid) VALUES (OLD.caller, OLD.change_xid)
        ON CONFLICT (caller) DO UPDATE SET change_xid = max(change_xid, excluded.change_xid);
    END
    """,
)
POSTGRESQL_DOWN = """
DROP TRIGGER tasks_number_insert ON tasks;
DROP TRIGGER tasks_number_update ON tasks;
DROP TRIGGER tasks_record_purge ON tasks;
DROP FUNCTION tasks_number_change();
DROP FUNCTION tasks_record_purge();
DROP TABLE purges;
ALTER TABLE tasks DROP COLUMN change_xid;
"""
SQLITE_DOWN = (
    "DROP TRIGGER tasks_record_purge",
    "DROP TABLE purges",
    "ALTER TABLE tasks DROP COLUMN change_xid",
)


def up(migrator, db):
    _run(db, POSTGRESQL, SQLITE)


def down(migrator, db):
    _run(db, POSTGRESQL_DOWN, SQLITE_DOWN)


def _run(db, postgresql, sqlite):
    for statement in (postgresql,) if isinstance(db, PostgresqlDatabase) else sqlite:
        db.execute_sql(statement)
