"""Unreadable tasks next to readable ones, signs of a purchase, and holds."""

import asyncio
import itertools
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from generated.generation.v1 import generation_pb2 as pb
from tests.support.calling_back import OFTEN, post, with_callbacks
from tests.support.harness import has_artifacts, serving
from tests.support.kie_socket import Raw, Request, SocketKie, envelope, http
from tests.support.waiting import eventually

URL = "https://x.example/a.png"
DEAD_ANSWERS = [
    envelope(401, None, "no access"),
    envelope(408, None, "No result has been returned for over 10 minutes"),
    envelope(500, None, "Server exception"),
    envelope(505, None, "disabled"),
    http("<h1>404</h1>", status=404),
    http("<h1>502</h1>", status=502),
    http('{"code":200,"data":{"taskId":"x","state":"succ'),
    envelope(200, {"taskId": "another", "state": "success"}),
    envelope(200, None),
    envelope(200, {"state": "archived"}),
    http("x" * (9 << 20)),
    http(""),
]
SMALL_ANSWERS = [answer for answer in DEAD_ANSWERS if len(answer.data) < 1_000]
INTERVAL = 0.5
MAX_AGE = 9.0
POLLS = 7  # of each readable task, to be compared
STATUS_PER_SECOND = 40  # not enough for all


class Crowd:
    """Answers each unreadable task in its own way; readable ones generate until released."""

    def __init__(self) -> None:
        self.polls: defaultdict[str, list[float]] = defaultdict(list)
        self.numbers = itertools.count()
        self.done = False

    def __call__(self, request: Request) -> Raw:
        if request.endpoint == "create":
            prompt = request.body["input"]["prompt"]
            return envelope(200, {"taskId": f"{prompt}-{next(self.numbers)}"})
        self.polls[request.task_id].append(time.monotonic())
        kind, number = request.task_id.split("-")
        if kind == "dead":
            return SMALL_ANSWERS[int(number) % len(SMALL_ANSWERS)]
        if kind == "living" and not self.done:
            return envelope(200, {"taskId": request.task_id, "state": "generating"})
        return envelope(200, {"state": "success", "response": [URL]})

    def living_polls(self) -> list[list[float]]:
        return [times for task_id, times in self.polls.items() if task_id.startswith("living")]

    def mean_gap(self) -> float:
        spans = [times[POLLS - 1] - times[0] for times in self.living_polls()]
        return sum(spans) / len(spans) / (POLLS - 1)


async def crowd_of(folder: Path, dead: int) -> tuple[Crowd, list[pb.GenerationTask]]:
    """Run five readable tasks for a while next to unreadable ones; return how those ended."""
    crowd = Crowd()
    kie: Any = SocketKie(crowd)
    settings: dict[str, Any] = {
        "poll_interval_seconds": INTERVAL,
        "task_max_age_seconds": MAX_AGE,
        "kie_running_max": dead + 5,
        "kie_status_per_second": STATUS_PER_SECOND,
        "create_wait_seconds": 0,
    }
    async with kie, serving(folder, kie, **settings) as service:
        lost = [await service.create({"imagen4": {"prompt": "dead"}}) for _ in range(dead)]
        await eventually(lambda: kie.count("create") == dead)
        await asyncio.sleep(MAX_AGE / 4)  # the readable tasks are younger, and end later
        for _ in range(5):
            await service.create({"imagen4": {"prompt": "living"}})
        ends = list(await asyncio.gather(*(service.end(task.id) for task in lost)))
        await eventually(lambda: sum(len(times) >= POLLS for times in crowd.living_polls()) == 5)
        crowd.done = True
        new = await service.end((await service.create({"imagen4": {"prompt": "new"}})).id)
        assert new.status == pb.TASK_STATUS_SUCCESS, "the slots of the dead are free again"
    return crowd, ends


async def test_60_unreadable_tasks_do_not_delay_5_readable_ones_and_all_end(
    tmp_path: Path,
) -> None:
    (tmp_path / "alone").mkdir()
    (tmp_path / "crowd").mkdir()
    alone, _ = await crowd_of(tmp_path / "alone", 0)
    crowd, ends = await crowd_of(tmp_path / "crowd", 60)
    assert {end.failure.reason for end in ends} == {pb.ERROR_REASON_TASK_TIMEOUT}

    assert crowd.mean_gap() <= 1.2 * alone.mean_gap()
    of_dead = [len(times) for task_id, times in crowd.polls.items() if "dead" in task_id]
    assert max(of_dead) <= 8, "they back off, even while others are answered"


async def ended_as(
    tmp_path: Path, answer: Raw, max_age: float = 0.3
) -> tuple[pb.GenerationTask, list[Any]]:
    """Run one task whose record is always the same answer."""

    def answers(request: Request) -> Raw:
        return envelope(200, {"taskId": "k"}) if request.endpoint == "create" else answer

    kie: Any = SocketKie(answers)
    with capture_logs() as logs:
        async with kie, serving(tmp_path, kie, task_max_age_seconds=max_age) as service:
            end = await service.end((await service.create()).id)
    return end, list(logs)


@pytest.mark.parametrize("number", [2, 3, 4, 6, 7, 8, 9, 10])
async def test_an_unreadable_task_ends_by_its_age_while_others_are_answered(
    tmp_path: Path, number: int
) -> None:
    end, _ = await ended_as(tmp_path, DEAD_ANSWERS[number])
    assert end.failure.reason == pb.ERROR_REASON_TASK_TIMEOUT


async def test_code_408_ends_a_task_after_a_few_in_a_row(tmp_path: Path) -> None:
    end, _ = await ended_as(tmp_path, DEAD_ANSWERS[1], max_age=3_600)
    assert end.failure.reason == pb.ERROR_REASON_TASK_TIMEOUT
    assert end.failure.provider_code == "408"


async def test_a_timed_out_task_keeps_what_was_not_understood(tmp_path: Path) -> None:
    record = {"state": "archived", "param": '{"callBackUrl":"https://us.example/s"}', "odd": "x-1"}
    end, _ = await ended_as(tmp_path, envelope(200, record))
    assert json.loads(end.result_json)["record"]["odd"] == "x-1"
    assert "us.example" not in end.result_json
    end, logs = await ended_as(tmp_path, envelope(500, None, "odd words x-2"))
    assert end.failure.message.endswith("odd words x-2")
    [warning] = [log for log in logs if log["event"] == "task timed out"]
    assert "x-2" in warning["answer"]


async def test_no_task_ends_during_an_outage(tmp_path: Path) -> None:
    kie: Any = SocketKie(
        lambda request: (
            envelope(200, {"taskId": "k"})
            if request.endpoint == "create"
            else envelope(401, None, "no access")
        )
    )
    async with kie, serving(tmp_path, kie, task_max_age_seconds=0.1) as service:
        task = await service.create()
        await eventually(lambda: kie.count("record") >= 12)
        assert (await service.query(task.id)).status == pb.TASK_STATUS_PENDING


# --- signs of a purchase ---


class Bought:
    """Every create was bought, whatever the answer; the record repeats no request."""

    def __init__(self, answer: Raw) -> None:
        self.answer = answer
        self.urls: list[str] = []

    def __call__(self, request: Request) -> Raw:
        if request.endpoint == "create":
            self.urls.append(request.body["callBackUrl"])
            return self.answer
        return envelope(200, {"taskId": "k-1", "state": "success", "response": [URL]})


REFUSALS = [
    envelope(500, None, "Server exception"),
    envelope(408, None, "timeout"),
    envelope(999, None, "what"),
    envelope(422, None, "no"),
    http("<p>timeout</p>", status=408),
    http("<p>too large</p>", status=413),
    http("<p>closed</p>", status=499),
]


@pytest.mark.parametrize("number", range(len(REFUSALS)))
async def test_a_callback_after_a_refusal_adds_the_result_to_the_failed_task(
    tmp_path: Path, unused_tcp_port: int, number: int
) -> None:
    bought = Bought(REFUSALS[number])
    kie: Any = SocketKie(bought)
    async with (
        kie,
        serving(
            tmp_path, kie, **with_callbacks(unused_tcp_port, create_wait_seconds=0, **OFTEN)
        ) as service,
    ):
        failed = await service.end((await service.create()).id)
        assert await post(bought.urls[0], {"data": {"taskId": "k-1"}}) == 200
        late = await service.until(failed.id, has_artifacts)
    assert (late.status, late.failure) == (pb.TASK_STATUS_FAILED, failed.failure)
    assert kie.count("create") == 1


@pytest.mark.parametrize("code", [429, 455])
@pytest.mark.parametrize("before_the_answer", [True, False])
async def test_a_callback_keeps_its_task_from_being_sent_a_second_time(
    tmp_path: Path, unused_tcp_port: int, code: int, before_the_answer: bool
) -> None:
    bought = Bought(envelope(code, None, "not now"))
    called = asyncio.Event()

    class SlowKie(SocketKie):
        async def _answered(self, request: Request) -> Raw:
            raw = self.answer(request)
            if request.endpoint == "create" and before_the_answer:
                assert await post(bought.urls[0], {"data": {"taskId": "k-1"}}) == 200
                called.set()
            return raw

    kie: Any = SlowKie(bought)
    async with (
        kie,
        serving(
            tmp_path, kie, **with_callbacks(unused_tcp_port, create_wait_seconds=0, **OFTEN)
        ) as service,
    ):
        task = await service.create()
        if not before_the_answer:
            await service.until_put_back(task.id)
            assert await post(bought.urls[0], {"data": {"taskId": "k-1"}}) == 200
        end = await service.end(task.id)
    assert end.status == pb.TASK_STATUS_SUCCESS
    assert [artifact.url for artifact in end.artifacts] == [URL]
    assert kie.count("create") == 1


async def test_a_record_that_changes_from_fail_to_success_adds_its_artifacts(
    tmp_path: Path, unused_tcp_port: int
) -> None:
    bought = Bought(envelope(200, {"taskId": "k-1"}))
    answers = iter([envelope(200, {"state": "fail", "failMsg": "no"})])
    kie: Any = SocketKie(
        lambda request: (
            bought(request) if request.endpoint == "create" else next(answers, bought(request))
        )
    )
    async with (
        kie,
        serving(
            tmp_path, kie, **with_callbacks(unused_tcp_port, create_wait_seconds=0, **OFTEN)
        ) as service,
    ):
        created = await service.create()
        await eventually(lambda: bool(bought.urls))
        assert await post(bought.urls[0], {"data": {"taskId": "k-1"}}) == 200
        failed = await service.end(created.id)
        assert failed.failure.reason == pb.ERROR_REASON_GENERATION_FAILED
        await asyncio.sleep(1.1)  # callbacks of one second may share a poll
        assert await post(bought.urls[0], {"data": {"taskId": "k-1"}}) == 200
        late = await service.until(failed.id, has_artifacts)
    assert late.failure == failed.failure


async def test_the_hosts_in_a_callback_are_logged_if_its_task_ends_without_a_result(
    tmp_path: Path, unused_tcp_port: int
) -> None:
    bought = Bought(envelope(200, {"taskId": "k-1"}))
    kie: Any = SocketKie(
        lambda request: (
            bought(request)
            if request.endpoint == "create"
            else envelope(200, {"state": "fail", "failMsg": "no"})
        )
    )
    body = {"data": {"taskId": "k-1", "resultUrls": ["https://files.example/a.png?key=1"]}}
    with capture_logs() as logs:
        settings = with_callbacks(unused_tcp_port, create_wait_seconds=0)
        async with kie, serving(tmp_path, kie, **settings) as service:
            created = await service.create()
            await eventually(lambda: bool(bought.urls))
            assert await post(bought.urls[0], body) == 200
            await service.end(created.id)
    named = [log["hosts"] for log in logs if "named results" in log["event"]]
    assert named == [["files.example"]]


async def test_a_failed_task_whose_callback_repeats_its_request_names_no_results(
    tmp_path: Path, unused_tcp_port: int
) -> None:
    bought = Bought(envelope(200, {"taskId": "k-1"}))
    failed = {"taskId": "k-1", "state": "fail", "failCode": "500", "failMsg": "no"}
    kie: Any = SocketKie(
        lambda request: bought(request) if request.endpoint == "create" else envelope(200, failed)
    )
    with capture_logs() as logs:
        settings = with_callbacks(unused_tcp_port, create_wait_seconds=0)
        async with kie, serving(tmp_path, kie, **settings) as service:
            created = await service.create()
            await eventually(lambda: bool(bought.urls))
            param = json.dumps({"input": {"prompt": "a cat"}, "callBackUrl": bought.urls[0]})
            body = {"code": 501, "data": {**failed, "param": param}}
            assert await post(bought.urls[0], body) == 200
            await service.end(created.id)
    assert not [log for log in logs if "named results" in log["event"]]


# --- holds ---


async def test_twenty_tasks_of_a_model_under_maintenance_do_not_hold_back_another_model(
    tmp_path: Path,
) -> None:
    def answers(request: Request) -> Raw:
        if request.endpoint == "record":
            return envelope(200, {"state": "success", "response": [URL]})
        if request.body["model"].startswith("sora"):
            return envelope(455, None, "maintenance")
        return envelope(200, {"taskId": "k"})

    kie: Any = SocketKie(answers)
    async with kie, serving(tmp_path, kie, create_wait_seconds=0) as service:
        held = [await service.create({"sora2": {"prompt": "a cat"}}) for _ in range(20)]
        await service.until_put_back(held[0].id)
        sent = kie.count("create")
        started = time.monotonic()
        others = [await service.create() for _ in range(5)]
        ends = await asyncio.gather(*(service.end(task.id) for task in others))
        assert time.monotonic() - started < 1.0
    assert {end.status for end in ends} == {pb.TASK_STATUS_SUCCESS}
    assert kie.count("create") <= max(sent, 20) + 5 + 1, "held tasks are not sent meanwhile"


@pytest.mark.parametrize("most", [3, 0])
async def test_no_more_creates_are_in_flight_than_allowed(tmp_path: Path, most: int) -> None:
    peak = in_flight = 0

    class CountingKie(SocketKie):
        async def _answered(self, request: Request) -> Raw:
            nonlocal peak, in_flight
            if request.endpoint == "create":
                in_flight += 1
                peak = max(peak, in_flight)
                await asyncio.sleep(0.05)
                in_flight -= 1
            return self.answer(request)

    def answers(request: Request) -> Raw:
        if request.endpoint == "create":
            return envelope(200, {"taskId": "k"})
        return envelope(200, {"state": "success", "response": [URL]})

    kie: Any = CountingKie(answers)
    settings: dict[str, Any] = {"kie_creates_in_flight_max": most, "create_wait_seconds": 0}
    async with kie, serving(tmp_path, kie, **settings) as service:
        created = [await service.create() for _ in range(12)]
        await asyncio.gather(*(service.end(task.id) for task in created))
    assert peak == most if most else peak > 3


# --- two tasks, one record ---


async def test_a_duplicate_provider_id_and_a_foreign_record_are_logged(
    tmp_path: Path,
) -> None:
    param = json.dumps({"input": {"prompt": "something else altogether"}})

    def answers(request: Request) -> Raw:
        if request.endpoint == "create":
            return envelope(200, {"taskId": "k"})
        return envelope(200, {"state": "success", "param": param, "response": [URL]})

    kie: Any = SocketKie(answers)
    with capture_logs() as logs:
        async with kie, serving(tmp_path, kie) as service:
            for _ in range(2):
                await service.end((await service.create()).id)
    events = [log["event"] for log in logs]
    assert events.count("two tasks have the same id at the provider") == 1
    assert events.count("the record repeats a different request") == 2
