"""The models that are served: the members of KieParams, and which ids each of them takes."""

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
# The members with messages of their own, by Kie's ids of their models. `market` takes all others.
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


def member_of(model_id: str) -> str:
    """Return the member of KieParams that takes a model of Kie."""
    return TYPED_IDS.get(model_id, market.ADAPTER.name)
