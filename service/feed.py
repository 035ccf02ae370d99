"""The feed: reads what changes, once for all streams of this process, and hands it to them.

A stream is *live* while it has everything up to the feed's position; then it costs nothing until a
task of its caller changes. A stream that is behind reads its own pages until it has caught up.
"""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from service.feed_metrics import FeedMetrics
from service.resume_token import ChangeFilter
from service.waiter import Waiter
from storage.changes import START, Change, ChangePage, Position
from storage.store import Store
from storage.task import Status

ENDED = frozenset({Status.SUCCESS, Status.FAILED})
OFFERED_AT_ONCE = 200  # changes to streams, which then take some 5 ms of the event loop


@dataclass(frozen=True, slots=True)
class FeedTimes:
    """How often the feed reads.

    Attributes:
        sweep_seconds: Between two reads if nothing wakes the feed.
        sweep_without_hints_seconds: The same while no hints of other processes can be received.
        retry_min_seconds: Until changes are read again that an open transaction hides; the time
            doubles with each attempt.
        retry_max_seconds: The longest such time.
        page_changes: How many changes are read at a time.
        queue_changes: How many changes wait for a live stream before it falls behind.
    """

    sweep_seconds: float = 5.0
    sweep_without_hints_seconds: float = 1.0
    retry_min_seconds: float = 0.01
    retry_max_seconds: float = 1.0
    page_changes: int = 256
    queue_changes: int = 64


class Stream(Waiter):
    """What the feed keeps for a stream: its position, and the changes that wait to be sent.

    Attributes:
        which: Selects the changes of the stream.
        position: Everything up to here was sent.
        is_live: Whether the feed passes changes to the stream.
        is_over: Whether the stream has to start over, because the database holds another history.
        late_since: When the oldest change that was not sent arrived, by the monotonic clock;
            infinity if everything was sent.
    """

    __slots__ = (
        "_max_waiting",
        "_waiting",
        "is_live",
        "is_over",
        "late_since",
        "position",
        "which",
    )

    def __init__(self, which: ChangeFilter, position: Position, max_waiting: int) -> None:
        super().__init__()
        self.which = which
        self.position = position
        self.is_live = False
        self.is_over = False
        self.late_since = math.inf
        self._max_waiting = max_waiting
        self._waiting: dict[str, Change] = {}  # the newest change of each task, in their order

    def wants(self, change: Change) -> bool:
        """Return whether the filter selects a change, regardless of its caller."""
        which = self.which
        if which.prompt_id and change.prompt_id != which.prompt_id:
            return False
        return not which.ended_only or change.status in ENDED

    def offer(self, change: Change) -> bool:
        """Keep a change until it is sent; return False if too many are waiting."""
        if change.position <= self.position or not self.wants(change):
            return True
        waiting = self._waiting
        waiting.pop(change.task_id, None)
        if len(waiting) >= self._max_waiting:
            return False
        waiting[change.task_id] = change
        self.late_since = min(self.late_since, time.monotonic())
        self.wake()
        return True

    def take(self, limit: int) -> list[Change]:
        """Remove and return the next changes to send, at most `limit`."""
        taken = list(islice(self._waiting.values(), limit))
        for change in taken:
            del self._waiting[change.task_id]
        return taken

    def all_sent(self) -> None:
        """Note that everything was sent."""
        self.late_since = math.inf

    @property
    def has_waiting(self) -> bool:
        """Whether there are changes to send."""
        return bool(self._waiting)


class _Cursor:
    """Where the feed reads.

    Attributes:
        position: Everything before it was passed on.
        reached: What comes up to here is not offered to streams that join.
        epoch: The history that the last page was from; empty until a page was read.
    """

    __slots__ = ("epoch", "position", "reached")

    def __init__(self) -> None:
        self.start(START)

    def start(self, position: Position) -> None:
        """Read from here, whatever history the next page is from."""
        self.position = self.reached = position
        self.epoch = b""

    def end_page(self, page: ChangePage) -> None:
        """Read from the end of a page that was passed on."""
        self.position = self.reached = page.end


class _HiddenChanges:
    """The changes that an open transaction hides: since when, and when to look again.

    Attributes:
        since: When they were first noticed, by the monotonic clock; infinity if there are none.
        pause: How long to wait before changes are read again.
    """

    __slots__ = ("_last_pause", "_times", "pause", "since")

    def __init__(self, times: FeedTimes) -> None:
        self._times = times
        self._last_pause = math.inf
        self.pause = math.inf
        self.since = math.inf

    def read_again(self) -> None:
        """Note that changes are read again: the pause is over."""
        self.pause, self._last_pause = math.inf, self.pause

    def learn(self, page: ChangePage) -> None:
        """Learn from the last page whether changes are hidden; then look again soon."""
        if not page.is_blocked:
            self.none()
            return
        self.since = min(self.since, time.monotonic())
        is_first = bool(page.changes) or self._last_pause == math.inf
        pause = self._times.retry_min_seconds if is_first else 2 * self._last_pause
        self.pause = min(pause, self._times.retry_max_seconds)

    def none(self) -> None:
        """Note that nothing is hidden from a stream."""
        self.since = math.inf


class Feed:
    """Reads the changes of all callers, and hands them to the live streams.

    Attributes:
        draining: Whether the process is shutting down.
        metrics: What is measured of the streams.
    """

    def __init__(self, store: Store, metrics: FeedMetrics, times: FeedTimes) -> None:
        self._store = store
        self.metrics = metrics
        self._times = times
        self._live: dict[str, set[Stream]] = {}  # by caller
        self._streams: set[Stream] = set()
        self._woken = asyncio.Event()
        self._hidden = _HiddenChanges(times)
        self._cursor = _Cursor()
        self.draining = False
        store.on_change = self.wake
        metrics.observe(lambda: len(self._streams), self.lag_seconds)

    # --- the streams ---

    def add(self, which: ChangeFilter, position: Position) -> Stream:
        """Return a new stream, which is not live yet."""
        stream = Stream(which, position, self._times.queue_changes)
        self._streams.add(stream)
        return stream

    def remove(self, stream: Stream) -> None:
        """Forget a stream that has ended."""
        stream.close()
        self._leave(stream)
        self._streams.discard(stream)

    def join(self, stream: Stream) -> bool:
        """Hand changes to a stream from now on, if it has everything before them."""
        if not self._live:
            self._cursor.start(stream.position)
        elif stream.position < self._cursor.reached:
            return False
        self._live.setdefault(stream.which.caller, set()).add(stream)
        stream.is_live = True
        self.wake()
        return True

    def _leave(self, stream: Stream) -> None:
        stream.is_live = False
        live = self._live.get(stream.which.caller)
        if live is not None:
            live.discard(stream)
            if not live:
                del self._live[stream.which.caller]

    @property
    def position(self) -> Position:
        """Everything before it was passed on. Only meaningful while there are live streams."""
        return self._cursor.position

    def lag_seconds(self) -> float:
        """Return the age of the oldest change that was not sent yet."""
        since = min((stream.late_since for stream in self._streams), default=math.inf)
        return max(0.0, time.monotonic() - min(since, self._hidden.since))

    def drain(self) -> None:
        """End every stream: the process is shutting down."""
        self.draining = True
        for stream in self._streams:
            stream.wake()

    # --- the reader ---

    def wake(self) -> None:
        """Read again soon: something has changed."""
        if self._live:
            self._woken.set()

    async def run_once(self) -> None:
        """Wait until something may have changed, and hand it out."""
        sweep = self._times.sweep_seconds
        if self._store.shared and not self._store.is_listening:
            sweep = self._times.sweep_without_hints_seconds
        try:
            async with asyncio.timeout(min(sweep, self._hidden.pause)):
                await self._woken.wait()
        except TimeoutError:
            pass
        self._woken.clear()
        self._hidden.read_again()
        if self._live:
            await self._read()
        else:
            self._hidden.none()

    async def _read(self) -> None:
        while self._live:
            position = self._cursor.position
            page = await self._store.changes(None, position, self._times.page_changes)
            self.metrics.page_read("all")
            if self._cursor.position != position:
                continue  # no live stream was left, and the next one started elsewhere
            self._check_epoch(page)
            if not await self._hand_out(page.changes):
                continue
            self._cursor.end_page(page)
            if page.is_last:
                self._hidden.learn(page)
                return

    async def _hand_out(self, changes: Sequence[Change]) -> bool:
        """Offer changes to the live streams of their callers, and let other calls run in between.

        Return False if a stream has set another position meanwhile, as no live stream was left.
        """
        cursor, offered = self._cursor, 0
        for change in changes:
            cursor.reached = change.position
            for stream in tuple(self._live.get(change.caller, ())):
                if stream.is_live and not stream.offer(change):
                    self._leave(stream)
                    stream.wake()
                offered += 1
                if offered % OFFERED_AT_ONCE == 0:
                    await asyncio.sleep(0)
                    if cursor.reached is not change.position:
                        return False
            cursor.position = change.position
        return True

    def _check_epoch(self, page: ChangePage) -> None:
        """Let every stream start over if the database holds another history now."""
        if self._cursor.epoch and page.epoch != self._cursor.epoch:
            for stream in self._streams:
                stream.is_over = True
                stream.wake()
        self._cursor.epoch = page.epoch
