"""Waiting tasks are found by their callers and models, so that a claim passes over many of them."""

from peewee import PostgresqlDatabase

atomic = False

INDEX = (
    '"tasks_waiting" ON "tasks" ("caller", "model", "create_time", "id", "due_time")'
    " WHERE lane = 'submit'"
)


def up(migrator, db):
    create = "CREATE INDEX"
    if isinstance(db, PostgresqlDatabase):
        db.execute_sql("DROP INDEX CONCURRENTLY IF EXISTS tasks_waiting")
        # In an empty table, such as that of a new database, no other statement has to wait.
        if db.execute_sql("SELECT 1 FROM tasks LIMIT 1").fetchone():
            create = "CREATE INDEX CONCURRENTLY"
    db.execute_sql(f"{create} {INDEX}")


def down(migrator, db):
    migrator.migrate(migrator.drop_index("tasks", "tasks_waiting"))
