"""What is measured; docs/metrics.md says what each metric means, and prometheus-client renders it.

The composition root makes one Metrics, with a registry of its own, and passes it on. Everything is
told to it on the event loop, in plain words and numbers.

Labels are looked up once, when a method or a value is first seen, as telling is on the way of every
call. Measured on Python 3.11: `observe` on a child that is held takes 0.6-0.8 us, with `labels()`
before it 1.3 us, on a list of integers of our own 0.1 us. The library's is taken: ours would save
half a microsecond of the 150 that a QueryTask takes.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Container, Iterable
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.metrics import MetricWrapperBase

from generated.generation.v1 import generation_pb2
from service.caller_metrics import CallerMetrics
from service.errors import REFUSALS
from storage.task import Stage, Status

GENERATION_SERVICE = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"]
SERIES_MAX = 200  # of one metric; whatever goes beyond is counted as "other"
OTHER = "other"
LOOP_LAG_INTERVAL_SECONDS = 0.25

# In seconds, each by what is worth telling apart: a call may be a read of one row or a watch.
CALL_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 60.0, 1_800.0),
)
PROVIDER_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 60.0, 300.0)
QUICK_BUCKETS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01),
    *(0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0),
)
WAIT_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0)

TASK_FAILURES = (
    *sorted(REFUSALS),
    *("CANCELLED", "GENERATION_FAILED", "RESULT_MISSING", "SUBMISSION_UNKNOWN", "TASK_TIMEOUT"),
)

INCONCLUSIVE_CAUSES = ("unavailable", "unreadable", "unknown_state")

M = TypeVar("M", bound=MetricWrapperBase)


@dataclass(frozen=True, slots=True)
class Queue:
    """The tasks that wait in a lane.

    Attributes:
        overdue_seconds: For how long the one that is longest due has been due; 0 if none is.
    """

    lane: str
    tasks: int
    overdue_seconds: float


ReadQueues = Callable[[], Awaitable[Iterable[Queue]]]


class _Series(dict[tuple[str, ...], M]):
    """The children of a metric by the values of their labels: looked up once, and bounded."""

    def __init__(self, metric: M) -> None:
        super().__init__()
        self._metric = metric

    def __missing__(self, values: tuple[str, ...]) -> M:
        if len(self) >= SERIES_MAX:
            return self._metric.labels(*[OTHER] * len(values))
        child = self[values] = self._metric.labels(*values)
        return child


class MethodCalls:
    """The calls of one method.

    Attributes:
        succeeded: Takes the seconds of a call that ended OK.
    """

    __slots__ = ("_method", "_series", "succeeded")

    def __init__(self, series: _Series[Histogram], method: str) -> None:
        self._series = series
        self._method = method
        self.succeeded: Callable[[float], None] = series[method, "OK"].observe
        _ = series[method, "INTERNAL"]  # it stands at 0 before the first bug, for alerts

    def failed(self, code: str, seconds: float) -> None:
        """Count a call that ended with another status, by the name of its code."""
        self._series[self._method, code].observe(seconds)


class Metrics:
    """Everything that one server measures."""

    def __init__(
        self, models: Iterable[str], caller_names: Callable[[], Container[str]] | None = None
    ) -> None:
        """Start with nothing counted.

        Args:
            models: Those that are served.
            caller_names: Returns the callers to count by; without it nothing is counted by caller.
        """
        # The library's switch for the process: no second series of each, with its time of birth.
        disable_created_metrics()  # type: ignore[no-untyped-call] # bare in the library
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        def histogram(
            name: str, words: str, labels: Iterable[str], buckets: tuple[float, ...]
        ) -> Histogram:
            return Histogram(name, words, tuple(labels), registry=registry, buckets=buckets)

        def counter(name: str, words: str, *labels: str) -> _Series[Counter]:
            return _Series(Counter(name, words, labels, registry=registry))

        def gauge(name: str, words: str, *labels: str) -> Gauge:
            return Gauge(name, words, labels, registry=registry)

        self._calls = _Series(
            histogram(
                "generation_call_seconds",
                "Calls by their method and status, with how long they took",
                ("method", "code"),
                CALL_BUCKETS,
            )
        )
        self._watches = gauge("generation_watches_open", "Streams of WatchTask that are open")
        self._fan_out = histogram(
            "generation_fan_out_seconds",
            "From the publishing of a snapshot to its writing to one watcher",
            (),
            QUICK_BUCKETS,
        )
        self._moves = counter(
            "generation_task_moves", "Tasks that came into a stage", "model", "stage"
        )
        self._ends = counter(
            "generation_task_ends", "Tasks that ended", "model", "status", "reason"
        )
        self._queue_tasks = gauge("generation_queue_tasks", "Tasks that wait in a lane", "lane")
        self._queue_overdue = gauge(
            "generation_queue_overdue_seconds",
            "For how long the task that is longest due in a lane has been due",
            "lane",
        )
        self._limiter_wait = _Series(
            histogram(
                "generation_limiter_wait_seconds",
                "How long due tasks of a lane waited for the account's limits",
                ("lane",),
                WAIT_BUCKETS,
            )
        )
        self._poll_lag = histogram(
            "generation_poll_lag_seconds",
            "From when a poll was due to when it was started",
            (),
            WAIT_BUCKETS,
        )
        self._inconclusive = counter(
            "generation_polls_inconclusive",
            "Polls without a verdict, by why there is none",
            "model",
            "cause",
        )
        self._silence = gauge(
            "generation_provider_silent_seconds",
            "For how long no poll was answered, though some were sent",
        )
        self._provider_calls = _Series(
            histogram(
                "generation_provider_call_seconds",
                "Requests to the provider by endpoint and code, with how long they took",
                ("endpoint", "code"),
                PROVIDER_BUCKETS,
            )
        )
        self._callbacks = counter(
            "generation_callbacks", "Callbacks of the provider, by what was made of them", "verdict"
        )
        self._database = _Series(
            histogram(
                "generation_database_seconds",
                "Operations of the database, with their wait for it",
                ("operation",),
                QUICK_BUCKETS,
            )
        )
        self._loop_lag = histogram(
            "generation_event_loop_lag_seconds",
            "How much later than planned the event loop came to a timer",
            (),
            QUICK_BUCKETS,
        )
        self._config_problems = gauge(
            "generation_config_problems", "What is wrong with a file that is re-read", "file"
        )
        self._missing_descriptors = gauge(
            "generation_missing_descriptors",
            "File descriptors that WATCH_MAX_STREAMS needs beyond the limit",
        )
        self._by_caller = CallerMetrics(registry, caller_names) if caller_names else None
        for method in GENERATION_SERVICE.methods:
            self.calls(method.name)
        for model in models:
            self._foresee(model)

    def _foresee(self, model: str) -> None:
        """Show what may become of a model's tasks: from nothing to 1 is no increase to an alert."""
        for stage in Stage:
            self._moves[model, stage].inc(0)
        self._ends[model, Status.SUCCESS, ""].inc(0)
        for cause in INCONCLUSIVE_CAUSES:
            self._inconclusive[model, cause].inc(0)
        for reason in TASK_FAILURES:
            self._ends[model, Status.FAILED, reason].inc(0)

    # --- callers ---

    def calls(self, method: str) -> MethodCalls:
        """Return where the calls of a method are counted; `method` is one that is served."""
        return MethodCalls(self._calls, method)

    def unknown_method(self) -> None:
        """Count a call of a method that is not there, whatever its name."""
        self._calls["unknown", "UNIMPLEMENTED"].observe(0)

    def watches_open(self, streams: int) -> None:
        """Show how many streams are open."""
        self._watches.set(streams)

    def caller_refused(self, caller: str, limit: str) -> None:
        """Count a call that a limit refused."""
        if self._by_caller:
            self._by_caller.refused(caller, limit)

    def fan_out(self, seconds: float) -> None:
        """Note how long a snapshot took from its publishing to one watcher."""
        self._fan_out.observe(seconds)

    # --- configuration ---

    def show_config_problems(self, file: str, count: int) -> None:
        """Show how much is wrong with a file that is re-read while the service runs."""
        self._config_problems.labels(file).set(count)

    def show_missing_descriptors(self, count: int) -> None:
        """Show how many file descriptors are too few."""
        self._missing_descriptors.set(count)

    # --- tasks ---

    def task_created(self, model: str, caller: str) -> None:
        """Count a new task."""
        self.task_moved(model, Stage.ACCEPTED)
        if self._by_caller:
            self._by_caller.created(caller)

    def task_moved(self, model: str, stage: str) -> None:
        """Count a task that came into a stage."""
        self._moves[model, stage].inc()

    def task_ended(self, model: str, status: str, reason: str, caller: str) -> None:
        """Count a task that ended; the reason is "" for a success."""
        self._ends[model, status, reason].inc()
        if self._by_caller:
            self._by_caller.ended(caller, status)

    def show_queues(self, queues: Iterable[Queue]) -> None:
        """Show these queues and no others: none, while nobody knows."""
        self._queue_tasks.clear()
        self._queue_overdue.clear()
        for queue in queues:
            self._queue_tasks.labels(queue.lane).set(queue.tasks)
            self._queue_overdue.labels(queue.lane).set(queue.overdue_seconds)

    def limiter_waited(self, lane: str, seconds: float) -> None:
        """Note how long due tasks of a lane waited for the account's limits."""
        self._limiter_wait[(lane,)].observe(seconds)

    def poll_started(self, lag_seconds: float) -> None:
        """Note how late a poll was started."""
        self._poll_lag.observe(lag_seconds)

    def poll_inconclusive(self, model: str, cause: str) -> None:
        """Count a poll without a verdict."""
        self._inconclusive[model, cause].inc()

    def provider_silent(self, seconds: float) -> None:
        """Show for how long nobody was answered; 0 if somebody was."""
        self._silence.set(seconds)

    # --- what it leans on ---

    def provider_called(self, endpoint: str, code: str, seconds: float) -> None:
        """Count a request to the provider: a providers.base.CallObserver."""
        self._provider_calls[endpoint, code].observe(seconds)

    def called_back(self, verdict: str) -> None:
        """Count a callback by what was made of it."""
        self._callbacks[(verdict,)].inc()

    def database(self, operation: str, seconds: float) -> None:
        """Note how long an operation of the database took."""
        self._database[(operation,)].observe(seconds)

    def loop_lagged(self, seconds: float) -> None:
        """Note how late the event loop was."""
        self._loop_lag.observe(seconds)


async def measure_loop_lag(metrics: Metrics) -> None:
    """Note the event loop's lag several times a second, until cancelled."""
    while True:
        planned = time.monotonic() + LOOP_LAG_INTERVAL_SECONDS
        await asyncio.sleep(LOOP_LAG_INTERVAL_SECONDS)
        metrics.loop_lagged(max(0.0, time.monotonic() - planned))
