"""Whether the provider refuses the account: its key, its credits, or a proxy on the way to it.

An operator has to fix that, so waiting tasks are held, and one of them is tried from time to time.
"""

import math
import time

import structlog

from providers.base import Refused
from service.metrics import Metrics
from storage.clock import SKEW_SECONDS
from storage.errors import StorageUnavailableError
from storage.store import Store
from storage.task import Task

# A hold that was not confirmed for this long, or for as long as tasks are held, is over: no task
# was left to be tried, or no process was running.
CONFIRMED_SECONDS = 600.0

log = structlog.get_logger()


class AccountHold:
    """Since when the account is refused, and why. Times are unix seconds.

    The start of the hold is stored in the database: a restart does not make tasks wait longer, and
    every process holds its tasks, even if another one was refused first.

    Attributes:
        seconds: How long a task is held at most; 0 if none is.
    """

    def __init__(self, store: Store, metrics: Metrics, seconds: float) -> None:
        self.seconds = seconds
        self._store = store
        self._metrics = metrics
        self._since: float | None = None
        self._refusal: Refused | None = None
        self._is_saved = True

    def refused(self, refusal: Refused, now: float) -> None:
        """Learn that the account is refused, or still refused."""
        if self._refusal is None:
            log.error(
                "the provider refuses the account: tasks wait, and one at a time is tried",
                reason=refusal.reason,
                message=refusal.message,
                provider_code=refusal.provider_code,
            )
        self._refusal = refusal
        self._since = now if self._since is None else self._since
        self._is_saved = False
        self._metrics.show_account_held(refusal.reason)

    def accepted(self, task: Task, now: float) -> bool:
        """Learn that a task was accepted; return whether the account is.

        A task that was sent before the first refusal says nothing of what came after it.
        """
        if self._since is None:
            return True
        sent_before = task.submit_time is not None and task.submit_time < self._since
        if sent_before and self._since <= now:
            return False
        log.info("the provider accepts the account again", held_seconds=round(now - self._since))
        self._since = self._refusal = None
        self._is_saved = False
        self._metrics.show_account_held("")
        return True

    def first_expiry_time(self, now: float) -> float:
        """Return until when the tasks are held that wait since the start; infinity afterwards."""
        left = self.seconds - (0.0 if self._since is None else self._elapsed(self._since, now))
        return now + left if left > 0 else math.inf

    def has_expired(self, task: Task, now: float) -> bool:
        """Return whether a waiting task was held for too long."""
        if self._since is None:
            return False
        # A task from the future was created before the clock was set back.
        is_older = task.create_time > now + SKEW_SECONDS
        since = self._since if is_older else max(self._since, task.create_time)
        return self._elapsed(since, now) >= self.seconds

    def expired_before(self, now: float) -> float | None:
        """Return the time before which tasks were created that were held for too long, or None."""
        if self._since is None or self._elapsed(self._since, now) < self.seconds:
            return None
        return now - self.seconds

    def _elapsed(self, since: float, now: float) -> float:
        return self._store.clock.elapsed_seconds(since, now)

    @property
    def note(self) -> str:
        """What an operator has to know, or ""."""
        if self._refusal is None or self._since is None:
            return ""
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self._since))
        return f"account refused since {since}, tasks wait: {describe(self._refusal)}"

    async def open(self, now: float) -> bool:
        """Store that the account is refused; return whether no process knew it before."""
        try:
            since = await self._store.hold_account(now, self._confirmed_after(now))
        except StorageUnavailableError:
            if self._since is not None:
                return False
            since = now
        self._since = min(since, now)
        return since == now

    async def follow(self, now: float) -> bool:
        """Adopt the hold that other processes, or an earlier one, stored; return whether it is new.

        Raises:
            StorageUnavailableError: The database is unavailable.
        """
        if not self.seconds or not self._is_saved:
            return False
        since = await self._store.account_held_since(self._confirmed_after(now))
        if not self._is_saved or (since is None) == (self._since is None):
            return False
        self._since = None if since is None else min(since, now)
        if since is None:
            log.info("another process reports that the provider accepts the account again")
            self._refusal = None
            self._metrics.show_account_held("")
        return True

    @property
    def is_held(self) -> bool:
        """Whether tasks are held."""
        return self._since is not None

    def clock_jumped(self, now: float) -> None:
        """Let no hold begin in the future."""
        if self._since is not None:
            self._since = min(self._since, now)

    async def save(self, now: float) -> None:
        """Store what was learned; if the database is unavailable, the next call does."""
        if self._is_saved:
            return
        self._is_saved = True
        try:
            if self._since is None:
                await self._store.release_account()
                return
            since = await self._store.hold_account(now, self._confirmed_after(now))
        except StorageUnavailableError:
            self._is_saved = False
            return
        if self._since is not None:  # otherwise the account was accepted meanwhile
            self._since = min(since, now)

    def _confirmed_after(self, now: float) -> float:
        return self._store.clock.without_jumps(now) - max(self.seconds, CONFIRMED_SECONDS)


def describe(refusal: Refused) -> str:
    """Return why the account is refused."""
    return f"{refusal.reason} (code {refusal.provider_code}: {refusal.message})"
