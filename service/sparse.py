"""Log lines that callers can cause at will: at most one a second, with a count of the rest."""

import time
from typing import Any

import structlog

INTERVAL_SECONDS = 1.0
KEYS_MAX = 1_000

log = structlog.get_logger()


class _Recent:
    """A line that was written recently, and how many of its kind were suppressed.

    Attributes:
        fields: The fields that all lines of the kind share.
    """

    __slots__ = ("event", "fields", "left_out", "level", "time")

    def __init__(self, level: int, event: str, fields: dict[str, str], now: float) -> None:
        self.level = level
        self.event = event
        self.fields = fields
        self.time = now
        self.left_out = 0


class SparseLog:
    """Writes at most one line a second of each kind."""

    def __init__(self) -> None:
        self._recent: dict[tuple[str, ...], _Recent] = {}

    def write(
        self, level: int, event: str, kind: dict[str, str] | None = None, **fields: Any
    ) -> None:
        """Write a line, or count it if one of its kind was written within a second.

        Args:
            level: A level of the module logging.
            event: The event.
            kind: The fields that distinguish the kinds of lines of an event.
            fields: Further fields of the line.
        """
        now = time.monotonic()
        kind = kind or {}
        key = (event, *kind.values())
        recent = self._recent.get(key)
        if recent is not None and now - recent.time < INTERVAL_SECONDS:
            recent.left_out += 1
            return
        if recent is not None and recent.left_out:
            fields["left_out"] = recent.left_out
        if recent is None and len(self._recent) >= KEYS_MAX:
            return
        self._recent[key] = _Recent(level, event, kind, now)
        log.log(level, event, **kind, **fields)

    def flush(self) -> None:
        """Write the counts of suppressed lines whose kind has not occurred for a second."""
        now = time.monotonic()
        for key, recent in list(self._recent.items()):
            if now - recent.time >= INTERVAL_SECONDS:
                del self._recent[key]
                if recent.left_out:
                    log.log(recent.level, recent.event, **recent.fields, left_out=recent.left_out)
