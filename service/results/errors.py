"""Why a result was not copied, and why the storage cannot be used."""

import os
import re
from collections.abc import Iterable, Iterator

WORDS_MAX_CHARACTERS = 600
SECRET_MIN_CHARACTERS = 6
HIDDEN = "(hidden)"
# obstore appends its whole error as Rust prints it.
DETAILS = re.compile(r"\n\s*\nDebug source:.*", re.DOTALL)
XML_ERROR = re.compile(r"<\?xml.*|<(?:Error|Code)>.*", re.DOTALL)
XML_WORDS = re.compile(r"<(?:Code|Message)>([^<]{1,200})<")
QUERY = re.compile(r"\?[^\s,)]+")
USERINFO = re.compile(r"(?<=://)[^\s/?#]+(?=@)")
# The environment variables of the object stores that contain secrets.
CREDENTIALS = re.compile(r"^(?:AWS|AZURE|GOOGLE|GCP)_.*(?:KEY|SECRET|TOKEN|SAS|ACCOUNT)", re.ASCII)


class ResultsConfigError(Exception):
    """Results cannot be kept in the place that RESULTS_URL names."""


class StoreError(Exception):
    """The storage failed; the message contains no secret."""


class MissingError(StoreError):
    """There is no such object."""


class CopyError(Exception):
    """One attempt to copy a result has failed.

    Attributes:
        outcome: What failed, for the metrics: one of OUTCOMES.
    """

    outcome = "source"


class NotAllowedError(CopyError):
    """The URL must not be fetched."""

    outcome = "not_allowed"


class StatusError(CopyError):
    """The server of the URL answered with an error.

    Attributes:
        status: The HTTP status.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"the server of the result answered HTTP {status}")
        self.status = status


class RangeError(CopyError):
    """The server of the URL did not send the range that was requested."""


class NotMediaError(CopyError):
    """The content is not the result."""

    outcome = "content"


class TooLargeError(CopyError):
    """The result is larger than RESULTS_MAX_BYTES."""

    outcome = "too_large"


class StorageFailedError(CopyError):
    """The storage did not take the copy."""

    outcome = "storage"


class LeaseLostError(CopyError):
    """Another process has taken over the task."""

    outcome = "lease_lost"


COPIED = "copied"
OUTCOMES = (
    COPIED,
    *(
        error.outcome
        for error in (
            CopyError,
            NotAllowedError,
            NotMediaError,
            TooLargeError,
            StorageFailedError,
            LeaseLostError,
        )
    ),
)


def store_words(error: BaseException) -> str:
    """Return what a storage says, in one line and without secrets.

    Object stores answer with XML that may repeat the key id and the signed text: only the code and
    the message of such a response are kept. URLs may contain a signature or a password.
    """
    text = DETAILS.sub("", str(error)) or type(error).__name__
    if found := XML_ERROR.search(text):
        text = f"{text[: found.start()]}{': '.join(XML_WORDS.findall(found[0]))}"
    text = " ".join(USERINFO.sub(HIDDEN, QUERY.sub("", text)).split())
    for secret in _secrets(os.environ.items()):
        text = text.replace(secret, HIDDEN)
    return text[:WORDS_MAX_CHARACTERS]


def _secrets(environment: Iterable[tuple[str, str]]) -> Iterator[str]:
    for name, value in environment:
        if CREDENTIALS.match(name) and len(value) >= SECRET_MIN_CHARACTERS:
            yield value
