"""Traces: which spans there are, what they belong to, and what they do not contain."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Any

import grpc
import pytest
from opentelemetry.trace import SpanKind, StatusCode

from generated.generation.v1 import generation_pb2 as pb
from providers.kie.simulator import Simulator
from service.tracing import READS_PER_SECOND, Tracing
from tests.support.harness import API_KEY, Serve, Service, create_request
from tests.support.prompts import STUCK
from tests.support.traces import (
    CREATE,
    LIST,
    QUERY,
    SPAN,
    TRACE,
    UPLOAD,
    WATCH,
    Spans,
    attributes,
    call_with,
    events,
    linked_ids,
    parent_id,
    sent,
    span_id,
    trace_id,
)
from tests.support.uploading import upload
from tests.support.waiting import eventually

SUBMITTING = pb.TASK_STAGE_SUBMITTING


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture
async def traced(serve: Serve, spans: Spans) -> AsyncIterator[Service]:
    """The service with traces."""
    async with serve(tracing=spans.tracing) as service:
        yield service


# --- calls ---


async def test_a_call_is_a_span_in_the_trace_of_its_caller(traced: Service, spans: Spans) -> None:
    await traced.create(metadata=sent())
    span = await spans.one(CREATE)
    assert span.kind is SpanKind.SERVER
    assert f"{trace_id(span):032x}" == TRACE
    assert f"{parent_id(span):016x}" == SPAN
    assert attributes(span) == {
        "rpc.system.name": "grpc",
        "rpc.method": CREATE,
        "rpc.response.status_code": "OK",
        "generation.caller": "default",
    }


async def test_a_call_without_a_trace_begins_one(traced: Service, spans: Spans) -> None:
    await traced.create()
    assert parent_id(await spans.one(CREATE)) is None


@pytest.mark.parametrize(
    "value",
    [
        *("", "00", "00-0-0-01", f"ff-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01-x", "x" * 5_000),
        *(f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE.upper()}-{SPAN}-01"),
    ],
)
async def test_an_invalid_traceparent_is_ignored(traced: Service, spans: Spans, value: str) -> None:
    task = await traced.create(metadata=(("traceparent", value),))
    assert task.provider_task_id
    assert parent_id(await spans.one(CREATE)) is None


async def test_a_call_whose_caller_does_not_sample_has_no_span_and_nor_has_its_task(
    traced: Service, spans: Spans
) -> None:
    task = await traced.create(metadata=sent(sampled=False))
    await traced.end(task.id)
    await spans.one(WATCH)
    assert [span.name for span in spans.ended] == [WATCH]


@pytest.mark.parametrize(
    ("call", "ends"),
    [
        (QUERY, ("NOT_FOUND", "TASK_NOT_FOUND")),
        (WATCH, ("NOT_FOUND", "TASK_NOT_FOUND")),
        (CREATE, ("INVALID_ARGUMENT", "INVALID_PARAMS")),
    ],
)
async def test_the_span_of_a_refused_call_has_its_code_and_reason(
    traced: Service, spans: Spans, call: str, ends: tuple[str, str]
) -> None:
    request = b"" if call == CREATE else pb.QueryTaskRequest(task_id="0" * 32).SerializeToString()
    with pytest.raises(grpc.aio.AioRpcError):
        await call_with(traced, call, request)
    span = await spans.one(call)
    found = attributes(span)
    assert (found["rpc.response.status_code"], found["error.type"]) == ends
    assert span.status.status_code is StatusCode.UNSET, "it is the caller's error"


async def test_bytes_that_cannot_be_parsed_are_a_refused_call(
    traced: Service, spans: Spans
) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await call_with(traced, CREATE, b"\xff")
    assert attributes(await spans.one(CREATE))["error.type"] == "INVALID_PARAMS"


async def test_the_span_of_a_call_that_its_caller_cancels_ends(
    traced: Service, spans: Spans
) -> None:
    task = await traced.create(STUCK)
    watch = traced.stub.WatchTask(pb.WatchTaskRequest(task_id=task.id, after_revision=1 << 20))
    with pytest.raises(grpc.aio.AioRpcError):
        await watch.read()
    quiet = pb.WatchTaskRequest(task_id=task.id, after_revision=task.revision)
    watch = traced.stub.WatchTask(quiet)
    await eventually(lambda: spans.open)
    watch.cancel()
    await eventually(lambda: not spans.open)
    assert attributes(spans.named(WATCH)[-1])["rpc.response.status_code"] == "CANCELLED"


async def test_health_checks_and_reflection_have_no_spans(traced: Service, spans: Spans) -> None:
    await call_with(traced, "grpc.health.v1.Health/Check", b"")
    await traced.create()
    assert CREATE in {span.name for span in spans.ended}
    assert not [span for span in spans.ended if "ealth" in span.name]


async def test_reads_that_nobody_traces_are_sampled_and_those_of_a_trace_are_not(
    traced: Service, spans: Spans
) -> None:
    task = await traced.create()
    calls = 5 * READS_PER_SECOND
    for _ in range(calls):
        await traced.query(task.id)
    request = pb.QueryTaskRequest(task_id=task.id)
    for _ in range(calls):
        await traced.stub.QueryTask(request, metadata=sent())
    await traced.stub.ListTasks(pb.ListTasksRequest(), metadata=sent())
    queries = spans.named(QUERY)
    assert [span for span in queries if span.parent is None]
    assert len([span for span in queries if span.parent]) == calls
    assert len(spans.named(LIST)) == 1


async def test_creates_beyond_the_rate_have_no_spans_and_nor_have_their_tasks(
    serve: Serve, spans: Spans
) -> None:
    async with serve(tracing=Tracing(spans, creates_per_second=0)) as service:
        unsampled = await service.create()
        await service.end(unsampled.id)
        sampled = await service.create(metadata=sent())
        await service.end(sampled.id)
        await eventually(lambda: spans.of_task(sampled.id) and not spans.open)
    assert not spans.of_task(unsampled.id)
    assert len(spans.named(CREATE)) == 1


# --- streams ---


async def test_the_span_of_a_stream_ends_with_its_first_message(
    traced: Service, spans: Spans
) -> None:
    task = await traced.create(STUCK)
    watch = traced.stub.WatchTask(pb.WatchTaskRequest(task_id=task.id), metadata=sent())
    await watch.read()
    span = await spans.one(WATCH)
    assert f"{trace_id(span):032x}" == TRACE
    assert attributes(span)["rpc.response.status_code"] == "OK"
    watch.cancel()


async def test_the_span_of_a_stream_of_all_changes_ends_with_its_first_message(
    traced: Service, spans: Spans
) -> None:
    task = await traced.create(STUCK)
    stream: Any = traced.stub.WatchTasks(pb.WatchTasksRequest(), metadata=sent())
    assert (await stream.read()).task.id == task.id
    assert attributes(await spans.one(f"{WATCH}s"))["rpc.response.status_code"] == "OK"
    assert await stream.read()
    stream.cancel()


async def test_no_span_is_open_after_a_thousand_streams(traced: Service, spans: Spans) -> None:
    stuck, done = await traced.create(STUCK), await traced.create()
    await traced.end(done.id)

    async def watch(number: int) -> None:
        """Watch one of four ways: to the end, cancelled after and before a message, refused."""
        way = number % 4
        task_id = (done.id, stuck.id, stuck.id, "0" * 32)[way]
        revision = stuck.revision if way == 2 else 0
        request = pb.WatchTaskRequest(task_id=task_id, after_revision=revision)
        stream: Any = traced.stub.WatchTask(request)
        if way == 2:
            await stream.initial_metadata() if number % 8 == 2 else None
        elif way == 3:
            with pytest.raises(grpc.aio.AioRpcError):
                await stream.read()
        else:
            assert (await stream.read()).task.id == task_id
        stream.cancel()

    before = len(spans.named(WATCH))
    for numbers in range(0, 1_000, 50):
        await asyncio.gather(*(watch(n) for n in range(numbers, numbers + 50)))
    await eventually(lambda: not spans.open)
    assert len(spans.named(WATCH)) - before > 700, "those that reached the service"


async def test_no_span_is_open_after_the_end_of_the_service(
    serve: Serve, spans: Spans, kie: Simulator
) -> None:
    kie.add_fault("create:hang,times=0")
    async with serve(tracing=spans.tracing, create_wait_seconds=0, shutdown_seconds=0.5) as service:
        created = await service.create()
        task = await service.until(created.id, lambda task: task.stage == SUBMITTING)
        request = pb.WatchTaskRequest(task_id=task.id, after_revision=task.revision)
        watch = service.stub.WatchTask(request)
        await eventually(lambda: spans.open == 2)  # kie.create and a watch without a message
    assert not spans.open
    watch.cancel()


# --- the work on tasks ---


async def test_the_work_on_a_task_is_in_the_trace_of_its_call_and_linked_to_it(
    traced: Service, spans: Spans
) -> None:
    task = await traced.create(metadata=sent())
    await traced.end(task.id)
    [create, *polls] = await eventually(lambda: _whole(spans, task.id))
    call = await spans.one(CREATE)
    assert create.name == "kie.create"
    assert {span.name for span in polls} == {"kie.poll"}
    for span in (create, *polls):
        assert span.kind is SpanKind.CLIENT
        assert f"{trace_id(span):032x}" == TRACE
        assert parent_id(span) == span_id(call)
        assert linked_ids(span) == [span_id(call)]
        assert attributes(span)["generation.model"] == "imagen4"
    assert attributes(create)["generation.outcome"] == "Accepted"
    assert attributes(polls[-1])["generation.outcome"] == "Succeeded"


def _whole(spans: Spans, task_id: str) -> list[Any]:
    found = spans.of_task(task_id)
    ended = found and attributes(found[-1]).get("generation.outcome") in {"Succeeded", "Failed"}
    return found if ended else []


async def test_of_many_polls_the_first_the_last_and_the_failed_ones_have_spans(
    traced: Service, spans: Spans, kie: Simulator
) -> None:
    task = await traced.create({"imagen4": {"prompt": "a cat [sim:seconds=1.5]"}})
    kie.add_fault("record:http,status=502,times=2")
    await traced.end(task.id)
    polls = [s for s in await eventually(lambda: _whole(spans, task.id)) if s.name == "kie.poll"]
    outcomes = [attributes(span)["generation.outcome"] for span in polls]
    assert outcomes.count("Progress") <= 1
    assert outcomes.count("Unavailable") == 2
    assert outcomes.count("Succeeded") == 1
    assert len(outcomes) <= 4


async def test_the_operations_of_the_database_are_events(traced: Service, spans: Spans) -> None:
    task = await traced.create()
    await traced.end(task.id)
    [create, *polls] = await eventually(lambda: _whole(spans, task.id))
    assert "create" in events(await spans.one(CREATE))
    assert events(create)[:2] == ["answered", "save"]
    assert events(polls[-1])[:2] == ["answered", "save"]


@pytest.mark.parametrize(
    ("fault", "ends"),
    [
        ("create:code,code=422", ("Refused", "PROVIDER_REJECTED")),
        ("create:code,code=402", ("Refused", "CREDITS_EXHAUSTED")),
        ("create:reset", ("Unknown", "Unknown")),
        ("create:code,code=455", ("Postponed", "Postponed")),
    ],
)
async def test_a_create_that_is_not_accepted_is_an_error(
    traced: Service, spans: Spans, kie: Simulator, fault: str, ends: tuple[str, str]
) -> None:
    kie.add_fault(fault)
    with suppress(grpc.aio.AioRpcError):
        await traced.create()
    [span, *_] = await eventually(lambda: spans.named("kie.create"))
    found = attributes(span)
    assert (found["generation.outcome"], found["error.type"]) == ends
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description is None


async def test_a_task_that_was_created_without_traces_is_worked_on(
    serve: Serve, spans: Spans, kie: Simulator
) -> None:
    kie.add_fault("create:code,code=455,times=0")
    async with serve(create_wait_seconds=0) as service:
        task = await service.create(metadata=sent())
        await service.until_put_back(task.id)
    kie.clear_faults()
    async with serve(tracing=spans.tracing) as service:
        assert (await service.end(task.id)).status == pb.TASK_STATUS_SUCCESS
        [create, *_] = await eventually(lambda: _whole(spans, task.id))
    assert parent_id(create) is None


async def test_an_upload_has_a_span_in_that_of_its_call(traced: Service, spans: Spans) -> None:
    await upload(traced, b"content")
    request = await spans.one("kie.upload")
    assert parent_id(request) == span_id(await spans.one(UPLOAD))
    assert linked_ids(request) == []


async def test_a_failed_upload_is_an_error(traced: Service, spans: Spans, kie: Simulator) -> None:
    kie.add_fault("upload:http,status=500,times=0")
    with pytest.raises(grpc.aio.AioRpcError):
        await upload(traced, b"content")
    request = await spans.one("kie.upload")
    assert attributes(request) == {"error.type": "PROVIDER_UNAVAILABLE"}
    assert attributes(await spans.one(UPLOAD))["error.type"] == "PROVIDER_UNAVAILABLE"


# --- what spans do not contain ---


async def test_no_span_contains_a_prompt_a_url_a_key_or_a_token(
    serve: Serve, spans: Spans, kie: Simulator
) -> None:
    async with serve(tracing=spans.tracing) as service:
        for prompt in ("secret-prompt", "secret-prompt [sim:fail]"):
            request = create_request({"imagen4": {"prompt": prompt}}, prompt_id="secret-reference")
            metadata = (*sent(), ("authorization", "Bearer secret-token"))
            task = (await service.stub.CreateTask(request, metadata=metadata)).task
            await service.end(task.id)
            await eventually(partial(_whole, spans, task.id))
        kie.add_fault("create:code,code=422")
        with pytest.raises(grpc.aio.AioRpcError):
            await service.create({"imagen4": {"prompt": "secret-prompt"}})
        await upload(service, b"content", file_name="secret-file.png")
        await spans.one("kie.upload")
    text = "".join(span.to_json() for span in spans.ended)
    for secret in ("secret-", "http://", "https://", "127.0.0.1", API_KEY):
        assert secret not in text
