"""What tasks of each model cost on this deployment, and how long they took.

They are computed from the newest successes in the table, not from counters: so they are the same on
every replica, and survive a restart.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from generated.generation.v1 import generation_pb2 as pb
from providers.base import Provider
from service.catalogue import MARKET, KnownModel
from storage.models import Success
from storage.store import Store

TASKS_MAX = 256
CACHED_SECONDS = 60.0
LATE_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class _Cached:
    measured: pb.MeasuredModel | None
    time: float  # by the monotonic clock


class Measurements:
    """Measures models; the results may be a minute old."""

    def __init__(
        self, store: Store, provider: Provider, cached_seconds: float = CACHED_SECONDS
    ) -> None:
        self._store = store
        self._provider = provider
        self._cached_seconds = cached_seconds
        self._cache: dict[str, _Cached] = {}

    async def of(self, model: KnownModel) -> pb.MeasuredModel | None:
        """Return what is known of a model; None if no task of it has succeeded."""
        model_id = model.stored.id
        cached = self._cache.get(model_id)
        if cached is None or time.monotonic() - cached.time >= self._cached_seconds:
            cached = _Cached(measured(await self._successes(model)), time.monotonic())
            self._cache[model_id] = cached
        return cached.measured

    async def _successes(self, model: KnownModel) -> list[Success]:
        """Return the newest tasks of a model that succeeded, whatever message created them."""
        model_id = model.stored.id
        found = await self._store.successes(model_id, TASKS_MAX)
        if model.member != MARKET:
            of_member = await self._store.successes(model.member, TASKS_MAX, with_params=True)
            found += [task for task in of_member if self._model_id(task.params) == model_id]
        found.sort(key=lambda task: task.complete_time, reverse=True)
        return found[:TASKS_MAX]

    def _model_id(self, params: bytes) -> str:
        return self._provider.model_id(pb.ProviderParams.FromString(bytes(params)))


def measured(tasks: Sequence[Success]) -> pb.MeasuredModel | None:
    """Return the message for tasks that succeeded; None if there are none."""
    if not tasks:
        return None
    message = pb.MeasuredModel(tasks=len(tasks))
    if credits_consumed := [t.credits_consumed for t in tasks if t.credits_consumed is not None]:
        message.min_credits = min(credits_consumed)
        message.median_credits = statistics.median(credits_consumed)
        message.max_credits = max(credits_consumed)
    if seconds := sorted(t.complete_time - t.accept_time for t in tasks if t.accept_time):
        message.median_seconds = max(0.0, statistics.median(seconds))
        message.p95_seconds = max(0.0, seconds[int(LATE_SHARE * (len(seconds) - 1))])
    return message
