"""A model's adapter: from params to a request and from a record to an outcome, without I/O."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from providers.base import Poll
from providers.kie.envelope import Envelope
from providers.kie.params import Params


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
    """

    name: str
    params: type[Params]
    create_path: str
    record_path: str
    body: Callable[[Params], dict[str, Any]]
    read: Callable[[Envelope], Poll]
    typical_max_seconds: float
