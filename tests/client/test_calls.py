"""Calls of the client, and their retries."""

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from kie_generation import (
    GenerationClient,
    GenerationError,
    InvalidRequestError,
    RefusedError,
    Retry,
    Tls,
    UnauthenticatedError,
    UnavailableError,
    Violation,
)
from kie_generation.client import UPLOAD_ATTEMPTS
from kie_generation.generated.generation.v1.generation_pb2 import (
    TASK_STATUS_FAILED,
    Imagen4Params,
    KieParams,
    ListTasksRequest,
    ListTasksResponse,
    MidjourneyParams,
    Sora2Params,
    UploadMetadata,
    Veo3Params,
)
from kie_generation.retry import Backoff
from kie_generation.upload import CHUNK_BYTES
from tests.support.scripted_server import (
    FAST,
    LOST,
    UNAVAILABLE,
    Failure,
    ScriptedService,
    Silence,
    connected,
    pending,
    uploaded,
)

PARAMS = Imagen4Params(prompt="a lighthouse")
SECONDS_MAX = (1 << 63) - 1


@pytest.mark.parametrize("params", [PARAMS, MidjourneyParams(), Veo3Params(), Sora2Params()])
async def test_parameters_are_wrapped_as_their_model_even_when_empty(params: Message) -> None:
    service = ScriptedService()
    service.answers.append(pending(1))
    async with connected(service) as client:
        await client.create(params, prompt_id="p-1")
    kie = service.requests[0].provider_params.kie
    assert getattr(kie, kie.WhichOneof("model")) == params


async def test_a_message_that_is_not_a_models_params_is_a_type_error() -> None:
    async with GenerationClient("127.0.0.1:1") as client:
        with pytest.raises(TypeError, match="KieParams"):
            await client.create(KieParams(), prompt_id="p-1")


async def test_a_create_tried_again_keeps_its_request_id() -> None:
    service = ScriptedService()
    service.answers.extend([UNAVAILABLE, UNAVAILABLE, pending(1)])
    async with connected(service) as client:
        await client.create(PARAMS, prompt_id="p-1")
    ids = {request.request_id for request in service.requests}
    assert len(service.requests) == 3
    assert len(ids) == 1
    assert "" not in ids


async def test_two_creates_have_two_request_ids_unless_the_caller_names_one() -> None:
    service = ScriptedService()
    service.answers.extend([pending(1)] * 3)
    async with connected(service) as client:
        await client.create(PARAMS, prompt_id="p-1")
        await client.create(PARAMS, prompt_id="p-1")
        await client.create(PARAMS, prompt_id="p-1", request_id="mine")
    ids = [request.request_id for request in service.requests]
    assert len(set(ids)) == 3
    assert ids[2] == "mine"


async def test_a_create_that_stays_unavailable_reports_the_request_id() -> None:
    service = ScriptedService()
    service.answers.extend([UNAVAILABLE] * 3)
    async with connected(service) as client:
        with pytest.raises(UnavailableError) as caught:
            await client.create(PARAMS, prompt_id="p-1")
    assert len(service.requests) == 3
    assert caught.value.request_id == service.requests[0].request_id


async def test_a_call_is_tried_again_for_as_long_as_its_timeout_lasts() -> None:
    quick = Retry(first_delay_seconds=0.001, max_delay_seconds=0.02)
    service = ScriptedService()
    service.answers.extend([UNAVAILABLE] * 20 + [pending(1)])
    retries: list[UnavailableError] = []
    async with connected(service, retry=quick, on_retry=retries.append) as client:
        await client.create(PARAMS, prompt_id="p-1", timeout=30)
    assert len(retries) == 20


async def test_a_call_that_stays_unavailable_ends_with_its_timeout() -> None:
    async with GenerationClient("127.0.0.1:1") as client:
        began = time.monotonic()
        with pytest.raises(UnavailableError):
            await client.get("t-1", timeout=4)
        assert 2.9 <= time.monotonic() - began <= 4.5


async def test_a_file_that_cannot_be_uploaded_is_not_sent_without_end(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(b"abc")
    service = ScriptedService()
    service.answers.extend([UNAVAILABLE] * 20)
    quick = Retry(first_delay_seconds=0.001, max_delay_seconds=0.001)
    async with connected(service, retry=quick) as client:
        with pytest.raises(UnavailableError):
            await client.upload(path)
    assert len(service.requests) == UPLOAD_ATTEMPTS


async def test_a_rate_limited_call_waits_as_long_as_the_server_asks() -> None:
    service = ScriptedService()
    limited = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", retry_after_ms=80)
    service.answers.extend([limited, pending(1)])
    async with connected(service) as client:
        await client.create(PARAMS, prompt_id="p-1")
    assert service.times[1] - service.times[0] >= 0.08


async def test_a_retry_that_would_come_after_the_timeout_is_not_waited_for() -> None:
    service = ScriptedService()
    service.answers.append(
        Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", retry_after_ms=900)
    )
    async with connected(service) as client:
        with pytest.raises(UnavailableError) as caught:
            await client.get("t-1", timeout=0.5)
    assert caught.value.retry_after == 0.9


async def test_a_delay_of_a_broken_server_that_no_timer_takes_is_an_error_of_the_call() -> None:
    service = ScriptedService()
    endless = Duration(seconds=SECONDS_MAX, nanos=-1)
    service.answers.append(
        Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", retry_delay=endless)
    )
    async with connected(service) as client:
        with pytest.raises(UnavailableError) as caught:
            await client.get("t-1")
    assert caught.value.retry_after == pytest.approx(SECONDS_MAX)


async def test_a_negative_delay_of_a_broken_server_does_not_remove_the_pause() -> None:
    service = ScriptedService()
    negative = Failure(
        grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", retry_delay=Duration(seconds=-1_000)
    )
    service.answers.extend([negative, pending(1)])
    async with connected(service, retry=Retry(first_delay_seconds=0.2)) as client:
        await client.get("t-1")
    assert service.times[1] - service.times[0] >= 0.1


def test_a_stream_is_reopened_within_minutes_whatever_delay_a_broken_server_asks_for() -> None:
    error = UnavailableError(grpc.StatusCode.UNAVAILABLE, "later", retry_after=SECONDS_MAX)
    assert Backoff(FAST).next_delay(error) < 600


async def test_a_refusal_of_the_provider_names_the_task() -> None:
    service = ScriptedService()
    service.answers.append(
        Failure(
            grpc.StatusCode.FAILED_PRECONDITION,
            "CREDITS_EXHAUSTED",
            "no credits",
            metadata={"task_id": "t-9"},
        )
    )
    async with connected(service) as client:
        with pytest.raises(RefusedError, match="CREDITS_EXHAUSTED: no credits") as caught:
            await client.create(PARAMS, prompt_id="p-1")
    assert caught.value.task_id == "t-9"
    assert len(service.requests) == 1


async def test_every_broken_rule_is_reported_with_its_field() -> None:
    service = ScriptedService()
    fields = {"prompt_id": "is required", "provider_params.kie.imagen4.num_images": "must be 1-4"}
    service.answers.append(
        Failure(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PARAMS", fields=fields)
    )
    async with connected(service) as client:
        with pytest.raises(InvalidRequestError) as caught:
            await client.create(PARAMS, prompt_id="")
    assert caught.value.violations == tuple(Violation(*item) for item in fields.items())


async def test_an_error_without_details_keeps_its_code_and_message() -> None:
    service = ScriptedService()
    service.answers.append(Failure(grpc.StatusCode.DATA_LOSS, message="who knows"))
    async with connected(service) as client:
        with pytest.raises(GenerationError) as caught:
            await client.get("t-1")
    error = caught.value
    assert (error.code, error.reason, error.message) == (
        grpc.StatusCode.DATA_LOSS,
        "",
        "who knows",
    )
    assert type(error) is GenerationError


async def test_details_that_are_not_a_status_are_ignored() -> None:
    class Broken(Failure):
        async def abort(self, context: Any) -> None:
            context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff"),))
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you")

    service = ScriptedService()
    service.answers.append(Broken(grpc.StatusCode.UNAUTHENTICATED))
    async with connected(service) as client:
        with pytest.raises(UnauthenticatedError, match="who are you"):
            await client.get("t-1")


async def test_an_unreachable_server_is_unavailable() -> None:
    async with GenerationClient("127.0.0.1:1", retry=FAST) as client:
        with pytest.raises(UnavailableError) as caught:
            await client.get("t-1")
    assert caught.value.reason == ""


async def test_the_token_goes_with_every_call() -> None:
    service = ScriptedService()
    service.answers.append(pending(1))
    async with connected(service, token="s3cret\n") as client:
        await client.get("t-1")
    assert service.metadata[0]["authorization"] == "Bearer s3cret"


@pytest.mark.parametrize("token", ["Bearer s3cret", "bearer  s3cret\n", " s3cret "])
async def test_a_token_may_be_copied_with_the_word_before_it(token: str) -> None:
    service = ScriptedService()
    service.answers.append(pending(1))
    async with connected(service, token=token) as client:
        await client.get("t-1")
    assert service.metadata[0]["authorization"] == "Bearer s3cret"


async def test_a_certificate_without_its_key_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="together"):
        Tls(client_cert="cert.pem").credentials()


async def test_a_list_goes_through_all_pages_with_the_same_filter() -> None:
    service = ScriptedService()
    service.answers.extend(
        [
            ListTasksResponse(tasks=[pending(1), pending(2)], next_page_token="more"),
            UNAVAILABLE,
            ListTasksResponse(next_page_token="most"),
            ListTasksResponse(tasks=[pending(3)]),
        ]
    )
    async with connected(service) as client:
        tasks = client.list(prompt_id="p-1", status=TASK_STATUS_FAILED, page_size=2)
        assert [task.revision async for task in tasks] == [1, 2, 3]
    assert [request.page_token for request in service.requests] == ["", "more", "more", "most"]
    assert {request.status for request in service.requests} == {TASK_STATUS_FAILED}


async def test_a_list_is_limited_to_times_and_to_a_model() -> None:
    service = ScriptedService()
    service.answers.append(ListTasksResponse())
    after = datetime(2026, 11, 26, 1, 30, tzinfo=timezone(timedelta(hours=2)))
    before = datetime(2026, 11, 26, 12, 0, 0, 250_000, tzinfo=UTC)
    async with connected(service) as client:
        found = client.list(created_after=after, created_before=before, model="veo3")
        assert [task async for task in found] == []
    (request,) = service.requests
    assert request.created_after.ToJsonString() == "2026-11-25T23:30:00Z"
    assert request.created_before.ToJsonString() == "2026-11-26T12:00:00.250Z"
    assert request.model == "veo3"


async def test_a_list_without_times_sends_none() -> None:
    service = ScriptedService()
    service.answers.append(ListTasksResponse())
    async with connected(service) as client:
        assert [task async for task in client.list()] == []
    assert service.requests[0] == ListTasksRequest()


@pytest.mark.parametrize("name", ["created_after", "created_before"])
async def test_a_time_without_a_time_zone_is_refused(name: str) -> None:
    naive = datetime(2026, 11, 26)  # noqa: DTZ001 - this is what is refused
    async with connected(ScriptedService()) as client:
        with pytest.raises(ValueError, match="time zone"):
            await anext(client.list(**{name: naive}))  # type: ignore[arg-type]


async def test_a_cancel_that_comes_too_late_is_an_error_with_its_reason() -> None:
    service = ScriptedService()
    service.answers.append(Failure(grpc.StatusCode.FAILED_PRECONDITION, "ALREADY_SUBMITTED"))
    async with connected(service) as client:
        with pytest.raises(GenerationError) as caught:
            await client.cancel("t-1")
    assert caught.value.reason == "ALREADY_SUBMITTED"


async def test_a_file_is_sent_in_chunks_with_its_size_and_hash(tmp_path: Path) -> None:
    content = bytes(range(256)) * 2100
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    service = ScriptedService()
    service.answers.append(uploaded())
    async with connected(service) as client:
        file = await client.upload(path, upload_path="inputs")
    assert file == uploaded()
    metadata, *chunks = service.upload
    assert metadata.metadata == UploadMetadata(
        file_name="photo.png",
        upload_path="inputs",
        size_bytes=len(content),
        sha256=hashlib.sha256(content).digest(),
    )
    assert b"".join(each.chunk for each in chunks) == content
    assert max(len(each.chunk) for each in chunks) == CHUNK_BYTES


async def test_a_file_is_sent_again_from_its_start_when_the_provider_is_unavailable(
    tmp_path: Path,
) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(b"abc")
    service = ScriptedService()
    away = Failure(grpc.StatusCode.UNAVAILABLE, "PROVIDER_UNAVAILABLE")
    service.answers.extend([away, uploaded()])
    async with connected(service) as client:
        await client.upload(path)
    assert [each.chunk for each in service.upload[1:]] == [b"abc"]


async def test_a_file_whose_name_is_not_utf_8_is_uploaded_under_a_name_that_is(
    tmp_path: Path,
) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    path.write_bytes(b"abc")
    service = ScriptedService()
    service.answers.append(uploaded())
    async with connected(service) as client:
        await client.upload(path)
    assert service.upload[0].metadata.file_name == "caf\N{REPLACEMENT CHARACTER}.png"


async def test_large_pieces_of_an_iterator_are_cut_into_messages_that_fit() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"x" * (5 * 1024 * 1024)
        yield b""
        yield b"y"

    service = ScriptedService()
    service.answers.append(uploaded())
    async with connected(service) as client:
        await client.upload(pieces(), file_name="x.bin")
    sent = [each.chunk for each in service.upload[1:]]
    assert len(b"".join(sent)) == 5 * 1024 * 1024 + 1
    assert not service.upload[0].metadata.HasField("size_bytes")


async def test_an_upload_refused_half_way_has_the_servers_reason() -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * CHUNK_BYTES

    service = ScriptedService()
    service.uploads_to_read = 2
    too_large = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "UPLOAD_TOO_LARGE")
    service.answers.extend([too_large] * 100)
    async with connected(service) as client:
        for _ in range(100):
            with pytest.raises(InvalidRequestError) as caught:
                await client.upload(endless(), file_name="x.bin")
            assert caught.value.reason == "UPLOAD_TOO_LARGE"


async def test_a_refused_upload_does_not_wait_for_more_content() -> None:
    async def stalls() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    service = ScriptedService()
    service.uploads_to_read = 2
    service.answers.append(Failure(grpc.StatusCode.INVALID_ARGUMENT, "UPLOAD_MISMATCH"))
    async with connected(service) as client:
        with pytest.raises(InvalidRequestError):
            await client.upload(stalls(), file_name="x.bin")


async def test_an_iterator_that_fails_cancels_the_upload_and_its_error_is_raised() -> None:
    async def breaks() -> AsyncIterator[bytes]:
        yield b"x"
        raise RuntimeError("the disk is gone")

    service = ScriptedService()
    service.answers.append(
        uploaded()
    )  # grpc.aio may show the server an end before the cancellation
    async with connected(service) as client:
        with pytest.raises(RuntimeError, match="the disk is gone"):
            await client.upload(breaks(), file_name="x.bin")


async def test_an_iterator_without_a_file_name_is_a_value_error() -> None:
    async def nothing() -> AsyncIterator[bytes]:
        yield b""

    async with GenerationClient("127.0.0.1:1") as client:
        with pytest.raises(ValueError, match="file_name"):
            await client.upload(nothing())


async def test_a_call_that_is_cancelled_stops_trying() -> None:
    async with GenerationClient("127.0.0.1:1") as client:
        call = asyncio.create_task(client.get("t-1"))
        done, _ = await asyncio.wait([call], timeout=0)
        assert not done
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


@pytest.mark.parametrize("code", LOST)
async def test_a_call_whose_answer_was_lost_is_tried_again_under_whatever_code(
    code: grpc.StatusCode,
) -> None:
    service = ScriptedService()
    service.answers.extend([Failure(code), pending(1)] * 3)
    service.answers.extend([Failure(code), ListTasksResponse(), Failure(code), uploaded()])
    async with connected(service) as client:
        await client.create(PARAMS, prompt_id="p-1")
        await client.get("t-1")
        await client.cancel("t-1")
        assert [task async for task in client.list()] == []
        await client.upload(__file__)
    first, again = service.requests[:2]
    assert first.request_id == again.request_id != ""


@pytest.mark.parametrize("code", LOST)
async def test_an_error_of_the_service_itself_is_never_taken_for_a_lost_answer(
    code: grpc.StatusCode,
) -> None:
    service = ScriptedService()
    service.answers.append(Failure(code, "INTERNAL", "bug 7f3a"))
    async with connected(service, retry=Retry(attempts=1)) as client:
        with pytest.raises(GenerationError) as caught:
            await client.get("t-1")
    assert isinstance(caught.value, UnavailableError) is (code is grpc.StatusCode.UNAVAILABLE)


async def test_a_call_that_is_cancelled_here_while_the_server_works_is_not_tried_again() -> None:
    service = ScriptedService()
    service.answers.append(Silence())
    async with connected(service) as client:
        call = asyncio.create_task(client.get("t-1"))
        await service.watched.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert len(service.requests) == 1
