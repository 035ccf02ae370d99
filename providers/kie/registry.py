"""The models that are served; a new one needs one line here."""

from providers.kie import imagen4, midjourney, sora2, veo3

ADAPTERS = {
    adapter.name: adapter
    for adapter in (
        imagen4.ADAPTER,
        midjourney.ADAPTER,
        veo3.ADAPTER,
        sora2.ADAPTER,
    )
}
