"""The models of the provider as they are stored: a table that all processes share.

The rows are written by the process that refreshes them; the others read those that changed. All of
`Models` runs in the writer's thread, inside its transaction.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from storage.engine import Engine


class StoredModel(NamedTuple):
    """A model of the provider's catalogue. Times are unix seconds.

    Attributes:
        id: The provider's id.
        title: The name for people.
        provider: Who made the model.
        task_types: What it does.
        price_text: The provider's price, for people.
        path: The endpoint that creates its tasks; "" if it is not known.
        input_schema: The JSON Schema of its input as text; None if it is not known.
        listed: Whether the provider's catalogue lists it, or listed it until `retired_time`.
        retired_time: Since when the catalogue does not list it any more.
        refresh_time: When the catalogue last confirmed it; None if it never did.
        schema_time: When its schema was last asked for; None if it never was.
        change_time: When the row was last written.
    """

    id: str
    title: str
    provider: str
    task_types: tuple[str, ...]
    price_text: str
    path: str
    input_schema: str | None
    listed: bool
    retired_time: float | None = None
    refresh_time: float | None = None
    schema_time: float | None = None
    change_time: float = 0.0


class Success(NamedTuple):
    """What is measured of a task that succeeded.

    Attributes:
        params: Its parameters, if they were asked for.
    """

    credits_consumed: float | None
    accept_time: float | None
    complete_time: float
    params: bytes = b""


class Models:
    """Writes models."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add_each(self, batches: Sequence[Sequence[StoredModel]]) -> Sequence[None]:
        """Store models that are new, or that the catalogue has never confirmed."""
        return self._write_each(self._engine.sql.models.add, batches)

    def save_each(self, batches: Sequence[Sequence[StoredModel]]) -> Sequence[None]:
        """Store models, new and changed ones."""
        return self._write_each(self._engine.sql.models.save, batches)

    def _write_each(self, sql: str, batches: Sequence[Sequence[StoredModel]]) -> Sequence[None]:
        # In the order of the ids, so that two processes never wait for each other.
        for model in sorted((m for batch in batches for m in batch), key=lambda m: m.id):
            self._engine.execute(sql, *_row_of(model))
        return [None] * len(batches)

    def confirm_each(self, times: Sequence[float]) -> Sequence[None]:
        """Record the times at which the catalogue listed every model that is not retired."""
        for now in times:
            self._engine.execute(self._engine.sql.models.confirm, now, now)
        return [None] * len(times)


def model_of(row: Sequence[Any]) -> StoredModel:
    """Build a model from its columns."""
    model = StoredModel(*row)
    return model._replace(task_types=tuple(json.loads(row[3])), listed=bool(model.listed))


def _row_of(model: StoredModel) -> tuple[object, ...]:
    return tuple(model._replace(task_types=json.dumps(model.task_types), listed=int(model.listed)))  # type: ignore[arg-type] # as stored
