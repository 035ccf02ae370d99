"""What the simulator can generate: names, families, prices and durations.

A family is what a fault rule filters by (`imagen4`, `midjourney`, `veo3`, `sora2`, and `market` for
every other model); an API is the group of endpoints that a model is ordered through (`jobs`, `veo`,
`mj`). Midjourney has no model field, so its task types are used as models, and so are the follow-up
orders of Veo and Midjourney.

Durations of `--realistic` are the recorded ones: images 12-112 s, video 56-313 s. Prices are
credits per task: plausible guesses, and for market models the first published price.
"""

from dataclasses import dataclass
from typing import Final, Literal

from providers.kie.simulator.facts import JOBS_PATH, ModelFacts, all_facts

Api = Literal["jobs", "veo", "mj"]
Media = Literal["png", "mp4", "wav"]
Result = Literal["urls", "audio", "object", "both"]

MARKET: Final = "market"
FAMILIES: Final = ("imagen4", "midjourney", "veo3", "sora2", MARKET)

SECONDS: Final = {"png": (3.0, 6.0), "mp4": (8.0, 15.0), "wav": (3.0, 6.0)}
REALISTIC_SECONDS: Final = {"png": (12.0, 112.0), "mp4": (56.0, 313.0), "wav": (12.0, 112.0)}
VIDEO_TASK_TYPES: Final = frozenset({"Lip Sync", "Speech to Video"})
UNPRICED_CREDITS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Model:
    """One thing that can be ordered.

    Attributes:
        name: Its name on the wire, or the one that is used for it here.
        family: What fault rules and settings also name it by.
        api: The endpoints that it is ordered through.
        media: The kind of its files.
        credits: Its default price per task.
        result: How a jobs record shows a success: the URLs of its files, the audio files of a song,
            an object without files, or URLs and an object.
    """

    name: str
    family: str
    api: Api
    media: Media
    credits: float
    result: Result = "urls"

    @property
    def seconds(self) -> tuple[float, float]:
        """The shortest and longest duration, short enough for a demonstration."""
        return SECONDS[self.media]

    @property
    def realistic_seconds(self) -> tuple[float, float]:
        """The shortest and longest duration seen in recorded traffic; for sounds, a guess."""
        return REALISTIC_SECONDS[self.media]


NAMED_MODELS: Final = {
    model.name: model
    for model in (
        Model("google/imagen4-fast", "imagen4", "jobs", "png", 4),
        Model("google/imagen4", "imagen4", "jobs", "png", 8),
        Model("google/imagen4-ultra", "imagen4", "jobs", "png", 12),
        Model("sora-2-text-to-video", "sora2", "jobs", "mp4", 30),
        Model("sora-2-image-to-video", "sora2", "jobs", "mp4", 30),
        Model("sora-2-pro-text-to-video", "sora2", "jobs", "mp4", 150),
        Model("sora-2-pro-image-to-video", "sora2", "jobs", "mp4", 150),
        Model("sora-2-pro-storyboard", "sora2", "jobs", "mp4", 150),
        Model("sora-watermark-remover", "sora2", "jobs", "mp4", 10),
        Model("veo3", "veo3", "veo", "mp4", 250),
        Model("veo3_fast", "veo3", "veo", "mp4", 60),
        Model("veo3_lite", "veo3", "veo", "mp4", 30),
        Model("veo_extend", "veo3", "veo", "mp4", 60),
        Model("veo_4k", "veo3", "veo", "mp4", 120),
        Model("mj_txt2img", "midjourney", "mj", "png", 8),
        Model("mj_img2img", "midjourney", "mj", "png", 8),
        Model("mj_style_reference", "midjourney", "mj", "png", 8),
        Model("mj_omni_reference", "midjourney", "mj", "png", 16),
        Model("mj_video", "midjourney", "mj", "mp4", 15),
        Model("mj_video_hd", "midjourney", "mj", "mp4", 45),
        Model("mj_upscale", "midjourney", "mj", "png", 2),
        Model("mj_vary", "midjourney", "mj", "png", 8),
        Model("mj_video_extend_manual", "midjourney", "mj", "mp4", 15),
        Model("mj_video_extend_auto", "midjourney", "mj", "mp4", 15),
    )
}


def _media_of(facts: ModelFacts) -> Media:
    """Return the kind of files that a model makes, by the last word of its first task type."""
    first = facts.task_types[0]
    if first.endswith("Video") or first.startswith("Video") or first in VIDEO_TASK_TYPES:
        return "mp4"
    return "wav" if first.endswith(("Audio", "Music", "Speech")) else "png"


def _result_of(facts: ModelFacts) -> Result:
    """Return how a model shows its results: as URLs, unless something else is published."""
    if facts.id.endswith("layer-decomposition"):
        return "both"
    match facts.result:
        case "audio" | "object" as kind:
            return kind
        case _:
            return "urls"


def _market_models() -> dict[str, Model]:
    """Return the published models of the jobs API for which there are no rules here."""
    return {
        facts.id: Model(
            facts.id,
            MARKET,
            "jobs",
            _media_of(facts),
            facts.prices[0] if facts.prices else UNPRICED_CREDITS,
            _result_of(facts),
        )
        for facts in all_facts().values()
        if facts.path == JOBS_PATH and facts.id not in NAMED_MODELS
    }


MODELS: Final = NAMED_MODELS | _market_models()
