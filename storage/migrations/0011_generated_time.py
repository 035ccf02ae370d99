"""When the provider ended a task whose results are copied before the task ends here."""


def up(migrator, db):
    # SQLite has one type for all such numbers; PostgreSQL's REAL is too short.
    column_type = "DOUBLE PRECISION" if db.for_update else "REAL"
    db.execute_sql(f'ALTER TABLE tasks ADD COLUMN "generated_time" {column_type}')


def down(migrator, db):
    db.execute_sql("ALTER TABLE tasks DROP COLUMN generated_time")
