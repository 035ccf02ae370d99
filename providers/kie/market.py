"""Any model of Kie's catalogue, through the jobs API: its rules, requests and records."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from google.protobuf.message import Message

from generated.generation.v1.generation_pb2 import MarketParams
from providers.base import ParamsError, Poll, Succeeded, Violation
from providers.kie.adapter import Adapter
from providers.kie.catalogue.facts import MODEL_ID_MAX_CHARACTERS, bundled, is_model_id
from providers.kie.echo import same_input
from providers.kie.envelope import Envelope
from providers.kie.jobs import read_job
from providers.kie.results import succeeded_or_object
from providers.kie.structs import read_struct
from providers.kie.values import clean

MESSAGE_PATH = "provider_params.kie.market"
MODEL_PATH = f"{MESSAGE_PATH}.model"
INPUT_PATH = f"{MESSAGE_PATH}.input"
# Model ids that belong to the endpoint of a member, by their beginning.
OTHER_MEMBERS = {"veo3": "veo3", "mj_": "midjourney"}
# The names of the members are names of models, too: a market task must not have one of them.
MEMBERS = frozenset({"imagen4", "midjourney", "sora2", "veo3"})
# The longest times in recorded traffic; music takes about as long as its maker promises.
TYPICAL_MAX_SECONDS = {"video": 313.0, "lip sync": 313.0, "image": 112.0}
TYPICAL_MAX_AUDIO_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class Market:
    """The rules of MarketParams that do not depend on the model, and the body of its jobs."""

    model: str
    input: dict[str, Any]

    @classmethod
    def from_message(cls, message: Message, *, public_urls: bool = False) -> Self:
        """Check the rules, without knowing the model.

        Args:
            message: A MarketParams.
            public_urls: Not used: only the schema of a model says which texts are URLs.

        Raises:
            ParamsError: It contains every broken rule, each with its path in the request.
        """
        del public_urls
        assert isinstance(message, MarketParams)
        value, violations = read_struct(message.input, INPUT_PATH)
        if "callBackUrl" in value:
            words = "must not be set: the service receives the callbacks"
            violations.append(Violation(f"{INPUT_PATH}.callBackUrl", words))
        violations = [*_model_rules(message.model), *violations]
        if violations:
            raise ParamsError(violations)
        return cls(message.model, value)

    def wire(self) -> dict[str, Any]:
        """Return the body of createTask."""
        return {"model": self.model, "input": self.input}


def _model_rules(model: str) -> Iterator[Violation]:
    member = next(
        (member for start, member in OTHER_MEMBERS.items() if model.startswith(start)),
        model if model in MEMBERS else None,
    )
    if not model:
        yield Violation(MODEL_PATH, "is required")
    elif len(model) > MODEL_ID_MAX_CHARACTERS:
        yield Violation(MODEL_PATH, f"must have at most {MODEL_ID_MAX_CHARACTERS} characters")
    elif not is_model_id(model):
        words = "must be an id such as kling-3.0/video: letters, digits, '.', '_', '-' and '/'"
        yield Violation(MODEL_PATH, words)
    elif member:
        yield Violation(MODEL_PATH, f"must be sent in provider_params.kie.{member}")


def typical_max_seconds(task_types: Collection[str]) -> float:
    """Return the time within which most tasks of a model end, by what the model does."""
    words = " ".join(task_types).lower()
    for kind, seconds in TYPICAL_MAX_SECONDS.items():
        if kind in words:
            return seconds
    audible = any(kind in words for kind in ("audio", "music", "speech"))
    return TYPICAL_MAX_AUDIO_SECONDS if audible else TYPICAL_MAX_SECONDS["video"]


def read(envelope: Envelope) -> Poll:
    """Read a record: its result may be an object without URLs."""
    return read_job(envelope, _succeeded)


def _succeeded(record: Mapping[str, Any]) -> Succeeded:
    """Any content is a result, unless the model is known to deliver URLs, or not known at all."""
    model = bundled().get(clean(record.get("model")))
    any_content = model is not None and model.result in {"object", "unknown"}
    return succeeded_or_object(record, any_content=any_content)


ADAPTER = Adapter(
    name="market",
    params=Market,
    create_path="/api/v1/jobs/createTask",
    record_path="/api/v1/jobs/recordInfo",
    body=Market.wire,
    read=read,
    typical_max_seconds=TYPICAL_MAX_SECONDS["video"],
    recognise=same_input,
)
