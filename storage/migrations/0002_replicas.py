"""The account's limits move into the database, and what may be purged is found by an index."""

from peewee import (
    SQL,
    CompositeKey,
    DoubleField,
    IntegerField,
    Model,
    PostgresqlDatabase,
    TextField,
)


class SlotRow(Model):
    quota = TextField()
    number = IntegerField()
    free_time = DoubleField()

    class Meta:
        table_name = "slots"
        legacy_table_names = False
        primary_key = CompositeKey("quota", "number")


class TaskRow(Model):
    complete_time = DoubleField(null=True)

    class Meta:
        table_name = "tasks"
        legacy_table_names = False


TaskRow.add_index(TaskRow.complete_time, where=SQL("lane IS NULL"), name="tasks_purgeable")


def up(migrator, db):
    with db.bind_ctx([SlotRow, TaskRow]):
        db.create_tables([SlotRow])
        TaskRow._schema.create_indexes()  # noqa: SLF001 - Peewee has no other way for one index
    migrator.migrate(migrator.drop_index("tasks", "tasks_submit_time"))
    if isinstance(db, PostgresqlDatabase):
        # Due times change with every poll: vacuum old row versions before there are many.
        db.execute_sql(
            "ALTER TABLE tasks SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.01)"
        )


def down(migrator, db):
    migrator.migrate(
        migrator.drop_index("tasks", "tasks_purgeable"),
        migrator.add_index("tasks", ("submit_time",)),
    )
    with db.bind_ctx([SlotRow]):
        db.drop_tables([SlotRow])
