"""Puts the poller together from its parts."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from service.account_hold import AccountHold
from service.agenda import Agenda
from service.callback_polls import CallbackPolls
from service.copy_verdicts import CopyVerdicts
from service.events import TaskEvents
from service.holds import Holds
from service.jobs import Jobs, LaneWork
from service.kept import KeptResults
from service.leases import Leases
from service.limits import AccountLimits, Limits, StoreLane
from service.parts import Parts
from service.poller import Poller
from service.reach import Reach
from service.recovery import LongestWaits, Recovery
from service.schedule import Schedule, longest_wait
from service.seen import Seen
from service.settings import Settings
from service.storing import Storing, end_without_copies
from service.timeouts import TaskTimeouts
from service.verdicts import Verdicts
from service.work import SubmitOptions, Work
from service.writer import Writer
from storage.task import Lane

if TYPE_CHECKING:  # imported only where traces are exported
    from service.tracing import Tracing


@dataclass(frozen=True, slots=True)
class Polling:
    """The poller, and how the rest of the service reaches it.

    Attributes:
        poller: The loop.
        leases: Have to be renewed for as long as the poller works.
        events: What callers do to tasks.
        callbacks: The polls that callbacks cause.
        account: Whether the provider refuses the account.
    """

    poller: Poller
    leases: Leases
    events: TaskEvents
    callbacks: CallbackPolls
    account: AccountHold


@dataclass(frozen=True, slots=True)
class _Core:
    """What the work, the jobs and the events share."""

    agenda: Agenda
    leases: Leases
    limits: Limits
    verdicts: Verdicts
    writer: Writer
    seen: Seen


def make_polling(
    parts: Parts, results: KeptResults | None, tracing: "Tracing | None" = None
) -> Polling:
    """Put the poller together; nothing is started."""
    core = _core(parts)
    jobs = _jobs(parts, core, results, tracing)
    return Polling(
        poller=Poller(
            store=parts.store,
            agenda=core.agenda,
            leases=core.leases,
            limits=core.limits,
            jobs=jobs,
            recovery=Recovery(
                store=parts.store,
                agenda=core.agenda,
                leases=core.leases,
                limits=core.limits,
                waits=_longest_waits(parts),
            ),
            metrics=parts.metrics,
            outage_log=parts.outage_log,
        ),
        leases=core.leases,
        events=TaskEvents(
            store=parts.store,
            agenda=core.agenda,
            limits=core.limits,
            verdicts=core.verdicts,
            writer=core.writer,
            outage_log=parts.outage_log,
            has_callbacks=parts.callback_urls is not None,
        ),
        callbacks=CallbackPolls(
            store=parts.store,
            agenda=core.agenda,
            leases=core.leases,
            limits=core.limits,
            jobs=jobs,
            writer=core.writer,
            seen=core.seen,
            outage_log=parts.outage_log,
        ),
        account=core.limits.account,
    )


def _core(parts: Parts) -> _Core:
    bounds = parts.bounds.poller
    agenda = Agenda(bounds.agenda)
    account = AccountHold(parts.store, parts.metrics, parts.settings.account_hold_seconds)
    limits = Limits(
        account=_account(parts.settings),
        store_lane=_store_lane(parts),
        bounds=bounds.limits,
        callers=parts.caller_limits,
        agenda=agenda,
        metrics=parts.metrics,
        holds=Holds(bounds.limits.holds, account),
    )
    verdicts = _verdicts(parts)
    return _Core(
        agenda=agenda,
        leases=Leases(parts.store, bounds.leases),
        limits=limits,
        verdicts=verdicts,
        writer=Writer(
            store=parts.store,
            hub=parts.hub,
            agenda=agenda,
            limits=limits,
            verdicts=verdicts,
            metrics=parts.metrics,
            outage_log=parts.outage_log,
        ),
        seen=Seen(),
    )


def _account(settings: Settings) -> AccountLimits:
    return AccountLimits(
        creates_per_10_seconds=settings.kie_creates_per_10_seconds,
        status_per_second=settings.kie_status_per_second,
        running_max=settings.kie_running_max,
        creates_in_flight_max=settings.kie_creates_in_flight_max,
    )


def _store_lane(parts: Parts) -> StoreLane:
    bounds = parts.bounds.poller
    if parts.settings.results_url:
        return StoreLane(parts.settings.results_parallel)
    # On SQLite there are no other processes.
    left_seconds = bounds.copies.left_to_others_seconds if parts.store.shared else 0.0
    return StoreLane(bounds.limits.unkept_jobs_max, left_seconds)


def _verdicts(parts: Parts) -> Verdicts:
    settings, bounds, hub = parts.settings, parts.bounds.poller, parts.hub
    callbacks = parts.callback_urls is not None
    interval_seconds = settings.poll_interval_seconds
    schedule = Schedule(interval_seconds, parts.provider.typical_max_seconds, bounds.overdue)
    reach = Reach(interval_seconds)
    max_age_seconds = settings.task_max_age_seconds
    return Verdicts(
        schedule=schedule,
        reach=reach,
        timeouts=TaskTimeouts(
            schedule,
            reach,
            max_age_seconds,
            bounds.timeouts,
            elapsed_seconds=parts.store.clock.elapsed_seconds,
        ),
        task_max_age_seconds=max_age_seconds,
        unknown_wait_seconds=settings.effective_unknown_wait_seconds,
        delivery_seconds=parts.provider.delivery_seconds,
        keeps_results=settings.results_url is not None,
        left_to_callback=lambda task_id: callbacks and not hub.is_watched(task_id),
        bounds=bounds.verdicts,
    )


def _longest_waits(parts: Parts) -> LongestWaits:
    settings, bounds = parts.settings, parts.bounds.poller
    polls = [
        bounds.leases.lease_seconds,
        longest_wait(settings.poll_interval_seconds),
        settings.effective_unknown_wait_seconds,
    ]
    if parts.callback_urls is not None:  # tasks are left to their callbacks
        polls.append(settings.task_max_age_seconds)
    return LongestWaits(
        send_seconds=max(bounds.limits.holds.max_seconds, bounds.verdicts.postpone_max_seconds),
        poll_seconds=max(polls),
        late_seconds=max(
            bounds.verdicts.late_poll_seconds, bounds.copies.retry_max_seconds, *polls
        ),
        store_seconds=max(bounds.leases.lease_seconds, bounds.copies.retry_max_seconds),
    )


def _jobs(
    parts: Parts, core: _Core, results: KeptResults | None, tracing: "Tracing | None"
) -> Jobs:
    callback_url = parts.callback_urls.url if parts.callback_urls else None
    work = Work(
        store=parts.store,
        provider=parts.provider,
        options=SubmitOptions(parts.catalogue, callback_url),
        verdicts=core.verdicts,
        writer=core.writer,
        leases=core.leases,
        limits=core.limits,
        agenda=core.agenda,
        metrics=parts.metrics,
        seen=core.seen,
    )
    works = _works(parts, work, results)
    if tracing:
        works = {lane: tracing.job(lane_work) for lane, lane_work in works.items()}
    return Jobs(
        works=works,
        store=parts.store,
        hub=parts.hub,
        agenda=core.agenda,
        leases=core.leases,
        limits=core.limits,
        times=parts.bounds.poller.jobs,
    )


def _works(parts: Parts, work: Work, results: KeptResults | None) -> Mapping[Lane, LaneWork]:
    """Return the work of each lane."""
    works: dict[Lane, LaneWork] = {Lane.SUBMIT: work.submit, Lane.POLL: work.poll}
    if results is None:
        store = partial(end_without_copies, work)
        return works | {Lane.LATE: work.poll_late, Lane.STORE: store}
    give_up_seconds = parts.settings.results_give_up_seconds
    verdicts = CopyVerdicts(
        give_up_seconds, parts.store.clock.elapsed_seconds, parts.bounds.poller.copies
    )
    storing = Storing(work, results.copier, verdicts)
    return works | {Lane.LATE: storing.poll_late, Lane.STORE: storing.store}
