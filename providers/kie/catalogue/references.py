"""The references inside an OpenAPI document."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from providers.kie.catalogue.effort import Effort

HOPS_MAX = 16  # references to references
POINTER_MAX_CHARACTERS = 500


class References:
    """Finds what a `$ref` refers to. References to other documents are not followed.

    Kie's documents write the same name differently in a reference and in its component: with `%20`
    or a blank, or with a blank at the end.
    """

    def __init__(self, document: Mapping[str, Any], effort: Effort) -> None:
        """Look for references in a document; every method may raise TooLargeError."""
        self._document = document
        self._effort = effort
        self._indexes: dict[int, dict[str, Any]] = {}

    def target(self, reference: Any) -> Any:
        """Return what a reference refers to; None if nothing is there."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            return None
        pointer = reference[1:]
        if len(pointer) > POINTER_MAX_CHARACTERS or (pointer and not pointer.startswith("/")):
            return None
        node: Any = self._document
        self._effort.spend(1 + pointer.count("/"))
        for token in pointer.split("/")[1:]:
            node = self._member(node, token.replace("~1", "/").replace("~0", "~"))
        return node

    def resolved(self, node: Any) -> Any:
        """Return a node, or what its reference finally refers to."""
        for _ in range(HOPS_MAX):
            if not isinstance(node, Mapping) or "$ref" not in node:
                return node
            node = self.target(node["$ref"])
        return None

    def _member(self, node: Any, name: str) -> Any:
        if isinstance(node, list):
            return node[int(name)] if name.isdecimal() and int(name) < len(node) else None
        if not isinstance(node, Mapping):
            return None
        return node[name] if name in node else self._index(node).get(_spelling(name))

    def _index(self, node: Mapping[str, Any]) -> dict[str, Any]:
        """Return the members of an object by their normalised names; made once."""
        if id(node) not in self._indexes:
            self._effort.spend(len(node))
            self._indexes[id(node)] = {_spelling(name): value for name, value in node.items()}
        return self._indexes[id(node)]


def _spelling(name: str) -> str:
    return " ".join(unquote(name).split())
