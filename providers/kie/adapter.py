"""A model's adapter: from params to a request and from a record to an outcome, without I/O."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

from google.protobuf.message import Message

from providers.base import Poll, Recognition
from providers.kie.echo import recognition
from providers.kie.envelope import Envelope

Recognise = Callable[[Mapping[str, Any], Mapping[str, Any]], Recognition]


class ModelParams(Protocol):
    """The checked parameters of a model."""

    @classmethod
    def from_message(cls, message: Message, *, public_urls: bool = False) -> Self:
        """Check every rule of a model's message, or raise ParamsError."""

    def wire(self) -> dict[str, Any]:
        """Return the set fields by the provider's names."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """One model of Kie.

    Attributes:
        name: The model's name everywhere: its member in the KieParams oneof.
        params: Its rules and wire names.
        create_path: Where the paid request is posted.
        record_path: Where its state is read, with `?taskId=`.
        body: The JSON body of the paid request.
        read: From a record to an outcome.
        typical_max_seconds: The longest time in recorded traffic; most tasks end within it.
        recognise: Compares the body of a paid request with a record.
    """

    name: str
    params: type[ModelParams]
    create_path: str
    record_path: str
    body: Callable[[Any], dict[str, Any]]
    read: Callable[[Envelope], Poll]
    typical_max_seconds: float
    recognise: Recognise = recognition
