"""What the simulator can generate: names, families, prices and durations.

A family is what a fault rule filters by (`imagen4`, `midjourney`, `veo3`, `sora2`); an API is the
group of endpoints that a model is ordered through (`jobs`, `veo`, `mj`). Midjourney has no model
field, so its task types stand in for models, and so do the follow-up orders of Veo and Midjourney.

Durations of `--realistic` are the recorded ones: images 12-112 s, video 56-313 s. Prices are
plausible guesses, in credits per task: the API has no price list.
"""

from dataclasses import dataclass
from typing import Final, Literal

Api = Literal["jobs", "veo", "mj"]
Media = Literal["png", "mp4"]

FAMILIES: Final = ("imagen4", "midjourney", "veo3", "sora2")

IMAGE_SECONDS: Final = (3.0, 6.0)
VIDEO_SECONDS: Final = (8.0, 15.0)
REALISTIC_IMAGE_SECONDS: Final = (12.0, 112.0)
REALISTIC_VIDEO_SECONDS: Final = (56.0, 313.0)


@dataclass(frozen=True, slots=True)
class Model:
    """One thing that can be ordered; `credits` is its default price per task."""

    name: str
    family: str
    api: Api
    media: Media
    credits: float

    @property
    def seconds(self) -> tuple[float, float]:
        """The shortest and longest duration, short enough for a demonstration."""
        return IMAGE_SECONDS if self.media == "png" else VIDEO_SECONDS

    @property
    def realistic_seconds(self) -> tuple[float, float]:
        """The shortest and longest duration seen in recorded traffic."""
        return REALISTIC_IMAGE_SECONDS if self.media == "png" else REALISTIC_VIDEO_SECONDS


MODELS: Final = {
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
