"""The metrics of calls, of tasks and of what the service depends on, with their labels' values."""

from service.errors import REFUSALS
from service.series import MetricFactory
from storage.task import Lane, Stage, Status

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

REFRESH_RESULTS = ("applied", "not_plausible", "not_answered")
INCONCLUSIVE_CAUSES = ("unavailable", "unreadable", "unknown_state")
CALLBACK_VERDICTS = (
    *("received", "wrong signature", "forged", "unknown", "no callback"),
    *("the database is unavailable", "newer version"),
)


class CallMetrics:
    """The metrics of calls and open streams."""

    def __init__(self, make: MetricFactory) -> None:
        self.by_method = make.histograms(
            "generation_call_seconds",
            "Calls by method and status, with their duration",
            CALL_BUCKETS,
            "method",
            "code",
        )
        self.watches = make.gauge("generation_watches_open", "Open streams of WatchTask")
        self.fan_out = make.histogram(
            "generation_fan_out_seconds",
            "From the publication of a snapshot to its write to one watcher",
            QUICK_BUCKETS,
        )


class TaskMetrics:
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

    def start_at_zero(self) -> None:
        """Create the series of the lanes."""
        for lane in Lane:
            _ = self.limiter_wait[(lane,)]

    def start_model_at_zero(self, model: str) -> None:
        """Create the series of a model."""
        for stage in Stage:
            self.moves[model, stage].inc(0)
        self.ends[model, Status.SUCCESS, ""].inc(0)
        for cause in INCONCLUSIVE_CAUSES:
            self.inconclusive[model, cause].inc(0)
        for reason in TASK_FAILURES:
            self.ends[model, Status.FAILED, reason].inc(0)


class ProviderMetrics:
    """The metrics of the provider: requests to it, its callbacks, its account and its catalogue."""

    def __init__(self, make: MetricFactory) -> None:
        self.silence = make.gauge(
            "generation_provider_silent_seconds",
            "How long no poll has been answered, though some were sent",
        )
        self.calls = make.histograms(
            "generation_provider_call_seconds",
            "Requests to the provider by endpoint and code, with their duration",
            PROVIDER_BUCKETS,
            "endpoint",
            "code",
        )
        self.callbacks = make.counters(
            "generation_callbacks", "Callbacks of the provider, by result", "verdict"
        )
        self.account_held = make.gauge(
            "generation_account_held", "1 while the provider refuses the account", "reason"
        )
        self.simulated = make.gauge(
            "generation_simulated", "1 if the provider is a simulator: results are samples"
        )
        self.catalogue_refreshes = make.counters(
            "generation_catalogue_refreshes", "Rounds through the catalogue, by result", "result"
        )
        self.catalogue_models = make.gauge(
            "generation_catalogue_models", "Models by their lifecycle", "lifecycle"
        )
        self.catalogue_time = make.gauge(
            "generation_catalogue_refreshed_timestamp_seconds",
            "When the provider's catalogue was last applied; 0 is never",
        )

    def start_at_zero(self) -> None:
        """Create the series of the possible results."""
        for reason in REFUSALS:
            self.account_held.labels(reason).set(0)
        for verdict in CALLBACK_VERDICTS:
            self.callbacks[(verdict,)].inc(0)
        for result in REFRESH_RESULTS:
            self.catalogue_refreshes[(result,)].inc(0)


class ProcessMetrics:
    """The metrics of the process: its event loop, its database, its files and its certificates."""

    def __init__(self, make: MetricFactory) -> None:
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
        self.missing_descriptors = make.gauge(
            "generation_missing_descriptors",
            "File descriptors that WATCH_MAX_STREAMS needs beyond the limit",
        )
