"""Whether a record is of our own request: Kie repeats the request in it (kie-api.md 2.2, 4.2)."""

from collections.abc import Mapping
from typing import Any

from providers.kie.envelope import as_object

# What names the model: jobs and Veo say `model`, Midjourney says `taskType`.
MODEL_FIELDS = ("model", "taskType")


def is_of(body: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    """Whether a record repeats the prompt of a request's body, and does not deny its model."""
    ours = _flat(body)
    told = _flat(as_object(record.get("param") or record.get("paramJson")))
    same_model = all(told.get(field, ours.get(field)) == ours.get(field) for field in MODEL_FIELDS)
    return same_model and _words(told.get("prompt")) == _words(ours["prompt"])


def _flat(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a request; those of `input`, which may be JSON text once more, too."""
    return {**as_object(request.get("input")), **request}


def _words(prompt: Any) -> Any:
    return prompt.split() if isinstance(prompt, str) else None
