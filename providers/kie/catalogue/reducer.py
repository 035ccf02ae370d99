"""Reduce a schema of an OpenAPI document to a bounded JSON Schema without references."""

import json
from collections.abc import Iterator, Mapping
from itertools import permutations
from typing import Any

from providers.kie.catalogue import keywords
from providers.kie.catalogue.effort import Effort, TooLargeError
from providers.kie.catalogue.facts import JsonSchema
from providers.kie.catalogue.references import References
from providers.kie.catalogue.validator import compile_schema

NODES_MAX = 2_000
DEPTH_MAX = 10  # of nested schemas; an input has at most 8 levels
BRANCHES_MAX = 16  # of all combinators together
PATTERNS_MAX = 16
SCHEMA_MAX_BYTES = 64 << 10
SHOWN = frozenset({"title", "description", "default"})
MERGED = frozenset({"properties", "required", "allOf"})  # by allOf, from all its branches
# A callback URL is the service's own: it is never a part of an input.
NOT_AN_INPUT = frozenset({"callBackUrl"})


class Reducer:
    """Reduces one schema; its limits count for all of it."""

    def __init__(self, references: References, effort: Effort) -> None:
        self._references = references
        self._effort = effort
        self._nodes = 0
        self._branches = 0
        self._patterns = 0
        self._left_out = 0  # constraints that were not kept

    def input_schema(self, node: Any) -> JsonSchema | None:
        """Return the schema of a model's input; None if it describes no fields.

        Raises:
            TooLargeError: It has too many parts.
        """
        schema = self._schema(node, 0, ())
        kind = schema.setdefault("type", "object")
        if "object" not in (kind if isinstance(kind, list) else [kind]):
            return None
        schema["type"] = "object"
        _remove_fields(schema)
        if not any(True for _ in _property_names(schema)):
            return None
        if len(json.dumps(schema)) > SCHEMA_MAX_BYTES or not _compiles(schema):
            return None
        return schema

    def _schema(
        self, node: Any, depth: int, refs: tuple[str, ...], *, branch: bool = False
    ) -> dict[str, Any]:
        """Reduce one schema.

        Args:
            node: The schema.
            depth: How deep it is nested.
            refs: The references that led here.
            branch: Whether it describes a value together with other schemas, and must not refuse
                fields that only they know.
        """
        self._nodes += 1
        if self._nodes > NODES_MAX:
            raise TooLargeError
        if not isinstance(node, Mapping) or depth > DEPTH_MAX:
            self._left_out += node is not True
            return {}
        self._effort.spend_on(node)
        if "$ref" in node:
            return self._referred(node, depth, refs, branch=branch)
        schema, left_out = keywords.simple(node)
        self._left_out += left_out
        self._keep_pattern(schema)
        self._keep_fields(node, schema, depth, refs)
        self._keep_combinators(node, schema, depth, refs)
        if not branch:
            _close(schema)
        _keep_default(schema)
        return schema

    def _referred(
        self, node: Mapping[str, Any], depth: int, refs: tuple[str, ...], *, branch: bool
    ) -> dict[str, Any]:
        reference = node["$ref"]
        target = self._references.target(reference)
        if target is None or reference in refs:
            self._left_out += 1
            return {}
        rest = {name: value for name, value in node.items() if name != "$ref"}
        refs = (*refs, reference)
        if not rest:
            return self._schema(target, depth, refs, branch=branch)
        if isinstance(target, Mapping) and keywords.ANNOTATIONS.issuperset(rest):
            return self._schema({**target, **rest}, depth, refs, branch=branch)
        return self._schema({"allOf": [target, rest]}, depth, refs, branch=branch)

    def _keep_pattern(self, schema: dict[str, Any]) -> None:
        """Drop a regular expression that cannot be matched in linear time, or is too large."""
        if "pattern" not in schema:
            return
        self._patterns += 1
        if self._patterns > PATTERNS_MAX or not _compiles({"pattern": schema["pattern"]}):
            self._left_out += 1
            del schema["pattern"]

    def _keep_fields(
        self, node: Mapping[str, Any], schema: dict[str, Any], depth: int, refs: tuple[str, ...]
    ) -> None:
        fields = node.get("properties")
        if isinstance(fields, Mapping):
            self._effort.spend(len(fields))
            schema["properties"] = {
                name: self._schema(field, depth + 1, refs)
                for name, field in fields.items()
                if keywords.is_field_name(name)
            }
        items = node.get("items")
        if isinstance(items, Mapping):
            schema["items"] = self._schema(items, depth + 1, refs)
        rest = node.get("additionalProperties")
        if isinstance(rest, Mapping):
            rest = self._schema(rest, depth + 1, refs) or True
        if isinstance(rest, bool | dict):
            schema["additionalProperties"] = rest
        if "patternProperties" in node:
            self._left_out += 1
            schema["additionalProperties"] = True

    def _keep_combinators(
        self, node: Mapping[str, Any], schema: dict[str, Any], depth: int, refs: tuple[str, ...]
    ) -> None:
        for name in ("allOf", "anyOf", "oneOf"):
            parts = node.get(name)
            if not isinstance(parts, list) or not parts:
                continue
            self._branches += len(parts)
            if self._branches > BRANCHES_MAX:
                self._left_out += 1
                schema["additionalProperties"] = True
                continue
            left_out = self._left_out
            branches = [self._schema(part, depth + 1, refs, branch=True) for part in parts]
            if name == "allOf" or "properties" in schema:
                _open(branches)
            if name == "allOf":
                _fold(schema, branches)
            elif name == "oneOf" and left_out == self._left_out and _are_exclusive(branches):
                schema["oneOf"] = branches
            else:  # a branch that lost a constraint may accept what only another one should
                schema.setdefault("allOf", []).append({"anyOf": branches})


def _are_exclusive(branches: list[dict[str, Any]]) -> bool:
    """Return whether exactly one branch has to fit: each requires a field that no other requires.

    An input for a branch may fit another one that requires less, whatever the document says. A
    `oneOf` of plain values lists their types, and `5` is an integer as well as a number.
    """
    groups = [frozenset(branch.get("required", ())) for branch in branches]
    return not any(one <= other for one, other in permutations(groups, 2))


def _open(branches: list[dict[str, Any]]) -> None:
    """Let branches accept fields that are described elsewhere, for the same object."""
    for branch in branches:
        if branch.get("additionalProperties") is False:
            del branch["additionalProperties"]


def _fold(schema: dict[str, Any], branches: list[dict[str, Any]]) -> None:
    """Add the branches of allOf to the schema itself, except those that contradict it."""
    for branch in branches:
        for name in SHOWN.intersection(branch):
            schema.setdefault(name, branch.pop(name))
        if _contradict(schema, branch):
            schema.setdefault("allOf", []).append(branch)
            continue
        fields = {**schema.get("properties", {}), **branch.get("properties", {})}
        required = [*schema.get("required", ()), *branch.get("required", ())]
        more = [*schema.get("allOf", ()), *branch.get("allOf", ())]
        merged = {"properties": fields, "required": list(dict.fromkeys(required)), "allOf": more}
        schema.update(branch)
        schema.update({name: value for name, value in merged.items() if value})


def _contradict(schema: Mapping[str, Any], branch: Mapping[str, Any]) -> bool:
    fields = schema.get("properties", {})
    return any(
        schema.get(name, value) != value for name, value in branch.items() if name not in MERGED
    ) or any(
        fields.get(name, field) != field for name, field in branch.get("properties", {}).items()
    )


def _close(schema: dict[str, Any]) -> None:
    """Refuse the fields of an object that neither it nor a branch of its combinators names."""
    names = _names(schema)
    if names:
        fields = schema.setdefault("properties", {})
        fields.update({name: {} for name in sorted(names) if name not in fields})
        schema["additionalProperties"] = False


def _names(schema: Mapping[str, Any]) -> set[str] | None:
    """Return the names of the fields of an object; None if it may have any field.

    Some documents require fields that they do not describe.
    """
    if schema.get("additionalProperties", False) is not False:
        return None
    names = {*schema.get("properties", ()), *schema.get("required", ())}
    for branch in _branches(schema):
        found = _names(branch)
        if found is None:
            return None
        names |= found
    kinds = schema.get("type", "object")
    described = names or "enum" in schema
    return names if described or "object" not in kinds else None


def _branches(schema: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name in ("allOf", "anyOf", "oneOf"):
        yield from schema.get(name, ())


def _property_names(schema: Mapping[str, Any]) -> Iterator[str]:
    yield from schema.get("properties", ())
    for branch in _branches(schema):
        yield from _property_names(branch)


def _remove_fields(schema: dict[str, Any]) -> None:
    """Remove the fields that the service sets itself."""
    for name in NOT_AN_INPUT:
        schema.get("properties", {}).pop(name, None)
    if "required" in schema:
        schema["required"] = [name for name in schema["required"] if name not in NOT_AN_INPUT]
    for branch in _branches(schema):
        _remove_fields(branch)


def _keep_default(schema: dict[str, Any]) -> None:
    """Drop a default that the schema itself refuses: it would make every input wrong."""
    if "default" not in schema:
        return
    rest = {name: value for name, value in schema.items() if name != "default"}
    if not compile_schema(rest).is_valid(schema["default"]):
        del schema["default"]


def _compiles(schema: JsonSchema) -> bool:
    try:
        compile_schema(schema)
    except ValueError:
        return False
    return True
