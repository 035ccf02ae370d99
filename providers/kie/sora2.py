"""Sora 2 through Kie's jobs API: its rules, requests and records."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, field_serializer

from providers.kie.adapter import Adapter
from providers.kie.jobs import input_body, read_job
from providers.kie.params import PROMPT, Given, Params, Urls, choice, count_rule

API_MODELS = {
    "TEXT_TO_VIDEO": "sora-2-text-to-video",
    "IMAGE_TO_VIDEO": "sora-2-image-to-video",
    "PRO_TEXT_TO_VIDEO": "sora-2-pro-text-to-video",
    "PRO_IMAGE_TO_VIDEO": "sora-2-pro-image-to-video",
}
ASPECT_RATIOS = {"LANDSCAPE": "landscape", "PORTRAIT": "portrait"}
SIZES = {"STANDARD": "standard", "HIGH": "high"}


class Sora2(Params):
    """The rules of Sora2Params, and the `input` of its jobs."""

    message_path = "provider_params.kie.sora2"

    api_model: Annotated[
        Literal["TEXT_TO_VIDEO", "IMAGE_TO_VIDEO", "PRO_TEXT_TO_VIDEO", "PRO_IMAGE_TO_VIDEO"],
        Field(serialization_alias="model"),
        choice(API_MODELS),
    ] = "TEXT_TO_VIDEO"
    prompt: Annotated[str, Field(max_length=10_000), PROMPT]
    image_urls: Urls = None
    aspect_ratio: Annotated[Literal["LANDSCAPE", "PORTRAIT"], choice(ASPECT_RATIOS)] = "LANDSCAPE"
    duration_seconds: Annotated[Literal[10, 15], Field(serialization_alias="n_frames")] = 10
    size: Annotated[Literal["STANDARD", "HIGH"] | None, choice(SIZES)] = None
    remove_watermark: bool | None = None
    upload_method: Literal["s3"] = "s3"  # not up to the caller; required by Kie's newest documents

    @classmethod
    def cross_rules(cls, given: Given) -> Iterator[tuple[str, str]]:
        """IMAGE variants take one image; only PRO variants take a size."""
        model = str(given.get("api_model", "TEXT_TO_VIDEO"))
        if model in API_MODELS:
            images = 1 if "IMAGE" in model else 0
            yield from count_rule("image_urls", given, images, images, f"API_MODEL_{model}")
        if "size" in given and not model.startswith("PRO_"):
            yield "size", "must be unset without a PRO api_model"

    @field_serializer("duration_seconds")
    def _n_frames(self, seconds: int) -> str:
        return str(seconds)


ADAPTER = Adapter(
    name="sora2",
    params=Sora2,
    create_path="/api/v1/jobs/createTask",
    record_path="/api/v1/jobs/recordInfo",
    body=input_body,
    read=read_job,
    typical_max_seconds=313,
)
