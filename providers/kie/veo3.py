"""Veo 3 through its own Kie API: its rules, requests and records."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from providers.base import Poll
from providers.kie.adapter import Adapter
from providers.kie.envelope import Envelope
from providers.kie.params import PROMPT, Given, Params, Urls, Watermark, choice, count_rule
from providers.kie.success_flag import read_flagged

API_MODELS = {"VEO3_FAST": "veo3_fast", "VEO3": "veo3", "VEO3_LITE": "veo3_lite"}
IMAGE_COUNTS = {
    None: (0, 2),
    "TEXT_2_VIDEO": (0, 0),
    "FIRST_AND_LAST_FRAMES_2_VIDEO": (1, 2),
    "REFERENCE_2_VIDEO": (1, 3),
}


class Veo3(Params):
    """The rules of Veo3Params, and the body of `POST /api/v1/veo/generate`."""

    message_path = "provider_params.kie.veo3"

    api_model: Annotated[
        Literal["VEO3_FAST", "VEO3", "VEO3_LITE"],
        Field(serialization_alias="model"),
        choice(API_MODELS),
    ] = "VEO3_FAST"
    prompt: Annotated[str, Field(max_length=5_000), PROMPT]
    generation_type: Annotated[
        Literal["TEXT_2_VIDEO", "FIRST_AND_LAST_FRAMES_2_VIDEO", "REFERENCE_2_VIDEO"] | None,
        Field(serialization_alias="generationType"),
    ] = None
    image_urls: Annotated[Urls, Field(serialization_alias="imageUrls")] = None
    aspect_ratio: Literal["16:9", "9:16", "Auto"] | None = None
    seed: Annotated[int | None, Field(ge=10_000, le=99_999, serialization_alias="seeds")] = None
    watermark: Watermark = None
    enable_translation: Annotated[bool | None, Field(serialization_alias="enableTranslation")] = (
        None
    )
    resolution: Literal["720p", "1080p", "4k"] | None = None
    duration_seconds: Annotated[Literal[4, 6, 8] | None, Field(serialization_alias="duration")] = (
        None
    )

    @classmethod
    def cross_rules(cls, given: Given) -> Iterator[tuple[str, str]]:
        """The generation type determines the number of images; REFERENCE restricts other fields."""
        kind = given.get("generation_type")
        where = f"GENERATION_TYPE_{kind or 'UNSPECIFIED'}"
        if kind in IMAGE_COUNTS:
            yield from count_rule("image_urls", given, *IMAGE_COUNTS[kind], where)
        if kind != "REFERENCE_2_VIDEO":
            return
        if given.get("api_model") == "VEO3":
            yield "api_model", f"must not be API_MODEL_VEO3 with {where}"
        if given.get("aspect_ratio") == "Auto":
            yield "aspect_ratio", f"must not be Auto with {where}"
        if given.get("duration_seconds", 8) != 8:  # noqa: PLR2004 - the rule's own number
            yield "duration_seconds", f"must be 8 with {where}"


def read(envelope: Envelope) -> Poll:
    """Read a record: its results are in `response`, as strings."""
    return read_flagged(envelope, "response")


ADAPTER = Adapter(
    name="veo3",
    params=Veo3,
    create_path="/api/v1/veo/generate",
    record_path="/api/v1/veo/record-info",
    body=Params.wire,
    read=read,
    typical_max_seconds=313,
)
