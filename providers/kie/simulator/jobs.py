"""Orders of the jobs API: those of the models with their own rules, and those of all others.

As in recorded traffic, unknown keys are ignored, and an empty value counts as absent. Types
are strict: `2` is refused where `"2"` is expected, and the reverse.
"""

from collections.abc import Mapping
from typing import Final

from providers.kie.simulator.facts import all_facts
from providers.kie.simulator.inputs import check_input
from providers.kie.simulator.media import size_of
from providers.kie.simulator.models import MARKET, MODELS, Model
from providers.kie.simulator.orders import Order
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
    option,
    text,
    url_list,
)

SEED_MAX_CHARACTERS: Final = 500
SIZE_FIELDS: Final = ("aspect_ratio", "image_size", "ratio", "size")
COUNT_FIELDS: Final = ("num_images", "max_images", "n")
RESULTS_MAX: Final = 15
SONGS_PER_TASK: Final = 2
UNKNOWN_MODEL: Final = (
    "The model name you specified is not supported. Please verify your input and use one of the "
    "supported models provided by KIE."
)

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


def jobs_order(body: Body) -> Order:
    """Return an order of jobs/createTask: `{model, input, callBackUrl?, progressCallBackUrl?}`.

    Raises:
        BadFieldError: With the first rule that is broken.
        RefusedError: 422 for an unknown model.
    """
    name = body.get("model")
    model = MODELS.get(name) if isinstance(name, str) else None
    if model is None or model.api != "jobs":
        raise RefusedError(INVALID, UNKNOWN_MODEL)
    check(body, {"callBackUrl": URL, "progressCallBackUrl": URL})
    wanted = body.get("input") or {}
    if not isinstance(wanted, dict):
        raise BadFieldError("input must be an object")
    if model.family == MARKET:
        return _market_order(model, body, wanted)
    rules, required = JOBS_INPUTS[model.name]
    check(wanted, rules, required)
    default_ratio = "16:9" if name == "google/imagen4-fast" else "1:1"
    return Order(
        model=model,
        body=body,
        results=int(wanted.get("num_images") or 1),
        size=size_of(wanted.get("aspect_ratio") or default_ratio),
    )


def _market_order(model: Model, body: Body, wanted: Body) -> Order:
    """Return an order of a model of which only the published facts are known."""
    check_input(all_facts()[model.name], wanted)
    sizes = (wanted.get(name) for name in SIZE_FIELDS)
    return Order(
        model=model,
        body=body,
        results=_files_wanted(model, wanted),
        size=size_of(next((size for size in sizes if isinstance(size, str)), "1:1")),
    )


def _files_wanted(model: Model, wanted: Body) -> int:
    """Return how many files an order of a market model delivers."""
    if model.result == "object":
        return 0
    if model.result == "audio":
        return SONGS_PER_TASK
    given = (str(wanted.get(name)) for name in COUNT_FIELDS)
    number = next((int(text) for text in given if text.isdecimal() and text.isascii()), 1)
    return max(1, min(number, RESULTS_MAX))
