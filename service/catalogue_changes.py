"""From a response of the catalogue to the rows that change, without I/O."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from providers.kie.catalogue.client import ListedModel, Listing
from providers.kie.catalogue.facts import JsonSchema
from providers.kie.catalogue.openapi import ModelSchema
from storage.models import StoredModel

KNOWN_SHARE_MIN = 0.5  # of the known models; a list with fewer is not plausible
FIELDS_NAMED_MAX = 10


@dataclass(frozen=True, slots=True)
class Change:
    """A model that changed.

    Attributes:
        model: The new row.
        kind: `added`, `returned`, `changed`, `retired` or `new form`.
        detail: What changed, for people.
    """

    model: StoredModel
    kind: str
    detail: str = ""


def is_plausible(listing: Listing, known: Mapping[str, StoredModel]) -> bool:
    """Return whether a list is applied: it contains half of the known models at least."""
    current = {m.id for m in known.values() if m.listed and m.retired_time is None}
    listed = current.intersection(model.id for model in listing.models)
    return bool(listing.models) and len(listed) >= KNOWN_SHARE_MIN * len(current)


def changes_by(listing: Listing, known: Mapping[str, StoredModel], now: float) -> Iterator[Change]:
    """Yield the models that a list changes, adds or retires."""
    for listed in listing.models:
        before = known.get(listed.id)
        after = _merged(listed, before, now)
        if before is None:
            yield Change(after, "added", listed.title)
        elif not before.listed or before.retired_time is not None:
            yield Change(after, "returned", listed.title)
        elif detail := _difference(before, after):
            yield Change(after, "changed", detail)
    ids = {model.id for model in listing.models}
    for before in known.values():
        if before.listed and before.retired_time is None and before.id not in ids:
            yield Change(before._replace(retired_time=now, change_time=now), "retired")


def _merged(listed: ListedModel, before: StoredModel | None, now: float) -> StoredModel:
    return StoredModel(
        id=listed.id,
        title=listed.title,
        provider=listed.provider,
        task_types=listed.task_types,
        price_text=listed.price_text,
        path=before.path if before else "",
        input_schema=before.input_schema if before else None,
        listed=True,
        refresh_time=now,
        # A model that changed is asked for its schema before the others.
        schema_time=None,
        change_time=now,
    )


def _difference(before: StoredModel, after: StoredModel) -> str:
    fields = {"title": "title", "provider": "provider", "price_text": "price"}
    words = [
        f"{name}: {getattr(before, field) or 'none'} -> {getattr(after, field) or 'none'}"
        for field, name in fields.items()
        if getattr(before, field) != getattr(after, field)
    ]
    if before.task_types != after.task_types:
        words.append(f"task types: {', '.join(after.task_types) or 'none'}")
    return "; ".join(words)


def change_by_schema(schema: ModelSchema, before: StoredModel, now: float) -> Change:
    """Return what the response about a schema changes; its kind is "" if that is only the time.

    If the catalogue has no schema of a model, the one that is known stays.
    """
    after = before._replace(path=schema.path or before.path, schema_time=now, change_time=now)
    if schema.input_schema is None:
        return Change(after, "")
    old = json.loads(before.input_schema) if before.input_schema else {}
    if schema.input_schema == old:
        return Change(after, "")
    after = after._replace(input_schema=json.dumps(schema.input_schema))
    return Change(after, "new form", _form_difference(old, schema.input_schema))


def _form_difference(before: JsonSchema, after: JsonSchema) -> str:
    """Name the fields that are new (+), gone (-) or different (~)."""
    old, new = before.get("properties", {}), after.get("properties", {})
    words = [f"+{name}" for name in new if name not in old]
    words += [f"-{name}" for name in old if name not in new]
    words += [f"~{name}" for name in new if name in old and old[name] != new[name]]
    more = len(words) - FIELDS_NAMED_MAX
    return ", ".join(words[:FIELDS_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")


def outdated_schemas(models: Iterable[StoredModel]) -> list[str]:
    """Return the ids of models in the order in which to ask for their schemas: the oldest first.

    Left out are models that are not listed, and those whose schemas are newer than the list.
    """
    listed = [model for model in models if model.refresh_time and model.retired_time is None]
    outdated = [m for m in listed if m.schema_time is None or m.schema_time < (m.refresh_time or 0)]
    return [model.id for model in sorted(outdated, key=lambda m: (m.schema_time or 0.0, m.id))]
