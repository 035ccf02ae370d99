"""The published facts of Kie's models: what the catalogue lists, and the fields of each model.

The file is the one that the service is delivered with. The simulator shares the data only: it has
its own code for what follows from them, so that a mistake in one is found by the other.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

FILE: Final = Path(__file__).parents[1] / "catalogue" / "snapshot.json"
JOBS_PATH: Final = "jobs/createTask"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """One model.

    Attributes:
        id: Its name on the wire, such as `kling-3.0/video`.
        title: Its name for people.
        provider: Who made it.
        task_types: What it does, such as `Text to Image`.
        is_listed: Whether the catalogue lists it.
        prices: Credits, in the order of Kie's price text, which has no other structure.
        path: The endpoint that creates its tasks.
        result: What a success delivers: urls, audio, object or unknown.
        fields: The fields of its input, each with `type`, `required` and bounds that have the names
            of JSON Schema. For a list, `items` is the type of its items, and `format` is theirs.
        one_of: Groups of fields of which exactly one must be given.
        doubts: Fields about which the sources disagree.
    """

    id: str
    title: str
    provider: str
    task_types: tuple[str, ...]
    is_listed: bool
    prices: tuple[float, ...]
    path: str
    result: str
    fields: Mapping[str, Mapping[str, Any]]
    one_of: tuple[tuple[str, ...], ...]
    doubts: frozenset[str]

    @property
    def price_text(self) -> str | None:
        """The price as the catalogue words it, or None."""
        return (
            " / ".join(f"{price:g}" for price in self.prices) + " credits" if self.prices else None
        )


@cache
def all_facts() -> Mapping[str, ModelFacts]:
    """Return the facts of all models by id, in the order of the file."""
    return {row["id"]: _facts_of(row) for row in json.loads(FILE.read_bytes())["models"]}


def _facts_of(row: Mapping[str, Any]) -> ModelFacts:
    return ModelFacts(
        id=row["id"],
        title=row["title"],
        provider=row["provider"],
        task_types=tuple(row["task_types"]),
        is_listed=row["listed"],
        prices=tuple(row["credits"]),
        path=row["path"],
        result=row["result"],
        fields=row.get("fields", {}),
        one_of=tuple(tuple(group) for group in row.get("one_of", ())),
        doubts=frozenset(row.get("doubts", ())),
    )
