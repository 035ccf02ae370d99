"""What the provider asks of the service's copy of the catalogue."""

from typing import Protocol

from providers.kie.catalogue.facts import JsonSchema, bundled


class KnownModels(Protocol):
    """The models as the service knows them now. Answers from memory."""

    def schema_of(self, model: str) -> JsonSchema | None:
        """Return the schema of a model's input, or None if it is not known.

        Returns the same object until the schema changes: its compiled form is kept that long.
        """

    def task_types_of(self, model: str) -> tuple[str, ...]:
        """Return what a model does, such as `Text to Image`; empty if it is not known."""


class BundledModels:
    """The models of the snapshot."""

    def schema_of(self, model: str) -> JsonSchema | None:
        """Return the schema of a model's input in the snapshot."""
        facts = bundled().get(model)
        return facts.input_schema if facts else None

    def task_types_of(self, model: str) -> tuple[str, ...]:
        """Return what a model of the snapshot does."""
        facts = bundled().get(model)
        return facts.task_types if facts else ()
