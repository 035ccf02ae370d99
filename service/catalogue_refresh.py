"""Keeps the table of models up to date with the provider's catalogue.

A round asks for the list of models, then for the schemas of new and changed models, then for those
of the others, the oldest first. The provider allows one request a second, so a round takes minutes;
each request takes a slot that all processes share. One process makes the round: the one that takes
the slot of the list. The others read the rows that it changes.

    take the slot -> list -> plausible? -> save what changed -> schemas, one at a time

No create and no poll waits for any of this, and the service works without the catalogue.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import structlog

from providers.kie.catalogue.client import NotAnswered, NotListed
from providers.kie.catalogue.openapi import ModelSchema
from service.catalogue import Catalogue
from service.catalogue_changes import (
    Change,
    change_by_schema,
    changes_by,
    is_plausible,
    outdated_schemas,
)
from service.catalogue_source import CatalogueSource, LimitedSource
from service.metrics import Metrics
from storage.claims import Quota
from storage.models import StoredModel
from storage.store import Store

Row = TypeVar("Row")
OnChange = Callable[[Change], None]
COMES_OR_GOES = frozenset({"added", "returned", "retired"})

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class RefreshTimes:
    """How the catalogue is read.

    Attributes:
        check_seconds: Between two checks whether a round is due, and what other processes changed.
        request_seconds: Between two requests: the provider allows one a second.
        list_retry_seconds: Between two attempts at a round, over all processes.
        limited_seconds: The pause after a response that the rate limit was reached.
        attempts: How often a request is made until it is answered.
        failures_max: A round ends after so many schemas in a row that were not answered.
        overlap_seconds: How far back rows are read again: they may have been committed late.
        batch_models: How many rows are saved in one transaction, so that others can write.
    """

    check_seconds: float = 15.0
    request_seconds: float = 1.1
    list_retry_seconds: float = 300.0
    limited_seconds: float = 10.0
    attempts: int = 3
    failures_max: int = 3
    overlap_seconds: float = 60.0
    batch_models: int = 16


TIMES = RefreshTimes()


def log_change(change: Change) -> None:
    """Log a change of the catalogue; at info if a model comes or goes."""
    line = log.info if change.kind in COMES_OR_GOES else log.debug
    line("catalogue changed", model=change.model.id, change=change.kind, detail=change.detail)


class CatalogueRefresh:
    """Fills the table of models, and keeps it and the catalogue in memory up to date."""

    def __init__(
        self,
        store: Store,
        source: CatalogueSource,
        catalogue: Catalogue,
        metrics: Metrics,
        *,
        refresh_seconds: float,
        times: RefreshTimes = TIMES,
        on_change: OnChange = log_change,
    ) -> None:
        """Keep what is needed.

        Args:
            store: Where the table is.
            source: The provider's catalogue.
            catalogue: The models in memory.
            metrics: They show how rounds ended.
            refresh_seconds: The time between two rounds, over all processes; 0 makes none.
            times: How the catalogue is read.
            on_change: Called with each change that was saved.
        """
        self._store = store
        self._source = LimitedSource(
            source,
            store,
            request_seconds=times.request_seconds,
            limited_seconds=times.limited_seconds,
            attempts=times.attempts,
        )
        self._catalogue = catalogue
        self._metrics = metrics
        self._refresh_seconds = refresh_seconds
        self._times = times
        self._on_change = on_change
        retry_seconds = min(times.list_retry_seconds, refresh_seconds or times.list_retry_seconds)
        self._rounds = Quota("catalogue rounds", 1, retry_seconds)
        self._read_time = 0.0
        self._unanswered: dict[str, None] = {}  # models whose schemas were not, oldest first

    async def start(self) -> None:
        """Read the table, and add the models of the snapshot that it does not have.

        Replace the rows that the provider's catalogue has never confirmed and that differ from it.
        """
        bundled = self._catalogue.stored()
        stored = {model.id: model for model in await self._store.models()}
        now = self._store.now()
        missing = [
            model._replace(change_time=now)
            for model in bundled.values()
            if _is_outdated(stored.get(model.id), model)
        ]
        for batch in self._batches(missing):
            await self._store.add_models(batch)
        await self._read_changes()
        await self._source.start()
        await self._store.add_slots(self._rounds)
        self._show()

    async def run_once(self) -> None:
        """Read what other processes changed, and make a round if one is due."""
        if self._store.shared:
            await self._read_changes()
        if not self._refresh_seconds:
            return
        list_is_due = self._store.now() >= self._confirmed_time() + self._refresh_seconds
        if not (list_is_due or self._outdated()):
            return
        if await self._store.take_slot(self._rounds, self._store.now()) == 0:
            # A round may have ended early: the process was stopped, or the provider did not answer.
            self._report(await (self._round() if list_is_due else self._read_schemas()))

    def _confirmed_time(self) -> float:
        stored = self._catalogue.stored().values()
        return max((model.refresh_time or 0.0 for model in stored), default=0.0)

    def _outdated(self) -> list[str]:
        """Return the ids of the models to ask for; those that got no response come last."""
        outdated = outdated_schemas(known.stored for known in self._catalogue.models())
        places = {model_id: at for at, model_id in enumerate(self._unanswered)}
        return sorted(outdated, key=lambda model_id: places.get(model_id, -1))

    async def round(self) -> bool:
        """Read the whole catalogue; return whether that was possible."""
        return self._report(await self._round())

    def _report(self, result: str) -> bool:
        self._metrics.catalogue_refreshed(result)
        self._show()
        return result == "applied"

    async def _round(self) -> str:
        listing = await self._source.list_models()
        if isinstance(listing, NotAnswered):
            log.warning("the provider did not return its list of models", detail=listing.detail)
            return "not_answered"
        known = self._catalogue.stored()
        if not is_plausible(listing, known):
            log.warning(
                "the provider's list of models is not plausible, and was not applied",
                listed=len(listing.models),
                known=sum(m.listed and m.retired_time is None for m in known.values()),
            )
            return "not_plausible"
        await self._apply(list(changes_by(listing, known, self._store.now())))
        return await self._read_schemas()

    async def _apply(self, changes: Sequence[Change]) -> None:
        """Save what a list changes, and that it confirms all other models."""
        for batch in self._batches(changes):
            await self._store.save_models([change.model for change in batch])
            for change in batch:
                self._on_change(change)
        await self._store.confirm_models(self._store.now())
        log.info("the provider's list of models was applied", changes=len(changes))
        await self._read_changes()

    async def _read_schemas(self) -> str:
        """Ask for the schema of each model."""
        failures = 0
        for model_id in self._outdated():
            answer = await self._source.model_schema(model_id)
            self._unanswered.pop(model_id, None)
            if isinstance(answer, NotAnswered):
                self._unanswered[model_id] = None
                log.warning(
                    "the provider did not return a schema", model=model_id, detail=answer.detail
                )
                failures += 1
                if failures == self._times.failures_max:
                    return "not_answered"
            else:
                failures = 0
                await self._save_schema(model_id, answer)
        return "applied"

    async def _save_schema(self, model_id: str, answer: ModelSchema | NotListed) -> None:
        before = self._catalogue.stored()[model_id]
        schema = answer if isinstance(answer, ModelSchema) else ModelSchema("", None)
        change = change_by_schema(schema, before, self._store.now())
        await self._store.save_models([change.model])
        self._catalogue.update([change.model])
        if change.kind:
            self._on_change(change)

    async def _read_changes(self) -> None:
        """Take over the rows that were changed since the last time, by any process."""
        now = self._store.now()
        changed = await self._store.models(self._read_time - self._times.overlap_seconds)
        self._catalogue.update(changed)
        self._read_time = now

    def _batches(self, rows: Sequence[Row]) -> list[Sequence[Row]]:
        size = self._times.batch_models
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _show(self) -> None:
        models = self._catalogue.models()
        self._metrics.show_catalogue((m.lifecycle for m in models), self._confirmed_time())


def _is_outdated(stored: StoredModel | None, bundled: StoredModel) -> bool:
    """Return whether a row has to be written as the snapshot says."""
    if stored is None:
        return True
    if stored.refresh_time is not None or stored.retired_time is not None:
        return False
    return stored != bundled._replace(change_time=stored.change_time)
