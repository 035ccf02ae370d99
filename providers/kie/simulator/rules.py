"""What the simulator accepts as an order, as the documents say and as real clients send it.

Lenient where clients are known to differ: unknown keys are ignored, an empty value counts as
absent, `aspectRatio` stands for `aspect_ratio`, `fileUrl` for `fileUrls`. Types are strict in a
jobs order, as seen live: `2` is refused where `"2"` is wanted, and the reverse. Veo and Midjourney
take a number as a string, too, as nothing is known of them.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from providers.kie.simulated.media import size_of
from providers.kie.simulated.models import MODELS, Model

Body = Mapping[str, Any]

INVALID: Final = 422
URL_MAX_CHARACTERS: Final = 2_048
VEO_PROMPT_MAX_CHARACTERS: Final = 100_000
"""None is documented; this only keeps a task small."""
SEED_MAX_CHARACTERS: Final = 500
SHOTS_MAX: Final = 10
SHOT_MIN_SECONDS: Final = 0.1
SHOT_MAX_SECONDS: Final = 15
FRAMES_MAX: Final = 2
"""First and last."""
TASK_ID: Final = re.compile(r"[0-9a-f]{32}")


class RefusedError(Exception):
    """A request that is answered with an error code, and for which nothing is bought."""

    def __init__(self, code: int, msg: str, data: object = None) -> None:
        super().__init__(msg)
        self.code = code
        self.msg = msg
        self.data = data


class BadFieldError(RefusedError):
    """A field that breaks a rule. Live, the jobs API answers both 422 and 500 to that."""

    def __init__(self, msg: str) -> None:
        super().__init__(INVALID, msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An accepted order: what is to be made, and for whom.

    Attributes:
        model: what is bought.
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
        """Where the end of the task is told, if anywhere."""
        return self.body.get("callBackUrl") or None

    @property
    def prompt(self) -> str:
        """The prompt, which may hold directives to the simulator; empty if there is none."""
        source = self.body.get("input", {}) if self.model.api == "jobs" else self.body
        prompt = source.get("prompt")
        return prompt if isinstance(prompt, str) else ""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a field must be, in words and as a test; `words` may hold the field's `{name}`."""

    words: str
    holds: Callable[[Any], bool]


NOT_ALLOWED: Final = "{name} is not within the range of allowed options"
TOO_LONG: Final = "The text length cannot exceed the maximum limit"
REQUIRED: Final = "This field is required"
UNKNOWN_MODEL: Final = (
    "The model name you specified is not supported. Please verify your input and use one of the "
    "supported models provided by KIE."
)


def text(longest: int) -> Rule:
    """A string of at most `longest` characters."""
    return Rule(TOO_LONG, lambda value: isinstance(value, str) and len(value) <= longest)


def choice(*allowed: str) -> Rule:
    """One of `allowed`; where that reads as a number, a number will do."""
    return Rule(
        NOT_ALLOWED,
        lambda value: isinstance(value, str | int | float) and str(value) in allowed,
    )


def option(*allowed: str) -> Rule:
    """One of `allowed`, and a string."""
    return Rule(NOT_ALLOWED, lambda value: isinstance(value, str) and value in allowed)


def whole(low: int, high: int) -> Rule:
    """A whole number within limits."""
    return Rule(
        f"{{name}} must be a whole number from {low} to {high}",
        lambda value: _is_whole(value) and low <= value <= high,
    )


def url_list(most: int) -> Rule:
    """A list of at most `most` http(s) URLs."""
    return Rule(
        f"{{name}} must be a list of at most {most} http(s) URLs",
        lambda value: isinstance(value, list) and len(value) <= most and all(map(is_url, value)),
    )


def is_url(value: object) -> bool:
    """Whether `value` is an absolute http(s) URL of a bearable length."""
    if not isinstance(value, str) or len(value) > URL_MAX_CHARACTERS:
        return False
    try:
        parts = urlsplit(value)
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


FLAG: Final = Rule("{name} must be true or false", lambda value: isinstance(value, bool))
URL: Final = Rule("{name} must be an http(s) URL", is_url)
STORY: Final = Rule(
    f"{{name}} must be at most {SHOTS_MAX} shots, each with a Scene and a duration of"
    f" {SHOT_MIN_SECONDS} to {SHOT_MAX_SECONDS} seconds",
    lambda value: isinstance(value, list) and len(value) <= SHOTS_MAX and all(map(_is_shot, value)),
)


def _is_shot(shot: object) -> bool:
    if not isinstance(shot, dict) or not isinstance(shot.get("Scene"), str):
        return False
    duration = shot.get("duration")
    return isinstance(duration, int | float) and SHOT_MIN_SECONDS <= duration <= SHOT_MAX_SECONDS


IMAGEN4: Final = {
    "prompt": text(5_000),
    "negative_prompt": text(5_000),
    "aspect_ratio": option("1:1", "16:9", "9:16", "3:4", "4:3", "auto"),
    "num_images": option("1", "2", "3", "4"),
    "seed": text(SEED_MAX_CHARACTERS),
}
IMAGEN4_FAST: Final = {**IMAGEN4, "seed": Rule("{name} must be a whole number", _is_whole)}
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
    """An order of jobs/createTask: `{model, input, callBackUrl?, progressCallBackUrl?}`.

    Raises:
        BadFieldError: with the first rule that is broken.
        RefusedError: 422 for a model that there is not.
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
    """An order of veo/generate.

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
    """The generation type, derived from the number of images if it is absent."""
    images = len(body.get("imageUrls") or [])
    if named := body.get("generationType"):
        return str(named)
    if not images:
        return "TEXT_2_VIDEO"
    return "REFERENCE_2_VIDEO" if images > FRAMES_MAX else "FIRST_AND_LAST_FRAMES_2_VIDEO"


def veo_aspect_ratio(body: Body) -> str:
    """The aspect ratio under either of its two names."""
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
    """An order of veo/extend."""
    check(body, VEO_EXTEND, required=("taskId", "prompt"))
    return Order(model=MODELS["veo_extend"], body=body, source_id=body["taskId"])


def mj_order(body: Body) -> Order:
    """An order of mj/generate.

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
    """An order of mj/generateUpscale: one image of a finished task, larger."""
    check(body, MJ_FROM_IMAGE, required=("taskId", "imageIndex"))
    return Order(model=MODELS["mj_upscale"], body=body, source_id=body["taskId"], size=(1024, 1024))


def mj_vary_order(body: Body) -> Order:
    """An order of mj/generateVary: variations of one image of a finished task."""
    check(body, MJ_FROM_IMAGE, required=("taskId", "imageIndex"))
    return Order(
        model=MODELS["mj_vary"],
        body=body,
        source_id=body["taskId"],
        results=MJ_IMAGES_PER_TASK,
    )


def mj_extend_order(body: Body) -> Order:
    """An order of mj/generateVideoExtend."""
    check(body, MJ_EXTEND, required=("taskId", "taskType"))
    return Order(model=MODELS[body["taskType"]], body=body, source_id=body["taskId"])


def check(body: Body, rules: Mapping[str, Rule], required: tuple[str, ...] = ()) -> None:
    """Hold the fields of `body` against `rules`.

    Raises:
        BadFieldError: with the first rule that is broken.
    """
    for name in required:
        if _is_blank(body.get(name)):
            raise BadFieldError(REQUIRED)
    for name, rule in rules.items():
        value = body.get(name)
        if not _is_absent(value) and not rule.holds(value):
            raise BadFieldError(rule.words.format(name=name))


def _is_absent(value: object) -> bool:
    return value is None or value in ("", [])


def _is_blank(value: object) -> bool:
    return _is_absent(value) or (isinstance(value, str) and not value.strip())


def model_named_in(path: str, body: Body) -> Model | None:
    """The model that a create request is about, as far as it can be told before it is checked."""
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
