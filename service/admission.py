"""Which new tasks are admitted: by their model, and by the limits of the caller."""

from generated.generation.v1.generation_pb2 import ProviderParams
from providers.base import ParamsError, Provider
from providers.kie.registry import member_of
from service.caller_limits import CallerLimits
from service.catalogue import MARKET, Catalogue
from service.errors import ServiceError, invalid_params, rate_limited
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
        provider: Provider,
        catalogue: Catalogue,
        limits: CallerLimits,
        metrics: Metrics,
    ) -> None:
        self._queue_max_tasks = queue_max_tasks
        self._provider = provider
        self._catalogue = catalogue
        self._limits = limits
        self._metrics = metrics

    def complete(self, task: Task, params: ProviderParams) -> Task:
        """Check a new task by its model; return it with the defaults that the model requires.

        Raises:
            ServiceError: MODEL_NOT_ALLOWED, MODEL_UNAVAILABLE or INVALID_PARAMS.
        """
        model_id = self._provider.model_id(params)
        self._check_model(task, model_id)
        try:
            filled = self._provider.complete(params)
        except ParamsError as error:
            raise invalid_params(error.violations) from None
        if filled is params:
            return task
        return task._replace(filled_params=filled.SerializeToString(deterministic=True))

    def _check_model(self, task: Task, model_id: str) -> None:
        """Refuse a model that the caller may not use, or that is not available."""
        member = member_of(model_id)
        if not self._limits.of(task.caller).allow(model_id if member == MARKET else member):
            self._metrics.caller_refused(task.caller, "models")
            raise ServiceError(
                "MODEL_NOT_ALLOWED",
                f"caller {task.caller} may not use the model {task.model}:"
                " use another one, or ask the operator to allow it",
            )
        if self._catalogue.is_disabled(task.model, model_id):
            words = f"the model {task.model} is disabled on this server"
            raise ServiceError("MODEL_UNAVAILABLE", words)
        if task.needs and (reason := self._catalogue.unavailable(model_id)):
            raise ServiceError("MODEL_UNAVAILABLE", reason)

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
