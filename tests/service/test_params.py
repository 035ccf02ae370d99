"""The rules of parameters, and what is sent to the provider, through a real channel.

A row of RULES puts values into one field of a minimal message. Each accepted value must reach the
provider as the row says, with the rest of the body unchanged; each refused one must be named by
its path, and cost no call at the provider.
"""

import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from generated.generation.v1 import generation_pb2 as pb
from providers.kie.simulator import Simulator
from tests.support.harness import INSTANT, Service, create_request, serving
from tests.support.refusals import refusal
from tests.support.waiting import DEADLINE_SECONDS

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

# --- creating ---


def exact(value: Any) -> str:
    """JSON text, as Python thinks that 1 == 1.0 == True."""
    return json.dumps(value, sort_keys=True, indent=1)


def brief(value: Any) -> str:
    return repr(value)[:200]


async def sent_for(service: Service, params: dict[str, Any]) -> dict[str, Any]:
    """Create a task, and return the body that the provider got."""
    try:
        created = await service.create(params)
    except grpc.aio.AioRpcError as error:
        raise AssertionError(f"{brief(params)} was refused: {error.details()}") from None
    newest = service.kie.tasks[-1]
    assert newest["id"] == created.provider_task_id
    body: dict[str, Any] = newest["body"]
    return body


@pytest.fixture(scope="module")
async def untouched(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """One service for all refusals, as they leave no trace."""
    folder = tmp_path_factory.mktemp("untouched")
    async with Simulator(INSTANT) as kie, serving(folder, kie) as running_service:
        yield running_service


async def broken_fields(service: Service, request: pb.CreateTaskRequest) -> list[str]:
    """Create a task that must be refused, and return the named fields, sorted."""
    try:
        await service.stub.CreateTask(request, timeout=DEADLINE_SECONDS)
    except grpc.aio.AioRpcError as error:
        how = refusal(error)
    else:
        raise AssertionError(f"{brief(request)} was accepted")
    assert (how.code, how.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PARAMS")
    assert how.retry_seconds is None
    return sorted(how.fields)


@asynccontextmanager
async def costing_nothing(service: Service) -> AsyncIterator[None]:
    """Assert that nothing is sent to the provider and nothing stored."""
    before = service.kie.stats
    yield
    assert service.kie.stats == before
    assert service.kie.tasks == []
    assert not (await service.stub.ListTasks(pb.ListTasksRequest())).tasks


# --- row by row ---


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.values.accepted], ids=str)
async def test_an_accepted_value_reaches_the_provider_as_the_table_says(
    service: Service, rule: Rule
) -> None:
    for given, sent in rule.values.accepted:
        body = await sent_for(service, rule.params(given))
        assert exact(body) == exact(rule.body(sent)), f"{rule} = {brief(given)}"


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.values.refused], ids=str)
async def test_a_refused_value_is_named_by_its_path_and_costs_no_call(
    untouched: Service, rule: Rule
) -> None:
    async with costing_nothing(untouched):
        for given in rule.values.refused:
            fields = await broken_fields(untouched, create_request(rule.params(given)))
            assert fields == [rule.path], f"{rule} = {brief(given)}"


@pytest.mark.parametrize("kind", MINIMAL)
async def test_unset_fields_are_not_sent_unless_the_table_says_always(
    service: Service, kind: str
) -> None:
    minimal = MINIMAL[kind]
    body = await sent_for(service, {model_of(kind): minimal.params})
    assert exact(body) == exact(minimal.body)


def test_every_field_of_every_model_has_a_row() -> None:
    messages = {field.name: field.message_type for field in pb.KieParams.DESCRIPTOR.fields}
    in_the_proto = {
        f"provider_params.kie.{model}.{field.name}"
        for model, message in messages.items()
        if message is not None
        for field in message.fields
    }
    assert {rule.path for rule in RULES} == in_the_proto


# --- URLs ---

LONGEST_URL = "https://files.example/" + "x" * (2_048 - len("https://files.example/"))
ABSOLUTE_URLS = [
    "https://files.example/a.png",
    "http://files.example",
    "HTTPS://FILES.EXAMPLE/A.PNG",
    "https://files.example:8443/a%20b.png?x=1&y=[2]#z",
    "https://user:word@files.example/a.png",
    "https://192.0.2.1/a.png",
    "https://[2001:db8::1]:8443/a.png",
    "https://localhost/a.png",
    "https://bücher.example/猫.png",
    LONGEST_URL,
    "https://files.example/" + SMILE * (2_048 - len("https://files.example/")),
]
OTHER_URLS = [
    "",
    "a.png",
    "/a.png",
    "../a.png",
    "//files.example/a.png",
    "files.example/a.png",
    "ftp://files.example/a.png",
    "file:///etc/passwd",
    "data:image/png;base64,AAAA",
    "javascript:alert(1)",
    "https",
    "https:",
    "https://",
    "https:files.example/a.png",
    "https:/files.example/a.png",
    "https:///a.png",
    "https://?a=b",
    "https://:443/a.png",
    "https://user@/a.png",
    "https://files.example:port/a.png",
    "https://files.example:65536/a.png",
    "https://[2001:db8::1/a.png",
    " https://files.example/a.png",
    "https://files.example/a.png ",
    "https://files.example/a b.png",
    "https://files.example/a\u00a0b.png",
    "https://files.example/a\u3000b.png",
    "https://fi les.example/a.png",
    "https://files.example/a.png\n",
    "https://files.example/a\r\nHost: x",
    "https://files.example/a\tb.png",
    "ht\ntps://files.example/a.png",
    "https://files.example/a\0.png",
    "https://files.example/a\x1b.png",
    "https://files.example/a\x7f.png",
    "https://files.example/a\x85.png",
    LONGEST_URL + "x",
    "https://files.example/" + SMILE * (2_049 - len("https://files.example/")),
]
URL_FIELDS = [
    *((f"midjourney {kind}", "file_urls", "fileUrls") for kind in ("OMNI_REFERENCE", "VIDEO")),
    *((f"veo3{kind}", "image_urls", "imageUrls") for kind in ("", " FIRST_AND_LAST")),
    ("sora2 IMAGE", "image_urls", "input.image_urls"),
]


@pytest.mark.parametrize(("kind", "field", "wire"), URL_FIELDS)
async def test_an_absolute_http_url_reaches_the_provider_unchanged(
    service: Service, kind: str, field: str, wire: str
) -> None:
    rule = Rule(kind, field, wire, never())
    for url in ABSOLUTE_URLS:
        body = await sent_for(service, rule.params([url]))
        assert exact(body) == exact(rule.body([url])), brief(url)


@pytest.mark.parametrize(("kind", "field", "wire"), URL_FIELDS)
async def test_any_other_url_is_named_by_its_index_and_costs_no_call(
    untouched: Service, kind: str, field: str, wire: str
) -> None:
    rule = Rule(kind, field, wire, never())
    async with costing_nothing(untouched):
        for url in OTHER_URLS:
            fields = await broken_fields(untouched, create_request(rule.params([url])))
            assert fields == [f"{rule.path}[0]"], brief(url)


async def test_only_the_bad_urls_of_a_list_are_named(untouched: Service) -> None:
    good_and_bad = [URL, "a.png", URL, "", "ftp://files.example", URL]
    params = {**MINIMAL["midjourney IMG2IMG"].params, "file_urls": good_and_bad}
    fields = await broken_fields(untouched, create_request({"midjourney": params}))
    assert fields == [f"provider_params.kie.midjourney.file_urls[{index}]" for index in (1, 3, 4)]


# --- the plain fields of the request ---


@pytest.mark.parametrize(("field", "most"), [("prompt_id", 255), ("request_id", 128)])
async def test_the_callers_ids_are_returned_unchanged(
    service: Service, field: str, most: int
) -> None:
    for value in ("x", " x ", f"猫\n{SMILE}", "x" * most, SMILE * most):
        created = await service.create(None, **{field: value})
        assert getattr(created, field) == value, brief(value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt_id", ""),
        ("prompt_id", "x" * 256),
        ("prompt_id", SMILE * 256),
        ("prompt_id", "a\0b"),
        ("request_id", "x" * 129),
        ("request_id", SMILE * 129),
        ("request_id", "a\0b"),
        ("request_id", "\0"),
    ],
    ids=brief,
)
async def test_an_id_that_breaks_its_rule_is_named_and_costs_no_call(
    untouched: Service, field: str, value: str
) -> None:
    async with costing_nothing(untouched):
        assert await broken_fields(untouched, create_request(None, **{field: value})) == [field]


# --- no model ---

NO_KIE = pb.CreateTaskRequest(prompt_id="p")
NO_KIE.provider_params.SetInParent()
NO_MODEL = pb.CreateTaskRequest(prompt_id="p")
NO_MODEL.provider_params.kie.SetInParent()
# Members that a newer proto may have: field 15, a message with a string in its field 2.
A_NEWER_MODEL = pb.CreateTaskRequest(prompt_id="p")
A_NEWER_MODEL.provider_params.kie.MergeFromString(b"\x7a\x03\x12\x01p")
A_NEWER_PROVIDER = pb.CreateTaskRequest(prompt_id="p")
A_NEWER_PROVIDER.provider_params.MergeFromString(b"\x7a\x03\x12\x01p")


@pytest.mark.parametrize(
    ("request_without_model", "fields"),
    [
        (pb.CreateTaskRequest(prompt_id="p"), ["provider_params.kie"]),
        (NO_KIE, ["provider_params.kie"]),
        (NO_MODEL, ["provider_params.kie"]),
        (A_NEWER_MODEL, ["provider_params.kie"]),
        (A_NEWER_PROVIDER, ["provider_params", "provider_params.kie"]),
    ],
    ids=["no params", "no provider", "no model", "a newer model", "a newer provider"],
)
async def test_a_request_without_a_known_model_names_the_oneof_and_costs_no_call(
    untouched: Service, request_without_model: pb.CreateTaskRequest, fields: list[str]
) -> None:
    async with costing_nothing(untouched):
        assert await broken_fields(untouched, request_without_model) == fields


# --- all at once ---

EVERYTHING_WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "imagen4": (
        {
            "api_model": "API_MODEL_ULTRA",
            "prompt": BLANK,
            "negative_prompt": "x" * 5_001,
            "aspect_ratio": "2:1",
            "num_images": 4,
            "seed": -1,
        },
        ["prompt", "negative_prompt", "aspect_ratio", "num_images", "seed"],
    ),
    "midjourney": (
        {
            "task_type": "TASK_TYPE_TXT2IMG",
            "file_urls": [URL, "a.png"],
            "speed": 99,
            "aspect_ratio": "Auto",
            "version": "8",
            "variety": 101,
            "stylization": -1,
            "weirdness": 3_001,
            "ow": 1,
            "watermark": "a\0b",
            "video_batch_size": 1,
            "motion": "MOTION_HIGH",
        },
        [
            *("prompt", "file_urls", "file_urls[1]", "speed", "aspect_ratio", "version"),
            *("variety", "stylization", "weirdness", "ow", "watermark"),
            *("video_batch_size", "motion"),
        ],
    ),
    "veo3": (
        {
            "api_model": "API_MODEL_VEO3",
            "prompt": "x" * 5_001,
            "generation_type": "GENERATION_TYPE_REFERENCE_2_VIDEO",
            "image_urls": [URL, "ftp://files.example/a.png", URL, ""],
            "aspect_ratio": "Auto",
            "seed": 9_999,
            "watermark": "x" * 101,
            "resolution": "4K",
            "duration_seconds": 6,
        },
        [
            *("api_model", "prompt", "image_urls", "image_urls[1]", "image_urls[3]"),
            *("aspect_ratio", "seed", "watermark", "resolution", "duration_seconds"),
        ],
    ),
    "sora2": (
        {
            "api_model": "API_MODEL_IMAGE_TO_VIDEO",
            "prompt": "a\0b",
            "aspect_ratio": 99,
            "duration_seconds": 12,
            "size": "SIZE_HIGH",
        },
        ["prompt", "image_urls", "aspect_ratio", "duration_seconds", "size"],
    ),
}


@pytest.mark.parametrize("model", EVERYTHING_WRONG)
async def test_all_broken_rules_of_a_request_are_reported_at_once(
    untouched: Service, model: str
) -> None:
    params, broken = EVERYTHING_WRONG[model]
    request = create_request({model: params}, prompt_id="x" * 256, request_id="a\0b")
    expected = [f"provider_params.kie.{model}.{field}" for field in broken]
    async with costing_nothing(untouched):
        fields = await broken_fields(untouched, request)
    assert fields == sorted([*expected, "prompt_id", "request_id"])


async def test_a_missing_model_is_reported_together_with_the_other_fields(
    untouched: Service,
) -> None:
    async with costing_nothing(untouched):
        fields = await broken_fields(untouched, pb.CreateTaskRequest(request_id="x" * 129))
    assert fields == ["prompt_id", "provider_params.kie", "request_id"]


async def test_a_value_that_is_unknown_breaks_no_rule_that_spans_fields(untouched: Service) -> None:
    """The number of images depends on the kind."""
    for model, field, urls_field in (
        ("midjourney", "task_type", "file_urls"),
        ("veo3", "generation_type", "image_urls"),
        ("sora2", "api_model", "image_urls"),
    ):
        params = {"prompt": "p", field: 99, urls_field: [URL] * 3}
        fields = await broken_fields(untouched, create_request({model: params}))
        assert fields == [f"provider_params.kie.{model}.{field}"]


async def test_the_message_about_a_broken_rule_uses_the_protos_names(
    untouched: Service,
) -> None:
    request = create_request(
        {"veo3": {"prompt": "x" * 5_001, "watermark": "x" * 101, "image_urls": [LONGEST_URL + "x"]}}
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await untouched.stub.CreateTask(request, timeout=DEADLINE_SECONDS)
    assert refusal(caught.value).message.split("; ") == [
        "provider_params.kie.veo3.prompt must have at most 5000 characters",
        "provider_params.kie.veo3.image_urls[0] must have at most 2048 characters",
        "provider_params.kie.veo3.watermark must have at most 100 characters",
    ]
