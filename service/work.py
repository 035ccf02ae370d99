"""The work on a claimed task, from asking the provider to the verdict.

    submit       send the paid request
    poll         ask for the record of a task in progress, or whether a paid request was accepted
    poll_late    ask for the record of a task that ended without its paid result

A task that was submitted without a known response is an orphan until its record is found.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import structlog

from providers.base import (
    Accepted,
    ParamsError,
    Poll,
    Postponed,
    Provider,
    Recognition,
    Refused,
    Submission,
    Succeeded,
    Unavailable,
    Unknown,
    UnknownState,
    Unreadable,
)
from service.agenda import Agenda
from service.catalogue import Catalogue
from service.holds import ACCOUNT, ALL_MODELS, Learned
from service.leases import Leases
from service.limits import Limits
from service.logged_task import logging_task
from service.messages import params_of
from service.metrics import Metrics
from service.seen import Seen
from service.unknown_fields import unknown_fields
from service.verdicts import Verdicts, after_hold
from service.writer import Decide, Writer
from storage.errors import StorageUnavailableError
from storage.store import Store
from storage.task import Lane, Stage, Task

EXPIRED_AT_A_TIME = 64  # tasks
NEWER_VERSION = "the parameters were made by a newer version"
NEWER_VERSION_SECONDS = 600.0  # until it is tried again

CopyLate = Callable[[Task, Succeeded], Awaitable[None]]

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SubmitOptions:
    """How tasks are submitted.

    Attributes:
        catalogue: Knows which models are disabled, so that nothing of them is sent.
        callback_url: Makes the URL for the callbacks of a task; None if there are no callbacks.
    """

    catalogue: Catalogue
    callback_url: Callable[[str], str] | None


@dataclass(frozen=True, slots=True)
class Work:
    """What is done with a claimed task, by the lane it was claimed from.

    Attributes:
        store: Where tasks are kept.
        provider: Who is asked.
        options: How tasks are submitted.
        verdicts: Decides what becomes of a task.
        writer: Saves it.
        leases: Which tasks are held by this process.
        limits: Learns whether the provider accepts tasks.
        agenda: Wakes the poller after an outage of the provider, and knows of a shutdown.
        metrics: Counts polls without a verdict.
        seen: Logs anomalies.
    """

    store: Store
    provider: Provider
    options: SubmitOptions
    verdicts: Verdicts
    writer: Writer
    leases: Leases
    limits: Limits
    agenda: Agenda
    metrics: Metrics
    seen: Seen

    # --- submit ---

    async def submit(self, task: Task) -> None:
        """Send the paid request. The task is SUBMITTING by now, also in the database."""
        if not await self.leases.may_send(task):
            log.error("paid request not sent: another process has taken over the task")
            return
        if self.agenda.is_stopped():
            log.info("paid request not sent: the service is shutting down")
            await self._give_back(task, "the service is shutting down")
            return
        outcome = await self._send(task)
        if outcome is None:
            log.error("paid request not sent: a newer version has made its parameters")
            await self._give_back(task, NEWER_VERSION, NEWER_VERSION_SECONDS)
            return
        if not isinstance(outcome, Accepted):
            outcome = await self._look_for_purchase(task, outcome)
        learned = await self.limits.learn_availability(task, outcome, self.store.now())
        self._log_submission(task, learned)
        await self.settle(
            task,
            lambda current, now: self.verdicts.after_submission(
                current, learned.outcome, now, learned.until
            ),
        )
        await self.limits.account.save(self.store.now())
        if learned.held == ACCOUNT and isinstance(outcome, Refused):
            await self._fail_expired(outcome)

    async def _give_back(self, task: Task, reason: str, seconds: float = 0.0) -> None:
        """Return a task that was not sent to the queue, for some seconds."""
        outcome = Postponed(reason)
        await self.settle(
            task,
            lambda current, now: self.verdicts.after_submission(
                current, outcome, now, now + seconds
            ),
        )

    async def _send(self, task: Task) -> Submission | None:
        """Send the paid request; None if this version cannot read all of its parameters."""
        params = params_of(task)
        if unknown_fields(params):
            return None
        catalogue = self.options.catalogue
        if catalogue.is_disabled(task.model, self.provider.model_id(params)):
            return Refused(
                "MODEL_UNAVAILABLE", f"the model {task.model} is disabled on this server", ""
            )
        make_url = self.options.callback_url
        callback_url = make_url(task.id) if make_url else None
        try:
            outcome = await self.provider.submit(params, callback_url)
        except ParamsError:  # raised before anything is sent
            return None
        if isinstance(outcome, Refused) and (note := catalogue.retired_note(task.model)):
            return replace(outcome, message=f"{outcome.message} ({note})")
        return outcome

    async def _look_for_purchase(self, task: Task, outcome: Submission) -> Submission:
        """Look up the record that a callback, or a response other than an acceptance, names."""
        assert not isinstance(outcome, Accepted)
        candidate = outcome.provider_task_id
        try:
            if not candidate and (current := await self.store.get(task.id)):
                candidate = current.candidate_id
        except StorageUnavailableError:
            return outcome  # the verdict waits for the database, and sees the candidate, too
        if not candidate:
            return outcome
        found = await self._recognise(task, candidate)
        log.warning(
            "the response to a create that was not accepted names a task",
            provider_task_id=candidate,
            recognition=found.value,
        )
        if found in {Recognition.AGREES, Recognition.SILENT}:
            return Accepted(candidate)
        return replace(outcome, provider_task_id="") if found is Recognition.DIFFERS else outcome

    def _log_submission(self, task: Task, learned: Learned) -> None:
        match learned.outcome:
            case Postponed(detail) if learned.held == ALL_MODELS:
                log.warning("the provider does not accept tasks now", detail=detail)
            case Postponed(detail) if learned.held == ACCOUNT:
                log.warning("the provider refuses the account, the task waits", detail=detail)
            case Postponed(detail):
                log.warning(
                    "the provider does not accept tasks of one model now",
                    detail=detail,
                    model=task.model,
                )
            case Unknown(detail, answer):
                log.error("submission outcome unknown", detail=detail, answer=answer)
            case Refused(reason, message, code):
                log.warning("task refused", reason=reason, message=message, provider_code=code)
            case Accepted(provider_task_id):
                log.info("task accepted", provider_task_id=provider_task_id)
                self.seen.accepted(task, provider_task_id)

    async def _fail_expired(self, refusal: Refused) -> None:
        """Fail waiting tasks that were held for too long, for the reason of the last refusal."""
        failed = True
        try:
            while failed:
                now = self.store.now()
                if (before := self.limits.account.expired_before(now)) is None:
                    return
                tasks = await self.store.waiting_since(before, now, EXPIRED_AT_A_TIME)
                failed = any(await asyncio.gather(*(self._fail(task, refusal) for task in tasks)))
        except StorageUnavailableError:
            return  # the next probe does it

    async def _fail(self, task: Task, refusal: Refused) -> bool:
        """Fail a waiting task unless it has changed; return whether it failed."""

        def decide(current: Task, now: float) -> Task | None:
            expired = self.limits.account.has_expired(current, now)
            return after_hold(current, refusal, now) if expired else None

        with logging_task(task):
            return await self.writer.write(task, decide) is not None

    # --- poll ---

    async def poll(self, task: Task) -> None:
        """Ask for the record of a task in progress."""
        if task.stage is Stage.SUBMITTING:
            await self._look_for_orphan(task)
            return
        outcome = await self._ask(task)
        await self.settle(
            task, lambda current, now: self.verdicts.after_poll(current, outcome, now)
        )
        await self._learn_reach(task, outcome)

    async def poll_late(self, task: Task, copy: CopyLate | None = None) -> None:
        """Ask for the record of a task that ended without its paid result.

        Args:
            task: The task.
            copy: Copies a result that has arrived, before it is added to the task.
        """
        if not task.provider_task_id:
            await self._look_for_orphan(task)
            return
        outcome = await self._ask(task)
        if copy and isinstance(outcome, Succeeded) and outcome.urls:
            await copy(task, outcome)
            return
        await self.settle(
            task, lambda current, now: self.verdicts.after_late_poll(current, outcome, now)
        )

    async def _ask(self, task: Task) -> Poll:
        params = params_of(task)
        outcome = await self.provider.poll(task.model, task.provider_task_id, params)
        match outcome:
            case Unavailable(detail):
                self.metrics.poll_inconclusive(task.model, "unavailable")
                log.info("inconclusive poll", detail=detail, setbacks=task.setbacks)
            case Unreadable(detail):
                self.metrics.poll_inconclusive(task.model, "unreadable")
                log.info("inconclusive poll", detail=detail, setbacks=task.setbacks)
            case UnknownState(state):
                self.metrics.poll_inconclusive(task.model, "unknown_state")
                self.seen.state(state)
            case Succeeded(differs=True):
                log.warning("the record repeats a different request")
            case _:
                pass
        return outcome

    async def _learn_reach(self, task: Task, outcome: Poll) -> None:
        """Learn whether the provider answers; after an outage, poll what it has postponed."""
        reach = self.verdicts.reach
        if reach.learn(outcome, task.setbacks, self.store.now()):
            log.info("the provider answers again")
            await self.store.make_polls_due(self.store.now())
            self.agenda.wake(Lane.POLL)
        self.metrics.provider_silent(reach.silent_seconds(self.store.now()))

    # --- an orphan ---

    async def _look_for_orphan(self, task: Task) -> None:
        """Find out what became of a paid request whose response is not known.

        Either its sender has died, or it waits for a callback, or a callback has named a record.
        """
        if self.leases.is_sending(task.id):
            return  # its sender, in this process, was only paused; the claim has postponed the task
        if not task.candidate_id:
            await self.settle(task, self._without_answer)
            return
        found = await self._recognise(task, task.candidate_id)
        log.info(
            "a callback named a task", provider_task_id=task.candidate_id, recognition=found.value
        )
        await self.settle(
            task, lambda current, now: self.verdicts.after_recognition(current, found, now)
        )

    async def _recognise(self, task: Task, candidate: str) -> Recognition:
        return await self.provider.recognise(params_of(task), candidate)

    def _without_answer(self, task: Task, now: float) -> Task | None:
        """Decide on a paid request without a response, once its sender could renew its lease."""
        judgement_time = self.leases.judgement_time()
        if self.store.shared and now < judgement_time < math.inf and task.unknown_time is None:
            return task.scheduled(judgement_time, task.setbacks) if not task.ended else None
        log.error("submission outcome unknown: no response to the paid request")
        return self.verdicts.without_answer(task, now)

    # --- the verdict ---

    async def settle(self, task: Task, decide: Decide) -> None:
        """Save the verdict.

        It is decided again if the task has changed in the meantime, but not once the task has been
        resubmitted. While the database is unavailable it waits: what was paid for must not be lost.
        """

        def decide_on_this_submission(current: Task, now: float) -> Task | None:
            return decide(current, now) if current.submit_time == task.submit_time else None

        saved = await self.writer.write(task, decide_on_this_submission, patient=True)
        if saved is None:
            log.info("task already settled elsewhere")
        elif saved.ended:
            self.seen.ended(saved)
