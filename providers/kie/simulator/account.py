"""The simulated account: its tasks, limits, balance and counters."""

import logging
import random
import secrets
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

from providers.kie.simulator.book import TaskBook
from providers.kie.simulator.callbacks import Callbacks
from providers.kie.simulator.faults import FaultBook
from providers.kie.simulator.ledger import Ledger
from providers.kie.simulator.limits import TOO_MANY, RequestLimits
from providers.kie.simulator.orders import Order
from providers.kie.simulator.rules import RefusedError
from providers.kie.simulator.settings import SimulatorSettings
from providers.kie.simulator.tasks import (
    FAILED_CODE,
    FAILED_MSG,
    FINAL_STATES,
    SUCCESS,
    Purchase,
    Task,
    draw_task,
)

logger = logging.getLogger(__name__)

NO_CREDITS: Final = 402


@dataclass(slots=True)
class Counts:
    """What is counted until a reset.

    Attributes:
        requests: Requests by their path.
        refused: Refused POST requests by code.
        uploads: Uploads by how they ended.
    """

    requests: Counter[str] = field(default_factory=Counter)
    refused: Counter[int] = field(default_factory=Counter)
    uploads: Counter[str] = field(default_factory=Counter)


class Account:
    """The account behind the simulator; it knows nothing of HTTP.

    Nothing here awaits, so a create is charged for and kept as a whole, or not at all.

    Attributes:
        settings: The current settings.
        faults: The faults that were asked for.
        callbacks: The callbacks of its tasks.
        tasks: Its tasks.
        limits: The limits on requests.
        counts: What was counted since the last reset.
    """

    def __init__(self, settings: SimulatorSettings) -> None:
        self.settings = settings
        self._seed = secrets.randbits(64) if settings.seed is None else settings.seed
        self.faults = FaultBook(random.Random(f"{self._seed}/faults"))
        self.callbacks = Callbacks(lambda: self.settings, self.faults)
        self.tasks = TaskBook(settings.tasks_max, settings.state_file)
        self._start_counting()
        for task in self.tasks:
            self._ledger.buy(task)

    def _start_counting(self) -> None:
        self._ledger = Ledger(float(self.settings.credits))
        self.limits = RequestLimits(lambda: self.settings)
        self.counts = Counts()
        self._upscaled: dict[str, None] = {}

    @property
    def balance(self) -> float:
        """The remaining credits."""
        return self._ledger.balance(self.now_ms())

    def note_upscaled(self, task_id: str) -> None:
        """Remember until a restart that a 1080P version of a video was requested."""
        self._upscaled[task_id] = None
        if len(self._upscaled) > self.settings.tasks_max:
            del self._upscaled[next(iter(self._upscaled))]

    def is_upscaled(self, task_id: str) -> bool:
        """Return whether a 1080P version of a video was requested."""
        return task_id in self._upscaled

    def resume(self, lost_urls: Collection[str], base_url: str) -> None:
        """Schedule the callbacks of kept tasks, and move results whose URL is no longer served.

        A task that ended while no simulator ran gets no callback: Kie gives up on callbacks, too.

        Args:
            lost_urls: Former base URLs of this simulator.
            base_url: Its current one.
        """
        now_ms = self.now_ms()
        self.tasks.move(lost_urls, base_url)
        for task in self.tasks:
            if task.state_at(now_ms) not in FINAL_STATES:
                self.callbacks.schedule(task, now_ms)

    def now_ms(self) -> int:
        """Return the time, in unix milliseconds."""
        return time.time_ns() // 1_000_000

    def buy(self, order: Order, base_url: str) -> Task:
        """Create the task of an order, charge for it, and schedule its callback.

        Raises:
            RefusedError: 402 or 429 if the account cannot take another task; 422 for a directive.
        """
        now_ms = self.now_ms()
        if self.settings.max_running and self._is_full(now_ms):
            raise RefusedError(TOO_MANY, "Too many tasks are running. Please try again later.")
        if self.settings.cost_of(order.model) > self.balance:
            raise RefusedError(NO_CREDITS, "Credits insufficient")
        rng = random.Random(f"{self._seed}/{self._ledger.purchases.total()}")
        task = draw_task(
            order,
            Purchase(
                task_id=order.only_id or uuid4().hex,
                now_ms=now_ms,
                base_url=base_url,
                settings=self.settings,
                rng=rng,
            ),
        )
        self.tasks.put(task)
        self._ledger.buy(task)
        self.callbacks.schedule(task, now_ms)
        logger.info("simulator: task %s created for %s", task.id, task.model)
        return task

    def finish(
        self,
        task_id: str,
        *,
        state: str = SUCCESS,
        code: str = FAILED_CODE,
        msg: str = FAILED_MSG,
        urls: list[str] | None = None,
        callback: bool = True,
    ) -> Task:
        """End a task now, or change how it ended, and send its callback.

        Raises:
            KeyError: There is no such task.
            ValueError: `state` is neither success nor fail.
        """
        if state not in FINAL_STATES:
            raise ValueError(f"state must be success or fail, not {state!r}")
        task = self.tasks.get(task_id)
        if task is None:
            raise KeyError(task_id)
        now_ms = self.now_ms()
        results = None if urls is None else tuple(urls)
        ended = task.finished(
            now_ms, succeeds=state == SUCCESS, code=code, msg=msg, results=results
        )
        self._ledger.replace(task, ended, now_ms)
        self.tasks.put(ended)
        self.callbacks.forget(task_id)
        if callback:
            self.callbacks.schedule(ended, now_ms)
        return ended

    def update(self, changes: Mapping[str, Any]) -> None:
        """Change settings; `credits` becomes the balance.

        Raises:
            ValueError: Naming the setting that is unknown, fixed at start or invalid.
        """
        self.settings = self.settings.changed(changes)
        if "credits" in changes:
            self._ledger.set_balance(float(self.settings.credits), self.now_ms())

    def reset(self, settings: SimulatorSettings) -> None:
        """Forget tasks, faults, counts and scheduled callbacks; use `settings` from now on."""
        self.settings = settings
        self.callbacks.forget_all()
        self.callbacks.counts.clear()
        self.tasks.clear()
        self.faults.clear()
        self.faults.struck.clear()
        self._start_counting()

    def stats(self) -> dict[str, Any]:
        """Return the counters, as JSON values."""
        callbacks, purchases = self.callbacks.counts, self._ledger.purchases
        counts = self.counts
        return {
            "purchases": {"total": purchases.total(), "by_model": dict(purchases)},
            "credits": {"balance": self.balance, "spent": self._ledger.spent(self.now_ms())},
            "creates_refused": {str(code): n for code, n in sorted(counts.refused.items())},
            "requests": dict(counts.requests),
            "peaks": self.limits.peaks(),
            "uploads": {name: counts.uploads[name] for name in ("completed", "aborted", "refused")},
            "callbacks": {
                "waiting": self.callbacks.waiting,
                **{n: callbacks[n] for n in ("sent", "acknowledged", "failed", "dropped")},
            },
            "faults_struck": dict(self.faults.struck),
            "tasks_kept": len(self.tasks),
        }

    def listed(self, task: Task) -> dict[str, Any]:
        """One task, as JSON values."""
        polls, state = self.tasks.polls_of(task.id), task.state_at(self.now_ms())
        return {
            "id": task.id,
            "model": task.model,
            "family": task.kind.family,
            "state": state,
            "body": task.body,
            "callBackUrl": task.callback_url,
            "callback_acknowledged": self.callbacks.is_acknowledged(task.id),
            "created_ms": task.created_ms,
            "ends_ms": task.ends_ms,
            "credits": task.credits_in(state),
            "polls": {"count": polls.count, "times_ms": list(polls.times_ms)},
        }

    async def stop(self) -> None:
        """Stop the callbacks and close the state file."""
        await self.callbacks.stop()
        self.tasks.close()

    def _is_full(self, now_ms: int) -> bool:
        return self.tasks.count_running(now_ms) >= self.settings.max_running
