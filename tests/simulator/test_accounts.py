"""Keys, limits and credits of the simulator's accounts."""

import aiohttp
import pytest

from providers.kie.simulator import Simulator
from tests.support.kie_client import IMAGEN4, JOBS, RECORDS, STILL, VEO, VEO3, Kie, running


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer "}, {"Authorization": "any-key"}])
async def test_a_request_without_a_key_is_code_401_in_http_200(header: dict[str, str]) -> None:
    async with Simulator(STILL) as simulator, aiohttp.ClientSession(headers=header) as session:
        for method, path in (("POST", JOBS), ("GET", RECORDS[VEO]), ("GET", "/api/v1/chat/credit")):
            async with session.request(method, simulator.url + path, json={}) as answer:
                assert answer.status == 200
                assert await answer.json() == {
                    "code": 401,
                    "msg": "You do not have access permissions",
                    "data": None,
                }


async def test_with_a_key_set_every_other_key_is_refused() -> None:
    async with running(api_key="the-key") as kie:
        assert (await kie.post(JOBS, IMAGEN4))["code"] == 401
        kie.session.headers["Authorization"] = "Bearer the-key"
        assert (await kie.post(JOBS, IMAGEN4))["code"] == 200


async def test_a_burst_over_the_limit_is_refused_with_code_429_and_not_queued() -> None:
    async with running(creates_per_window=20) as kie:
        codes = [(await kie.post(JOBS, IMAGEN4))["code"] for _ in range(25)]
        assert codes == [200] * 20 + [429] * 5
        assert kie.simulator.stats["purchases"]["total"] == 20
        assert kie.simulator.stats["creates_refused"] == {"429": 5}
        assert kie.simulator.stats["peaks"]["creates_in_a_window"] == 25


async def test_the_limit_of_creates_is_held_for_each_key_alone() -> None:
    async with running(creates_per_window=1) as kie:
        assert (await kie.post(JOBS, IMAGEN4))["code"] == 200
        assert (await kie.post(VEO, VEO3))["code"] == 429
        kie.session.headers["Authorization"] = "Bearer another-key"
        assert (await kie.post(VEO, VEO3))["code"] == 200


async def test_an_exceeded_limit_can_be_http_429_too() -> None:
    async with running(creates_per_window=1, http_429=True) as kie:
        await kie.create()
        async with kie.session.post(kie.simulator.url + JOBS, json=IMAGEN4) as answer:
            assert (answer.status, (await answer.json())["code"]) == (429, 429)


async def test_the_eleventh_record_query_in_a_second_is_code_429() -> None:
    async with running(records_per_second=10) as kie:
        task_id = await kie.create()
        codes = [(await kie.get(RECORDS[JOBS], taskId=task_id))["code"] for _ in range(11)]
    assert codes == [200] * 10 + [429]


async def test_no_more_tasks_run_than_allowed() -> None:
    async with running(max_running=2) as kie:
        first = await kie.create()
        await kie.create()
        assert (await kie.post(JOBS, IMAGEN4))["code"] == 429
        kie.simulator.finish(first)
        assert (await kie.post(JOBS, IMAGEN4))["code"] == 200


async def test_a_create_is_code_402_when_credits_run_out() -> None:
    async with running(credits=10, costs={"imagen4": 4.5}) as kie:
        codes = [(await kie.post(JOBS, IMAGEN4))["code"] for _ in range(3)]
        assert codes == [200, 200, 402]
        assert (await kie.get("/api/v1/chat/credit"))["data"] == 1.0


async def balance(kie: Kie) -> float:
    left = (await kie.get("/api/v1/chat/credit"))["data"]
    assert isinstance(left, float)
    return left


async def test_a_task_that_fails_costs_nothing() -> None:
    async with running(credits=10, costs={"imagen4": 4.5}) as kie:
        task_id = await kie.create()
        assert await balance(kie) == 5.5
        kie.simulator.finish(task_id, state="fail")
        assert await balance(kie) == 10
        assert kie.simulator.stats["credits"] == {"balance": 10, "spent": 0}


async def test_a_task_that_fails_by_itself_is_refunded_once() -> None:
    async with running(credits=10, seconds={"imagen4": (0, 0)}, fail_rate=1) as kie:
        await kie.create()
        assert [await balance(kie), await balance(kie)] == [10, 10]


async def test_a_failure_that_becomes_a_success_costs_after_all(kie: Kie) -> None:
    kie.simulator.update(credits=10)
    task_id = await kie.create()
    kie.simulator.finish(task_id, state="fail")
    kie.simulator.finish(task_id, state="fail")
    assert await balance(kie) == 10
    kie.simulator.finish(task_id)
    assert await balance(kie) == 6


async def test_a_record_has_the_credits_before_the_task_ends(kie: Kie) -> None:
    credits_ = (await kie.record(await kie.create()))["creditsConsumed"]
    assert (type(credits_), credits_) == (float, 4.0)
