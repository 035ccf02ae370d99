"""The newest successes of a model are found by an index, so that they can be measured."""

from peewee import PostgresqlDatabase

atomic = False

INDEX = '"tasks_succeeded" ON "tasks" ("model", "complete_time") WHERE status = \'SUCCESS\''


def up(migrator, db):
    create = "CREATE INDEX"
    if isinstance(db, PostgresqlDatabase):
        db.execute_sql("DROP INDEX CONCURRENTLY IF EXISTS tasks_succeeded")
        # In an empty table, such as that of a new database, no other statement has to wait.
        if db.execute_sql("SELECT 1 FROM tasks LIMIT 1").fetchone():
            create = "CREATE INDEX CONCURRENTLY"
    db.execute_sql(f"{create} {INDEX}")


def down(migrator, db):
    migrator.migrate(migrator.drop_index("tasks", "tasks_succeeded"))
