"""The hot statements as text, printed by Peewee once: building one costs more than running it."""

from functools import cache
from typing import Any

from peewee import SQL, Database, Select, fn

from storage.rows import COLUMNS, FIXED_COLUMNS
from storage.schema import SecretRow, SlotRow, TaskRow
from storage.task import Lane, Stage

# Peewee prints INSERT OR IGNORE for SQLite, which would ignore more than this.
KNOWN_REQUEST = ' ON CONFLICT ("caller", "request_id") DO NOTHING'

CALLBACKS = "callbacks"  # the name of the secret that makes callback URLs
IMPORTED_CALLBACKS = "callbacks of an imported file"  # one that only verifies them


class Statements:
    """The statements for one kind of database.

    Where it can, a claim locks the rows that it takes, and passes over those that another has
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

        hurry = {row.due_time: arg, row.version: row.version + SQL("1")}
        waits = row.lane.in_([_literal(Lane.SUBMIT), _literal(Lane.POLL)])
        later = (row.due_time > arg) & row.unknown_time.is_null()
        # A task that is being sent is its sender's alone.
        polled = (row.lane == _literal(Lane.POLL)) & (row.stage != _literal(Stage.SUBMITTING))
        self.release = text(row.update(hurry).where(waits, later))
        self.hasten = text(row.update(hurry).where(polled, row.setbacks == SQL("1"), later))

    def _make_claims(self) -> None:
        arg, row, due = self._arg, TaskRow, self._due
        select = row.select(*COLUMNS)
        first = (row.setbacks == SQL("0")) | (row.due_time <= arg)
        last = (row.setbacks > SQL("0")) & (row.due_time > arg)
        self.due_first = self._claimed(select.where(due, first).order_by(row.due_time).limit(arg))
        self.due_last = self._claimed(select.where(due, last).order_by(row.due_time).limit(arg))
        self.lock = self._claimed(select.where(row.id == arg, due))

        def without(models: int) -> Any:
            return due & row.model.not_in([arg] * models) if models else due

        # By how many models are left out.
        self.due_without = cache(
            lambda models: self._claimed(
                select.where(without(models)).order_by(row.due_time).limit(arg)
            )
        )
        self.waiting_without = cache(lambda models: self._text(_waiting(without(models), arg)))

    def _make_purges(self) -> None:
        arg, row = self._arg, TaskRow

        def purged(*which: Any) -> str:
            """Delete the first of those that ended, a limited number."""
            batch = row.select(row.id).where(*which).order_by(row.complete_time).limit(arg)
            if self._db.for_update:
                batch = batch.for_update(skip_locked=True)
            return self._text(row.delete().where(row.id.in_(batch)))

        # By both times: what the provider ended long ago may have been learned of just now.
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
    """Return the expression for the bytes of a text column; SQLite 3.43 and later has it, too."""
    return fn.OCTET_LENGTH(column) if db.for_update else fn.LENGTH(column.cast("BLOB"))


def _literal(value: str) -> SQL:
    return SQL(f"'{value}'")


def _first_due_time(lane: Lane) -> Any:
    return TaskRow.select(fn.MIN(TaskRow.due_time)).where(TaskRow.lane == _literal(lane))


def _waiting(due: Any, arg: SQL) -> Any:
    row = TaskRow
    turn = fn.ROW_NUMBER().over(partition_by=[row.caller], order_by=[row.create_time, row.id])
    ranked = row.select(row.id, row.caller, turn.alias("turn"), row.setbacks, row.model).where(due)
    waiting = ranked.alias("waiting")
    each = (
        *(waiting.c.id, waiting.c.caller, waiting.c.turn, waiting.c.setbacks),
        waiting.c.model,
    )
    return Select([waiting], each).where(waiting.c.turn <= arg)
