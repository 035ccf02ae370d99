"""ListModels and GetModel: which models match, and their messages."""

from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf import json_format

from generated.generation.v1 import generation_pb2 as pb
from providers.kie.catalogue.facts import MODEL_ID_MAX_CHARACTERS, is_model_id
from service.catalogue import Catalogue, KnownModel, Lifecycle
from service.errors import ServiceError, invalid, invalid_params
from service.measurements import Measurements
from service.messages import timestamp
from service.pages import page_size, page_size_rules
from service.rules import text_rules
from service.tokens import BINDING_BYTES, binding, decode_token, encode_token

FILTER_MAX_CHARACTERS = 200
PAGE_TOKEN_MAX_CHARACTERS = 300

LIFECYCLES: Mapping[Lifecycle, pb.Model.Lifecycle.ValueType] = {
    lifecycle: pb.Model.Lifecycle.Value(f"LIFECYCLE_{lifecycle}") for lifecycle in Lifecycle
}


@dataclass(frozen=True, slots=True)
class ModelFilter:
    """Which models to list; an unset filter takes any. All texts are case-folded."""

    words: tuple[str, ...]
    task_type: str
    provider: str
    with_retired: bool

    def takes(self, model: KnownModel) -> bool:
        """Return whether a model is listed."""
        stored = model.stored
        if stored.retired_time is not None and not self.with_retired:
            return False
        if self.provider and self.provider != stored.provider.casefold():
            return False
        types = [task_type.casefold() for task_type in stored.task_types]
        if self.task_type and self.task_type not in types:
            return False
        text = f"{stored.id} {stored.title} {stored.provider}".casefold()
        return all(word in text or any(word in t for t in types) for word in self.words)


class ModelLists:
    """Answers what callers ask about models, from memory."""

    def __init__(self, catalogue: Catalogue, measurements: Measurements) -> None:
        self._catalogue = catalogue
        self._measurements = measurements

    async def page(self, request: pb.ListModelsRequest) -> pb.ListModelsResponse:
        """Return a page of models."""
        which = _filter(request)
        after = _read_token(request.page_token, which)
        size = page_size(request.page_size)
        found = [m for m in self._catalogue.models() if m.stored.id > after and which.takes(m)]
        answer = pb.ListModelsResponse()
        for model in found[:size]:
            answer.models.append(await self._message(model))
        if len(found) > size:
            answer.next_page_token = _token(found[size - 1].stored.id, which)
        return answer

    async def get(self, model_id: str) -> pb.Model:
        """Return a model with its schema.

        Raises:
            ServiceError: INVALID_PARAMS or MODEL_UNAVAILABLE.
        """
        if broken := text_rules("id", model_id, MODEL_ID_MAX_CHARACTERS, required=True):
            raise invalid_params(broken)
        if not is_model_id(model_id):
            raise invalid("id", "must be the id of a model, as ListModels shows it")
        model = self._catalogue.get(model_id)
        if model is None:
            words = self._catalogue.unknown(model_id)
            raise ServiceError("MODEL_UNAVAILABLE", words)
        message = await self._message(model)
        if model.taken_by_market and model.schema is not None:
            json_format.ParseDict(dict(model.schema), message.input_schema)
        return message

    async def _message(self, model: KnownModel) -> pb.Model:
        stored = model.stored
        message = pb.Model(
            id=stored.id,
            title=stored.title,
            provider=stored.provider,
            task_types=stored.task_types,
            lifecycle=LIFECYCLES[model.lifecycle],
            member=model.member,
            replacement=model.replacement,
            price_text=stored.price_text,
            measured=await self._measurements.of(model),
        )
        if stored.refresh_time is not None:
            message.refresh_time.CopyFrom(timestamp(stored.refresh_time))
        return message


def _filter(request: pb.ListModelsRequest) -> ModelFilter:
    """Return the filter of a request; raise INVALID_PARAMS with every broken rule."""
    violations = [
        *text_rules("query", request.query, FILTER_MAX_CHARACTERS),
        *text_rules("task_type", request.task_type, FILTER_MAX_CHARACTERS),
        *text_rules("provider", request.provider, FILTER_MAX_CHARACTERS),
        *page_size_rules(request.page_size),
    ]
    if violations:
        raise invalid_params(violations)
    return ModelFilter(
        words=tuple(request.query.casefold().split()),
        task_type=request.task_type.casefold(),
        provider=request.provider.casefold(),
        with_retired=request.include_retired,
    )


def _token(last_id: str, which: ModelFilter) -> str:
    """Return a token for the end of a page, bound to its filter."""
    return encode_token(binding(repr(which)) + last_id.encode())


def _read_token(token: str, which: ModelFilter) -> str:
    """Return the id after which a page begins; "" for the first page."""
    if not token:
        return ""
    raw = decode_token(token, PAGE_TOKEN_MAX_CHARACTERS) or b""
    last_id = raw[BINDING_BYTES:].decode(errors="replace")
    if not is_model_id(last_id):
        raise invalid("page_token", "must be a next_page_token")
    if raw[:BINDING_BYTES] != binding(repr(which)):
        raise invalid("page_token", "must come from a page with the same filter")
    return last_id
