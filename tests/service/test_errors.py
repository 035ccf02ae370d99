"""Every row of the error table that a request or the provider can cause, through a real channel."""

from typing import Any

import grpc
import pytest
import structlog

from generated.generation.v1 import generation_pb2 as pb
from service.bounds import Bounds
from storage.engine import DatabaseTimeouts
from tests.support.databases import locked
from tests.support.harness import API_KEY, Serve, Service, upload_messages
from tests.support.prompts import STUCK
from tests.support.refusals import refusal, refused

INVALID = grpc.StatusCode.INVALID_ARGUMENT
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


# --- the provider refuses a create ---

REFUSED_CREATES = [
    *((code, "PROVIDER_REJECTED", INVALID) for code in (400, 404, 422, 451)),
    *((code, "PROVIDER_UNAUTHORIZED", PRECONDITION) for code in (401, 403)),
    *((code, "CREDITS_EXHAUSTED", PRECONDITION) for code in (402, 433)),
    (505, "MODEL_UNAVAILABLE", PRECONDITION),
    *((code, "PROVIDER_ERROR", grpc.StatusCode.ABORTED) for code in (408, 500, 501, 550, 7)),
]


@pytest.mark.parametrize(("code", "reason", "status"), REFUSED_CREATES)
async def test_a_create_that_the_provider_refuses_says_so_and_stores_the_task_failed(
    service: Service, code: int, reason: str, status: grpc.StatusCode
) -> None:
    service.kie.add_fault(f"create:code,code={code},msg=no")
    error = await refused(service.create())
    assert (error.code, error.reason, error.message) == (status, reason, "no")
    assert error.retry_seconds is None

    task = await service.query(error.metadata["task_id"])
    assert task.status == pb.TASK_STATUS_FAILED
    assert pb.ErrorReason.Name(task.failure.reason) == f"ERROR_REASON_{reason}"
    assert (task.failure.message, task.failure.provider_code) == ("no", str(code))
    assert service.kie.tasks == []


async def test_a_model_that_the_provider_paused_is_unavailable_whatever_the_code(
    service: Service,
) -> None:
    service.kie.add_fault("create:code,code=500,msg=This model is temporarily paused")
    assert (await refused(service.create())).reason == "MODEL_UNAVAILABLE"


async def test_a_refused_create_is_refused_again_under_its_request_id_and_not_sent_again(
    service: Service,
) -> None:
    service.kie.add_fault("create:code,code=402,msg=no credits")
    first = await refused(service.create(request_id="r"))
    again = await refused(service.create(request_id="r"))
    assert again == first
    assert service.kie.stats["purchases"]["total"] == 0


async def test_a_403_without_an_envelope_counts_as_a_rejected_key(
    service: Service,
) -> None:
    service.kie.add_fault("create:http,status=403,body=error code: 1010")
    error = await refused(service.create())
    assert (error.reason, error.message) == ("PROVIDER_UNAUTHORIZED", "error code: 1010")


LOST_ANSWERS = [
    "create:accept_then_reset",
    "create:accept_then_http,status=502",
    "create:accept_then_garbage",
    "create:accept_then_empty",
    "create:accept_then_no_id",
    "create:null_data",
]


@pytest.mark.parametrize("fault", LOST_ANSWERS)
async def test_a_create_whose_answer_is_lost_is_unknown_and_never_sent_again(
    service: Service, fault: str
) -> None:
    service.kie.add_fault(fault)
    created = await service.create(request_id="r")
    assert created.status == pb.TASK_STATUS_FAILED
    assert created.failure.reason == pb.ERROR_REASON_SUBMISSION_UNKNOWN
    assert await service.create(request_id="r") == created
    assert len(service.kie.tasks) <= 1


@pytest.mark.parametrize("code", [429, 455])
async def test_a_limit_or_maintenance_at_the_provider_is_waited_out(
    serve: Serve, code: int
) -> None:
    async with serve(create_wait_seconds=0) as service:
        service.kie.add_fault(f"create:code,code={code},times=1")
        created = await service.create()
        assert (await service.until_put_back(created.id)).stage == pb.TASK_STAGE_ACCEPTED
        end = await service.end(created.id)
        assert end.status == pb.TASK_STATUS_SUCCESS
    assert len(service.kie.tasks) == 1


# --- what a task ends as ---


async def test_a_task_that_the_provider_failed_is_generation_failed_with_its_words(
    service: Service,
) -> None:
    created = await service.create({"veo3": {"prompt": "x [sim:fail=400 unsafe prompt]"}})
    end = await service.end(created.id)
    assert end.failure.reason == pb.ERROR_REASON_GENERATION_FAILED
    assert (end.failure.provider_code, end.failure.message) == ("400", "unsafe prompt")


async def test_a_success_without_any_url_is_result_missing(service: Service) -> None:
    created = await service.create({"imagen4": {"prompt": "x [sim:no-urls]"}})
    end = await service.end(created.id)
    assert end.status == pb.TASK_STATUS_FAILED
    assert end.failure.reason == pb.ERROR_REASON_RESULT_MISSING


async def test_a_task_that_never_ends_times_out_once_a_poll_was_answered(serve: Serve) -> None:
    async with serve(task_max_age_seconds=0.1) as service:
        created = await service.create(STUCK)
        end = await service.end(created.id)
    assert end.failure.reason == pb.ERROR_REASON_TASK_TIMEOUT


async def test_an_outage_does_not_time_a_task_out(serve: Serve) -> None:
    async with serve(task_max_age_seconds=0.05) as service:
        service.kie.add_fault("record:http,status=502,times=5")
        service.kie.update(seconds={"imagen4": [0.01, 0.01]})
        end = await service.end((await service.create()).id)
    assert end.status == pb.TASK_STATUS_SUCCESS


# --- the service refuses ---


async def test_a_disabled_model_is_unavailable_and_costs_no_call(serve: Serve) -> None:
    async with serve(disabled_models=frozenset({"sora2"})) as service:
        error = await refused(service.create({"sora2": {"prompt": "a cat"}}))
        assert (error.code, error.reason) == (PRECONDITION, "MODEL_UNAVAILABLE")
        assert (await service.create()).status == pb.TASK_STATUS_PENDING
    assert [task["model"] for task in service.kie.tasks] == ["google/imagen4-fast"]


async def test_a_full_queue_refuses_new_tasks_but_returns_old_ones(serve: Serve) -> None:
    async with serve(queue_max_tasks=1, create_wait_seconds=0) as service:
        service.kie.add_fault("create:code,code=455,times=0")
        first = await service.create(request_id="r")
        first = await service.until_put_back(first.id)
        error = await refused(service.create())
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
        assert error.retry_seconds
        assert (await service.create(request_id="r")).id == first.id


async def test_another_request_under_the_same_request_id_is_refused(service: Service) -> None:
    created = await service.create({"imagen4": {"prompt": "a cat"}}, request_id="r")
    error = await refused(service.create({"imagen4": {"prompt": "a dog"}}, request_id="r"))
    assert (error.code, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert error.metadata == {"task_id": created.id}
    error = await refused(service.create(request_id="r", prompt_id="another"))
    assert error.reason == "REQUEST_ID_REUSED"


async def test_an_unknown_task_is_not_found_by_any_rpc(service: Service) -> None:
    stub = service.stub
    for call in (
        stub.QueryTask(pb.QueryTaskRequest(task_id="nobody")),
        stub.CancelTask(pb.CancelTaskRequest(task_id="nobody")),
        stub.WatchTask(pb.WatchTaskRequest(task_id="nobody")).read(),
    ):
        error = await refused(call)
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "TASK_NOT_FOUND")


async def test_a_task_that_was_sent_cannot_be_cancelled(service: Service) -> None:
    created = await service.create(STUCK)
    error = await refused(service.stub.CancelTask(pb.CancelTaskRequest(task_id=created.id)))
    assert (error.code, error.reason) == (PRECONDITION, "ALREADY_SUBMITTED")


async def test_a_task_that_was_not_sent_is_cancelled_and_never_sent(serve: Serve) -> None:
    async with serve(create_wait_seconds=0) as service:
        service.kie.add_fault("create:code,code=455,times=0")
        created = await service.until_put_back((await service.create()).id)
        request = pb.CancelTaskRequest(task_id=created.id)
        cancelled = (await service.stub.CancelTask(request)).task
        assert cancelled.status == pb.TASK_STATUS_FAILED
        assert cancelled.failure.reason == pb.ERROR_REASON_CANCELLED
        assert (await service.stub.CancelTask(request)).task == cancelled
        assert await service.end(created.id) == cancelled


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.ListTasksRequest(page_size=-1), "page_size"),
        (pb.ListTasksRequest(status=77), "status"),  # type: ignore[arg-type]
        (pb.ListTasksRequest(prompt_id="x" * 256), "prompt_id"),
        (pb.ListTasksRequest(page_token="!"), "page_token"),
        (pb.ListTasksRequest(page_token="AAAA"), "page_token"),
        (pb.QueryTaskRequest(), "task_id"),
        (pb.QueryTaskRequest(task_id="a\0b"), "task_id"),
        (pb.WatchTaskRequest(task_id="t", after_revision=-1), "after_revision"),
        (pb.CancelTaskRequest(task_id="x" * 256), "task_id"),
    ],
)
async def test_a_broken_rule_is_named_by_its_field(
    service: Service, request_: Any, field: str
) -> None:
    method = type(request_).__name__.removesuffix("Request")
    call = getattr(service.stub, method)(request_)
    error = await refused(call.read() if method == "WatchTask" else call)
    assert (error.code, error.reason, error.fields) == (INVALID, "INVALID_PARAMS", [field])


async def test_an_after_revision_above_the_current_one_is_refused(service: Service) -> None:
    created = await service.create(STUCK)
    request = pb.WatchTaskRequest(task_id=created.id, after_revision=1_000)
    error = await refused(service.stub.WatchTask(request).read())
    assert (error.code, error.fields) == (INVALID, ["after_revision"])


async def test_an_error_with_a_thousand_broken_rules_still_reaches_the_caller(
    service: Service,
) -> None:
    urls = ["ftp://x"] * 1_000
    error = await refused(service.create({"veo3": {"prompt": "x", "image_urls": urls}}))
    assert error.reason == "INVALID_PARAMS"
    assert error.fields


async def test_a_long_message_of_the_provider_still_reaches_the_caller(service: Service) -> None:
    service.kie.add_fault(f"create:code,code=422,msg={'提示词不能为空' * 200}")
    error = await refused(service.create())
    assert error.reason == "PROVIDER_REJECTED"
    assert error.message.startswith("提示词不能为空")


# --- uploads ---


@pytest.mark.parametrize(
    ("code", "reason", "status"),
    [
        (400, "PROVIDER_REJECTED", INVALID),
        (405, "PROVIDER_ERROR", grpc.StatusCode.ABORTED),
        (401, "PROVIDER_UNAUTHORIZED", PRECONDITION),
        (402, "CREDITS_EXHAUSTED", PRECONDITION),
        *((c, "PROVIDER_UNAVAILABLE", grpc.StatusCode.UNAVAILABLE) for c in (429, 455, 500, 503)),
    ],
)
async def test_an_upload_that_the_provider_refuses_says_so(
    service: Service, code: int, reason: str, status: grpc.StatusCode
) -> None:
    service.kie.add_fault(f"upload:code,code={code},msg=no")
    error = await refused(service.stub.UploadFile(iter(upload_messages(b"x"))))
    assert (error.code, error.reason) == (status, reason)
    assert (error.retry_seconds is not None) == (reason == "PROVIDER_UNAVAILABLE")


@pytest.mark.parametrize("fault", ["upload:reset", "upload:garbage", "upload:http,status=502"])
async def test_an_upload_that_breaks_at_the_provider_may_be_sent_again(
    service: Service, fault: str
) -> None:
    service.kie.add_fault(fault)
    error = await refused(service.stub.UploadFile(iter(upload_messages(b"x" * 100_000))))
    assert (error.code, error.reason) == (
        grpc.StatusCode.UNAVAILABLE,
        "PROVIDER_UNAVAILABLE",
    )


# --- garbage ---

METHODS = [method.name for method in pb.DESCRIPTOR.services_by_name["GenerationService"].methods]
OTHERS = [
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
]
GARBAGE = {
    "random bytes": b"\xff\xfe\xfd\xfc" * 9,
    "a cut varint": b"\x0a\xff",
    "a length beyond the end": b"\x0a\x7fab",
    "bad UTF-8": b"\x0a\x02\xff\xfe",
    "a group that never ends": b"\x0b" * 200,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("data", [b"{}", b'{"task_id": "x"}', b"[]"])
async def test_a_message_in_json_is_named_as_such(
    service: Service, method: str, data: bytes
) -> None:
    send: Any = service.channel.stream_stream(f"/generation.v1.GenerationService/{method}")
    error = await refused(send(iter([data]), timeout=5).read())
    assert error.reason == "INVALID_PARAMS"
    assert "JSON" in error.message


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE.keys())
@pytest.mark.parametrize(
    "method", [f"/generation.v1.GenerationService/{m}" for m in METHODS] + OTHERS
)
async def test_an_unparsable_request_is_the_callers_error(
    service: Service, method: str, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    send: Any = service.channel.stream_stream(method)
    call = send(iter([data]), timeout=5)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    error = refusal(caught.value)
    assert (error.code, error.reason) == (INVALID, "INVALID_PARAMS")
    assert "Traceback" not in caplog.text


async def test_unknown_fields_and_an_unknown_model_name_the_model_as_missing(
    service: Service,
) -> None:
    unknown_model = b"\x12\x06\x0a\x04\xfa\x01\x01x"  # provider_params.kie with field 31 only
    call: Any = service.channel.unary_unary("/generation.v1.GenerationService/CreateTask")
    error = await refused(call(b"\x0a\x01p" + unknown_model))
    assert error.fields == ["provider_params.kie"]


async def test_an_unknown_method_is_unimplemented(service: Service) -> None:
    call: Any = service.channel.unary_unary("/generation.v1.GenerationService/Nothing")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"")
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_a_message_over_the_limit_is_refused_and_the_service_continues(
    service: Service,
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.create({"imagen4": {"prompt": "x" * 5_000_000}})
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await service.create()).id


# --- the database is unavailable ---


async def test_an_unavailable_database_is_reported_with_a_retry_delay(serve: Serve) -> None:
    timeouts = DatabaseTimeouts(sqlite_busy_seconds=0.05, lock_milliseconds=50)
    async with serve(bounds=Bounds(database=timeouts)) as service:
        with locked(service.database_url):
            error = await refused(service.create())
        assert (error.code, error.reason) == (
            grpc.StatusCode.UNAVAILABLE,
            "STORAGE_UNAVAILABLE",
        )
        assert error.retry_seconds
        assert (await service.create()).status == pb.TASK_STATUS_PENDING


async def test_a_bug_is_internal_under_an_id_that_the_log_has_too(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("service.messages.task_message", broken)
    with structlog.testing.capture_logs() as logs:
        error = await refused(service.create())
    assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    [bug] = [entry for entry in logs if entry["event"] == "unhandled exception"]
    assert error.message == f"an internal error, logged under {bug['error_id']}"
    assert "ZeroDivisionError" not in error.message


@pytest.mark.parametrize("model", ["imagen4", "veo3"])
async def test_a_key_that_the_provider_quotes_is_hidden_everywhere(
    service: Service, model: str
) -> None:
    created = await service.create(
        {model: {"prompt": f"x [sim:fail=400 the key {API_KEY} is bad]"}}
    )
    end = await service.end(created.id)
    assert end.failure.message == "the key (hidden) is bad"
    service.kie.add_fault(f"create:code,code=401,msg=the key {API_KEY} is bad")
    assert (await refused(service.create())).message == "the key (hidden) is bad"
