"""The models that are served: the members of KieParams, and which ids each of them takes."""

from collections.abc import Mapping

from google.protobuf.descriptor import EnumDescriptor

from generated.generation.v1 import generation_pb2 as pb
from providers.kie import imagen4, market, midjourney, sora2, veo3
from providers.kie.adapter import Adapter

ADAPTERS = {
    adapter.name: adapter
    for adapter in (
        imagen4.ADAPTER,
        midjourney.ADAPTER,
        veo3.ADAPTER,
        sora2.ADAPTER,
        market.ADAPTER,
    )
}
# The members with their own messages, by Kie's ids of their models. `market` takes all others.
TYPED_IDS = {
    **dict.fromkeys(imagen4.API_MODELS.values(), "imagen4"),
    **dict.fromkeys(midjourney.TASK_TYPES.values(), "midjourney"),
    **dict.fromkeys(veo3.API_MODELS.values(), "veo3"),
    **dict.fromkeys(sora2.API_MODELS.values(), "sora2"),
}
# Which model of the catalogue replaces one that is no longer listed, where that is known.
REPLACEMENTS = dict.fromkeys(veo3.API_MODELS.values(), "veo-3-1")


def adapter_of(model: str) -> Adapter:
    """Return the adapter of a task's model: a member, or the id of a market model."""
    return ADAPTERS.get(model, market.ADAPTER)


def _by_value(enum: EnumDescriptor, ids: Mapping[str, str]) -> dict[int, str]:
    """Return ids by the values of an enum; an unset one means the first."""
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    numbers = {prefix + name: model_id for name, model_id in ids.items()}
    return {0: next(iter(ids.values()))} | {
        enum.values_by_name[name].number: model_id for name, model_id in numbers.items()
    }


# The field that chooses the variant of a member, and Kie's ids by the values of that field.
_VARIANTS = {
    "imagen4": (
        "api_model",
        _by_value(pb.Imagen4Params.DESCRIPTOR.enum_types_by_name["ApiModel"], imagen4.API_MODELS),
    ),
    "midjourney": (
        "task_type",
        _by_value(
            pb.MidjourneyParams.DESCRIPTOR.enum_types_by_name["TaskType"], midjourney.TASK_TYPES
        ),
    ),
    "veo3": (
        "api_model",
        _by_value(pb.Veo3Params.DESCRIPTOR.enum_types_by_name["ApiModel"], veo3.API_MODELS),
    ),
    "sora2": (
        "api_model",
        _by_value(pb.Sora2Params.DESCRIPTOR.enum_types_by_name["ApiModel"], sora2.API_MODELS),
    ),
}


def model_id_of(params: pb.ProviderParams) -> str:
    """Return Kie's id of the model that params ask for; "" for a choice of a newer version."""
    member = params.kie.WhichOneof("model")
    assert member is not None, "params were not checked"
    if member == market.ADAPTER.name:
        return params.kie.market.model
    field, ids = _VARIANTS[member]
    return ids.get(getattr(getattr(params.kie, member), field), "")


def member_of(model_id: str) -> str:
    """Return the member of KieParams that takes a model of Kie."""
    return TYPED_IDS.get(model_id, market.ADAPTER.name)
