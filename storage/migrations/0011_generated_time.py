"""When the provider ended a task whose results are copied before the task ends here."""


def up(migrator, db):
    db.execute_sql("ALTER TABLE tasks ADD COLUMN generated_time DOUBLE PRECISION")


def down(migrator, db):
    db.execute_sql("ALTER TABLE tasks DROP COLUMN generated_time")
