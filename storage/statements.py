"""The frequent statements as text, printed by Peewee once: that costs more than running them."""

from typing import Any

from peewee import SQL, Database, Select, fn

from storage.rows import COLUMNS, FIXED_COLUMNS
from storage.schema import SecretRow, SlotRow, TaskRow
from storage.task import Lane, Stage

# Peewee prints INSERT OR IGNORE for SQLite, which would ignore more than this.
KNOWN_REQUEST = ' ON CONFLICT ("caller", "request_id") DO NOTHING'

# The callers that have tasks to send, with the models of these. It steps from one to the next by an
# index, so the number of their tasks does not matter. SQLite has no statistics, so it is named.
WAITING_QUEUES = """
    WITH RECURSIVE queue (caller, model) AS (
        SELECT * FROM (
            SELECT caller, model FROM {} WHERE lane = 'submit' ORDER BY caller, model LIMIT 1
        ) AS head
        UNION ALL
        SELECT following.caller, following.model
        FROM queue JOIN tasks AS following ON following.id = COALESCE(
            (
                SELECT id FROM {}
                WHERE lane = 'submit' AND caller = queue.caller AND model > queue.model
                ORDER BY model LIMIT 1
            ),
            (
                SELECT id FROM {} WHERE lane = 'submit' AND caller > queue.caller
                ORDER BY caller, model LIMIT 1
            )
        )
    )
    SELECT caller, model FROM queue
"""

CALLBACKS = "callbacks"  # the name of the secret that makes callback URLs
IMPORTED_CALLBACKS = "callbacks of an imported file"  # of one that only verifies them


class Statements:
    """The statements for one kind of database.

    On PostgreSQL a claim locks the rows that it takes, and passes over those that others have
    locked.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._arg = SQL(db.param)
        self._due = (TaskRow.lane == self._arg) & (TaskRow.due_time <= self._arg)
        self._make_reads()
        self._make_counts()
        self._make_writes()
        self._make_claims()
        self._make_waiting()
        self._make_purges()
        self._make_slots()
        self._make_secrets()

    def _text(self, query: Any) -> str:
        return str(query.bind(self._db).sql()[0])

    def _claimed(self, query: Any) -> str:
        return self._text(query.for_update(skip_locked=True) if self._db.for_update else query)

    def _make_reads(self) -> None:
        arg, row, text = self._arg, TaskRow, self._text
        select = row.select(*COLUMNS)
        self.get = text(select.where(row.id == arg))
        self.find_request = text(select.where(row.caller == arg, row.request_id == arg))
        ended = select.where(row.lane.is_null(), row.complete_time < arg)
        self.newest_ended = text(ended.order_by(row.complete_time.desc()).limit(arg))
        self.next_due = text(Select([], [_first_due_time(lane) for lane in Lane]))
        self.due_after = text(
            row.select(fn.MIN(row.due_time)).where(row.lane == arg, row.due_time > arg)
        )

    def _make_counts(self) -> None:
        arg, row, text = self._arg, TaskRow, self._text
        in_lane = row.lane == arg
        number = fn.COUNT(SQL("*"))
        self.queues = text(
            row.select(row.lane, number, fn.MIN(row.due_time))
            .where(row.lane.is_null(False))
            .group_by(row.lane)
        )
        self.count = text(row.select(number).where(in_lane))
        self.count_callers = text(
            row.select(row.caller, number).where(in_lane).group_by(row.caller)
        )
        self.count_sending = text(
            row.select(number).where(
                row.lane == _literal(Lane.POLL),
                row.stage == _literal(Stage.SUBMITTING),
                row.unknown_time.is_null(),
                row.submit_time.is_null(False),
            )
        )
        created = row.caller == arg
        newest = (row.create_time.desc(), row.id.desc())
        self.created_since = text(row.select(number).where(created, row.create_time > arg))
        self.nth_newest = text(
            row.select(row.create_time).where(created).order_by(*newest).limit(SQL("1")).offset(arg)
        )

    def _make_writes(self) -> None:
        arg, row, text = self._arg, TaskRow, self._text
        current = (row.id == arg) & (row.version == arg)
        self.insert = text(row.insert_many([[arg] * len(COLUMNS)], fields=COLUMNS)) + KNOWN_REQUEST
        self.save = text(row.update(dict.fromkeys(COLUMNS[FIXED_COLUMNS:], arg)).where(current))
        self.set_aside = text(row.update({row.lane: SQL("NULL")}).where(row.id == arg))
        self.renew = text(row.update({row.due_time: arg}).where(current))

        due = {row.due_time: arg, row.version: row.version + SQL("1")}
        waits = row.lane.in_([_literal(Lane.SUBMIT), _literal(Lane.POLL)])
        later = (row.due_time > arg) & row.unknown_time.is_null()
        # Only its sender may change a task that is being sent.
        polled = (row.lane == _literal(Lane.POLL)) & (row.stage != _literal(Stage.SUBMITTING))
        self.make_abandoned_due = text(row.update(due).where(waits, later))
        self.make_polls_due = text(row.update(due).where(polled, row.setbacks == SQL("1"), later))

    def _make_claims(self) -> None:
        arg, row, due = self._arg, TaskRow, self._due
        select = row.select(*COLUMNS)
        self.due = self._claimed(select.where(due).order_by(row.due_time).limit(arg))
        first = (row.setbacks == SQL("0")) | (row.due_time <= arg)
        self.due_first = self._claimed(select.where(due, first).order_by(row.due_time).limit(arg))
        self.lock = self._claimed(select.where(row.id == arg, due))

    def _make_waiting(self) -> None:
        arg, row = self._arg, TaskRow
        tasks = '"tasks" AS "t1"'
        tasks_waiting = tasks if self._db.for_update else f'{tasks} INDEXED BY "tasks_waiting"'
        self.waiting_queues = WAITING_QUEUES.format(*[tasks_waiting] * 3)
        self.first_waiting = self._text(
            row.select(row.id, row.caller, row.create_time, row.setbacks, row.model)
            .where(row.lane == _literal(Lane.SUBMIT), row.caller == arg, row.model == arg)
            .where(row.due_time <= arg)
            .order_by(row.create_time, row.id)
            .limit(arg)
        ).replace(tasks, tasks_waiting)

    def _make_purges(self) -> None:
        arg, row = self._arg, TaskRow

        def purged(*which: Any) -> str:
            """Delete a limited number of ended tasks, the oldest first."""
            batch = row.select(row.id).where(*which).order_by(row.complete_time).limit(arg)
            if self._db.for_update:
                batch = batch.for_update(skip_locked=True)
            return self._text(row.delete().where(row.id.in_(batch)))

        # By both times: the service may learn only now that the provider ended a task long ago.
        ended_before = row.complete_time < arg
        self.purge = purged(row.lane.is_null(), ended_before, row.update_time < arg)
        cancelled = (row.failure_reason == SQL("'CANCELLED'")) & row.lane.is_null()
        self.cancelled = self._text(
            row.select(row.caller, fn.COUNT(SQL("*")), fn.MIN(row.complete_time))
            .where(cancelled)
            .group_by(row.caller)
        )
        self.purge_cancelled = purged(cancelled, row.caller == arg, ended_before)

    def _make_slots(self) -> None:
        arg, slot, text = self._arg, SlotRow, self._text
        this = (slot.quota == arg) & (slot.number < arg)
        self.free_slots = self._claimed(
            slot.select(slot.number)
            .where(this, slot.free_time <= arg)
            .order_by(slot.free_time)
            .limit(arg)
        )
        self.take_slot = text(
            slot.update({slot.free_time: arg}).where(slot.quota == arg, slot.number == arg)
        )
        self.next_slot = text(slot.select(fn.MIN(slot.free_time)).where(this))
        self.add_slot = text(
            slot.insert_many(
                [[arg, arg, SQL("0")]], fields=[slot.quota, slot.number, slot.free_time]
            ).on_conflict_ignore()
        )

    def _make_secrets(self) -> None:
        arg, secret, text = self._arg, SecretRow, self._text
        values = secret.insert_many([[arg, arg]], fields=[secret.name, secret.value])
        self.add_secret = text(values.on_conflict_ignore())
        self.secret = text(secret.select(secret.value).where(secret.name == arg))


def octet_length(db: Database, column: Any) -> Any:
    """Return the expression for the bytes of a text column; only SQLite 3.43 and later has it."""
    return fn.OCTET_LENGTH(column) if db.for_update else fn.LENGTH(column.cast("BLOB"))


def _literal(value: str) -> SQL:
    return SQL(f"'{value}'")


def _first_due_time(lane: Lane) -> Any:
    return TaskRow.select(fn.MIN(TaskRow.due_time)).where(TaskRow.lane == _literal(lane))
