"""What an order is, and which requests Veo and Midjourney accept as orders.

As documented, and as real clients send them: unknown keys are ignored, an empty value counts as
absent, `aspectRatio` means `aspect_ratio`, `fileUrl` means `fileUrls`, and a number is accepted as
a string, as nothing is known of the types here. The orders of the jobs API are in `jobs`.
"""

from dataclasses import dataclass
from typing import Final

from providers.kie.simulator.media import size_of
from providers.kie.simulator.models import MODELS, Model
from providers.kie.simulator.rules import (
    FLAG,
    INVALID,
    URL,
    Body,
    RefusedError,
    check,
    choice,
    text,
    url_list,
    whole,
)

VEO_PROMPT_MAX_CHARACTERS: Final = 100_000
"""No limit is documented; this one only keeps a task small."""
FRAMES_MAX: Final = 2
"""First and last."""
PROMPT_FIELDS: Final = ("prompt", "text", "content", "title")
"""Where an order of the jobs API has its prompt, the first that is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An accepted order: what to generate, and for whom.

    Attributes:
        model: What is ordered.
        body: The request as it came.
        results: How many images or videos a success delivers.
        size: Width and height in pixels of an image.
        source_id: The task that this one extends, varies or upscales.
        only_id: The id of the task if the order can be placed only once.
    """

    model: Model
    body: Body
    results: int = 1
    size: tuple[int, int] = (512, 512)
    source_id: str | None = None
    only_id: str | None = None

    @property
    def callback_url(self) -> str | None:
        """Where the end of the task is reported, if anywhere."""
        return self.body.get("callBackUrl") or None

    @property
    def prompt(self) -> str:
        """The prompt, which may contain directives to the simulator; empty if there is none."""
        if self.model.api != "jobs":
            return str(self.body.get("prompt") or "")
        wanted = self.body.get("input") or {}
        given = (wanted.get(name) for name in PROMPT_FIELDS)
        return next((value for value in given if isinstance(value, str)), "")


VEO: Final = {
    "prompt": text(VEO_PROMPT_MAX_CHARACTERS),
    "imageUrls": url_list(3),
    "generationType": choice("TEXT_2_VIDEO", "FIRST_AND_LAST_FRAMES_2_VIDEO", "REFERENCE_2_VIDEO"),
    "aspect_ratio": choice("16:9", "9:16", "Auto"),
    "aspectRatio": choice("16:9", "9:16", "Auto"),
    "seeds": whole(10_000, 99_999),
    "watermark": text(100),
    "enableFallback": FLAG,
    "enableTranslation": FLAG,
    "resolution": choice("720p", "1080p", "4k"),
    "duration": choice("4", "6", "8"),
    "callBackUrl": URL,
}
VEO_EXTEND: Final = {
    "taskId": text(100),
    "prompt": text(VEO_PROMPT_MAX_CHARACTERS),
    "seeds": whole(10_000, 99_999),
    "model": choice("fast", "quality", "lite"),
    "watermark": text(100),
    "callBackUrl": URL,
}
VEO_4K: Final = {"taskId": text(100), "index": whole(0, 3), "callBackUrl": URL}
MJ_TASK_TYPES: Final = (
    "mj_txt2img",
    "mj_img2img",
    "mj_style_reference",
    "mj_omni_reference",
    "mj_video",
    "mj_video_hd",
)
MJ_VIDEO_TASK_TYPES: Final = ("mj_video", "mj_video_hd")
MJ: Final = {
    "taskType": choice(*MJ_TASK_TYPES),
    "prompt": text(2_000),
    "speed": choice("relaxed", "fast", "turbo"),
    "fileUrl": URL,
    "fileUrls": url_list(10),
    "aspectRatio": choice(
        "1:2", "9:16", "2:3", "3:4", "5:6", "6:5", "4:3", "3:2", "1:1", "16:9", "2:1"
    ),
    "version": choice("7", "6.1", "6", "5.2", "5.1", "niji6"),
    "variety": whole(0, 100),
    "stylization": whole(0, 1_000),
    "weirdness": whole(0, 3_000),
    "ow": whole(1, 1_000),
    "waterMark": text(100),
    "enableTranslation": FLAG,
    "videoBatchSize": choice("1", "2", "4"),
    "motion": choice("high", "low"),
    "callBackUrl": URL,
}
MJ_FROM_IMAGE: Final = {
    "taskId": text(100),
    "imageIndex": whole(0, 3),
    "waterMark": text(100),
    "callBackUrl": URL,
}
MJ_EXTEND: Final = {
    "taskId": text(100),
    "taskType": choice("mj_video_extend_manual", "mj_video_extend_auto"),
    "index": whole(0, 3),
    "prompt": text(2_000),
    "callBackUrl": URL,
}
MJ_IMAGES_PER_TASK: Final = 4


def veo_order(body: Body) -> Order:
    """Return an order of veo/generate.

    Raises:
        RefusedError: 422 with the first rule that is broken.
    """
    check(body, {"model": choice("veo3", "veo3_fast", "veo3_lite")})
    check(body, VEO, required=("prompt",))
    model = MODELS[body.get("model") or "veo3_fast"]
    images = len(body.get("imageUrls") or [])
    match veo_generation_type(body):
        case "TEXT_2_VIDEO" if images:
            raise RefusedError(INVALID, "TEXT_2_VIDEO takes no imageUrls")
        case "FIRST_AND_LAST_FRAMES_2_VIDEO" if not 1 <= images <= FRAMES_MAX:
            raise RefusedError(INVALID, "FIRST_AND_LAST_FRAMES_2_VIDEO takes 1 or 2 imageUrls")
        case "REFERENCE_2_VIDEO":
            _check_reference(model, images, body)
        case _:
            pass
    return Order(model=model, body=body)


def veo_generation_type(body: Body) -> str:
    """Return the generation type, derived from the number of images if it is absent."""
    images = len(body.get("imageUrls") or [])
    if named := body.get("generationType"):
        return str(named)
    if not images:
        return "TEXT_2_VIDEO"
    return "REFERENCE_2_VIDEO" if images > FRAMES_MAX else "FIRST_AND_LAST_FRAMES_2_VIDEO"


def veo_aspect_ratio(body: Body) -> str:
    """Return the aspect ratio under either of its two names."""
    return str(body.get("aspect_ratio") or body.get("aspectRatio") or "16:9")


def _check_reference(model: Model, images: int, body: Body) -> None:
    if model.name == "veo3":
        raise RefusedError(INVALID, "REFERENCE_2_VIDEO needs model veo3_fast or veo3_lite")
    if not images:
        raise RefusedError(INVALID, "REFERENCE_2_VIDEO takes 1 to 3 imageUrls")
    if veo_aspect_ratio(body) == "Auto":
        raise RefusedError(INVALID, "REFERENCE_2_VIDEO needs aspect_ratio 16:9 or 9:16")
    if str(body.get("duration") or 8) != "8":
        raise RefusedError(INVALID, "REFERENCE_2_VIDEO needs duration 8")


def veo_extend_order(body: Body) -> Order:
    """Return an order of veo/extend."""
    check(body, VEO_EXTEND, required=("taskId", "prompt"))
    return Order(model=MODELS["veo_extend"], body=body, source_id=body["taskId"])


def mj_order(body: Body) -> Order:
    """Return an order of mj/generate.

    Raises:
        RefusedError: 422 with the first rule that is broken.
    """
    check(body, MJ, required=("taskType", "prompt"))
    task_type = body["taskType"]
    files = len(body.get("fileUrls") or [u for u in (body.get("fileUrl"),) if u])
    if task_type in MJ_VIDEO_TASK_TYPES and files != 1:
        raise RefusedError(INVALID, f"{task_type} takes exactly 1 of fileUrls")
    if task_type != "mj_txt2img" and not files:
        raise RefusedError(INVALID, f"fileUrls is required for {task_type}")
    videos = int(body.get("videoBatchSize") or 1)
    return Order(
        model=MODELS[task_type],
        body=body,
        results=videos if task_type in MJ_VIDEO_TASK_TYPES else MJ_IMAGES_PER_TASK,
        size=size_of(body.get("aspectRatio") or "1:1"),
    )


def mj_upscale_order(body: Body) -> Order:
    """Return an order of mj/generateUpscale: one image of a finished task, larger."""
    check(body, MJ_FROM_IMAGE, required=("taskId", "imageIndex"))
    return Order(model=MODELS["mj_upscale"], body=body, source_id=body["taskId"], size=(1024, 1024))


def mj_vary_order(body: Body) -> Order:
    """Return an order of mj/generateVary: variations of one image of a finished task."""
    check(body, MJ_FROM_IMAGE, required=("taskId", "imageIndex"))
    return Order(
        model=MODELS["mj_vary"],
        body=body,
        source_id=body["taskId"],
        results=MJ_IMAGES_PER_TASK,
    )


def mj_extend_order(body: Body) -> Order:
    """Return an order of mj/generateVideoExtend."""
    check(body, MJ_EXTEND, required=("taskId", "taskType"))
    return Order(model=MODELS[body["taskType"]], body=body, source_id=body["taskId"])


def model_named_in(path: str, body: Body) -> Model | None:
    """Return the model of a create request, or None if it names none that exists."""
    last = path.rpartition("/")[2]
    if path.startswith("/api/v1/veo"):
        name = body.get("model") or "veo3_fast"
        name = {"extend": "veo_extend", "get-4k-video": "veo_4k"}.get(last, name)
    elif path.startswith("/api/v1/mj"):
        name = body.get("taskType") or "mj_txt2img"
        followups = {"generateUpscale": "mj_upscale", "generateVary": "mj_vary"}
        name = followups.get(last, name)
    else:
        name = body.get("model")
    return MODELS.get(name) if isinstance(name, str) else None
