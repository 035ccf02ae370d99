"""Changes are found by their positions, of all callers or of one; lists of a model by its name."""

from peewee import PostgresqlDatabase

atomic = False

INDICES = {
    "tasks_changes": '("change_xid", "id")',
    "tasks_caller_changes": '("caller", "change_xid", "id")',
    "tasks_caller_model_create_time_id": '("caller", "model", "create_time", "id")',
}


def up(migrator, db):
    create = "CREATE INDEX"
    if isinstance(db, PostgresqlDatabase):
        for name in INDICES:
            db.execute_sql(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
        # In an empty table, such as that of a new database, no other statement has to wait.
        if db.execute_sql("SELECT 1 FROM tasks LIMIT 1").fetchone():
            create = "CREATE INDEX CONCURRENTLY"
    for name, columns in INDICES.items():
        db.execute_sql(f'{create} "{name}" ON "tasks" {columns}')


def down(migrator, db):
    for name in INDICES:
        migrator.migrate(migrator.drop_index("tasks", name))
