"""Which requests the simulator accepts as orders: as documented, and as real clients send them.

Lenient where clients are known to differ: unknown keys are ignored, an empty value counts as
absent, `aspectRatio` means `aspect_ratio`, `fileUrl` means `fileUrls`. Types are strict in a
jobs order, as in recorded traffic: `2` is refused where `"2"` is expected, and the reverse. Veo and
Midjourney also accept a number as a string, as nothing is known of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from providers.kie.simulator.media import size_of
from providers.kie.simulator.models import MODELS, Model
from providers.kie.simulator.rules import (
    FLAG,
    INVALID,
    STORY,
    URL,
    WHOLE,
    BadFieldError,
    Body,
    RefusedError,
    Rule,
    check,
    choice,
    option,
    text,
    url_list,
    whole,
)

VEO_PROMPT_MAX_CHARACTERS: Final = 100_000
"""No limit is documented; this one only keeps a task small."""
SEED_MAX_CHARACTERS: Final = 500
FRAMES_MAX: Final = 2
"""First and last."""
UNKNOWN_MODEL: Final = (
    "The model name you specified is not supported. Please verify your input and use one of the "
    "supported models provided by KIE."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An accepted order: what to generate, and for whom.

    Attributes:
        model: what is ordered.
        body: the request as it came.
        results: how many images or videos a success delivers.
        size: width and height in pixels of an image.
        source_id: the task that this one extends, varies or upscales.
        only_id: the id of the task if the order can be placed only once.
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
        source = self.body.get("input", {}) if self.model.api == "jobs" else self.body
        prompt = source.get("prompt")
        return prompt if isinstance(prompt, str) else ""


IMAGEN4: Final = {
    "prompt": text(5_000),
    "negative_prompt": text(5_000),
    "aspect_ratio": option("1:1", "16:9", "9:16", "3:4", "4:3", "auto"),
    "num_images": option("1", "2", "3", "4"),
    "seed": text(SEED_MAX_CHARACTERS),
}
IMAGEN4_FAST: Final = {**IMAGEN4, "seed": WHOLE}
SORA2: Final = {
    "prompt": text(10_000),
    "aspect_ratio": option("portrait", "landscape"),
    "n_frames": option("10", "15"),
    "size": option("standard", "high"),
    "remove_watermark": FLAG,
    "upload_method": option("s3", "oss"),
    "image_urls": url_list(1),
}
STORYBOARD: Final = {**SORA2, "n_frames": option("10", "15", "25"), "shots": STORY}
WATERMARK_REMOVER: Final = {"video_url": URL, "upload_method": option("s3", "oss")}
JOBS_INPUTS: Final[Mapping[str, tuple[Mapping[str, Rule], tuple[str, ...]]]] = {
    # model: (the rules of its input, what is required)
    "google/imagen4-fast": (IMAGEN4_FAST, ("prompt",)),
    "google/imagen4": (IMAGEN4, ("prompt",)),
    "google/imagen4-ultra": (IMAGEN4, ("prompt",)),
    "sora-2-text-to-video": (SORA2, ("prompt",)),
    "sora-2-image-to-video": (SORA2, ("prompt", "image_urls")),
    "sora-2-pro-text-to-video": (SORA2, ("prompt",)),
    "sora-2-pro-image-to-video": (SORA2, ("prompt", "image_urls")),
    "sora-2-pro-storyboard": (STORYBOARD, ()),
    "sora-watermark-remover": (WATERMARK_REMOVER, ("video_url",)),
}
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


def jobs_order(body: Body) -> Order:
    """Return an order of jobs/createTask: `{model, input, callBackUrl?, progressCallBackUrl?}`.

    Raises:
        BadFieldError: with the first rule that is broken.
        RefusedError: 422 for an unknown model.
    """
    name = body.get("model")
    if not isinstance(name, str) or name not in JOBS_INPUTS:
        raise RefusedError(INVALID, UNKNOWN_MODEL)
    check(body, {"callBackUrl": URL, "progressCallBackUrl": URL})
    wanted = body.get("input") or {}
    if not isinstance(wanted, dict):
        raise BadFieldError("input must be an object")
    rules, required = JOBS_INPUTS[name]
    check(wanted, rules, required)
    default_ratio = "16:9" if name == "google/imagen4-fast" else "1:1"
    return Order(
        model=MODELS[name],
        body=body,
        results=int(wanted.get("num_images") or 1),
        size=size_of(wanted.get("aspect_ratio") or default_ratio),
    )


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
