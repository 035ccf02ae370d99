"""Kie's responses: the envelope `{code, msg, data}`, and which codes mean what.

Kie answers HTTP 200 to nearly everything; the code inside counts. This module decides whether a
response settles what became of a task, is inconclusive, or means that the provider is unavailable;
`reasons` reads the message.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from providers.base import (
    Accepted,
    Failed,
    Poll,
    Postponed,
    Refused,
    Submission,
    Unavailable,
    Unknown,
    Unreadable,
)
from providers.kie.kept import kept_text
from providers.kie.reasons import (
    ACCOUNT_REASONS,
    OVER_LIMIT_CODES,
    TRY_LATER,
    TRY_LATER_CODES,
    reason_of,
)
from providers.kie.values import (
    as_int,
    as_object,
    bare_id,
    clean,
    find_id,
    first_words,
    id_anywhere,
    read_json,
    text_of,
)

OK = 200
GENERATION_FAILED_CODE = 501
UPSTREAM_SILENT_CODE = 408  # "No result has been returned for over 10 minutes"
REJECTED_CODES = frozenset({400, 451})  # of a record, in the model families that use them
REJECTED_BY_WORDS_CODE = 422
# They concern the key, the account or the whole service: any task would get the same response.
UNAVAILABLE_CODES = TRY_LATER_CODES | {401, 402, 403, 433, 502, 503, 504, *range(520, 528)}
UNAVAILABLE_STATUSES = UNAVAILABLE_CODES | {407, 408, 425}
POSTPONED_BECAUSE = {
    **dict.fromkeys(OVER_LIMIT_CODES, "the account's limit is reached"),
    455: "the provider is in maintenance",
}
HTTP_CLIENT_ERRORS = range(400, 500)
SERVER_ERRORS = range(500, 600)
HTTP_SUCCESSES = range(200, 300)
# Pages of a proxy about this very request: too slow, too large, cannot be processed.
OWN_PAGE_STATUSES = frozenset({408, 413, 422, 425, 499})


@dataclass(frozen=True, slots=True)
class Envelope:
    """A readable response.

    Attributes:
        code: The envelope's code, or the HTTP status of a 4xx without an envelope.
        message: The provider's message, cleaned and truncated.
        data: The value of `data`.
        bare: Whether there was no envelope: a proxy may have answered, not Kie.
        success: False if the response says `success: false`, whatever its code; only those to
            uploads do.
        text: The whole response.
    """

    code: int
    message: str
    data: Any
    bare: bool = False
    success: bool = True
    text: str = ""

    @property
    def record(self) -> Mapping[str, Any] | None:
        """`data` if it is an object, even as JSON text or as the only item of a list."""
        return as_object(self.data) or ({} if isinstance(self.data, dict) else None)

    @property
    def blocks_all(self) -> bool:
        """Whether it is the page of a proxy that would answer any request like this."""
        is_page = self.bare and not self.text.lstrip().startswith(("{", "["))
        return is_page and self.code not in OWN_PAGE_STATUSES

    @property
    def task_id(self) -> str:
        """The id of a task found anywhere in the response, or ""."""
        return find_id(self.data) or id_anywhere(self.text)


class UnreadableAnswerError(Exception):
    """A response that is not an envelope: an error page, garbage, nothing.

    Attributes:
        about_us: Whether it is about this request, and not a page that every client would get.
        text: What arrived.
    """

    def __init__(self, words: str, *, about_us: bool = False, text: str = "") -> None:
        super().__init__(words)
        self.about_us = about_us
        self.text = text


def parse_envelope(http_status: int, data: bytes) -> Envelope:
    """Read a response.

    Raises:
        UnreadableAnswerError: It is not an envelope, or contradicts its HTTP status.
    """
    text = text_of(data)
    body = as_object(text)
    code = as_int(body.get("code"))
    if code is None:
        if http_status in HTTP_CLIENT_ERRORS:
            return Envelope(http_status, clean(text[:200]), None, bare=True, text=text)
        raise _without_envelope(http_status, text)
    if code == OK and http_status not in HTTP_SUCCESSES:
        about_us = http_status in HTTP_CLIENT_ERRORS and http_status not in UNAVAILABLE_STATUSES
        words = f"HTTP {http_status} around code {OK}"
        raise UnreadableAnswerError(words, about_us=about_us, text=text)
    said = first_words(body, "msg", "message", "error", "errorMessage", "errorMsg", "detail")
    if not said and code != OK and isinstance(body.get("data"), str):
        said = clean(body["data"])
    success = body.get("success") is not False
    return Envelope(code, said, body.get("data"), success=success, text=text)


def _without_envelope(http_status: int, text: str) -> UnreadableAnswerError:
    page = not text.strip() or text.lstrip().startswith("<")
    about_us = http_status in HTTP_SUCCESSES and not page
    return UnreadableAnswerError(
        f"HTTP {http_status} without an envelope", about_us=about_us, text=text
    )


def is_complete(data: bytes) -> bool:
    """Return whether a response is complete JSON, so that nothing that follows can change it."""
    if not data.rstrip().endswith((b"}", b"]")):
        return False
    try:
        read_json(text_of(data))
    except ValueError:
        return False
    return True


# --- a paid request ---


def read_submission(envelope: Envelope, *, prompt: str = "") -> Submission:
    """Return the outcome that a response to a paid request means.

    Args:
        envelope: The response.
        prompt: The prompt of the request: words of it that a response quotes are ignored.
    """
    task_id = envelope.task_id
    if envelope.code == OK:
        if known := task_id or bare_id(envelope.data):
            return Accepted(known)
        return Unknown("code 200 without a usable task id", kept_text(envelope.text))
    code = str(envelope.code)
    words = "" if envelope.bare else envelope.message
    reason = reason_of(envelope.code, words, prompt=prompt)
    if reason == TRY_LATER:
        why = POSTPONED_BECAUSE.get(envelope.code, "the provider is busy")
        return Postponed(f"{why} (code {code}: {envelope.message})", provider_task_id=task_id)
    account = reason in ACCOUNT_REASONS or envelope.blocks_all
    return Refused(reason, envelope.message or f"code {code}", code, task_id, account)


def unreadable_submission(error: UnreadableAnswerError) -> Unknown:
    """Return the outcome of an unreadable response to a paid request; it may contain an id."""
    return Unknown(str(error), kept_text(error.text), id_anywhere(error.text))


# --- a poll ---


def read_other_code(envelope: Envelope, *, rejects: bool) -> Poll:
    """Return the outcome of a poll whose code is not 200.

    Args:
        envelope: The response to a poll.
        rejects: Whether the model family reports a moderator's decision by 400 or 451, and by a 422
            that mentions rejection.
    """
    code, detail = envelope.code, f"code {envelope.code}: {envelope.message}"
    if envelope.bare:
        if code in UNAVAILABLE_STATUSES:
            return Unavailable(f"HTTP {detail.removeprefix('code ')}")
        return Unreadable(f"HTTP {code} without an envelope", kept_text(envelope.text))
    rejected = code in REJECTED_CODES or (
        code == REJECTED_BY_WORDS_CODE and "reject" in envelope.message.lower()
    )
    if code == GENERATION_FAILED_CODE or (rejects and rejected):
        return Failed(envelope.message or f"code {code}", str(code))
    if code in UNAVAILABLE_CODES or reason_of(code, envelope.message) == TRY_LATER:
        return Unavailable(detail)
    return Unreadable(
        detail,
        kept_text(envelope.text),
        given_up=code == UPSTREAM_SILENT_CODE,
        provider_code=str(code),
    )


def unreadable_record(error: UnreadableAnswerError) -> Poll:
    """Return the outcome of an unreadable response to a poll."""
    if error.about_us:
        return Unreadable(str(error), kept_text(error.text))
    return Unavailable(str(error))


# --- a fresh URL of a result ---


def read_fresh_url(envelope: Envelope) -> str | Unavailable | None:
    """Return the URL in a response; None if there is none for this result."""
    if envelope.code == OK:
        return envelope.data if envelope.data and isinstance(envelope.data, str) else None
    detail = f"code {envelope.code}: {envelope.message}"
    if envelope.code in SERVER_ERRORS:
        return Unavailable(detail)
    outcome = read_other_code(envelope, rejects=False)
    return outcome if isinstance(outcome, Unavailable) else None
