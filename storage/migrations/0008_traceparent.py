"""Spans of later work belong to the trace of the call that created the task."""


def up(migrator, db):
    db.execute_sql('ALTER TABLE tasks ADD COLUMN "traceparent" TEXT')


def down(migrator, db):
    db.execute_sql("ALTER TABLE tasks DROP COLUMN traceparent")
