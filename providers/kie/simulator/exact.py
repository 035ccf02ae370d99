"""Messages given byte for byte by a fault: answers and callbacks of any shape."""

import base64
import binascii
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from http import HTTPStatus
from typing import Any, Final

FRAMING: Final = frozenset({"content-length", "transfer-encoding"})
_JSON_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "status": (int,),
    "headers": (dict,),
    "body": (str,),
    "body_base64": (str,),
    "delay_seconds": (int, float),
    "cut_after_bytes": (int, type(None)),
    "stays_open": (bool,),
}


@dataclass(frozen=True, kw_only=True)
class Exact:
    """A message to send exactly as given, instead of the right one.

    Attributes:
        status: The HTTP status; callbacks have none.
        headers: Sent as they are. Without Content-Length and Transfer-Encoding, an answer gets the
            right Content-Length; without Connection, `close`.
        body: Text; `{taskId}` and `{downloadUrl}` are replaced by those of the task and the upload.
        body_base64: The body in base64, in place of `body`, for bytes that are not text.
        delay_seconds: The wait before it is sent.
        cut_after_bytes: How much of the body is sent; None sends all of it.
        stays_open: Whether the connection is left open until the client leaves.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    body_base64: str = ""
    delay_seconds: float = 0.0
    cut_after_bytes: int | None = None
    stays_open: bool = False

    def __post_init__(self) -> None:
        if not 200 <= self.status <= 599:  # noqa: PLR2004 - the final statuses of HTTP
            raise ValueError("exact: status must be between 200 and 599")
        if not 0 <= self.delay_seconds < math.inf or (self.cut_after_bytes or 0) < 0:
            raise ValueError("exact: delay_seconds and cut_after_bytes must not be negative")
        if not all(isinstance(value, str) for value in self.headers.values()):
            raise ValueError("exact: headers must be strings")
        try:
            base64.b64decode(self.body_base64, validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("exact: body_base64 must be base64") from None

    def content(self, **values: str) -> bytes:
        """Return the whole body, with `values` in place of `{name}`."""
        if self.body_base64:
            return base64.b64decode(self.body_base64)
        text = self.body
        for name, value in values.items():
            text = text.replace(f"{{{name}}}", value)
        return text.encode("utf-8", "surrogatepass")

    def headers_over(self, others: Mapping[str, str]) -> dict[str, str]:
        """Return its own headers, and those of `others` that they do not replace."""
        own = {name.lower() for name in self.headers}
        kept = {name: value for name, value in others.items() if name.lower() not in own}
        return {**kept, **self.headers}

    def answer(self, **values: str) -> bytes:
        """Return the bytes of the HTTP answer, up to where it is cut."""
        content = self.content(**values)
        headers = self.headers_over({"Content-Type": "application/json", "Connection": "close"})
        if not FRAMING & {name.lower() for name in headers}:
            headers["Content-Length"] = str(len(content))
        lines = [f"HTTP/1.1 {self.status} {_phrase(self.status)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogatepass")
        return head + content[: self.cut_after_bytes]


def exact_from_json(values: Any) -> Exact:
    """Return a message from the JSON object that describes it.

    Raises:
        ValueError: Naming the field.
    """
    if not isinstance(values, Mapping):
        raise ValueError("exact must be an object")  # noqa: TRY004 - callers catch one
    known = {item.name for item in fields(Exact)}
    if unknown := set(values) - known:
        raise ValueError(f"exact: unknown {min(unknown)}: one of {', '.join(sorted(known))}")
    for name, value in values.items():
        types = _JSON_TYPES[name]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ValueError(f"exact: {name} must not be {value!r}")
    return Exact(**values)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
