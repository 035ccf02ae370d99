"""The metrics: docs/metrics.md says what each one means, and prometheus-client renders them.

The composition root creates one Metrics, with its own registry, and passes it on. All values are
recorded on the event loop.

Labels are looked up once, when a method or a value is first seen, as every call records metrics.
Measured on Python 3.11: `observe` on a stored child takes 0.6-0.8 us, with `labels()` before it
1.3 us, on our own list of integers 0.1 us. The library is used anyway: our own list would
save half a microsecond of the 150 that a QueryTask takes.
"""

import math
from collections import Counter
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
from service.metric_groups import CallMetrics, ProcessMetrics, ProviderMetrics, TaskMetrics
from service.series import MetricFactory, Series
from storage.task import Stage

GENERATION_SERVICE = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"]


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


class Metrics:
    """Everything that one server measures.

    Attributes:
        registry: All metrics.
        copies: The metrics of copies.
    """

    def __init__(
        self,
        models: Iterable[str],
        caller_names: Callable[[], Container[str]] | None = None,
        label_of: Callable[[str], str] = str,
    ) -> None:
        """Start with nothing counted.

        Args:
            models: The models whose series exist from the start.
            caller_names: Returns the callers to count by; None counts nothing by caller.
            label_of: Returns the label of a model's name, one of a limited number.
        """
        # A switch for the whole process: no second series with the creation time of each one.
        disable_created_metrics()  # type: ignore[no-untyped-call] # bare in the library
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        make = MetricFactory(self.registry)
        self._calls = CallMetrics(make)
        self._tasks = TaskMetrics(make)
        self.copies = CopyMetrics(make)
        self._provider = ProviderMetrics(make)
        self._process = ProcessMetrics(make)
        self._by_caller = CallerMetrics(self.registry, caller_names) if caller_names else None
        self._label_of = label_of
        self._started: set[str] = set()
        self._start_at_zero(models)

    def _start_at_zero(self, models: Iterable[str]) -> None:
        """Create series at 0: `increase()` does not see one that first appears as 1."""
        for method in GENERATION_SERVICE.methods:
            self.calls(method.name)
        self._tasks.start_at_zero()
        self._provider.start_at_zero()
        self._process.tls_expiry.set(math.inf)
        for model in models:
            self._model_label(model)

    def _model_label(self, model: str) -> str:
        """Return the label of a model, whose series exist from then on."""
        label = self._label_of(model)
        if label not in self._started:
            self._started.add(label)
            self._tasks.start_model_at_zero(label)
        return label

    # --- callers ---

    def calls(self, method: str) -> MethodCalls:
        """Return the counters of an existing method."""
        return MethodCalls(self._calls.by_method, method)

    def unknown_method(self) -> None:
        """Count a call of a method that does not exist, whatever its name."""
        self._calls.by_method["unknown", "UNIMPLEMENTED"].observe(0)

    def watches_open(self, streams: int) -> None:
        """Show how many streams are open."""
        self._calls.watches.set(streams)

    def caller_refused(self, caller: str, limit: str) -> None:
        """Count a call that a limit refused."""
        if self._by_caller:
            self._by_caller.refused(caller, limit)

    def fan_out(self, seconds: float) -> None:
        """Record how long a snapshot took from its publication to one watcher."""
        self._calls.fan_out.observe(seconds)

    # --- configuration ---

    def show_config_problems(self, file: str, count: int) -> None:
        """Show the number of problems in a file that is re-read while the service runs."""
        self._process.config_problems.labels(file).set(count)

    def show_tls_expiry(self, seconds_left: Callable[[], float]) -> None:
        """Show how long the certificates of the server are valid: calculated for each scrape."""
        self._process.tls_expiry.set_function(seconds_left)

    def show_simulated(self, simulated: bool) -> None:
        """Show whether results are samples."""
        self._provider.simulated.set(simulated)

    def show_missing_descriptors(self, count: int) -> None:
        """Show how many file descriptors are missing."""
        self._process.missing_descriptors.set(count)

    # --- tasks ---

    def task_created(self, model: str, caller: str) -> None:
        """Count a new task."""
        self.task_moved(model, Stage.ACCEPTED)
        if self._by_caller:
            self._by_caller.created(caller)

    def task_moved(self, model: str, stage: str) -> None:
        """Count a task that entered a stage."""
        self._tasks.moves[self._model_label(model), stage].inc()

    def task_ended(self, model: str, status: str, reason: str, caller: str) -> None:
        """Count a task that ended; the reason is "" for a success."""
        self._tasks.ends[self._model_label(model), status, reason].inc()
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
        self._tasks.inconclusive[self._model_label(model), cause].inc()

    def provider_silent(self, seconds: float) -> None:
        """Show how long polls have got no response; 0 after a response."""
        self._provider.silence.set(seconds)

    # --- dependencies ---

    def provider_called(self, endpoint: str, code: str, seconds: float) -> None:
        """Count a request to the provider: a providers.base.CallObserver."""
        self._provider.calls[endpoint, code].observe(seconds)

    def show_account_held(self, reason: str) -> None:
        """Show why the account is refused; "" if it is not."""
        for known in REFUSALS:
            self._provider.account_held.labels(known).set(known == reason)

    def catalogue_refreshed(self, result: str) -> None:
        """Count a round through the provider's catalogue."""
        self._provider.catalogue_refreshes[(result,)].inc()

    def show_catalogue(self, lifecycles: Iterable[str], refreshed_time: float) -> None:
        """Show how many models there are, and when the provider last confirmed them."""
        for lifecycle, count in Counter(lifecycles).items():
            self._provider.catalogue_models.labels(lifecycle).set(count)
        self._provider.catalogue_time.set(refreshed_time)

    def called_back(self, result: str) -> None:
        """Count a callback by its result."""
        self._provider.callbacks[(result,)].inc()

    def database(self, operation: str, seconds: float) -> None:
        """Record how long an operation of the database took."""
        self._process.database[(operation,)].observe(seconds)

    def loop_lagged(self, seconds: float) -> None:
        """Record how late the event loop was."""
        self._process.loop_lag.observe(seconds)
