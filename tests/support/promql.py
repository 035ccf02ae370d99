"""What expressions of PromQL refer to, as far as the dashboard and the alerts use the language."""

import re
from dataclasses import dataclass

METRIC = re.compile(r"\b((?:generation|process|python)_\w+|up)\b(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
GROUPING = re.compile(r"\b(?:by|on)\s*\(([^)]*)\)")


@dataclass(frozen=True)
class Selector:
    """A metric of an expression, and the matchers of its labels: name, operator, value."""

    metric: str
    matchers: tuple[tuple[str, str, str], ...]

    @property
    def labels(self) -> set[str]:
        return {label for label, _, _ in self.matchers}

    @property
    def wanted(self) -> set[tuple[str, str]]:
        """The labels and values that must exist for the expression to see anything."""
        return {
            (label, value)
            for label, operator, pattern in self.matchers
            if operator in {"=", "=~"}
            for value in pattern.split("|")
        }


def selectors(expression: str) -> list[Selector]:
    """Return the metrics that an expression reads."""
    return [
        Selector(metric, tuple(MATCHER.findall(matchers)))
        for metric, matchers in METRIC.findall(expression)
    ]


def grouping_labels(expression: str) -> set[str]:
    """Return the labels in the `by (...)` and `on (...)` of an expression."""
    groups = GROUPING.findall(expression)
    return {label.strip() for group in groups for label in group.split(",")}
