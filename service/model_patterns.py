"""Patterns for models in settings and files: a name, or its beginning followed by `*`.

A model's name is the member of KieParams.model, or MarketParams.model for models of the catalogue.
"""

import re
from collections.abc import Iterable

PATTERN_MAX_CHARACTERS = 128
PATTERN = re.compile(r"(?:[A-Za-z0-9._-]+/)*(?:[A-Za-z0-9._-]+\*?|\*)")


def is_pattern(text: str) -> bool:
    """Return whether a text may be a pattern."""
    return len(text) <= PATTERN_MAX_CHARACTERS and PATTERN.fullmatch(text) is not None


def matches(pattern: str, name: str) -> bool:
    """Return whether a pattern names a model."""
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def matches_any(patterns: Iterable[str], name: str) -> bool:
    """Return whether one of several patterns names a model."""
    return any(matches(pattern, name) for pattern in patterns)
