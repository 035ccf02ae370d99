"""What the service knows of a provider: one protocol, and the outcomes it answers with.

A provider never raises for what the other side did: it says what happened, and the poller decides.
The three outcomes of a paid request are never merged: *refused* (an answer that says no), *not
sent* (nobody was reached) and *unknown* (sent, and no answer that can be read).

    Submission      Accepted | Refused | Postponed | Unknown
    Poll            Progress | Succeeded | Failed | Unavailable | Unreadable | UnknownState

Nor are the three ways in which a poll ends without a verdict: the provider is *unavailable* (it
answers nobody, or no request with our key), this one task *cannot be read*, or its *state is
unknown* to us.

Exceptions are for errors that the caller can fix:

    ParamsError     a rule of the parameters is broken, by field
    UploadError     an upload that the provider did not take, by reason
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from generated.generation.v1.generation_pb2 import ProviderParams


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken rule.

    Attributes:
        field: The path in the request by the proto's names:
            `provider_params.kie.veo3.image_urls[1]`.
        description: What the field must be, for people.
    """

    field: str
    description: str


class ParamsError(Exception):
    """Parameters that break rules; all of them at once, found before any call."""

    def __init__(self, violations: list[Violation]) -> None:
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations))
        self.violations = violations


class UploadError(Exception):
    """The provider did not take a file.

    Attributes:
        reason: The name of an ErrorReason, without its prefix.
        provider_code: The provider's own code, or "".
    """

    def __init__(self, reason: str, message: str, provider_code: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.provider_code = provider_code


# --- outcomes of a paid request ---


@dataclass(frozen=True, slots=True)
class Accepted:
    """The provider has the task, under this id of its own."""

    provider_task_id: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The provider answered no. `reason` is the name of an ErrorReason.

    An answer that names a task may hide a purchase all the same: `provider_task_id` is what it
    named, or "".
    """

    reason: str
    message: str
    provider_code: str
    provider_task_id: str = ""


@dataclass(frozen=True, slots=True)
class Postponed:
    """Nothing was bought and the same request may be sent again.

    Attributes:
        detail: Why, for the log.
        reached: False if there was no connection: then tasks of no model can be sent.
        provider_task_id: What the answer named all the same, or "".
    """

    detail: str
    reached: bool = True
    provider_task_id: str = ""


@dataclass(frozen=True, slots=True)
class Unknown:
    """The request was sent and no readable answer came: it may have been bought.

    Never send it again.

    Attributes:
        detail: What went wrong, for the log.
        answer: What came instead of an answer, cut and without secrets.
        provider_task_id: An id found in it, to be looked up, or "".
    """

    detail: str
    answer: str = ""
    provider_task_id: str = ""


Submission = Accepted | Refused | Postponed | Unknown


class Recognition(Enum):
    """Whether a record of the provider is that of our request."""

    AGREES = "agrees"
    DIFFERS = "differs"
    SILENT = "silent"  # the record is there, and does not repeat the request
    UNREADABLE = "unreadable"  # there is no record, or not yet


# --- outcomes of a poll ---


@dataclass(frozen=True, slots=True)
class Progress:
    """The provider works on it: not yet started, or generating, perhaps with 0-100 percent.

    `record` is what the provider said, as JSON text: it is kept if the task ends by its age.
    """

    generating: bool
    percent: int | None = None
    credits_consumed: float | None = None
    record: str = ""


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The results. `urls` may be empty: the poller decides what a success without a result is.

    Attributes:
        urls: The results, in the provider's order.
        mime_types: One for each URL.
        result_json: JSON text: an object with `resultUrls` beside whatever else the provider's
            result held; without URLs, the provider's whole record.
        credits_consumed: In the provider's credits, or None when it does not tell.
        complete_time: Unix seconds by the provider's clock, or None when it does not tell.
        differs: Whether the record repeats another request than ours.
    """

    urls: tuple[str, ...]
    mime_types: tuple[str, ...]
    result_json: str
    credits_consumed: float | None = None
    complete_time: float | None = None
    differs: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """The provider tried and failed."""

    message: str
    provider_code: str
    credits_consumed: float | None = None
    complete_time: float | None = None


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The provider did not answer: no connection, an error page, a limit, our key refused."""

    detail: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An answer about this very task that gives no verdict.

    Attributes:
        detail: Why not, for the log. It holds no secret.
        answer: What came, cut and without secrets.
        record: The same as JSON text, if it is a record.
        given_up: Whether the provider says that its upstream gave no result in time.
        provider_code: The provider's own code, or "".
    """

    detail: str
    answer: str = ""
    record: str = ""
    given_up: bool = False
    provider_code: str = ""


@dataclass(frozen=True, slots=True)
class UnknownState:
    """A record in a state that this version does not know.

    `record` is what the provider said, as JSON text.
    """

    state: str
    record: str = ""


Inconclusive = Unavailable | Unreadable | UnknownState
Poll = Progress | Succeeded | Failed | Inconclusive


# --- uploads ---


@dataclass(frozen=True, slots=True)
class Upload:
    """A file on its way to the provider. `size_bytes` is None when nobody knows it yet."""

    file_name: str
    content_type: str
    upload_path: str
    size_bytes: int | None


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as the provider stored it.

    Times are unix seconds; `expire_time` is None when it does not tell.
    """

    file_name: str
    file_path: str
    download_url: str
    mime_type: str
    upload_time: float | None
    expire_time: float | None


class CallObserver(Protocol):
    """Is told of each request to the provider once it is over."""

    def __call__(self, endpoint: str, code: str, seconds: float) -> None:
        """Take note of it; it must not raise.

        Args:
            endpoint: Its path, one of a few.
            code: The code of the answer, or a word for why there is none; one of a few, too.
            seconds: From its start to the end of its answer.
        """


class Provider(Protocol):
    """Where tasks are generated. Safe to call concurrently from one event loop."""

    models: frozenset[str]

    def model_of(self, params: ProviderParams) -> str:
        """Return the name of the model that valid params ask for."""

    def usual_seconds(self, model: str) -> float:
        """Return how long most tasks of the model take at the most, in seconds."""

    def check(self, params: ProviderParams) -> None:
        """Raise ParamsError unless every rule of the parameters holds."""

    async def submit(self, params: ProviderParams, callback_url: str | None) -> Submission:
        """Send the paid request, at most once. The params have passed `check`."""

    async def poll(
        self, model: str, provider_task_id: str, params: ProviderParams | None = None
    ) -> Poll:
        """Ask how a submitted task stands.

        A success is compared with the params, if they are given.
        """

    async def recognise(self, params: ProviderParams, provider_task_id: str) -> Recognition:
        """Compare a task of the provider with these params."""

    async def upload(self, upload: Upload, chunks: AsyncIterator[bytes]) -> StoredFile:
        """Pass a file on, chunk by chunk as the provider takes them.

        An exception of `chunks` breaks the connection before the file is complete, and is raised
        here as it is.

        Raises:
            UploadError: The provider refused the file, or cannot be reached.
        """

    async def close(self) -> None:
        """Release connections. Requests under way end as Unknown or Unavailable."""
