"""The rules of parameters: a row for each field of each kind of task.

A row puts values into one field of a minimal message. Each accepted value must reach the
provider as the row says, with the rest of the body unchanged; each refused one must be named by
its path, and cost no call at the provider.
"""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

SMILE = "\U0001f600"  # one code point, two UTF-16 units, four bytes
BLANK = " \t\r\n\u00a0\u3000"
URL = "https://files.example/a.png"
IMAGE = [URL]
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
NOT_SENT = object()


@dataclass(frozen=True)
class Values:
    """What a field may be, as (given, sent), and what it may not."""

    accepted: tuple[tuple[Any, Any], ...]
    refused: tuple[Any, ...]


@dataclass(frozen=True)
class Minimal:
    """The least that a kind of task needs, and the body that it becomes."""

    params: dict[str, Any]
    body: dict[str, Any]


@dataclass(frozen=True)
class Rule:
    """A row of the table: a field of a kind of task, its name on the wire, its values."""

    kind: str
    field: str
    wire: str
    values: Values

    def __str__(self) -> str:
        return f"{self.kind}-{self.field}"

    @property
    def model(self) -> str:
        return model_of(self.kind)

    @property
    def path(self) -> str:
        return f"provider_params.kie.{self.model}.{self.field}"

    def params(self, given: Any) -> dict[str, Any]:
        return {self.model: {**MINIMAL[self.kind].params, self.field: given}}

    def body(self, sent: Any) -> dict[str, Any]:
        body = deepcopy(MINIMAL[self.kind].body)
        *outer, name = self.wire.split(".")
        holder = body[outer[0]] if outer else body
        holder.pop(name, None)
        if sent is not NOT_SENT:
            holder[name] = sent
        return body


def model_of(kind: str) -> str:
    return kind.partition(" ")[0]


# --- kinds of values ---


def same(*values: Any) -> tuple[tuple[Any, Any], ...]:
    return tuple((value, value) for value in values)


def prompt(most: int) -> Values:
    """Text that is required."""
    some = text(most)
    return Values(some.accepted[1:], ("", BLANK, *some.refused))


def text(most: int) -> Values:
    """Text that is not: empty is unset."""
    longest = ("x" * most, SMILE * most)
    return Values(
        (("", NOT_SENT), *same("x", f"猫 {SMILE}\n", *longest)),
        (*(value + "x" for value in longest), "a\0b", "\0"),
    )


def choice(*allowed: str, refused: Iterable[str] = (), unset: Any = NOT_SENT) -> Values:
    """One of some words, exactly."""
    nearly = [f" {allowed[0]}", f"{allowed[0]}\0", f"{allowed[-1]}x", "no"]
    return Values((("", unset), *same(*allowed)), (*nearly, *refused))


def enum(prefix: str, unset: Any, /, **sent: str) -> Values:
    """Values of an enum; the number after its last name is unknown."""
    named = ((prefix + name, word) for name, word in sent.items())
    return Values(((0, unset), *named), (99, -1))


def number(least: int, most: int) -> Values:
    """A number that is optional, so that zero is a value."""
    middle = (least + most) // 2
    return Values(same(least, middle, most), (least - 1, most + 1, INT32_MIN, INT32_MAX))


def urls(least: int, most: int) -> Values:
    """How many URLs there are."""
    counts = {least, (least + most) // 2, most}
    accepted = [[f"{URL}?{i}" for i in range(count)] for count in sorted(counts)]
    too_few = [[URL] * (least - 1)] if least else []
    return Values(
        tuple((some, some or NOT_SENT) for some in accepted), (*too_few, [URL] * (most + 1))
    )


def never(*refused: Any) -> Values:
    """No value at all: the field belongs to other kinds of tasks."""
    return Values((), refused)


FLAG = Values(same(True, False), ())

# --- the kinds of tasks, with nothing set that can be left out ---

IMAGEN4_ALWAYS = {"prompt": "p", "aspect_ratio": "1:1"}
MINIMAL = {
    "imagen4": Minimal({"prompt": "p"}, {"model": "google/imagen4-fast", "input": IMAGEN4_ALWAYS}),
    "imagen4 STANDARD": Minimal(
        {"prompt": "p", "api_model": "API_MODEL_STANDARD"},
        {"model": "google/imagen4", "input": IMAGEN4_ALWAYS},
    ),
    "imagen4 ULTRA": Minimal(
        {"prompt": "p", "api_model": "API_MODEL_ULTRA"},
        {"model": "google/imagen4-ultra", "input": IMAGEN4_ALWAYS},
    ),
    "midjourney TXT2IMG": Minimal(
        {"prompt": "p", "task_type": "TASK_TYPE_TXT2IMG"},
        {"prompt": "p", "taskType": "mj_txt2img"},
    ),
    "midjourney IMG2IMG": Minimal(
        {"prompt": "p", "task_type": "TASK_TYPE_IMG2IMG", "file_urls": IMAGE},
        {"prompt": "p", "taskType": "mj_img2img", "fileUrls": IMAGE},
    ),
    "midjourney STYLE_REFERENCE": Minimal(
        {"prompt": "p", "task_type": "TASK_TYPE_STYLE_REFERENCE", "file_urls": IMAGE},
        {"prompt": "p", "taskType": "mj_style_reference", "fileUrls": IMAGE},
    ),
    "midjourney OMNI_REFERENCE": Minimal(
        {"prompt": "p", "task_type": "TASK_TYPE_OMNI_REFERENCE", "file_urls": IMAGE},
        {"prompt": "p", "taskType": "mj_omni_reference", "fileUrls": IMAGE},
    ),
    "midjourney VIDEO": Minimal(
        {"prompt": "p", "task_type": "TASK_TYPE_VIDEO", "file_urls": IMAGE},
        {"prompt": "p", "taskType": "mj_video", "fileUrls": IMAGE, "motion": "high"},
    ),
    "midjourney VIDEO_HD": Minimal(
        {"prompt": "p", "task_type": "TASK_TYPE_VIDEO_HD", "file_urls": IMAGE},
        {"prompt": "p", "taskType": "mj_video_hd", "fileUrls": IMAGE, "motion": "high"},
    ),
    "veo3": Minimal({"prompt": "p"}, {"prompt": "p", "model": "veo3_fast"}),
    "veo3 TEXT": Minimal(
        {"prompt": "p", "generation_type": "GENERATION_TYPE_TEXT_2_VIDEO"},
        {"prompt": "p", "model": "veo3_fast", "generationType": "TEXT_2_VIDEO"},
    ),
    "veo3 FIRST_AND_LAST": Minimal(
        {
            "prompt": "p",
            "generation_type": "GENERATION_TYPE_FIRST_AND_LAST_FRAMES_2_VIDEO",
            "image_urls": IMAGE,
        },
        {
            "prompt": "p",
            "model": "veo3_fast",
            "generationType": "FIRST_AND_LAST_FRAMES_2_VIDEO",
            "imageUrls": IMAGE,
        },
    ),
    "veo3 REFERENCE": Minimal(
        {
            "prompt": "p",
            "generation_type": "GENERATION_TYPE_REFERENCE_2_VIDEO",
            "image_urls": IMAGE,
        },
        {
            "prompt": "p",
            "model": "veo3_fast",
            "generationType": "REFERENCE_2_VIDEO",
            "imageUrls": IMAGE,
        },
    ),
}
SORA2_ALWAYS = {
    "prompt": "p",
    "aspect_ratio": "landscape",
    "n_frames": "10",
    "upload_method": "s3",
}
MINIMAL |= {
    "sora2": Minimal({"prompt": "p"}, {"model": "sora-2-text-to-video", "input": SORA2_ALWAYS}),
    "sora2 IMAGE": Minimal(
        {"prompt": "p", "api_model": "API_MODEL_IMAGE_TO_VIDEO", "image_urls": IMAGE},
        {"model": "sora-2-image-to-video", "input": SORA2_ALWAYS | {"image_urls": IMAGE}},
    ),
    "sora2 PRO_TEXT": Minimal(
        {"prompt": "p", "api_model": "API_MODEL_PRO_TEXT_TO_VIDEO"},
        {"model": "sora-2-pro-text-to-video", "input": SORA2_ALWAYS},
    ),
    "sora2 PRO_IMAGE": Minimal(
        {"prompt": "p", "api_model": "API_MODEL_PRO_IMAGE_TO_VIDEO", "image_urls": IMAGE},
        {"model": "sora-2-pro-image-to-video", "input": SORA2_ALWAYS | {"image_urls": IMAGE}},
    ),
}
MJ_IMAGES_OF_IMAGES = ("IMG2IMG", "STYLE_REFERENCE", "OMNI_REFERENCE")
MJ_IMAGES = ("TXT2IMG", *MJ_IMAGES_OF_IMAGES)
MJ_VIDEOS = ("VIDEO", "VIDEO_HD")

# --- the table: kind, field, name on the wire, values ---

IMAGEN4 = [
    Rule(
        "imagen4",
        "api_model",
        "model",
        enum(
            "API_MODEL_",
            "google/imagen4-fast",
            FAST="google/imagen4-fast",
            STANDARD="google/imagen4",
            ULTRA="google/imagen4-ultra",
        ),
    ),
    Rule("imagen4", "prompt", "input.prompt", prompt(5_000)),
    Rule("imagen4", "negative_prompt", "input.negative_prompt", text(5_000)),
    Rule(
        "imagen4",
        "aspect_ratio",
        "input.aspect_ratio",
        choice(
            *("1:1", "16:9", "9:16", "3:4", "4:3", "auto"),
            refused=("Auto", "2:1", "16/9"),
            unset="1:1",
        ),
    ),
    *(
        Rule(
            kind,
            "num_images",
            "input.num_images",
            Values(
                ((0, NOT_SENT), (1, NOT_SENT), (2, "2"), (3, "3"), (4, "4")),
                (-1, 5, INT32_MIN, INT32_MAX),
            ),
        )
        for kind in ("imagen4", "imagen4 STANDARD")
    ),
    Rule(
        "imagen4 ULTRA",
        "num_images",
        "input.num_images",
        Values(((0, NOT_SENT), (1, NOT_SENT)), (-1, 2, 3, 4)),
    ),
    Rule(
        "imagen4",
        "seed",
        "input.seed",
        Values(same(0, 42, 2**31 - 1), (-1, 2**31, -(2**63), 2**63 - 1)),
    ),
    *(
        Rule(
            kind,
            "seed",
            "input.seed",
            Values(((0, "0"), (42, "42"), (2**31 - 1, "2147483647")), (-1, 2**31)),
        )
        for kind in ("imagen4 STANDARD", "imagen4 ULTRA")
    ),
]

MIDJOURNEY = [
    Rule(
        "midjourney TXT2IMG",
        "task_type",
        "taskType",
        Values((("TASK_TYPE_TXT2IMG", "mj_txt2img"),), (0, 7, 99, -1)),
    ),
    Rule("midjourney TXT2IMG", "prompt", "prompt", prompt(2_000)),
    Rule("midjourney TXT2IMG", "file_urls", "fileUrls", urls(0, 0)),
    *(
        Rule(f"midjourney {kind}", "file_urls", "fileUrls", urls(1, 10))
        for kind in MJ_IMAGES_OF_IMAGES
    ),
    *(Rule(f"midjourney {kind}", "file_urls", "fileUrls", urls(1, 1)) for kind in MJ_VIDEOS),
    Rule(
        "midjourney TXT2IMG",
        "speed",
        "speed",
        enum("SPEED_", NOT_SENT, RELAXED="relaxed", FAST="fast", TURBO="turbo"),
    ),
    Rule(
        "midjourney TXT2IMG",
        "aspect_ratio",
        "aspectRatio",
        choice(
            *("1:2", "9:16", "2:3", "3:4", "5:6", "6:5", "4:3", "3:2", "1:1", "16:9", "2:1"),
            refused=("auto", "Auto", "16/9"),
        ),
    ),
    Rule(
        "midjourney TXT2IMG",
        "version",
        "version",
        choice("7", "6.1", "6", "5.2", "5.1", "niji6", refused=("5", "7.0", "8", "niji5", "NIJI6")),
    ),
    Rule("midjourney TXT2IMG", "variety", "variety", number(0, 100)),
    Rule("midjourney TXT2IMG", "stylization", "stylization", number(0, 1_000)),
    Rule("midjourney TXT2IMG", "weirdness", "weirdness", number(0, 3_000)),
    Rule("midjourney OMNI_REFERENCE", "ow", "ow", number(1, 1_000)),
    *(
        Rule(f"midjourney {kind}", "ow", "ow", never(1, 500, 1_000))
        for kind in (*MJ_IMAGES, *MJ_VIDEOS)
        if kind != "OMNI_REFERENCE"
    ),
    Rule("midjourney TXT2IMG", "watermark", "waterMark", text(100)),
    Rule("midjourney TXT2IMG", "enable_translation", "enableTranslation", FLAG),
    *(
        Rule(
            f"midjourney {kind}",
            "video_batch_size",
            "videoBatchSize",
            Values(((0, NOT_SENT), *same(1, 2, 4)), (-1, 3, 5, INT32_MIN, INT32_MAX)),
        )
        for kind in MJ_VIDEOS
    ),
    *(
        Rule(f"midjourney {kind}", "video_batch_size", "videoBatchSize", never(1, 2, 4))
        for kind in MJ_IMAGES
    ),
    *(
        Rule(
            f"midjourney {kind}",
            "motion",
            "motion",
            enum("MOTION_", "high", HIGH="high", LOW="low"),
        )
        for kind in MJ_VIDEOS
    ),
    *(
        Rule(f"midjourney {kind}", "motion", "motion", never("MOTION_HIGH", "MOTION_LOW"))
        for kind in MJ_IMAGES
    ),
]

VEO3 = [
    *(
        Rule(
            kind,
            "api_model",
            "model",
            enum(
                "API_MODEL_",
                "veo3_fast",
                VEO3_FAST="veo3_fast",
                VEO3="veo3",
                VEO3_LITE="veo3_lite",
            ),
        )
        for kind in ("veo3", "veo3 TEXT", "veo3 FIRST_AND_LAST")
    ),
    Rule(
        "veo3 REFERENCE",
        "api_model",
        "model",
        Values(
            (
                (0, "veo3_fast"),
                ("API_MODEL_VEO3_FAST", "veo3_fast"),
                ("API_MODEL_VEO3_LITE", "veo3_lite"),
            ),
            ("API_MODEL_VEO3", 99),
        ),
    ),
    Rule("veo3", "prompt", "prompt", prompt(5_000)),
    Rule(
        "veo3",
        "generation_type",
        "generationType",
        enum("GENERATION_TYPE_", NOT_SENT, TEXT_2_VIDEO="TEXT_2_VIDEO"),
    ),
    Rule(
        "veo3 REFERENCE",
        "generation_type",
        "generationType",
        enum(
            "GENERATION_TYPE_",
            NOT_SENT,
            FIRST_AND_LAST_FRAMES_2_VIDEO="FIRST_AND_LAST_FRAMES_2_VIDEO",
            REFERENCE_2_VIDEO="REFERENCE_2_VIDEO",
        ),
    ),
    Rule("veo3", "image_urls", "imageUrls", urls(0, 2)),
    Rule("veo3 TEXT", "image_urls", "imageUrls", urls(0, 0)),
    Rule("veo3 FIRST_AND_LAST", "image_urls", "imageUrls", urls(1, 2)),
    Rule("veo3 REFERENCE", "image_urls", "imageUrls", urls(1, 3)),
    *(
        Rule(
            kind,
            "aspect_ratio",
            "aspect_ratio",
            choice("16:9", "9:16", "Auto", refused=("auto", "1:1", "16/9")),
        )
        for kind in ("veo3", "veo3 TEXT", "veo3 FIRST_AND_LAST")
    ),
    Rule(
        "veo3 REFERENCE",
        "aspect_ratio",
        "aspect_ratio",
        choice("16:9", "9:16", refused=("Auto", "auto")),
    ),
    Rule("veo3", "seed", "seeds", number(10_000, 99_999)),
    Rule("veo3", "watermark", "watermark", text(100)),
    Rule("veo3", "enable_translation", "enableTranslation", FLAG),
    Rule(
        "veo3",
        "resolution",
        "resolution",
        choice("720p", "1080p", "4k", refused=("4K", "1080", "2160p")),
    ),
    *(
        Rule(
            kind,
            "duration_seconds",
            "duration",
            Values(((0, NOT_SENT), *same(4, 6, 8)), (-1, 1, 3, 5, 7, 9, INT32_MIN, INT32_MAX)),
        )
        for kind in ("veo3", "veo3 TEXT", "veo3 FIRST_AND_LAST")
    ),
    Rule(
        "veo3 REFERENCE",
        "duration_seconds",
        "duration",
        Values(((0, NOT_SENT), (8, 8)), (4, 6)),
    ),
]

SORA2 = [
    Rule(
        "sora2",
        "api_model",
        "model",
        enum(
            "API_MODEL_",
            "sora-2-text-to-video",
            TEXT_TO_VIDEO="sora-2-text-to-video",
            PRO_TEXT_TO_VIDEO="sora-2-pro-text-to-video",
        ),
    ),
    Rule(
        "sora2 IMAGE",
        "api_model",
        "model",
        Values(
            (
                ("API_MODEL_IMAGE_TO_VIDEO", "sora-2-image-to-video"),
                ("API_MODEL_PRO_IMAGE_TO_VIDEO", "sora-2-pro-image-to-video"),
            ),
            (99, -1),
        ),
    ),
    Rule("sora2", "prompt", "input.prompt", prompt(10_000)),
    *(
        Rule(kind, "image_urls", "input.image_urls", urls(0, 0))
        for kind in ("sora2", "sora2 PRO_TEXT")
    ),
    *(
        Rule(kind, "image_urls", "input.image_urls", urls(1, 1))
        for kind in ("sora2 IMAGE", "sora2 PRO_IMAGE")
    ),
    Rule(
        "sora2",
        "aspect_ratio",
        "input.aspect_ratio",
        enum("ASPECT_RATIO_", "landscape", LANDSCAPE="landscape", PORTRAIT="portrait"),
    ),
    Rule(
        "sora2",
        "duration_seconds",
        "input.n_frames",
        Values(((0, "10"), (10, "10"), (15, "15")), (-1, 1, 9, 11, 14, 16, 25, INT32_MAX)),
    ),
    *(
        Rule(kind, "size", "input.size", enum("SIZE_", NOT_SENT, STANDARD="standard", HIGH="high"))
        for kind in ("sora2 PRO_TEXT", "sora2 PRO_IMAGE")
    ),
    *(
        Rule(kind, "size", "input.size", never("SIZE_STANDARD", "SIZE_HIGH"))
        for kind in ("sora2", "sora2 IMAGE")
    ),
    Rule("sora2", "remove_watermark", "input.remove_watermark", FLAG),
]

RULES = [*IMAGEN4, *MIDJOURNEY, *VEO3, *SORA2]
