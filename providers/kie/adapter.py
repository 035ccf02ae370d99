"""What a model adapter is: params -> request, record -> outcome, and no I/O."""

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
        record_path: Where its state is asked for, with `?taskId=`.
        body: The JSON body of the paid request.
        read: What a record says.
        usual_seconds: How long most of its tasks take at the most (kie-api.md 7).
    """

    name: str
    params: type[Params]
    create_path: str
    record_path: str
    body: Callable[[Params], dict[str, Any]]
    read: Callable[[Envelope], Poll]
    usual_seconds: float
