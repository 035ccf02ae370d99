"""ListTasks: what a page holds, and how pages follow each other."""

import math
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from generated.generation.v1 import generation_pb2 as pb
from storage.creation import CreateLimits
from storage.opening import open_store
from storage.task import Artifact, Failure, Status, Task
from tests.support.harness import Serve, Service
from tests.support.refusals import refusal

PAGE_BYTES = 1 << 20
NOW = 1_760_000_000.0
STATUSES = {
    Status.PENDING: pb.TASK_STATUS_PENDING,
    Status.SUCCESS: pb.TASK_STATUS_SUCCESS,
    Status.FAILED: pb.TASK_STATUS_FAILED,
}


def stored(
    number: int,
    *,
    caller: str = "default",
    prompt_id: str = "p",
    create_time: float | None = None,
    status: Status = Status.SUCCESS,
    prompt: str = "a cat",
    result_json: str = "",
) -> Task:
    """Return a task that nobody works on; the higher its number, the newer it is."""
    created = NOW + number if create_time is None else create_time
    kie = pb.KieParams(imagen4=pb.Imagen4Params(prompt=prompt))
    return Task(
        id=f"task-{number:05}",
        caller=caller,
        request_id="",
        prompt_id=prompt_id,
        model="imagen4",
        params=pb.ProviderParams(kie=kie).SerializeToString(),
        create_time=created,
        update_time=created,
        due_time=None,
        status=status,
        stage=None,
        artifacts=(Artifact("http://127.0.0.1/x.png", "image/png"),),
        result_json=result_json,
        failure=Failure("CANCELLED", "cancelled") if status is Status.FAILED else None,
    )


async def store_tasks(database_url: str, tasks: Iterable[Task]) -> None:
    """Fill the database before the service starts."""
    store = open_store(database_url)
    for task in tasks:
        await store.create(task, CreateLimits(1_000_000))
    await store.close()


async def page(service: Service, token: str = "", **filters: Any) -> pb.ListTasksResponse:
    request = pb.ListTasksRequest(page_token=token, **filters)
    return await service.stub.ListTasks(request, timeout=10)


async def pages(service: Service, **filters: Any) -> AsyncIterator[pb.ListTasksResponse]:
    """Follow the page tokens until the token is empty."""
    token = ""
    while True:
        answer = await page(service, token, **filters)
        yield answer
        token = answer.next_page_token
        if not token:
            return


async def walked(service: Service, **filters: Any) -> list[str]:
    return [task.id async for answer in pages(service, **filters) for task in answer.tasks]


def ids(numbers: Iterable[int]) -> list[str]:
    return [f"task-{number:05}" for number in numbers]


# --- order and filters ---


async def test_the_newest_task_comes_first(serve: Serve, database_url: str) -> None:
    await store_tasks(database_url, map(stored, (2, 0, 3, 1)))
    async with serve() as service:
        assert await walked(service) == ids((3, 2, 1, 0))
        newest = await service.create()
        assert await walked(service) == [newest.id, *ids((3, 2, 1, 0))]


async def test_a_list_without_tasks_is_empty_and_ends(service: Service) -> None:
    assert await page(service) == pb.ListTasksResponse()


@pytest.mark.parametrize("prompt_id", ["", "p", "q", "P", "%", "nobody's"])
@pytest.mark.parametrize("status", [None, *Status])
async def test_the_filters_work_alone_and_together(
    serve: Serve, database_url: str, prompt_id: str, status: Status | None
) -> None:
    kinds = [(p, s) for p in ("p", "q") for s in Status]
    tasks = [stored(n, prompt_id=p, status=s) for n, (p, s) in enumerate(kinds * 2)]
    await store_tasks(database_url, tasks)
    wanted = [
        task.id
        for task in reversed(tasks)
        if prompt_id in {"", task.prompt_id} and status in {None, task.status}
    ]
    filters = {"prompt_id": prompt_id, "status": STATUSES[status] if status else 0}
    async with serve() as service:
        assert await walked(service, **filters) == wanted
        assert await walked(service, page_size=1, **filters) == wanted


async def test_a_listed_task_is_the_same_message_as_a_queried_one(service: Service) -> None:
    end = await service.end((await service.create(request_id="r")).id)
    assert list((await page(service)).tasks) == [end] == [await service.query(end.id)]


# --- sizes ---


@pytest.mark.parametrize(
    ("page_size", "expected"),
    [(0, 50), (1, 1), (49, 49), (50, 50), (199, 199), (200, 200), (201, 200), (2**31 - 1, 200)],
)
async def test_a_page_holds_as_many_tasks_as_asked_50_by_default_and_200_at_most(
    serve: Serve, database_url: str, page_size: int, expected: int
) -> None:
    await store_tasks(database_url, map(stored, range(203)))
    async with serve() as service:
        first = await page(service, page_size=page_size)
        assert [task.id for task in first.tasks] == ids(range(202, 202 - expected, -1))
        assert first.next_page_token


@pytest.mark.parametrize("count", [1, 4, 5, 6, 10, 11])
async def test_the_last_page_and_no_other_has_an_empty_token(
    serve: Serve, database_url: str, count: int
) -> None:
    await store_tasks(database_url, map(stored, range(count)))
    async with serve() as service:
        sizes = [len(answer.tasks) async for answer in pages(service, page_size=5)]
    assert sizes == [5] * (count // 5) + [count % 5] * bool(count % 5)


async def test_the_page_size_may_change_from_page_to_page(serve: Serve, database_url: str) -> None:
    await store_tasks(database_url, map(stored, range(10)))
    async with serve() as service:
        first = await page(service, page_size=3)
        second = await page(service, first.next_page_token, page_size=7)
        assert [t.id for t in (*first.tasks, *second.tasks)] == ids(range(9, -1, -1))
        assert not second.next_page_token


# --- each task exactly once ---


@pytest.mark.parametrize("page_size", [1, 7, 60])
async def test_pages_contain_each_task_once_even_if_all_were_created_at_the_same_time(
    serve: Serve, database_url: str, page_size: int
) -> None:
    await store_tasks(database_url, (stored(n, create_time=NOW + 1 / 3) for n in range(60)))
    async with serve() as service:
        assert Counter(await walked(service, page_size=page_size)) == Counter(ids(range(60)))


async def test_pages_contain_each_task_once_while_others_are_created_and_ended(
    serve: Serve, database_url: str
) -> None:
    await store_tasks(database_url, (stored(n, create_time=NOW + n // 3) for n in range(20)))
    async with serve() as service:
        met: list[str] = []
        async for answer in pages(service, page_size=3):
            met += [task.id for task in answer.tasks]
            await service.end((await service.create()).id)
        assert met == ids(range(19, -1, -1))


async def test_a_page_requested_again_is_the_same(serve: Serve, database_url: str) -> None:
    await store_tasks(database_url, map(stored, range(9)))
    async with serve() as service:
        token = (await page(service, page_size=3)).next_page_token
        second = await page(service, token, page_size=3)
        assert await page(service, token, page_size=3) == second


async def test_a_token_outlives_a_restart(serve: Serve, database_url: str) -> None:
    await store_tasks(database_url, map(stored, range(6)))
    async with serve() as service:
        token = (await page(service, page_size=3)).next_page_token
    async with serve() as service:
        assert [t.id for t in (await page(service, token)).tasks] == ids((2, 1, 0))


# --- a mebibyte ---


async def test_a_page_ends_before_a_mebibyte_and_the_next_one_continues(
    serve: Serve, database_url: str
) -> None:
    await store_tasks(database_url, (stored(n, prompt="\U0001f408" * 5_000) for n in range(120)))
    async with serve() as service:
        answers = [answer async for answer in pages(service, page_size=200)]
    assert [t.id for answer in answers for t in answer.tasks] == ids(range(119, -1, -1))
    assert len(answers) == 3
    for answer in answers[:-1]:
        size = sum(task.ByteSize() for task in answer.tasks)
        assert PAGE_BYTES - 21_000 < size <= PAGE_BYTES


@pytest.mark.parametrize("large", [(0,), (3,), (6,), (2, 3, 4), range(7)])
async def test_a_task_larger_than_a_page_has_its_own_page(
    serve: Serve, database_url: str, large: Iterable[int]
) -> None:
    large = set(large)
    text = '{"resultUrls": [], "x": "%s"}' % ("x" * (PAGE_BYTES + 1))
    await store_tasks(
        database_url, (stored(n, result_json=text if n in large else "") for n in range(7))
    )
    async with serve() as service:
        answers = [answer async for answer in pages(service)]
    assert [t.id for answer in answers for t in answer.tasks] == ids(range(6, -1, -1))
    for answer in answers:
        assert len(answer.tasks) == 1 or answer.ByteSize() <= PAGE_BYTES


# --- tokens ---


async def test_a_token_belongs_to_its_filter(serve: Serve, database_url: str) -> None:
    await store_tasks(database_url, map(stored, range(6)))
    filters: list[dict[str, Any]] = [
        {},
        {"prompt_id": "p"},
        {"prompt_id": "q"},
        {"status": pb.TASK_STATUS_SUCCESS},
        {"status": pb.TASK_STATUS_FAILED},
        {"prompt_id": "p", "status": pb.TASK_STATUS_SUCCESS},
    ]
    async with serve() as service:
        for made_by in filters:
            token = (await page(service, page_size=2, **made_by)).next_page_token
            for used_by in filters:
                if not token or used_by == made_by:
                    continue
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await page(service, token, **used_by)
                assert refusal(caught.value).fields == ["page_token"]


SPOILED = {
    "cut": lambda token: token[:-1],
    "cut at its start": lambda token: token[1:],
    "longer": lambda token: token + "A",
    "of another case": str.swapcase,
    "behind a blank": lambda token: f" {token}",
    "only padding": lambda token: "=" * len(token),
    "only zeros": lambda token: "A" * len(token),
    "repeated": lambda token: token * 1_000,
    "no ASCII": "ü{}".format,
    "with NUL": "\0{}".format,
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED.keys())
async def test_a_corrupted_token_is_refused_by_its_field(
    serve: Serve, database_url: str, spoil: Callable[[str], str]
) -> None:
    await store_tasks(database_url, map(stored, range(6)))
    async with serve() as service:
        token = (await page(service, page_size=2)).next_page_token
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await page(service, spoil(token))
    assert refusal(caught.value).fields == ["page_token"]


# --- by time and model ---


async def listed(service: Service, **filters: Any) -> list[str]:
    return [
        task.id for answer in [p async for p in pages(service, **filters)] for task in answer.tasks
    ]


def at(unix_seconds: float) -> Timestamp:
    return Timestamp(seconds=int(unix_seconds), nanos=int(unix_seconds % 1 * 1e9))


async def test_a_list_by_time_has_what_was_created_in_it(serve: Serve, database_url: str) -> None:
    await store_tasks(database_url, [stored(n) for n in range(6)])
    async with serve() as service:
        between = await listed(service, created_after=at(NOW + 2), created_before=at(NOW + 4))
        assert between == ["task-00003", "task-00002"]
        assert await listed(service, created_after=at(NOW + 5)) == ["task-00005"]
        assert await listed(service, created_before=at(NOW)) == []
        assert await listed(service, created_after=at(NOW + 4), created_before=at(NOW)) == []
        assert len(await listed(service, created_after=Timestamp())) == 6


async def test_the_create_time_of_a_task_includes_it_and_excludes_it(service: Service) -> None:
    for _ in range(20):  # times that a float cannot represent exactly
        created = await service.create()
        assert created.id in await listed(service, created_after=created.create_time)
        assert created.id not in await listed(service, created_before=created.create_time)


async def test_a_list_by_model_has_only_that_model_page_by_page(
    serve: Serve, database_url: str
) -> None:
    tasks = [stored(n)._replace(model="veo3" if n % 3 else "imagen4") for n in range(9)]
    await store_tasks(database_url, tasks)
    async with serve() as service:
        found = await listed(service, model="imagen4", page_size=1)
        assert found == ["task-00006", "task-00003", "task-00000"]
        assert await listed(service, model="imagen4", created_after=at(NOW + 1)) == found[:2]
        assert await listed(service, model="unheard-of") == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "x" * 129),
        ("model", "a\0"),
        ("created_after", Timestamp(seconds=1 << 62)),
        ("created_before", Timestamp(seconds=-(1 << 62))),
        ("created_before", Timestamp(seconds=-62_135_596_801)),
        ("created_after", Timestamp(seconds=253_402_300_800)),
        ("created_before", Timestamp(nanos=-1)),
        ("created_after", Timestamp(nanos=1_000_000_000)),
    ],
)
async def test_a_filter_that_cannot_be_meant_is_refused(
    service: Service, field: str, value: Any
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await page(service, **{field: value})
    assert list(refusal(caught.value).fields) == [field]


@pytest.mark.parametrize("time", [math.nan, math.inf, -math.inf])
async def test_a_page_token_without_a_time_is_refused(service: Service, time: float) -> None:
    for _ in range(2):
        await service.create()
    raw = urlsafe_b64decode((await page(service, page_size=1)).next_page_token)
    token = urlsafe_b64encode(struct.pack(">d", time) + raw[8:]).decode()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await page(service, token, page_size=1)
    assert list(refusal(caught.value).fields) == ["page_token"]


async def test_a_page_token_of_another_time_or_model_is_refused(service: Service) -> None:
    for _ in range(2):
        await service.create()
    token = (await page(service, page_size=1)).next_page_token
    for other in ({"model": "imagen4"}, {"created_after": Timestamp()}):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await page(service, token, page_size=1, **other)
        assert list(refusal(caught.value).fields) == ["page_token"]
