"""The tables as Peewee knows them. The migrations make them; a test compares the two."""

from pathlib import Path
from typing import Any, cast

from peewee import (
    SQL,
    BigIntegerField,
    BlobField,
    CompositeKey,
    DoubleField,
    IntegerField,
    Model,
    TextField,
)


class TaskRow(Model):
    """A task as it is stored; storage/task.py says what the columns mean.

    Times are unix seconds.
    """

    id = TextField(primary_key=True)
    caller = TextField()
    request_id = TextField(null=True)
    prompt_id = TextField()
    model = TextField()
    params = BlobField()
    create_time = DoubleField()
    update_time = DoubleField()
    lane = TextField(null=True)
    due_time = DoubleField(null=True)
    status = TextField()
    stage = TextField(null=True)
    revision = BigIntegerField()
    progress_percent = IntegerField(null=True)
    artifacts = TextField()
    result_json = TextField()
    failure_reason = TextField(null=True)
    failure_message = TextField(null=True)
    failure_code = TextField(null=True)
    provider_task_id = TextField()
    credits_consumed = DoubleField(null=True)
    complete_time = DoubleField(null=True)
    submit_time = DoubleField(null=True)
    accept_time = DoubleField(null=True)
    unknown_time = DoubleField(null=True)
    hinted_id = TextField()
    setbacks = IntegerField()
    version = BigIntegerField()

    class Meta:
        table_name = "tasks"
        legacy_table_names = False
        indexes = (
            (("caller", "request_id"), True),
            (("caller", "create_time", "id"), False),
            (("caller", "prompt_id", "create_time", "id"), False),
            (("caller", "status", "create_time", "id"), False),
        )


# Only what waits stands in this index, however many tasks have ended.
TaskRow.add_index(
    TaskRow.lane, TaskRow.due_time, where=cast("Any", SQL("lane IS NOT NULL")), name="tasks_due"
)
# And only what may be purged in this one.
TaskRow.add_index(
    TaskRow.complete_time, where=cast("Any", SQL("lane IS NULL")), name="tasks_purgeable"
)
# And in this one only what was never sent: it is kept for a day.
TaskRow.add_index(
    TaskRow.caller,
    TaskRow.complete_time,
    where=cast("Any", SQL("failure_reason = 'CANCELLED' AND lane IS NULL")),
    name="tasks_cancelled",
)


class SlotRow(Model):
    """One of the requests that the account allows in a window of time.

    A quota of n requests has the slots 0 to n - 1. Whoever sends a request takes a slot first, and
    it is free again once the window has passed.
    """

    quota = TextField()
    number = IntegerField()
    free_time = DoubleField()

    class Meta:
        table_name = "slots"
        legacy_table_names = False
        primary_key = CompositeKey("quota", "number")


class SecretRow(Model):
    """A secret that all replicas share; storage/statements.py names them."""

    name = TextField(primary_key=True)
    value = BlobField()

    class Meta:
        table_name = "secrets"
        legacy_table_names = False


TABLES = [TaskRow, SlotRow, SecretRow]
MIGRATIONS = Path(__file__).parent / "migrations"
