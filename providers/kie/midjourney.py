"""Midjourney through its own Kie API: its rules, requests and records."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from providers.base import Poll
from providers.kie.adapter import Adapter
from providers.kie.envelope import Envelope
from providers.kie.params import PROMPT, Given, Params, Urls, Watermark, choice, count_rule
from providers.kie.success_flag import read_flagged

TASK_TYPES = {
    "TXT2IMG": "mj_txt2img",
    "IMG2IMG": "mj_img2img",
    "STYLE_REFERENCE": "mj_style_reference",
    "OMNI_REFERENCE": "mj_omni_reference",
    "VIDEO": "mj_video",
    "VIDEO_HD": "mj_video_hd",
}
SPEEDS = {"RELAXED": "relaxed", "FAST": "fast", "TURBO": "turbo"}
MOTIONS = {"HIGH": "high", "LOW": "low"}
VIDEO_TASKS = frozenset({"VIDEO", "VIDEO_HD"})


class Midjourney(Params):
    """The rules of MidjourneyParams, and the body of `POST /api/v1/mj/generate`."""

    message_path = "provider_params.kie.midjourney"

    task_type: Annotated[
        Literal["TXT2IMG", "IMG2IMG", "STYLE_REFERENCE", "OMNI_REFERENCE", "VIDEO", "VIDEO_HD"],
        Field(serialization_alias="taskType"),
        choice(TASK_TYPES),
    ]
    prompt: Annotated[str, Field(max_length=2_000), PROMPT]
    file_urls: Annotated[Urls, Field(serialization_alias="fileUrls")] = None
    speed: Annotated[Literal["RELAXED", "FAST", "TURBO"] | None, choice(SPEEDS)] = None
    aspect_ratio: Annotated[
        Literal["1:2", "9:16", "2:3", "3:4", "5:6", "6:5", "4:3", "3:2", "1:1", "16:9", "2:1"]
        | None,
        Field(serialization_alias="aspectRatio"),
    ] = None
    version: Literal["7", "6.1", "6", "5.2", "5.1", "niji6"] | None = None
    variety: Annotated[int | None, Field(ge=0, le=100)] = None
    stylization: Annotated[int | None, Field(ge=0, le=1_000)] = None
    weirdness: Annotated[int | None, Field(ge=0, le=3_000)] = None
    ow: Annotated[int | None, Field(ge=1, le=1_000)] = None
    watermark: Annotated[Watermark, Field(serialization_alias="waterMark")] = None
    enable_translation: Annotated[bool | None, Field(serialization_alias="enableTranslation")] = (
        None
    )
    video_batch_size: Annotated[
        Literal[1, 2, 4] | None, Field(serialization_alias="videoBatchSize")
    ] = None
    motion: Annotated[Literal["HIGH", "LOW"] | None, choice(MOTIONS)] = None

    @classmethod
    def cross_rules(cls, given: Given) -> Iterator[tuple[str, str]]:
        """The task type determines which inputs are allowed."""
        task_type = given.get("task_type")
        where = f"TASK_TYPE_{task_type}"
        video = task_type in VIDEO_TASKS
        if task_type in TASK_TYPES:
            least, most = (0, 0) if task_type == "TXT2IMG" else (1, 1) if video else (1, 10)
            yield from count_rule("file_urls", given, least, most, where)
        if "ow" in given and task_type != "OMNI_REFERENCE":
            yield "ow", "must be unset without TASK_TYPE_OMNI_REFERENCE"
        for field in ("video_batch_size", "motion"):
            if field in given and not video:
                yield field, "must be unset without TASK_TYPE_VIDEO or TASK_TYPE_VIDEO_HD"


def body(params: Params) -> dict[str, Any]:
    """Return the body, without nesting, and with the motion that a video requires."""
    assert isinstance(params, Midjourney)
    wire = params.wire()
    if params.task_type in VIDEO_TASKS:
        wire.setdefault("motion", MOTIONS["HIGH"])
    return wire


def read(envelope: Envelope) -> Poll:
    """Read a record: its results are in `resultInfoJson`, an object despite its name."""
    return read_flagged(envelope, "resultInfoJson")


ADAPTER = Adapter(
    name="midjourney",
    params=Midjourney,
    create_path="/api/v1/mj/generate",
    record_path="/api/v1/mj/record-info",
    body=body,
    read=read,
    typical_max_seconds=313,
)
