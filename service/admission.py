"""Which new tasks are admitted: by their model, and by the limits of the caller."""

from service.caller_limits import CallerLimits
from service.errors import ServiceError, rate_limited
from service.metrics import Metrics
from storage.creation import MINUTE_SECONDS, CreateLimits, LimitReached
from storage.task import Task

RETRY_MARGIN_SECONDS = 0.01  # at exactly the reported time the limit is still reached


class Admission:
    """Decides whether a new task is admitted."""

    def __init__(
        self,
        *,
        queue_max_tasks: int,
        disabled_models: frozenset[str],
        limits: CallerLimits,
        metrics: Metrics,
    ) -> None:
        self._queue_max_tasks = queue_max_tasks
        self._disabled_models = disabled_models
        self._limits = limits
        self._metrics = metrics

    def refusal_of_model(self, task: Task) -> ServiceError | None:
        """Return the error if the caller may not use the task's model, else None."""
        if not self._limits.of(task.caller).allow(task.model):
            self._metrics.caller_refused(task.caller, "models")
            return ServiceError(
                "MODEL_NOT_ALLOWED",
                f"caller {task.caller} may not use the model {task.model}:"
                " use another one, or ask the operator to allow it",
            )
        if task.model in self._disabled_models:
            words = f"the model {task.model} is disabled on this server"
            return ServiceError("MODEL_UNAVAILABLE", words)
        return None

    def create_limits(self, caller: str) -> CreateLimits:
        """Return the limits that apply to a new task of the caller."""
        limits = self._limits.of(caller)
        per_minute = limits.creates_per_minute
        return CreateLimits(
            self._queue_max_tasks,
            limits.queue,
            None if per_minute == float("inf") else int(per_minute),
        )

    def refusal_by(self, reached: LimitReached, caller: str) -> ServiceError:
        """Return the error for a task that exceeds a limit."""
        self._metrics.caller_refused(caller, reached.limit)
        retry = reached.retry_seconds
        if retry is not None:
            retry = min(max(retry, 0.0) + RETRY_MARGIN_SECONDS, MINUTE_SECONDS)
        return rate_limited(
            reached.limit,
            reached.max,
            caller=caller if reached.scope == "caller" else "",
            retry_seconds=retry,
        )
