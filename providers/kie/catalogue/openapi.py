"""From a model's OpenAPI document to the schema of its input.

Documents are untrusted: they may be huge, refer to themselves or to other servers, and contain
regular expressions that take forever. The schema made here is bounded in all of that, holds no
references, and is used as it is: to check inputs, and as the form that callers see. Whatever it
cannot keep of a document is left out so that more is accepted, never less.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from providers.kie.catalogue.effort import Effort, TooLargeError
from providers.kie.catalogue.facts import JOBS_PATH, JsonSchema
from providers.kie.catalogue.reducer import Reducer
from providers.kie.catalogue.references import References

API_PREFIX = "/api/v1/"
WRAPPERS = ("allOf", "oneOf", "anyOf")
WRAPPERS_DEPTH_MAX = 4  # around the `input` of a body
STEPS_PER_PATH = 10
STEPS_PER_BODY = 5


@dataclass(frozen=True, slots=True)
class ModelSchema:
    """What Kie publishes about the input of a model.

    Attributes:
        path: The endpoint that creates its tasks, in the form of `ModelFacts.path`; "" if the
            document does not name one.
        input_schema: The schema of its input; None if Kie has none, or no usable one.
    """

    path: str
    input_schema: JsonSchema | None


def reduced(document: Any) -> ModelSchema:
    """Return what an OpenAPI document says about a model's input.

    The schema refuses unknown fields, except where the document allows them.
    """
    if not isinstance(document, Mapping):
        return ModelSchema("", None)
    effort = Effort()
    references = References(document, effort)
    path = ""
    try:
        path, body = _operation(document, references, effort)
        inputs = list(_inputs(body, references, effort))
        node = inputs[0] if len(inputs) == 1 else {"anyOf": inputs}
        schema = Reducer(references, effort).input_schema(node) if inputs else None
    except TooLargeError:
        schema = None
    return ModelSchema(path, schema)


def _operation(
    document: Mapping[str, Any], references: References, effort: Effort
) -> tuple[str, Any]:
    """Return the endpoint that creates tasks, and the schema of its body."""
    found = dict(_bodies(document, references, effort))
    path = JOBS_PATH if JOBS_PATH in found else next(iter(found), "")
    return path, found.get(path)


def _bodies(
    document: Mapping[str, Any], references: References, effort: Effort
) -> Iterator[tuple[str, Any]]:
    for path, item in _object(document.get("paths")).items():
        effort.spend(STEPS_PER_PATH)
        post = _object(references.resolved(item)).get("post")
        body = _object(references.resolved(_object(post).get("requestBody")))
        content = _object(body.get("content"))
        media = content.get("application/json") or next(iter(content.values()), None)
        if isinstance(path, str) and post is not None:
            yield unquote(path).strip().removeprefix(API_PREFIX), _object(media).get("schema")


def _inputs(
    body: Any, references: References, effort: Effort, depth: int = WRAPPERS_DEPTH_MAX
) -> Iterator[Mapping[str, Any]]:
    """Yield the schemas of the field `input` in the schema of a body."""
    effort.spend(STEPS_PER_BODY)
    body = _object(references.resolved(body))
    found = _object(body.get("properties")).get("input")
    if isinstance(found, Mapping):
        yield found
    elif depth:
        for wrapper in WRAPPERS:
            parts = body.get(wrapper)
            for part in parts if isinstance(parts, list) else ():
                yield from _inputs(part, references, effort, depth - 1)


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
