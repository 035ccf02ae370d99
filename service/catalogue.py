"""The provider's models as this process knows them.

They are kept in memory: a create looks up its model without a read. The bundled snapshot comes
first, then what the table `models` says: see service/catalogue_refresh.py.
"""

import json
import time
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from enum import StrEnum
from functools import cached_property
from itertools import islice
from typing import Any

from providers.kie.catalogue.facts import JOBS_PATH, JsonSchema, ModelFacts, bundled
from providers.kie.registry import REPLACEMENTS, TYPED_IDS, member_of
from service.model_patterns import matches, matches_any
from storage.models import StoredModel

MARKET = "market"  # the member of KieParams.model that takes the models of the catalogue
TYPED_MEMBERS = frozenset(TYPED_IDS.values())  # the others, each with its own message
TAKEN_BY_MARKET = frozenset({MARKET, "imagen4", "sora2"})  # the members whose ids `market` takes
UNLISTED_LABEL = "unlisted"  # the label in metrics of every model that the catalogue does not list
CHAT = "Chat"  # the task type of models that do not create tasks
SIMILAR_CHARACTERS = 3  # the beginning that an unknown id shares with the ids suggested for it
SIMILAR_MAX = 100  # ids that an unknown one is compared with


class Lifecycle(StrEnum):
    """Whether tasks can be created with a model. The names are the proto's, without prefix."""

    ACTIVE = "ACTIVE"
    UNLISTED = "UNLISTED"
    RETIRED = "RETIRED"
    DISABLED = "DISABLED"


class KnownModel:
    """A model of the catalogue.

    Attributes:
        stored: The row of the model.
        member: The member of KieParams.model that takes the model.
        disabled: Whether the operator has disabled the model.
    """

    def __init__(
        self, stored: StoredModel, *, disabled: bool, earlier: "KnownModel | None" = None
    ) -> None:
        self.stored = stored
        self.member = member_of(stored.id)
        self.disabled = disabled
        if earlier and earlier.stored.input_schema == stored.input_schema:
            self._keep_schema_of(earlier)

    def _keep_schema_of(self, earlier: "KnownModel") -> None:
        """Keep the same schema object: a validator may have been compiled for it."""
        if "schema" in vars(earlier):
            self.schema = earlier.schema

    @cached_property
    def schema(self) -> JsonSchema | None:
        """The JSON Schema of the input, if it is known."""
        text = self.stored.input_schema
        schema: JsonSchema | None = json.loads(text) if text else None
        return schema

    @property
    def replacement(self) -> str:
        """The id of the model to use instead, or ""."""
        return REPLACEMENTS.get(self.stored.id, "")

    @property
    def lifecycle(self) -> Lifecycle:
        if self.disabled:
            return Lifecycle.DISABLED
        if self.stored.retired_time is not None:
            return Lifecycle.RETIRED
        return Lifecycle.ACTIVE if self.stored.listed else Lifecycle.UNLISTED

    @property
    def taken_by_market(self) -> bool:
        """Whether `market` takes the model."""
        return self.member in TAKEN_BY_MARKET

    @property
    def creates_tasks(self) -> bool:
        """Whether a member of KieParams.model can create tasks of it: chat models cannot."""
        if self.stored.path:
            return self.stored.path == JOBS_PATH or self.member != MARKET
        return CHAT not in self.stored.task_types  # the endpoint is not known yet


class Catalogue:
    """All known models; the `KnownModels` of the provider."""

    def __init__(
        self,
        disabled_models: Collection[str] = (),
        *,
        unlisted: bool = False,
        checks_schemas: bool = True,
        snapshot: Iterable[ModelFacts] | None = None,
    ) -> None:
        """Start with a snapshot.

        Args:
            disabled_models: Names of models, or their beginnings followed by `*`.
            unlisted: Whether tasks may be created with models that are not in the catalogue.
            checks_schemas: Whether inputs are checked by the schemas of their models.
            snapshot: The models; None takes the bundled ones.
        """
        self._disabled_models = disabled_models
        self._unlisted = unlisted
        self._checks_schemas = checks_schemas
        self._models: dict[str, KnownModel] = {}
        self._sorted: list[KnownModel] = []
        self.update(map(_stored, bundled().values() if snapshot is None else snapshot))

    def update(self, models: Iterable[StoredModel]) -> None:
        """Adopt new and changed models."""
        for stored in models:
            earlier = self._models.get(stored.id)
            if earlier is None or earlier.stored != stored:
                disabled = self.is_disabled(member_of(stored.id), stored.id)
                known = KnownModel(stored, disabled=disabled, earlier=earlier)
                self._models[stored.id] = known
        ordered = sorted(self._models.items())
        self._sorted = [known for _, known in ordered if known.creates_tasks]

    # --- for calls ---

    def get(self, model_id: str) -> KnownModel | None:
        """Return a model that tasks can be created with, or None."""
        known = self._models.get(model_id)
        return known if known and known.creates_tasks else None

    def models(self) -> list[KnownModel]:
        """Return the models that tasks can be created with, sorted by id."""
        return self._sorted

    def is_disabled(self, name: str, model_id: str) -> bool:
        """Return whether a model is disabled, by its name or by the provider's id."""
        return bool(self._disabled_models) and (
            matches_any(self._disabled_models, name)
            or matches_any(self._disabled_models, model_id)
            or matches_any(self._disabled_models, member_of(model_id))
        )

    def unavailable(self, model_id: str) -> str | None:
        """Return why `market` cannot create tasks of a model, or None if it can."""
        known = self._models.get(model_id)
        if known is not None and known.creates_tasks and known.stored.listed:
            return None
        if self._unlisted and (known is None or known.creates_tasks):
            return None
        return self.unknown(model_id)

    def unknown(self, model_id: str) -> str:
        """Return the text of an error: the model is not known, or does not create tasks."""
        if model_id in self._models and self.get(model_id) is None:
            return f"the model {model_id} does not create tasks, so this service does not offer it"
        return f"the model {model_id} is not in the provider's catalogue{self._advice(model_id)}"

    def _advice(self, model_id: str) -> str:
        if replacement := REPLACEMENTS.get(model_id):
            return f"; use {replacement}"
        similar = get_close_matches(model_id, self._like(model_id), n=1)
        return f"; did you mean {similar[0]}?" if similar else "; ListModels lists all models"

    def _like(self, model_id: str) -> list[str]:
        """Return the ids that begin like an unknown one: comparing it with all ids takes long."""
        start = model_id[:SIMILAR_CHARACTERS].casefold()
        active = (known.stored.id for known in self._sorted if known.lifecycle is Lifecycle.ACTIVE)
        similar = (known_id for known_id in active if known_id.casefold().startswith(start))
        return list(islice(similar, SIMILAR_MAX))

    def retired_note(self, model_id: str) -> str:
        """Return since when a model has been missing from the catalogue, as words for an error.

        Empty if it is not retired.
        """
        known = self._models.get(model_id)
        if known is None or known.stored.retired_time is None:
            return ""
        since = time.strftime("%Y-%m-%d", time.gmtime(known.stored.retired_time))
        use = f"; use {known.replacement}" if known.replacement else ""
        return f"the model has not been in the provider's catalogue since {since}{use}"

    # --- for names of models ---

    @property
    def names(self) -> frozenset[str]:
        """The names that models have in settings, logs and metrics."""
        return TYPED_MEMBERS.union(known.stored.id for known in self._sorted)

    def unknown_disabled_models(self) -> list[str]:
        """Return the names of disabled models that match no model: likely typing errors."""
        names = self.names
        return sorted(
            pattern
            for pattern in self._disabled_models
            if not any(matches(pattern, name) for name in names)
        )

    def label(self, name: str) -> str:
        """Return the label of metrics for a model's name: only ids that the catalogue lists.

        Callers choose the names, so their number has to be limited.
        """
        if name in TYPED_MEMBERS:
            return name
        known = self.get(name)
        if known is None or not known.stored.listed or known.stored.retired_time is not None:
            return UNLISTED_LABEL
        return name

    # --- for the provider: providers.kie.catalogue.known.KnownModels ---

    def schema_of(self, model: str) -> JsonSchema | None:
        """Return the schema that an input is checked by; the same object until it changes."""
        known = self._models.get(model) if self._checks_schemas else None
        return known.schema if known else None

    def task_types_of(self, model: str) -> tuple[str, ...]:
        """Return what a model does; empty if it is not known."""
        known = self._models.get(model)
        return known.stored.task_types if known else ()

    # --- for the refresh ---

    def stored(self) -> Mapping[str, StoredModel]:
        """Return the rows of all models by id, of those that create no tasks as well."""
        return {model_id: known.stored for model_id, known in self._models.items()}


def _stored(facts: ModelFacts) -> StoredModel:
    schema: Any = facts.input_schema
    return StoredModel(
        id=facts.id,
        title=facts.title,
        provider=facts.provider,
        task_types=facts.task_types,
        price_text=facts.price_text,
        path=facts.path,
        input_schema=None if schema is None else json.dumps(schema),
        listed=facts.listed,
    )
