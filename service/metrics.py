"""The metrics: docs/metrics.md says what each one means, and prometheus-client renders them.

The composition root creates one Metrics, with its own registry, and passes it on. All values are
recorded on the event loop.

Labels are looked up once, when a method or a value is first seen, as every call records metrics.
Measured on Python 3.11: `observe` on a stored child takes 0.6-0.8 us, with `labels()` before it
1.3 us, on our own list of integers 0.1 us. The library is used all the same: our own list would
save half a microsecond of the 150 that a QueryTask takes.
"""

import math
from collections.abc import Awaitable, Callable, Collection, Container, Iterable
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from generated.generation.v1 import generation_pb2
from service.caller_metrics import CallerMetrics
from service.copy_metrics import CopyMetrics
from service.errors import REFUSALS
from service.series import MetricFactory, Series
from storage.task import Lane, Stage, Status

GENERATION_SERVICE = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"]

# In seconds, as fine as is useful: a call may be a read of one row or a watch.
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
CALLBACK_VERDICTS = (
    *("received", "wrong signature", "forged", "unknown", "no callback"),
    *("the database is unavailable", "newer version"),
)


@dataclass(frozen=True, slots=True)
class Queue:
    """The tasks waiting in a lane.

    Attributes:
        overdue_seconds: How long the oldest due task has been due; 0 if none is.
        copy_age_seconds: Of the lane `store`: how long the oldest task has waited for its copies.
    """

    lane: str
    tasks: int
    overdue_seconds: float
    copy_age_seconds: float = 0.0


ReadQueues = Callable[[], Awaitable[Collection[Queue]]]


class MethodCalls:
    """The calls of one method.

    Attributes:
        succeeded: Takes the seconds of a call that ended OK.
    """

    __slots__ = ("_method", "_series", "succeeded")

    def __init__(self, series: Series[Histogram], method: str) -> None:
        self._series = series
        self._method = method
        self.succeeded: Callable[[float], None] = series[method, "OK"].observe
        _ = series[method, "INTERNAL"]  # created at 0, for alerts

    def failed(self, code: str, seconds: float) -> None:
        """Count a call that ended with another status, by the name of its code."""
        self._series[self._method, code].observe(seconds)


class _Tasks:
    """The metrics of tasks, queues and polls."""

    def __init__(self, make: MetricFactory) -> None:
        self.moves = make.counters(
            "generation_task_moves", "Tasks that entered a stage", "model", "stage"
        )
        self.ends = make.counters(
            "generation_task_ends", "Tasks that ended", "model", "status", "reason"
        )
        self.queue_tasks = make.gauge("generation_queue_tasks", "Tasks waiting in a lane", "lane")
        self.queue_overdue = make.gauge(
            "generation_queue_overdue_seconds",
            "How long the oldest due task in a lane has been due",
            "lane",
        )
        self.limiter_wait = make.histograms(
            "generation_limiter_wait_seconds",
            "How long due tasks of a lane waited for the account's limits",
            WAIT_BUCKETS,
            "lane",
        )
        self.poll_lag = make.histogram(
            "generation_poll_lag_seconds",
            "From when a poll was due to when it was started",
            WAIT_BUCKETS,
        )
        self.inconclusive = make.counters(
            "generation_polls_inconclusive", "Inconclusive polls, by cause", "model", "cause"
        )


class _Dependencies:
    """The metrics of the provider, the database and the process."""

    def __init__(self, make: MetricFactory) -> None:
        self.silence = make.gauge(
            "generation_provider_silent_seconds",
            "How long no poll has been answered, though some were sent",
        )
        self.provider_calls = make.histograms(
            "generation_provider_call_seconds",
            "Requests to the provider by endpoint and code, with their duration",
            PROVIDER_BUCKETS,
            "endpoint",
            "code",
        )
        self.callbacks = make.counters(
            "generation_callbacks", "Callbacks of the provider, by result", "verdict"
        )
        self.database = make.histograms(
            "generation_database_seconds",
            "Operations of the database, including their wait for it",
            QUICK_BUCKETS,
            "operation",
        )
        self.loop_lag = make.histogram(
            "generation_event_loop_lag_seconds",
            "How late the event loop ran a timer",
            QUICK_BUCKETS,
        )
        self.config_problems = make.gauge(
            "generation_config_problems", "Problems in a file that is re-read", "file"
        )
        self.tls_expiry = make.gauge(
            "generation_tls_expiry_seconds",
            "The time until the first certificate for TLS expires; infinite without TLS",
        )
        self.simulated = make.gauge(
            "generation_simulated", "1 if the provider is a simulator: results are samples"
        )
        self.account_held = make.gauge(
            "generation_account_held", "1 while the provider refuses the account", "reason"
        )
        self.missing_descriptors = make.gauge(
            "generation_missing_descriptors",
            "File descriptors that WATCH_MAX_STREAMS needs beyond the limit",
        )


class Metrics:
    """Everything that one server measures.

    Attributes:
        registry: All metrics.
        copies: The metrics of copies.
    """

    def __init__(
        self, models: Iterable[str], caller_names: Callable[[], Container[str]] | None = None
    ) -> None:
        """Start with nothing counted.

        Args:
            models: The names of the models.
            caller_names: Returns the callers to count by; None counts nothing by caller.
        """
        # A switch for the whole process: no second series with the creation time of each one.
        disable_created_metrics()  # type: ignore[no-untyped-call] # bare in the library
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        make = MetricFactory(self.registry)
        self._calls = make.histograms(
            "generation_call_seconds",
            "Calls by method and status, with their duration",
            CALL_BUCKETS,
            "method",
            "code",
        )
        self._watches = make.gauge("generation_watches_open", "Open streams of WatchTask")
        self._fan_out = make.histogram(
            "generation_fan_out_seconds",
            "From the publication of a snapshot to its write to one watcher",
            QUICK_BUCKETS,
        )
        self._tasks = _Tasks(make)
        self.copies = CopyMetrics(make)
        self._dependencies = _Dependencies(make)
        self._by_caller = CallerMetrics(self.registry, caller_names) if caller_names else None
        self._start_at_zero(models)

    def _start_at_zero(self, models: Iterable[str]) -> None:
        """Create series at 0: `increase()` does not see one that first appears as 1."""
        self.show_account_held("")
        self._dependencies.tls_expiry.set(math.inf)
        for method in GENERATION_SERVICE.methods:
            self.calls(method.name)
        for verdict in CALLBACK_VERDICTS:
            self._dependencies.callbacks[(verdict,)].inc(0)
        for lane in Lane:
            _ = self._tasks.limiter_wait[(lane,)]
        for model in models:
            for stage in Stage:
                self._tasks.moves[model, stage].inc(0)
            self._tasks.ends[model, Status.SUCCESS, ""].inc(0)
            for cause in INCONCLUSIVE_CAUSES:
                self._tasks.inconclusive[model, cause].inc(0)
            for reason in TASK_FAILURES:
                self._tasks.ends[model, Status.FAILED, reason].inc(0)

    # --- callers ---

    def calls(self, method: str) -> MethodCalls:
        """Return the counters of an existing method."""
        return MethodCalls(self._calls, method)

    def unknown_method(self) -> None:
        """Count a call of a method that does not exist, whatever its name."""
        self._calls["unknown", "UNIMPLEMENTED"].observe(0)

    def watches_open(self, streams: int) -> None:
        """Show how many streams are open."""
        self._watches.set(streams)

    def caller_refused(self, caller: str, limit: str) -> None:
        """Count a call that a limit refused."""
        if self._by_caller:
            self._by_caller.refused(caller, limit)

    def fan_out(self, seconds: float) -> None:
        """Record how long a snapshot took from its publication to one watcher."""
        self._fan_out.observe(seconds)

    # --- configuration ---

    def show_config_problems(self, file: str, count: int) -> None:
        """Show the number of problems in a file that is re-read while the service runs."""
        self._dependencies.config_problems.labels(file).set(count)

    def show_tls_expiry(self, seconds_left: Callable[[], float]) -> None:
        """Show how long the certificates of the server are valid: calculated for each scrape."""
        self._dependencies.tls_expiry.set_function(seconds_left)

    def show_simulated(self, simulated: bool) -> None:
        """Show whether results are samples."""
        self._dependencies.simulated.set(simulated)

    def show_missing_descriptors(self, count: int) -> None:
        """Show how many file descriptors are missing."""
        self._dependencies.missing_descriptors.set(count)

    # --- tasks ---

    def task_created(self, model: str, caller: str) -> None:
        """Count a new task."""
        self.task_moved(model, Stage.ACCEPTED)
        if self._by_caller:
            self._by_caller.created(caller)

    def task_moved(self, model: str, stage: str) -> None:
        """Count a task that entered a stage."""
        self._tasks.moves[model, stage].inc()

    def task_ended(self, model: str, status: str, reason: str, caller: str) -> None:
        """Count a task that ended; the reason is "" for a success."""
        self._tasks.ends[model, status, reason].inc()
        if self._by_caller:
            self._by_caller.ended(caller, status)

    def show_queues(self, queues: Collection[Queue]) -> None:
        """Show these queues and no others: none if they are unknown."""
        self._tasks.queue_tasks.clear()
        self._tasks.queue_overdue.clear()
        for queue in queues:
            self._tasks.queue_tasks.labels(queue.lane).set(queue.tasks)
            self._tasks.queue_overdue.labels(queue.lane).set(queue.overdue_seconds)
        self.copies.show_age(max((queue.copy_age_seconds for queue in queues), default=0.0))

    def limiter_waited(self, lane: str, seconds: float) -> None:
        """Record how long due tasks of a lane waited for the account's limits."""
        self._tasks.limiter_wait[(lane,)].observe(seconds)

    def poll_started(self, lag_seconds: float) -> None:
        """Record how late a poll was started."""
        self._tasks.poll_lag.observe(lag_seconds)

    def poll_inconclusive(self, model: str, cause: str) -> None:
        """Count an inconclusive poll."""
        self._tasks.inconclusive[model, cause].inc()

    def provider_silent(self, seconds: float) -> None:
        """Show how long no poll has been answered; 0 after an answer."""
        self._dependencies.silence.set(seconds)

    # --- dependencies ---

    def provider_called(self, endpoint: str, code: str, seconds: float) -> None:
        """Count a request to the provider: a providers.base.CallObserver."""
        self._dependencies.provider_calls[endpoint, code].observe(seconds)

    def show_account_held(self, reason: str) -> None:
        """Show why the account is refused; "" if it is not."""
        for known in REFUSALS:
            self._dependencies.account_held.labels(known).set(known == reason)

    def called_back(self, result: str) -> None:
        """Count a callback by its result."""
        self._dependencies.callbacks[(result,)].inc()

    def database(self, operation: str, seconds: float) -> None:
        """Record how long an operation of the database took."""
        self._dependencies.database[(operation,)].observe(seconds)

    def loop_lagged(self, seconds: float) -> None:
        """Record how late the event loop was."""
        self._dependencies.loop_lag.observe(seconds)
