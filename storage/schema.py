"""The tables as Peewee knows them. The migrations create them; a test compares the two."""

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


class XidField(BigIntegerField):
    """The number of a change: of a transaction on PostgreSQL, counted by the writer on SQLite."""

    field_type = "XID8"


class TaskRow(Model):
    """A task as it is stored; storage/snapshot.py explains the columns. Times are unix seconds.

    `change_xid` is not part of a Task: the database assigns it (storage/changes.py).
    """

    id = TextField(primary_key=True)
    caller = TextField()
    request_id = TextField(null=True)
    prompt_id = TextField()
    model = TextField()
    needs = TextField(null=True)
    params = BlobField()
    filled_params = BlobField(null=True)
    create_time = DoubleField()
    traceparent = TextField(null=True)
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
    candidate_id = TextField(column_name="hinted_id")  # older versions know it by this name
    setbacks = IntegerField()
    version = BigIntegerField()
    generated_time = DoubleField(null=True)
    change_xid = XidField(constraints=[SQL("DEFAULT '0'")])

    class Meta:
        table_name = "tasks"
        legacy_table_names = False
        indexes = (
            (("caller", "request_id"), True),
            (("caller", "create_time", "id"), False),
            (("caller", "prompt_id", "create_time", "id"), False),
            (("caller", "status", "create_time", "id"), False),
            (("caller", "model", "create_time", "id"), False),
        )


# Indexes only waiting tasks, so it stays small however many tasks have ended.
TaskRow.add_index(
    TaskRow.lane, TaskRow.due_time, where=cast("Any", SQL("lane IS NOT NULL")), name="tasks_due"
)
# Finds the tasks that wait to be sent by their callers and models: a claim passes over those that
# may not be sent. With the due time, a task that is not due need not be read.
TaskRow.add_index(
    *(TaskRow.caller, TaskRow.model, TaskRow.create_time, TaskRow.id, TaskRow.due_time),
    where=cast("Any", SQL("lane = 'submit'")),
    name="tasks_waiting",
)
# Indexes only tasks that may be purged.
TaskRow.add_index(
    TaskRow.complete_time, where=cast("Any", SQL("lane IS NULL")), name="tasks_purgeable"
)
# Indexes only cancelled tasks, which are purged early.
TaskRow.add_index(
    TaskRow.caller,
    TaskRow.complete_time,
    where=cast("Any", SQL("failure_reason = 'CANCELLED' AND lane IS NULL")),
    name="tasks_cancelled",
)
# Finds what changed after a position, of all callers and of one.
TaskRow.add_index(TaskRow.change_xid, TaskRow.id, name="tasks_changes")
TaskRow.add_index(TaskRow.caller, TaskRow.change_xid, TaskRow.id, name="tasks_caller_changes")
# Finds the newest successes of a model, which are measured.
TaskRow.add_index(
    TaskRow.model,
    TaskRow.complete_time,
    where=cast("Any", SQL("status = 'SUCCESS'")),
    name="tasks_succeeded",
)


class SlotRow(Model):
    """One of the requests that the provider allows the account in a window of time.

    A quota of n requests has the slots 0 to n - 1. A process takes a slot before it sends a
    request; the slot is free again once the window has passed.
    """

    quota = TextField()
    number = IntegerField()
    free_time = DoubleField()

    class Meta:
        table_name = "slots"
        legacy_table_names = False
        primary_key = CompositeKey("quota", "number")


class SecretRow(Model):
    """A secret that all replicas share; storage/statements.py has their names."""

    name = TextField(primary_key=True)
    value = BlobField()

    class Meta:
        table_name = "secrets"
        legacy_table_names = False


class HoldRow(Model):
    """Since when tasks have been held, and when the provider last confirmed the cause.

    It lets a hold survive restarts. `refused_time` shows whether a hold is still current.
    """

    name = TextField(primary_key=True)
    since = DoubleField()
    refused_time = DoubleField()

    class Meta:
        table_name = "holds"
        legacy_table_names = False


class PurgeRow(Model):
    """The newest position of the deleted tasks of a caller.

    A stream that resumes from before this position has missed changes.
    """

    caller = TextField(primary_key=True)
    change_xid = XidField()

    class Meta:
        table_name = "purges"
        legacy_table_names = False


class ModelRow(Model):
    """A model of the provider as it is stored; storage/models.py explains the columns."""

    id = TextField(primary_key=True)
    title = TextField()
    provider = TextField()
    task_types = TextField()
    price_text = TextField()
    path = TextField()
    input_schema = TextField(null=True)
    listed = IntegerField()
    retired_time = DoubleField(null=True)
    refresh_time = DoubleField(null=True)
    schema_time = DoubleField(null=True)
    change_time = DoubleField()

    class Meta:
        table_name = "models"
        legacy_table_names = False


TABLES = [TaskRow, SlotRow, SecretRow, HoldRow, PurgeRow, ModelRow]
MIGRATIONS = Path(__file__).parent / "migrations"
