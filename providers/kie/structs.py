"""From a google.protobuf.Struct to JSON: its rules, and how its numbers are written.

All numbers of a Struct are doubles, but JSON of Kie's API distinguishes `5` from `5.0`. The rules
bound the work: nothing is read before its size is known, and reading stops where a limit is
exceeded.
"""

import json
import math
import unicodedata
from typing import Any

from google.protobuf.struct_pb2 import ListValue, Struct, Value

from providers.base import Violation

JSON_MAX_BYTES = 256 << 10
LEVELS_MAX = 8  # nested objects and lists, the outermost included
VALUES_MAX = 10_000
KEY_MAX_CHARACTERS = 128
INTEGER_MAX = 2.0**53  # the doubles up to it include every integer
VIOLATIONS_MAX = 100
# In protobuf a number takes 9 bytes, and each value and key up to 20 more than in JSON.
WIRE_MAX_BYTES = JSON_MAX_BYTES + 30 * VALUES_MAX
# JSON writes a control character in six bytes, protobuf in one.
JSON_BYTES_PER_WIRE_BYTE = 6


def json_number(number: float) -> int | float:
    """Return a finite number as Python's json writes it: an integral one as an integer."""
    return int(number) if float(number).is_integer() else number


def render(number: float) -> str:
    """Return a finite number as JSON text: digits if it is integral, else as short as possible."""
    return json.dumps(json_number(number))


def read_struct(struct: Struct, path: str) -> tuple[dict[str, Any], list[Violation]]:
    """Return a Struct as JSON values, and every rule that it breaks.

    Args:
        struct: The Struct.
        path: Its path in the request, for violations.
    """
    reader = _Reader(path)
    too_large = Violation(path, f"must have at most {JSON_MAX_BYTES} bytes as JSON")
    wire_bytes = struct.ByteSize()
    if wire_bytes > WIRE_MAX_BYTES:
        return {}, [too_large]
    value = reader.object(struct, None, level=1)
    if reader.values > VALUES_MAX:
        return {}, [Violation(path, f"must have at most {VALUES_MAX} values")]
    if reader.violations:
        return {}, reader.violations
    if wire_bytes * JSON_BYTES_PER_WIRE_BYTE > JSON_MAX_BYTES and _json_bytes(value) > (
        JSON_MAX_BYTES
    ):
        return {}, [too_large]
    return value, []


def _json_bytes(value: dict[str, Any]) -> int:
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


# The path of a value: the path of its holder and its name or number, written out when needed.
Place = tuple["Place | None", str | int]


class _Reader:
    """Reads values until there are too many of them, or too many violations."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.values = 0
        self.violations: list[Violation] = []

    def object(self, struct: Struct, place: Place | None, level: int) -> dict[str, Any]:
        fields = struct.fields
        if not self._enter(len(fields), place, level):
            return {}
        read = {}
        for key, value in fields.items():
            if not key or len(key) > KEY_MAX_CHARACTERS or not key.isprintable():
                self._check_key(key, place)
            read[key] = self._value(value, (place, key), level)
        return read

    def _list(self, values: ListValue, place: Place, level: int) -> list[Any]:
        if not self._enter(len(values.values), place, level):
            return []
        return [self._value(value, (place, at), level) for at, value in enumerate(values.values)]

    def _enter(self, count: int, place: Place | None, level: int) -> bool:
        """Count the values of an object or a list; False if they must not be read."""
        self.values += count
        if level > LEVELS_MAX:
            self._break(place, f"is nested too deeply: at most {LEVELS_MAX} levels are allowed")
            return False
        return self.values <= VALUES_MAX and len(self.violations) < VIOLATIONS_MAX

    def _value(self, value: Value, place: Place, level: int) -> Any:
        match value.WhichOneof("kind"):
            case "string_value":
                text = value.string_value
                if "\0" in text:
                    self._break(place, "must not contain NUL")
                return text
            case "number_value":
                return self._number(value.number_value, place)
            case "bool_value":
                return value.bool_value
            case "null_value":
                return None
            case "struct_value":
                return self.object(value.struct_value, place, level + 1)
            case "list_value":
                return self._list(value.list_value, place, level + 1)
            case _:
                self._break(place, "is a Value without a kind: set one, such as null_value")
                return None

    def _number(self, number: float, place: Place) -> int | float:
        if not math.isfinite(number):
            self._break(place, "must be a finite number")
            return 0
        if not number.is_integer():
            return number
        if abs(number) > INTEGER_MAX:
            self._break(place, f"must be at most {int(INTEGER_MAX)} in magnitude if it is integral")
        return int(number)

    def _check_key(self, key: str, place: Place | None) -> None:
        if not key:
            self._break(place, "must not have an empty key")
        elif len(key) > KEY_MAX_CHARACTERS:
            self._break(place, f"must have keys of at most {KEY_MAX_CHARACTERS} characters")
        elif any(map(_is_control, key)):
            self._break(place, f"must have keys without control characters: {key!a}")

    def _break(self, place: Place | None, words: str) -> None:
        if len(self.violations) < VIOLATIONS_MAX:
            self.violations.append(Violation(self._path + _written(place), words))


def _written(place: Place | None) -> str:
    if place is None:
        return ""
    holder, name = place
    return _written(holder) + (f"[{name}]" if isinstance(name, int) else f".{name}")


def _is_control(character: str) -> bool:
    return unicodedata.category(character) == "Cc"
