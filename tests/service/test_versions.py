"""Rows of the next version, next to a service of this one: shown, and otherwise left alone."""

from typing import Any

import aiohttp
import grpc
import pytest
from google.protobuf.unknown_fields import UnknownFieldSet

from generated.generation.v1 import generation_pb2 as pb
from providers.kie.simulator import Simulator
from tests.support.calling_back import callback_url, post, with_callbacks
from tests.support.databases import change, rows
from tests.support.harness import Serve, Service, create_request, ended
from tests.support.metrics_page import ADMIN, page_when, scrape
from tests.support.prompts import STUCK
from tests.support.refusals import refused

PENDING, UNSPECIFIED = pb.TASK_STATUS_PENDING, pb.TASK_STAGE_UNSPECIFIED
# A member of KieParams that this version does not know, with a string in its field 1.
NEXT_MODEL = bytes.fromhex("0a0972070a056b6c696e67")

WAITING = """
INSERT INTO tasks (id, caller, request_id, prompt_id, model, params, create_time, update_time, lane,
    due_time, status, stage, revision, artifacts, result_json, provider_task_id, hinted_id,
    setbacks, version)
VALUES (?, 'default', ?, 'p', ?, ?, 1, 1, ?, 1, ?, ?, 1, '[]', '', '', '', 0, 1)
"""
# What a newer version may store: model, lane, status, stage; and how this version shows it.
NEWER = {
    "a model, to be sent": (
        ("kling/v2", "submit", "PENDING", "ACCEPTED"),
        (PENDING, pb.TASK_STAGE_ACCEPTED),
    ),
    "a model, in progress": (
        ("kling/v2", "poll", "PENDING", "GENERATING"),
        (PENDING, pb.TASK_STAGE_GENERATING),
    ),
    "a model, ended": (
        ("kling/v2", None, "FAILED", None),
        (pb.TASK_STATUS_FAILED, UNSPECIFIED),
    ),
    "a stage": (("imagen4", "poll", "PENDING", "RESTORING"), (PENDING, UNSPECIFIED)),
    "a stage and a lane": (("imagen4", "restore", "PENDING", "RESTORING"), (PENDING, UNSPECIFIED)),
    "a lane": (
        ("imagen4", "check", "PENDING", "ACCEPTED"),
        (PENDING, pb.TASK_STAGE_ACCEPTED),
    ),
    "a status": (("imagen4", "poll", "HELD", "QUEUED"), (PENDING, pb.TASK_STAGE_QUEUED)),
    "a status and a stage": (("imagen4", "poll", "HELD", "RESTORING"), (PENDING, UNSPECIFIED)),
}
CASES = [pytest.param(values, shown, id=name) for name, (values, shown) in NEWER.items()]


def put(service: Service, values: tuple[Any, ...], task_id: str = "newer") -> list[Any]:
    """Store a row of the next version; return it."""
    model, lane, status, stage = values
    change(service.database_url, WAITING, task_id, task_id, model, NEXT_MODEL, lane, status, stage)
    return row_of(service, task_id)


def row_of(service: Service, task_id: str = "newer") -> list[Any]:
    return rows(service.database_url, "SELECT * FROM tasks WHERE id = ?", task_id)


@pytest.mark.parametrize(("values", "shown"), CASES)
async def test_a_task_of_the_next_version_is_shown_and_left_alone_while_others_end(
    serve: Serve, values: tuple[Any, ...], shown: tuple[int, int]
) -> None:
    async with serve(**ADMIN) as service:
        before = put(service, values)
        created = [await service.create() for _ in range(3)]
        for task in created:
            assert (await service.end(task.id)).status == pb.TASK_STATUS_SUCCESS
        found = await service.query("newer")
        assert (found.status, found.stage) == shown
        listed = await service.stub.ListTasks(pb.ListTasksRequest())
        assert found in listed.tasks
        async for watched in service.stub.WatchTask(pb.WatchTaskRequest(task_id="newer")):
            assert watched.task == found
            break
        assert (await scrape(service)).value("generation_queue_tasks", lane="submit") is not None
        assert row_of(service) == before
        assert len(service.kie.tasks) == len(created)


@pytest.mark.parametrize("values", [values for values, _ in NEWER.values()], ids=NEWER.keys())
async def test_a_restart_leaves_a_task_of_the_next_version_alone(
    serve: Serve, values: tuple[Any, ...]
) -> None:
    async with serve() as service:
        before = put(service, values)
    async with serve() as service:
        assert ended(await service.end((await service.create()).id))
        assert row_of(service) == before


async def test_the_poller_does_not_run_again_and_again_for_tasks_that_it_leaves_alone(
    serve: Serve,
) -> None:
    async with serve(**ADMIN) as service:
        for number, (values, _) in enumerate(NEWER.values()):
            put(service, values, f"newer-{number}")
        assert ended(await service.end((await service.create()).id))

        def runs(page: Any) -> float:
            name = "generation_database_seconds_count"
            return float(page.value(name, operation="next_due_times") or 0)

        before = runs(await scrape(service))
        stuck = await service.create(STUCK)
        service.kie.finish(stuck.provider_task_id)
        await service.end(stuck.id)
        later = await page_when(service, lambda page: runs(page) > before + 1)
        assert runs(later) < before + 100


async def test_tasks_in_a_lane_of_the_next_version_are_counted(serve: Serve) -> None:
    async with serve(**ADMIN) as service:
        put(service, NEWER["a stage and a lane"][0])
        page = await scrape(service)
        assert page.value("generation_queue_tasks", lane="unknown") == 1
        assert page.value("generation_queue_tasks", lane="poll") == 0


async def test_parameters_of_the_next_version_are_passed_on_to_callers(service: Service) -> None:
    put(service, NEWER["a model, to be sent"][0])
    task = await service.query("newer")
    assert task.provider_params.SerializeToString() == NEXT_MODEL
    fields = UnknownFieldSet(task.provider_params.kie)
    assert [fields[index].field_number for index in range(len(fields))] == [14]


async def test_a_failure_with_a_reason_of_the_next_version_is_shown_with_its_message(
    service: Service,
) -> None:
    put(service, NEWER["a model, ended"][0])
    sql = "UPDATE tasks SET failure_reason = 'TOO_LOUD', failure_message = 'no', failure_code = ''"
    change(service.database_url, sql)
    failure = (await service.query("newer")).failure
    assert (failure.reason, failure.message) == (pb.ERROR_REASON_UNSPECIFIED, "no")


@pytest.mark.parametrize(
    "name", ["a model, to be sent", "a lane", "a stage", "a status", "a model, in progress"]
)
async def test_a_task_of_the_next_version_cannot_be_cancelled_here_and_the_caller_may_retry(
    service: Service, name: str
) -> None:
    before = put(service, NEWER[name][0])
    answer = await refused(
        service.stub.CancelTask(pb.CancelTaskRequest(task_id="newer"), timeout=9)
    )
    assert (answer.code, answer.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
    assert answer.retry_seconds
    assert row_of(service) == before


async def test_a_create_with_the_request_id_of_a_newer_task_changes_nothing(
    service: Service,
) -> None:
    before = put(service, NEWER["a stage"][0])
    request = create_request(request_id="newer")
    assert (await refused(service.stub.CreateTask(request))).reason == "REQUEST_ID_REUSED"
    assert row_of(service) == before


@pytest.mark.parametrize(
    "change_of_a_newer_version", ["model = 'kling/v2'", "stage = 'RESTORING', lane = 'restore'"]
)
async def test_a_callback_for_a_newer_task_is_not_acknowledged_so_that_it_is_repeated(
    serve: Serve, port: int, change_of_a_newer_version: str
) -> None:
    async with serve(**with_callbacks(port)) as service:
        created = await service.create(STUCK)
    change(service.database_url, f"UPDATE tasks SET {change_of_a_newer_version}")  # noqa: S608
    async with serve(**with_callbacks(port)) as service:
        before = row_of(service, created.id)
        assert await post(callback_url(service.kie)) == 503
        assert row_of(service, created.id) == before


# --- parameters that this version cannot read ---

UNREADABLE = {
    # Imagen4Params with the unknown field 99, and with an api_model that this version lacks.
    "a field": {"prompt": "x"},
    "a choice": {"prompt": "x", "api_model": 99},
}


@pytest.mark.parametrize("kind", UNREADABLE)
async def test_a_task_with_parameters_of_the_next_version_is_neither_sent_nor_failed(
    serve: Serve, kie: Simulator, kind: str
) -> None:
    params = create_request({"imagen4": UNREADABLE[kind]}).provider_params.SerializeToString()
    if kind == "a field":
        known = pb.ProviderParams.FromString(params)
        imagen = known.kie.imagen4.SerializeToString() + bytes.fromhex("9a06026869")
        known.kie.imagen4.ParseFromString(imagen)
        params = known.SerializeToString()
    async with serve(create_wait_seconds=0) as service:
        sql = WAITING.replace("1, 1, ?, 1, ?", "1, 1, ?, 1e18, ?")
        change(
            service.database_url,
            *(sql, "newer", "newer", "imagen4", params, "submit", "PENDING", "ACCEPTED"),
        )
        change(service.database_url, "UPDATE tasks SET due_time = 1")
        task = await service.until("newer", lambda task: task.revision >= 3)
        assert (task.status, task.stage) == (PENDING, pb.TASK_STAGE_ACCEPTED)
        assert ended(await service.end((await service.create()).id))
        assert task.provider_params.SerializeToString() == params
    assert len(kie.tasks) == 1


async def test_a_result_is_kept_although_the_parameters_cannot_be_compared(serve: Serve) -> None:
    async with serve() as service:
        created = await service.create(STUCK)
    params = create_request({"imagen4": UNREADABLE["a choice"]}).provider_params
    sql = "UPDATE tasks SET params = ?, due_time = 0"
    change(service.database_url, sql, params.SerializeToString())
    async with serve() as service:
        service.kie.finish(created.provider_task_id)
        assert (await service.end(created.id)).status == pb.TASK_STATUS_SUCCESS


async def test_metrics_are_served_next_to_rows_of_the_next_version(serve: Serve) -> None:
    async with serve(**ADMIN) as service:
        for number, (values, _) in enumerate(NEWER.values()):
            put(service, values, f"newer-{number}")
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://{service.admin_address}/metrics") as response,
        ):
            assert response.status == 200
