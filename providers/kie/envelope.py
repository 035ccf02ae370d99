"""Kie's answers: the envelope `{code, msg, data}`, and which codes mean what (kie-api.md 1.2, 1.3).

Kie answers HTTP 200 to everything and means the code inside. The classes of codes stand here and
nowhere else: what is a verdict and what is weather is decided in this file.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from providers.base import Accepted, Failed, Poll, Postponed, Refused, Submission, Unknown, Weather

MESSAGE_MAX_CHARACTERS = 1_000
ID_MAX_CHARACTERS = 255
NUMBER_MAX_DIGITS = 300  # what a float can hold, nearly; Python itself refuses 4,300

OK = 200
TRY_LATER_CODES = frozenset({429, 455})  # over the limit, maintenance: nothing was bought
REFUSALS = {
    400: "PROVIDER_REJECTED",
    401: "PROVIDER_UNAUTHORIZED",
    402: "CREDITS_EXHAUSTED",
    403: "PROVIDER_UNAUTHORIZED",
    404: "PROVIDER_REJECTED",
    422: "PROVIDER_REJECTED",
    433: "CREDITS_EXHAUSTED",
    451: "PROVIDER_REJECTED",
    505: "MODEL_UNAVAILABLE",
}
PAUSED_WORDS = "temporarily paused"

GENERATION_FAILED_CODE = 501
ANSWERED_CODES = frozenset({OK, 404, 422})  # the provider spoke of this very task
HTTP_CLIENT_ERRORS = range(400, 500)
HTTP_SUCCESSES = range(200, 300)


@dataclass(frozen=True, slots=True)
class Envelope:
    """A readable answer.

    Attributes:
        code: The envelope's code, or the HTTP status of a 4xx without an envelope.
        message: The provider's words, cleaned and cut.
        data: Whatever stood in `data`.
        bare: Whether there was no envelope: somebody on the way may have answered, not Kie.
        success: False if it says so, whatever its code; only answers to uploads have it.
    """

    code: int
    message: str
    data: Any
    bare: bool = False
    success: bool = True

    @property
    def record(self) -> Mapping[str, Any] | None:
        """`data` if it is an object."""
        return self.data if isinstance(self.data, dict) else None


class UnreadableAnswerError(Exception):
    """An answer that says neither yes nor no: an error page, garbage, nothing."""


def parse_envelope(http_status: int, text: bytes) -> Envelope:
    """Read an answer.

    Raises:
        UnreadableAnswerError: It is no envelope, or contradicts its HTTP status.
    """
    body = _json_object(text)
    code = as_int(body.get("code")) if body else None
    if body is None or code is None:
        if http_status in HTTP_CLIENT_ERRORS:
            words = clean(text[:200].decode(errors="replace"))
            return Envelope(http_status, words, None, bare=True)
        raise UnreadableAnswerError(f"HTTP {http_status} without an envelope")
    if code == OK and http_status not in HTTP_SUCCESSES:
        raise UnreadableAnswerError(f"HTTP {http_status} around code {OK}")
    words = body.get("msg") or body.get("message") or ""
    return Envelope(code, clean(words), body.get("data"), success=body.get("success") is not False)


def read_submission(envelope: Envelope) -> Submission:
    """Say what an answer to a paid request means."""
    if envelope.code == OK:
        record = envelope.record or {}
        task_id = _id(record.get("taskId")) or _id(record.get("recordId"))  # equal on the wire
        return Accepted(task_id) if task_id else Unknown("code 200 without a usable task id")
    if envelope.code in TRY_LATER_CODES:
        return Postponed(f"code {envelope.code}: {envelope.message}")
    reason = refusal_reason(envelope)
    return Refused(reason, envelope.message or f"code {envelope.code}", str(envelope.code))


def _id(value: Any) -> str:
    """Return an id as text; "" if it is none that could be asked for."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not 0 < len(value.strip()) <= ID_MAX_CHARACTERS:
        return ""
    return clean(value)


def refusal_reason(envelope: Envelope) -> str:
    """Return the reason for a code that is no 200."""
    if PAUSED_WORDS in envelope.message.lower():
        return "MODEL_UNAVAILABLE"
    return REFUSALS.get(envelope.code, "PROVIDER_ERROR")


def read_other_code(envelope: Envelope, *, rejects: bool) -> Poll:
    """Say what a record's code other than 200 means.

    Args:
        envelope: The answer to a poll.
        rejects: Whether the family tells a moderator's verdict by 400, and by a 422 that speaks of
            rejection.
    """
    detail = f"code {envelope.code}: {envelope.message}"
    if envelope.bare:
        return Weather(detail)
    rejected = envelope.code == 400 or (  # noqa: PLR2004 - the code's name is its number
        envelope.code == 422 and "reject" in envelope.message.lower()  # noqa: PLR2004
    )
    if envelope.code == GENERATION_FAILED_CODE or (rejects and rejected):
        return Failed(envelope.message or f"code {envelope.code}", str(envelope.code))
    return Weather(detail, answered=envelope.code in ANSWERED_CODES)


# --- values as they come: any type, any size ---


def as_int(value: Any) -> int | None:
    """Read a whole number that may come as a string; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, float) and not value.is_integer():
        return None
    try:
        return int(value)
    except ValueError:
        return None


def as_credits(value: Any) -> float | None:
    """Read an amount of credits; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if value >= 0 else None


def as_time(value: Any) -> float | None:
    """Read a time as unix seconds.

    Unix milliseconds, ISO 8601, or `YYYY-MM-DD hh:mm:ss` (taken as UTC).
    """
    number = as_int(value)
    if number is not None:
        return number / 1_000 if 0 < number < 10**14 else None
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value.strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def clean(words: Any, most: int = MESSAGE_MAX_CHARACTERS) -> str:
    """Return text that any database and any message can hold.

    No NUL, no lone surrogates, bounded.
    """
    text = words if isinstance(words, str) else "" if words is None else str(words)[:most]
    return text[:most].replace("\0", "\ufffd").encode(errors="replace").decode()


def as_object(value: Any) -> dict[str, Any]:
    """Return an object that may come as JSON text; {} if it is none."""
    if isinstance(value, dict):
        return value
    if isinstance(value, str):
        return _json_object(value) or {}
    return {}


def _json_object(text: bytes | str) -> dict[str, Any] | None:
    try:
        value = json.loads(
            text, parse_constant=_refuse_constant, parse_int=_integer, parse_float=_float
        )
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= NUMBER_MAX_DIGITS else digits


def _float(digits: str) -> float | str:
    """Leave a number beyond a float's range as text: JSON cannot say infinity again."""
    number = float(digits)
    return number if math.isfinite(number) else digits


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
