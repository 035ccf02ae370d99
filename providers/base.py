"""The provider as the service sees it: one protocol, and the outcomes that its methods return.

A provider never raises for what the other side did: it reports what happened, and the poller
decides. The outcomes of a paid request that was not accepted are never merged: *refused* (the
provider said no), *postponed* (nothing was bought, and the request may be sent again) and *unknown*
(sent, but no readable response arrived).

    Submission      Accepted | Refused | Postponed | Unknown
    Poll            Progress | Succeeded | Failed | Unavailable | Unreadable | UnknownState

Nor are the three ways in which a poll is inconclusive: the provider is *unavailable* (it responds
to no request, or to none with our key), the response about this task is *unreadable*, or the
*state* of the task is *unknown* to this version.

Exceptions are for what the caller gets as an error:

    ParamsError     a rule of the parameters is broken, by field
    UploadError     the provider did not accept an upload, by reason
"""

from collections.abc import AsyncIterator, Mapping
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
    """The provider did not accept a file.

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
    """The provider accepted the task and gave it this id."""

    provider_task_id: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The provider refused. `reason` is the name of an ErrorReason.

    If the response contains the id of a task, something may have been bought nevertheless:
    `provider_task_id` is that id, or "".

    `account` means that any task would be refused, and that nothing was bought: the key, the
    credits or a proxy on the way is the cause.
    """

    reason: str
    message: str
    provider_code: str
    provider_task_id: str = ""
    account: bool = False


@dataclass(frozen=True, slots=True)
class Postponed:
    """Nothing was bought, and the same request may be sent again.

    Attributes:
        detail: Why, for the log.
        reached: False if there was no connection: then no task can be sent, whatever its model.
        provider_task_id: An id that the response contains nevertheless, or "".
    """

    detail: str
    reached: bool = True
    provider_task_id: str = ""


@dataclass(frozen=True, slots=True)
class Unknown:
    """The request was sent and no readable response arrived: the task may have been bought.

    Never send it again.

    Attributes:
        detail: What went wrong, for the log.
        answer: What arrived instead, truncated and without secrets.
        provider_task_id: An id found in it, to be looked up, or "".
    """

    detail: str
    answer: str = ""
    provider_task_id: str = ""


Submission = Accepted | Refused | Postponed | Unknown


class Recognition(Enum):
    """Whether a record of the provider belongs to our request."""

    AGREES = "agrees"
    DIFFERS = "differs"
    SILENT = "silent"  # the record exists, but does not repeat the request
    UNREADABLE = "unreadable"  # the record does not exist, or not yet


# --- outcomes of a poll ---


@dataclass(frozen=True, slots=True)
class Progress:
    """The task is queued at the provider, or generating, perhaps with 0-100 percent.

    `record` is the provider's record as JSON text: it is kept if the task times out.
    """

    generating: bool
    percent: int | None = None
    credits_consumed: float | None = None
    record: str = ""


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The results. `urls` may be empty: the poller decides what a success without results means.

    Attributes:
        urls: The results, in the provider's order.
        mime_types: One for each URL.
        result_json: JSON text: an object with `resultUrls` and whatever else the provider's result
            contains; without URLs, the provider's whole record.
        credits_consumed: In the provider's credits, or None if it does not report them.
        complete_time: Unix seconds by the provider's clock, or None if it does not report it.
        differs: Whether the record repeats a different request from ours.
        object_only: Whether the result is an object in `result_json`, and no URLs are missing.
    """

    urls: tuple[str, ...]
    mime_types: tuple[str, ...]
    result_json: str
    credits_consumed: float | None = None
    complete_time: float | None = None
    differs: bool = False
    object_only: bool = False

    @property
    def has_result(self) -> bool:
        """Whether the provider delivered what was paid for."""
        return bool(self.urls) or self.object_only


@dataclass(frozen=True, slots=True)
class Failed:
    """The provider failed to generate it."""

    message: str
    provider_code: str
    credits_consumed: float | None = None
    complete_time: float | None = None


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The provider gave no response: no connection, an error page, a limit, our key refused."""

    detail: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An inconclusive response about this task.

    Attributes:
        detail: Why, for the log. It contains no secret.
        answer: What arrived, truncated and without secrets.
        record: The same as JSON text, if it is a record.
        given_up: Whether the provider reports that its upstream gave no result in time.
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

    `record` is the provider's record as JSON text.
    """

    state: str
    record: str = ""


Inconclusive = Unavailable | Unreadable | UnknownState
Poll = Progress | Succeeded | Failed | Inconclusive


# --- uploads ---


@dataclass(frozen=True, slots=True)
class Upload:
    """A file on its way to the provider. `size_bytes` is None if the caller did not declare it."""

    file_name: str
    content_type: str
    upload_path: str
    size_bytes: int | None


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as the provider stored it.

    Times are unix seconds; `expire_time` is None if the provider does not report it.
    """

    file_name: str
    file_path: str
    download_url: str
    mime_type: str
    upload_time: float | None
    expire_time: float | None


# --- callbacks ---


@dataclass(frozen=True, slots=True)
class Callback:
    """What a callback of the provider says.

    Attributes:
        provider_task_id: The id of the task that it names, or "".
        hosts: Those of the results that it names.
        authentic: Whether the id is to be trusted: False for a wrong signature.
    """

    provider_task_id: str
    hosts: frozenset[str]
    authentic: bool


class CallbackReader(Protocol):
    """Reads the provider's callbacks."""

    def read(self, headers: Mapping[str, str], text: str, now: float) -> Callback:
        """Return what a callback says, however malformed its body is.

        Args:
            headers: Its HTTP headers.
            text: Its body, as much as arrived.
            now: Unix seconds.
        """


# --- the provider ---


class CallObserver(Protocol):
    """Called after each request to the provider."""

    def __call__(self, endpoint: str, code: str, seconds: float) -> None:
        """Record a request; must not raise.

        Args:
            endpoint: Its path, one of a few.
            code: The code of the response, or a word for why there is none; also one of a few.
            seconds: From its start to the end of its response.
        """


class Provider(Protocol):
    """Where tasks are generated. Safe to call concurrently from one event loop.

    Attributes:
        models: The names of the models.
        result_seconds: How long the URLs of a result can be expected to work.
        delivery_seconds: How long a result is kept at most, from the acceptance of its task.
    """

    models: frozenset[str]
    result_seconds: float
    delivery_seconds: float

    def model_of(self, params: ProviderParams) -> str:
        """Return the name of the model that valid params ask for."""

    def model_id(self, params: ProviderParams) -> str:
        """Return the provider's id of the model that valid params ask for."""

    def typical_max_seconds(self, model: str) -> float:
        """Return the time within which most tasks of a model end."""

    def check(self, params: ProviderParams) -> None:
        """Raise ParamsError unless the parameters meet every rule that never changes."""

    def complete(self, params: ProviderParams) -> ProviderParams:
        """Check params by what is known of their model now.

        The params have passed `check`.

        Returns:
            The params with the defaults that the provider requires; the same object if it requires
            none.

        Raises:
            ParamsError: They break a rule of the model.
        """

    async def submit(self, params: ProviderParams, callback_url: str | None) -> Submission:
        """Send the paid request, at most once. The params have passed `check`.

        Raises:
            ParamsError: A newer version has checked them, and this one cannot read them. Nothing
                was sent.
        """

    async def poll(
        self, model: str, provider_task_id: str, params: ProviderParams | None = None
    ) -> Poll:
        """Ask for the state of a submitted task.

        If params are given, a success is compared with them.
        """

    async def recognise(self, params: ProviderParams, provider_task_id: str) -> Recognition:
        """Compare a task of the provider with these params."""

    async def fresh_url(self, url: str) -> str | Unavailable | None:
        """Ask for another URL of a result whose URL has expired; None if there is none."""

    async def upload(self, upload: Upload, chunks: AsyncIterator[bytes]) -> StoredFile:
        """Stream a file to the provider, at the speed at which it reads.

        An exception of `chunks` closes the connection before the file is complete, and is raised
        here unchanged.

        Raises:
            UploadError: The provider refused the file, or cannot be reached.
        """

    async def close(self) -> None:
        """Close the connections. Requests in progress end as Unknown or Unavailable."""
