"""The frequent statements as text, printed by Peewee once: that costs more than running them."""

from typing import Any

from peewee import EXCLUDED, SQL, Case, Database, Select, fn

from storage.clock import SKEW_SECONDS
from storage.known import Known
from storage.rows import CHANGING, COLUMNS, WORKING
from storage.schema import HoldRow, ModelRow, SecretRow, SlotRow, TaskRow
from storage.task import Lane, Stage, Status

# Peewee prints INSERT OR IGNORE for SQLite, which would ignore more than this.
KNOWN_REQUEST = ' ON CONFLICT ("caller", "request_id") DO NOTHING'

# The callers that have tasks to send, with the models of these tasks. The query steps from one to
# the next by an index, so the number of tasks does not matter. SQLite has no statistics of the
# table, so the index is named.
WAITING_QUEUES = """
    WITH RECURSIVE queue (caller, model) AS (
        SELECT * FROM (
            SELECT caller, model FROM {tasks} WHERE lane = 'submit' AND {known}
            ORDER BY caller, model LIMIT 1
        ) AS head
        UNION ALL
        SELECT following.caller, following.model
        FROM queue JOIN tasks AS following ON following.id = COALESCE(
            (
                SELECT id FROM {tasks}
                WHERE lane = 'submit' AND {known}
                AND caller = queue.caller AND model > queue.model
                ORDER BY model LIMIT 1
            ),
            (
                SELECT id FROM {tasks} WHERE lane = 'submit' AND {known} AND caller > queue.caller
                ORDER BY caller, model LIMIT 1
            )
        )
    )
    SELECT caller, model FROM queue
"""

ACCOUNT = "account"  # the name of the hold of all tasks while the account is refused
CALLBACKS = "callbacks"  # the name of the secret that makes callback URLs
IMPORTED_CALLBACKS = "callbacks of an imported file"  # of one that only verifies them


class Statements:
    """The statements for one kind of database, by what they are about.

    Attributes:
        known: Which rows are worked on; the others are only read, counted and purged.
    """

    def __init__(self, db: Database, known: Known) -> None:
        self.known = known
        printer = _Printer(db, known)
        self.tasks = TaskStatements(printer)
        self.lanes = LaneStatements(printer)
        self.counts = CountStatements(printer)
        self.claims = ClaimStatements(printer)
        self.purges = PurgeStatements(printer)
        self.slots = SlotStatements(printer)
        self.secrets = SecretStatements(printer)
        self.holds = HoldStatements(printer)
        self.models = ModelStatements(printer)


class _Printer:
    """Prints queries for one kind of database."""

    def __init__(self, db: Database, known: Known) -> None:
        self._db = db
        self.arg = SQL(db.param)
        self.known = SQL(known.condition)
        self.locks_rows: bool = db.for_update

    def text(self, query: Any) -> str:
        return str(query.bind(self._db).sql()[0])

    def claimed(self, query: Any) -> Any:
        """Lock the rows that are found, and pass over those that others have locked."""
        return query.for_update(skip_locked=True) if self.locks_rows else query


class TaskStatements:
    """Single tasks."""

    def __init__(self, printer: _Printer) -> None:
        arg, text, row = printer.arg, printer.text, TaskRow
        select = row.select(*COLUMNS)
        self.get = text(select.where(row.id == arg))
        self.find_request = text(select.where(row.caller == arg, row.request_id == arg))
        ended = select.where(row.lane.is_null(), row.complete_time < arg)
        self.newest_ended = text(ended.order_by(row.complete_time.desc()).limit(arg))

        since = select.where(row.lane.is_null(), row.complete_time >= arg)
        later = since.where((row.complete_time > arg) | (row.id > arg))
        self.ended_after = text(later.order_by(row.complete_time, row.id).limit(arg))

        current = (row.id == arg) & (row.version == arg)
        inserted: tuple[Any, ...] = COLUMNS
        if not printer.locks_rows:  # PostgreSQL numbers changes by triggers
            inserted += (row.change_xid,)
        self.insert = (
            text(row.insert_many([[arg] * len(inserted)], fields=inserted)) + KNOWN_REQUEST
        )
        # The keys: `has_result` and `is_visible`. A visible change gets a new number. As few
        # columns as possible are set: SQLite updates their indices even if the values stay the
        # same.
        self.save = {
            (has_result, is_visible): text(
                row.update(dict.fromkeys((*columns, *number), arg)).where(current)
            )
            for has_result, columns in ((True, CHANGING), (False, WORKING))
            for is_visible, number in ((True, (row.change_xid,)), (False, ()))
        }
        self.postpone = text(row.update({row.due_time: arg}).where(row.id == arg))
        self.renew = text(row.update({row.due_time: arg}).where(current))


class LaneStatements:
    """When the tasks of lanes are due."""

    def __init__(self, printer: _Printer) -> None:
        arg, text, row = printer.arg, printer.text, TaskRow
        known = printer.known

        def first_due_time(*which: Any) -> Any:
            return row.select(fn.MIN(row.due_time)).where(*which, known)

        self.next_due = text(
            Select([], [first_due_time(row.lane == _literal(lane)) for lane in Lane])
        )
        self.due_after = text(first_due_time(row.lane == arg, row.due_time > arg))
        self.queues = text(
            row.select(row.lane, fn.COUNT(SQL("*")), fn.MIN(row.due_time))
            .where(row.lane.is_null(False))
            .group_by(row.lane)
        )

        storing = row.lane == _literal(Lane.STORE)
        self.storing_since = text(row.select(fn.MIN(row.update_time)).where(storing))

        due = {row.due_time: arg, row.version: row.version + SQL("1")}
        waits = row.lane.in_([_literal(each) for each in (Lane.SUBMIT, Lane.POLL, Lane.STORE)])
        later = (row.due_time > arg) & row.unknown_time.is_null()
        # Only its sender may change a task that is being sent.
        polled = (row.lane == _literal(Lane.POLL)) & (row.stage != _literal(Stage.SUBMITTING))
        self.make_abandoned_due = text(row.update(due).where(waits, later, known))
        # The version stays: a lease is renewed, and a claim confirmed, by it.
        ahead = (row.lane == arg, row.due_time > arg, known)
        earlier = row.update({row.due_time: arg}).where(*ahead)
        self.limit_due_times = text(earlier)
        leased = (row.stage == _literal(Stage.SUBMITTING)) & row.unknown_time.is_null()
        self.limit_leases = text(earlier.where(leased))
        failed_once = row.setbacks == SQL("1")
        self.make_polls_due = text(row.update(due).where(polled, failed_once, later, known))


class CountStatements:
    """What the limits on tasks count."""

    def __init__(self, printer: _Printer) -> None:
        arg, text, row = printer.arg, printer.text, TaskRow
        number = fn.COUNT(SQL("*"))
        of_callers = row.select(row.caller, number)
        waiting = row.lane == _literal(Lane.SUBMIT)
        self.lane = text(row.select(number).where(row.lane == arg))
        self.waiting_of_callers = text(of_callers.where(waiting).group_by(row.caller))

        # A task of a newer version that nobody has looked at for long is not counted: that version
        # no longer runs, so the task would take the room of others forever.
        looked_after = (row.due_time > arg) | printer.known
        running = (row.lane == _literal(Lane.POLL)) & looked_after
        self.running = text(row.select(number).where(running))
        self.running_of_callers = text(of_callers.where(running).group_by(row.caller))
        self.sending = text(
            row.select(number).where(
                running,
                row.stage == _literal(Stage.SUBMITTING),
                row.unknown_time.is_null(),
                row.submit_time.is_null(False),
            )
        )
        created = (row.caller == arg) & (row.create_time <= arg)
        newest = (row.create_time.desc(), row.id.desc())
        self.created_since = text(row.select(number).where(created, row.create_time > arg))
        self.nth_newest = text(
            row.select(row.create_time).where(created).order_by(*newest).limit(SQL("1")).offset(arg)
        )


class ClaimStatements:
    """Due tasks, to be claimed."""

    def __init__(self, printer: _Printer) -> None:
        arg, row, known = printer.arg, TaskRow, printer.known
        due = (row.lane == arg) & (row.due_time <= arg) & known

        def claimed(*which: Any) -> str:
            query = row.select(*COLUMNS).where(*which).order_by(row.due_time).limit(arg)
            return printer.text(printer.claimed(query))

        self.due = claimed(due)
        self.due_first = claimed(due, (row.setbacks == SQL("0")) | (row.due_time <= arg))
        self.lock = printer.text(printer.claimed(row.select(*COLUMNS).where(row.id == arg, due)))

        tasks = '"tasks" AS "t1"'
        tasks_waiting = tasks if printer.locks_rows else f'{tasks} INDEXED BY "tasks_waiting"'
        self.waiting_queues = WAITING_QUEUES.format(tasks=tasks_waiting, known=known.sql)
        created = (row.create_time <= arg) | (row.create_time > arg)
        since = (row.lane == _literal(Lane.SUBMIT), created, known)
        self.waiting_since = printer.text(row.select(*COLUMNS).where(*since).limit(arg))
        self.first_waiting = printer.text(
            row.select(row.id, row.caller, row.create_time, row.setbacks, row.model)
            .where(row.lane == _literal(Lane.SUBMIT), row.caller == arg, row.model == arg)
            .where(row.due_time <= arg, known)
            .order_by(row.create_time, row.id)
            .limit(arg)
        ).replace(tasks, tasks_waiting)


class PurgeStatements:
    """Ended tasks, to be deleted: a limited number, the oldest first."""

    def __init__(self, printer: _Printer) -> None:
        arg, row = printer.arg, TaskRow

        def purged(*which: Any) -> str:
            batch = row.select(row.id).where(*which).order_by(row.complete_time).limit(arg)
            return printer.text(row.delete().where(row.id.in_(printer.claimed(batch))))

        # By both times: the service may learn only now that the provider ended a task long ago.
        ended_before = row.complete_time < arg
        # Whether a task with a status of a newer version has ended is not known.
        has_ended = row.status.in_([_literal(Status.SUCCESS), _literal(Status.FAILED)])
        ended = (row.lane.is_null(), ended_before, row.update_time < arg, has_ended)
        self.ended = purged(*ended)
        oldest = row.select(*COLUMNS).where(*ended).order_by(row.complete_time).limit(arg)
        self.oldest_ended = printer.text(oldest)
        self.one = printer.text(row.delete().where(row.id == arg, row.version == arg))
        cancelled = (row.failure_reason == SQL("'CANCELLED'")) & row.lane.is_null()
        self.cancelled = purged(cancelled, row.caller == arg, ended_before)
        self.count_cancelled = printer.text(
            row.select(row.caller, fn.COUNT(SQL("*")), fn.MIN(row.complete_time))
            .where(cancelled)
            .group_by(row.caller)
        )


class SlotStatements:
    """The slots of quotas."""

    def __init__(self, printer: _Printer) -> None:
        arg, text, slot = printer.arg, printer.text, SlotRow
        of_quota = (slot.quota == arg) & (slot.number < arg)
        is_free = (slot.free_time <= arg) | (slot.free_time > arg)
        free = slot.select(slot.number).where(of_quota, is_free)
        self.free = text(printer.claimed(free.order_by(slot.free_time).limit(arg)))
        self.take = text(
            slot.update({slot.free_time: arg}).where(slot.quota == arg, slot.number == arg)
        )
        self.next_free = text(slot.select(fn.MIN(slot.free_time)).where(of_quota))
        self.add = text(
            slot.insert_many(
                [[arg, arg, SQL("0")]], fields=[slot.quota, slot.number, slot.free_time]
            ).on_conflict_ignore()
        )


class SecretStatements:
    """The secrets that processes share."""

    def __init__(self, printer: _Printer) -> None:
        arg, text, secret = printer.arg, printer.text, SecretRow
        values = secret.insert_many([[arg, arg]], fields=[secret.name, secret.value])
        self.add = text(values.on_conflict_ignore())
        self.get = text(secret.select(secret.value).where(secret.name == arg))


class HoldStatements:
    """Since when tasks are held."""

    def __init__(self, printer: _Printer) -> None:
        arg, text, hold = printer.arg, printer.text, HoldRow
        current = (hold.name == arg) & (hold.refused_time >= arg)
        self.since = text(hold.select(hold.since).where(current))
        # One that begins in the future is from before the clock was set back.
        is_future = hold.since > EXCLUDED.since + SQL(str(SKEW_SECONDS))
        is_over = ((hold.refused_time < arg) | is_future, EXCLUDED.since)
        self.hold = text(
            hold.insert_many([[arg, arg, arg]], fields=[hold.name, hold.since, hold.refused_time])
            .on_conflict(
                conflict_target=[hold.name],
                update={
                    hold.since: Case(None, [is_over], hold.since),
                    hold.refused_time: EXCLUDED.refused_time,
                },
            )
            .returning(hold.since)
        )
        self.release = text(hold.delete().where(hold.name == arg))


class ModelStatements:
    """The provider's models, and their tasks that succeeded."""

    def __init__(self, printer: _Printer) -> None:
        arg, text, model, task = printer.arg, printer.text, ModelRow, TaskRow
        columns = [*model._meta.sorted_fields]  # noqa: SLF001 - Peewee's documented way
        self.changed_since = text(model.select(*columns).where(model.change_time >= arg))

        values = model.insert_many([[arg] * len(columns)], fields=columns)
        known = {"conflict_target": [model.id]}
        update = {column: EXCLUDED[column.column_name] for column in columns[1:]}
        never_confirmed = model.refresh_time.is_null() & model.retired_time.is_null()
        self.add = text(values.on_conflict(**known, update=update, where=never_confirmed))
        self.save = text(values.on_conflict(**known, update=update))
        is_listed = (model.listed == SQL("1")) & model.retired_time.is_null()
        confirmed = {model.refresh_time: arg, model.change_time: arg}
        self.confirm = text(model.update(confirmed).where(is_listed))

        newest = (task.model == arg) & (task.status == SQL("'SUCCESS'"))
        end = fn.COALESCE(task.generated_time, task.complete_time)
        measured = (task.credits_consumed, task.accept_time, end)
        self.successes, self.successes_with_params = (
            text(
                task.select(*measured, *more)
                .where(newest)
                .order_by(task.complete_time.desc())
                .limit(arg)
            )
            for more in ((), (task.params,))
        )


def octet_length(db: Database, column: Any) -> Any:
    """Return the size of a text column in bytes; SQLite has OCTET_LENGTH only from 3.43 on."""
    return fn.OCTET_LENGTH(column) if db.for_update else fn.LENGTH(column.cast("BLOB"))


def _literal(value: str) -> SQL:
    return SQL(f"'{value}'")
