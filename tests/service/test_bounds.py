"""Requests of every shape are cheap to refuse, and what a task stores has an upper bound."""

import gc
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct

from generated.generation.v1 import generation_pb2 as pb
from providers.base import Provider, Violation
from providers.kie.client import KieProvider
from providers.kie.simulator import Simulator
from service.errors import ServiceError
from service.rules import PARAMS_MAX_BYTES, check_create
from service.uploads import check_metadata
from tests.support.harness import INSTANT, SERVICE, Service, create_request, serving
from tests.support.refusals import Refusal, refusal

MIB = 1 << 20
CAT = "\U0001f408"  # one code point, four bytes
URL = "https://files.example/"
LONGEST_URL = URL + CAT * (2_048 - len(URL))
EVENT_LOOP_SECONDS = 0.05

# --- wire bytes ---


def varint(number: int) -> bytes:
    data = b""
    while number > 0x7F:
        data += bytes([number & 0x7F | 0x80])
        number >>= 7
    return data + bytes([number])


def tag(field: int, wire_type: int) -> bytes:
    return varint(field << 3 | wire_type)


def delimited(field: int, content: bytes) -> bytes:
    return tag(field, 2) + varint(len(content)) + content


def filled(piece: bytes, size: int = MIB - 64) -> bytes:
    """Repeat a piece up to a mebibyte, minus the fields around it."""
    return piece * (size // len(piece))


def of_model(model: int, content: bytes) -> bytes:
    """A CreateTaskRequest around the bytes of a model's message."""
    return PROMPT_ID + delimited(2, delimited(1, delimited(model, content)))


def group(field: int, content: bytes) -> bytes:
    return tag(field, 3) + content + tag(field, 4)


def member(key: bytes, value: bytes) -> bytes:
    """A member of a Struct around the bytes of a Value."""
    return delimited(1, delimited(1, key) + delimited(2, value))


def of_market(content: bytes) -> bytes:
    """A CreateTaskRequest of `market` around the bytes of a Struct."""
    return of_model(MARKET, delimited(1, b"nano-banana-2") + delimited(2, content))


def nested(value: bytes, levels: int) -> bytes:
    """A Value inside lists."""
    for _ in range(levels):
        value = delimited(6, delimited(1, value))
    return value


PROMPT_ID = delimited(1, b"p")
PROMPT = delimited(2, b"a cat")
IMAGEN4, MIDJOURNEY, VEO3, SORA2, MARKET = range(1, 6)
NUMBER = tag(2, 1) + b"\0" * 8  # the bytes of a Value
NOT_A_NUMBER = tag(2, 1) + b"\0" * 6 + b"\xf8\x7f"
IMG2IMG = tag(1, 0) + varint(2)
DISTINCT = b"".join(tag(number, 0) + b"\1" for number in range(100, 5_000))
VALID = of_model(IMAGEN4, PROMPT)
BROKEN = delimited(1, b"")  # an empty prompt_id, which replaces the ones before

CREATES = {
    "a megabyte of bad URLs": of_model(MIDJOURNEY, IMG2IMG + PROMPT + filled(delimited(3, b"x"))),
    "empty URLs": of_model(MIDJOURNEY, IMG2IMG + PROMPT + filled(delimited(3, b""))),
    "good URLs": of_model(VEO3, PROMPT + filled(delimited(4, URL.encode()))),
    "URLs of a kind that is unknown": of_model(MIDJOURNEY, PROMPT + filled(delimited(3, b"x"))),
    "one long URL": of_model(SORA2, PROMPT + delimited(3, URL.encode() + filled(b"x"))),
    "ten long URLs": of_model(
        MIDJOURNEY, IMG2IMG + PROMPT + 10 * delimited(3, filled(CAT.encode(), 100_000))
    ),
    "a long prompt": of_model(VEO3, delimited(2, filled(b"x"))),
    "a long prompt of four bytes each": of_model(VEO3, delimited(2, filled(CAT.encode()))),
    "a long blank prompt": of_model(VEO3, delimited(2, filled("\u3000".encode()))),
    "a long prompt of NULs": of_model(VEO3, delimited(2, filled(b"\0"))),
    "a long choice": of_model(VEO3, PROMPT + delimited(5, filled(b"x"))),
    "a long watermark": of_model(MIDJOURNEY, IMG2IMG + PROMPT + delimited(11, filled(b"x"))),
    "a long prompt_id": VALID + delimited(1, filled(CAT.encode())),
    "a long request_id": VALID + delimited(3, filled(b"\0")),
    "an enum that repeats": of_model(VEO3, PROMPT + filled(tag(3, 0) + varint(99))),
    "a packed enum": of_model(VEO3, PROMPT + delimited(3, filled(b"\x63"))),
    "requests in requests": filled(VALID) + BROKEN,
    "models that replace each other": filled(
        of_model(IMAGEN4, PROMPT) + of_model(VEO3, PROMPT) + of_model(SORA2, PROMPT)
    )
    + BROKEN,
    "empty params": filled(delimited(2, b"")),
    "bad UTF-8": of_model(VEO3, delimited(2, filled(b"\xff"))),
    "bad UTF-8 at the end": of_model(VEO3, delimited(2, filled(b"x") + b"\xff")),
    "unknown fields of the request": VALID + filled(tag(99, 0) + b"\1"),
    "unknown fields of the params": PROMPT_ID
    + delimited(2, delimited(1, delimited(1, PROMPT)) + filled(tag(99, 0) + b"\1")),
    "unknown fields of Kie": PROMPT_ID
    + delimited(2, delimited(1, delimited(1, PROMPT) + filled(tag(99, 0) + b"\1"))),
    "unknown fields of the model": of_model(IMAGEN4, PROMPT + filled(tag(99, 0) + b"\1")),
    "many different unknown fields": of_model(IMAGEN4, PROMPT + filled(DISTINCT)),
    "one large unknown field": of_model(IMAGEN4, PROMPT + delimited(99, filled(b"x"))),
    "empty unknown strings": of_model(IMAGEN4, PROMPT + filled(delimited(99, b""))),
    "empty unknown groups": of_model(IMAGEN4, PROMPT + filled(group(99, b""))),
    "a large unknown group": of_model(IMAGEN4, PROMPT + group(99, filled(tag(7, 0) + b"\1"))),
    "deep unknown groups": of_model(IMAGEN4, PROMPT + filled(90 * tag(99, 3) + 90 * tag(99, 4))),
    "groups deeper than any parser goes": of_model(IMAGEN4, PROMPT + filled(tag(99, 3))),
    "many keys": of_market(b"".join(member(b"%05x" % n, NUMBER) for n in range(45_000))),
    "a key that repeats": of_market(filled(member(b"\n", tag(4, 0) + b"\1"))),
    "a long key": of_market(member(filled(b"k"), NUMBER)),
    "keys of control characters": of_market(
        b"".join(member(b"\n%05x" % n, NUMBER) for n in range(40_000))
    ),
    "a long text in an input": of_market(member(b"prompt", delimited(3, filled(CAT.encode())))),
    "many texts in an input": of_market(
        member(b"image_input", delimited(6, filled(delimited(1, delimited(3, b"x")))))
    ),
    "many numbers": of_market(member(b"k", delimited(6, filled(delimited(1, NUMBER))))),
    "many numbers that are none": of_market(
        member(b"k", delimited(6, filled(delimited(1, NOT_A_NUMBER))))
    ),
    "many empty values": of_market(member(b"k", delimited(6, filled(delimited(1, b""))))),
    "many deep values": of_market(filled(member(b"k", nested(NUMBER, 40)))),
    "wide and deep values": of_market(
        member(b"k", delimited(6, filled(delimited(1, nested(NUMBER, 30)))))
    ),
    "values deeper than any parser goes": of_market(member(b"k", nested(NUMBER, 1_000))),
    "unknown fields of values": of_market(
        member(b"prompt", delimited(3, b"a cat") + filled(tag(99, 0) + b"\1"))
    ),
    "a long id of a model": of_model(MARKET, delimited(1, filled(b"m"))),
    "an id of many segments": of_model(MARKET, delimited(1, filled(b"m/"))),
    "a valid input of a mebibyte": of_market(
        b"".join(member(b"%05d" % n, delimited(3, b"x" * 9_000)) for n in range(110))
    ),
    "long numbers of unknown fields": of_model(IMAGEN4, filled(tag((1 << 29) - 1, 5) + b"1234")),
}


@pytest.fixture
async def public_kie() -> AsyncIterator[KieProvider]:
    """The provider at its public address; no test here sends a request to it."""
    provider = KieProvider("https://api.kie.ai", "https://api.kie.ai", "key")
    yield provider
    await provider.close()


@pytest.fixture(scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """One service for all refusals, as they leave no trace."""
    async with (
        Simulator(INSTANT) as kie,
        serving(tmp_path_factory.mktemp("bounds"), kie) as running_service,
    ):
        yield running_service


@pytest.fixture(autouse=True, scope="module")
def quick_collections() -> None:
    """Leave what earlier tests have left out of the collections of these tests."""
    gc.collect()
    gc.freeze()


def refused(data: bytes, provider: Provider) -> None:
    """Parse and check a request as CreateTask does; it must be refused."""
    with pytest.raises((ServiceError, DecodeError)):
        check_create(pb.CreateTaskRequest.FromString(data), provider)


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the least CPU time of three runs, as other processes use the machine too."""
    return min(_timed(work) for _ in range(3))


def _timed(work: Callable[[], object]) -> float:
    gc.collect()
    started = time.thread_time()
    work()
    return time.thread_time() - started


def peak_bytes() -> int:
    (kib,) = (
        line.split()[1]
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    )
    return int(kib) * 1_024


@pytest.fixture
def growth() -> Callable[[], int]:
    """The peak growth of this process's memory since the start of the test."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = peak_bytes()
    return lambda: peak_bytes() - before


# --- refusals ---


@pytest.mark.parametrize("data", CREATES.values(), ids=CREATES.keys())
async def test_a_mebibyte_of_any_shape_is_refused_within_50_ms_and_50_mib(
    public_kie: KieProvider, data: bytes, growth: Callable[[], int]
) -> None:
    assert len(data) <= MIB
    assert cpu_seconds(lambda: refused(data, public_kie)) < EVENT_LOOP_SECONDS
    assert growth() < 50 * MIB


@pytest.mark.parametrize("data", CREATES.values(), ids=CREATES.keys())
async def test_a_refusal_of_any_shape_is_short_where_it_is_sent_and_where_it_is_logged(
    service: Service, data: bytes
) -> None:
    with structlog.testing.capture_logs() as logs:
        error = await refusal_of(service, "CreateTask", data)
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PARAMS")
    assert len(error.fields) <= 100
    assert len(str(logs)) < 2_000


LONG = filled(b"x").decode()
OTHERS = {
    "QueryTask": pb.QueryTaskRequest(task_id=LONG),
    "CancelTask": pb.CancelTaskRequest(task_id=LONG),
    "WatchTask": pb.WatchTaskRequest(task_id=LONG),
    "ListTasks of a long prompt_id": pb.ListTasksRequest(prompt_id=LONG),
    "ListTasks of a long token": pb.ListTasksRequest(page_token=LONG),
}


@pytest.mark.parametrize("request_", OTHERS.values(), ids=OTHERS.keys())
async def test_a_long_string_of_any_other_call_is_refused_by_its_length(
    service: Service, request_: Any
) -> None:
    method = type(request_).__name__.removesuffix("Request")
    started = time.thread_time()
    error = await refusal_of(service, method, request_.SerializeToString())
    assert time.thread_time() - started < EVENT_LOOP_SECONDS
    assert error.reason == "INVALID_PARAMS"
    assert error.fields == [next(f.name for f, value in request_.ListFields() if value == LONG)]


METADATA: dict[str, Any] = {
    "file_name": "a/" * 2 * MIB,
    "content_type": "image/" + "x" * 3 * MIB,
    "upload_path": "a/" * 2 * MIB,
    "sha256": bytes(3 * MIB),
}


@pytest.mark.parametrize("field", METADATA)
def test_long_metadata_of_an_upload_is_refused_by_its_length(field: str) -> None:
    metadata = pb.UploadMetadata(**{"file_name": "cat.png"} | {field: METADATA[field]})

    def check() -> None:
        with pytest.raises(ServiceError) as caught:
            check_metadata(metadata)
        assert [violation.field for violation in caught.value.violations] == [f"metadata.{field}"]

    assert cpu_seconds(check) < EVENT_LOOP_SECONDS


async def refusal_of(service: Service, method: str, data: bytes) -> Refusal:
    call: Any = service.channel.unary_stream(f"{SERVICE}{method}")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(data, timeout=10).read()
    return refusal(caught.value)


# --- how many ---


async def violations_of(provider: Provider, request: pb.CreateTaskRequest) -> list[Violation]:
    with pytest.raises(ServiceError) as caught:
        check_create(request, provider)
    return list(caught.value.violations)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (
            {"midjourney": {"task_type": "TASK_TYPE_IMG2IMG"}},
            "must contain 1 to 10 with TASK_TYPE_IMG2IMG",
        ),
        (
            {"midjourney": {"task_type": "TASK_TYPE_VIDEO"}},
            "must contain exactly 1 with TASK_TYPE_VIDEO",
        ),
        ({"midjourney": {"task_type": 99}}, "must contain at most 10 values"),
        ({"veo3": {"generation_type": 99}}, "must contain at most 10 values"),
        ({"sora2": {"api_model": 99}}, "must contain at most 10 values"),
    ],
    ids=["one to ten", "exactly one", "midjourney", "veo3", "sora2"],
)
async def test_a_list_that_is_too_long_has_one_violation_with_the_models_rule(
    public_kie: KieProvider, params: dict[str, Any], words: str
) -> None:
    ((model, fields),) = params.items()
    name = "file_urls" if model == "midjourney" else "image_urls"
    request = create_request({model: {"prompt": "p", name: [URL] * 11, **fields}})
    about_urls = [v for v in await violations_of(public_kie, request) if name in v.field]
    assert about_urls == [Violation(f"provider_params.kie.{model}.{name}", words)]


# --- unknown fields: number 99, of each type and in each message ---

IMAGEN4_CAT = delimited(IMAGEN4, PROMPT)
UNKNOWN = {
    "CreateTaskRequest": VALID + tag(99, 0) + b"\1",
    "provider_params": PROMPT_ID + delimited(2, delimited(1, IMAGEN4_CAT) + delimited(99, b"x")),
    "provider_params.kie": PROMPT_ID
    + delimited(2, delimited(1, IMAGEN4_CAT + tag(99, 5) + b"1234")),
    "provider_params.kie.imagen4": of_model(IMAGEN4, PROMPT + tag(99, 1) + b"12345678"),
    "provider_params.kie.midjourney": of_model(
        MIDJOURNEY, tag(1, 0) + b"\1" + PROMPT + group(99, tag(7, 0) + b"\1")
    ),
    "provider_params.kie.veo3": of_model(VEO3, tag(99, 0) + b"\1" + PROMPT),
    "provider_params.kie.sora2": of_model(SORA2, PROMPT + delimited(99, b"")),
    "provider_params.kie.market": of_model(
        MARKET, delimited(1, b"nano-banana-2") + delimited(99, b"")
    ),
    "provider_params.kie.market.input": of_market(
        member(b"prompt", delimited(3, b"a cat")) + tag(99, 0) + b"\1"
    ),
}


@pytest.mark.parametrize("path", UNKNOWN)
async def test_an_unknown_field_is_refused_by_its_number_and_the_path_of_its_message(
    service: Service, path: str
) -> None:
    bought = service.kie.stats["purchases"]
    error = await refusal_of(service, "CreateTask", UNKNOWN[path])
    assert (error.reason, error.fields) == ("INVALID_PARAMS", [path])
    assert error.message.startswith(f"{path} has the unknown field 99: ")
    assert service.kie.stats["purchases"] == bought


async def test_unknown_fields_inside_the_values_of_an_input_are_refused(service: Service) -> None:
    data = of_market(member(b"prompt", delimited(3, b"a cat") + tag(99, 0) + b"\1"))
    error = await refusal_of(service, "CreateTask", data)
    assert error.fields == ["provider_params.kie.market.input"]


async def test_a_model_that_is_unknown_is_named_by_its_number(service: Service) -> None:
    error = await refusal_of(service, "CreateTask", of_model(99, PROMPT))
    assert error.fields == ["provider_params.kie"]
    assert error.message.startswith("provider_params.kie has the unknown field 99: ")


async def test_unknown_fields_are_named_together_with_broken_rules(
    public_kie: KieProvider,
) -> None:
    data = of_model(VEO3, delimited(8, b"x" * 101) + tag(99, 0) + b"\1" + group(100, b""))
    request = pb.CreateTaskRequest.FromString(data + delimited(77, b"x"))
    fields = [violation.field for violation in await violations_of(public_kie, request)]
    veo3 = "provider_params.kie.veo3"
    assert fields[:3] == ["CreateTaskRequest", veo3, veo3]
    assert f"{veo3}.prompt" in fields


async def test_the_search_for_unknown_fields_stops_at_a_hundred(public_kie: KieProvider) -> None:
    request = pb.CreateTaskRequest.FromString(of_model(IMAGEN4, PROMPT + DISTINCT) + DISTINCT)
    violations = await violations_of(public_kie, request)
    assert len(violations) == 100


async def test_an_unknown_field_of_another_call_is_ignored(service: Service) -> None:
    created = await service.create()
    request = pb.QueryTaskRequest(task_id=created.id)
    request.MergeFromString(tag(99, 0) + b"\1")
    assert (await service.stub.QueryTask(request)).task.id == created.id


def test_no_message_type_occurs_twice_in_a_create() -> None:
    """The search for unknown fields relies on it."""

    def below(message: Descriptor) -> Iterator[Any]:
        for field in message.fields:
            if field.message_type and field.message_type is not Struct.DESCRIPTOR:
                yield field
                yield from below(field.message_type)

    fields = list(below(pb.CreateTaskRequest.DESCRIPTOR))
    assert len(fields) == 7
    assert not any(field.is_repeated for field in fields)


# --- what is stored ---

LARGEST: dict[str, tuple[dict[str, Any], int]] = {
    "imagen4": (
        {
            "api_model": "API_MODEL_STANDARD",
            "prompt": CAT * 5_000,
            "negative_prompt": CAT * 5_000,
            "aspect_ratio": "auto",
            "num_images": 4,
            "seed": 2**31 - 1,
        },
        41_000,
    ),
    "midjourney": (
        {
            "task_type": "TASK_TYPE_OMNI_REFERENCE",
            "prompt": CAT * 2_000,
            "file_urls": [LONGEST_URL] * 6 + [URL + "x" * (2_048 - len(URL))] * 4,
            "speed": "SPEED_TURBO",
            "aspect_ratio": "16:9",
            "version": "niji6",
            "variety": 100,
            "stylization": 1_000,
            "weirdness": 3_000,
            "ow": 1_000,
            "watermark": CAT * 100,
            "enable_translation": False,
        },
        PARAMS_MAX_BYTES,
    ),
    "veo3": (
        {
            "api_model": "API_MODEL_VEO3_LITE",
            "prompt": CAT * 5_000,
            "generation_type": "GENERATION_TYPE_REFERENCE_2_VIDEO",
            "image_urls": [LONGEST_URL] * 3,
            "aspect_ratio": "16:9",
            "seed": 99_999,
            "watermark": CAT * 100,
            "enable_translation": False,
            "resolution": "1080p",
            "duration_seconds": 8,
        },
        46_000,
    ),
    "sora2": (
        {
            "api_model": "API_MODEL_PRO_IMAGE_TO_VIDEO",
            "prompt": CAT * 10_000,
            "image_urls": [LONGEST_URL],
            "aspect_ratio": "ASPECT_RATIO_PORTRAIT",
            "duration_seconds": 15,
            "size": "SIZE_HIGH",
            "remove_watermark": False,
        },
        49_000,
    ),
}


@pytest.mark.parametrize("model", LARGEST)
async def test_the_largest_valid_task_of_a_model_stays_below_its_bound(
    public_kie: KieProvider, model: str
) -> None:
    params, bound = LARGEST[model]
    request = create_request({model: params})
    check_create(request, public_kie)
    assert 0.95 * bound < request.provider_params.ByteSize() <= bound


async def test_params_that_obey_every_rule_and_take_more_than_64_kib_are_refused(
    service: Service,
) -> None:
    params = {**LARGEST["midjourney"][0], "file_urls": [LONGEST_URL] * 10}
    error = await refusal_of(
        service, "CreateTask", create_request({"midjourney": params}).SerializeToString()
    )
    assert error.fields == ["provider_params"]
    assert error.message == "provider_params must have at most 65536 bytes"
