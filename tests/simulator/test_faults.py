"""What goes wrong on request, and whether anything was bought when it did."""

import asyncio
import json
import random
from typing import Any

import aiohttp
import pytest

from providers.kie.simulator import FaultRule, parse_fault
from providers.kie.simulator.faults import KINDS, FaultBook
from tests.support.kie_client import (
    IMAGEN4,
    JOBS,
    MIDJOURNEY,
    MJ,
    ORDERS,
    RECORDS,
    VEO,
    VEO3,
    Kie,
    bought,
    raw,
)
from tests.support.prompts import STUCK_PROMPT
from tests.support.waiting import eventually


async def is_reset(kie: Kie) -> bool:
    try:
        await raw(kie)
    except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
        return True
    return False


async def abandoned(kie: Kie) -> None:
    """A create whose client waits until the fault has struck, and disconnects without an answer."""
    call = asyncio.create_task(raw(kie))
    await eventually(lambda: bool(kie.simulator.stats["faults_struck"]))
    assert not call.done()
    call.cancel()
    await asyncio.wait([call])


@pytest.mark.parametrize(("path", "body"), ORDERS)
async def test_a_code_fault_answers_an_error_envelope_and_buys_nothing(
    kie: Kie, path: str, body: Any
) -> None:
    kie.simulator.add_fault("create:code,code=455,msg=Maintenance")
    assert await kie.post(path, body) == {"code": 455, "msg": "Maintenance", "data": None}
    assert bought(kie) == 0
    assert (await kie.post(path, body))["code"] == 200


async def test_an_http_fault_answers_a_page_with_that_status(kie: Kie) -> None:
    kie.simulator.add_fault("any:http,status=403,body=error code: 1010")
    assert await raw(kie) == (403, b"error code: 1010")
    assert bought(kie) == 0


async def test_a_reset_fault_cuts_the_connection_before_anything_is_bought(kie: Kie) -> None:
    kie.simulator.add_fault("create:reset")
    assert await is_reset(kie)
    assert bought(kie) == 0


async def test_a_hang_fault_never_answers_and_buys_nothing(kie: Kie) -> None:
    kie.simulator.add_fault("create:hang")
    await abandoned(kie)
    assert bought(kie) == 0


async def test_a_slow_fault_only_delays(kie: Kie) -> None:
    kie.simulator.add_fault("create:slow,seconds=0.001")
    assert (await kie.post(JOBS, IMAGEN4))["code"] == 200


async def test_a_slow_create_is_paid_for_even_if_its_client_disconnects(kie: Kie) -> None:
    kie.simulator.add_fault("create:slow,seconds=0.02")
    await abandoned(kie)
    await eventually(lambda: bought(kie) == 1)


async def test_garbage_and_empty_answers_are_http_200_without_json(kie: Kie) -> None:
    kie.simulator.add_fault("create:garbage")
    kie.simulator.add_fault("create:empty")
    status, page = await raw(kie)
    assert (status, page[:1]) == (200, b"<")
    assert await raw(kie) == (200, b"")
    assert bought(kie) == 0


async def test_a_good_code_can_come_without_data_or_with_other_types(kie: Kie) -> None:
    kie.simulator.add_fault("create:null_data")
    kie.simulator.add_fault("create:wrong_types")
    assert await kie.post(JOBS, IMAGEN4) == {"code": 200, "msg": "success", "data": None}
    assert (await kie.post(JOBS, IMAGEN4))["code"] == "200"
    assert bought(kie) == 0


async def test_an_accepted_create_can_lose_its_answer_to_a_reset(kie: Kie) -> None:
    kie.simulator.add_fault("create:accept_then_reset")
    assert await is_reset(kie)
    assert bought(kie) == 1


async def test_an_accepted_create_can_lose_its_answer_to_silence(kie: Kie) -> None:
    kie.simulator.add_fault("create:accept_then_hang")
    await abandoned(kie)
    assert bought(kie) == 1


@pytest.mark.parametrize(
    ("kind", "status", "start"),
    [("http", 502, b"<html>"), ("garbage", 200, b"<!DOCTYPE"), ("empty", 200, b"")],
)
async def test_an_accepted_create_can_be_answered_by_something_else(
    kie: Kie, kind: str, status: int, start: bytes
) -> None:
    kie.simulator.add_fault(f"create:accept_then_{kind}")
    answer = await raw(kie)
    assert (answer[0], answer[1][: len(start) or None]) == (status, start)
    assert bought(kie) == 1


async def test_an_accepted_create_can_be_answered_without_an_id(kie: Kie) -> None:
    kie.simulator.add_fault("create:accept_then_no_id")
    assert await kie.post(JOBS, IMAGEN4) == {"code": 200, "msg": "success", "data": {}}
    assert bought(kie) == 1


async def test_a_refused_create_does_not_use_up_a_fault_of_accepted_ones(kie: Kie) -> None:
    kie.simulator.add_fault("create:accept_then_no_id")
    assert (await kie.post(JOBS, {}))["code"] == 422
    assert (await kie.post(JOBS, IMAGEN4))["data"] == {}


async def test_a_fault_of_a_family_spares_the_others(kie: Kie) -> None:
    kie.simulator.add_fault("create:code,code=455,family=veo3,times=0")
    codes = [(await kie.post(path, body))["code"] for path, body in ORDERS]
    assert codes == [200, 200, 455, 200]


async def test_a_fault_of_a_model_spares_the_rest_of_its_family(kie: Kie) -> None:
    kie.simulator.add_fault("create:code,code=455,model=veo3,times=0")
    assert (await kie.post(VEO, VEO3))["code"] == 200
    assert (await kie.post(VEO, {**VEO3, "model": "veo3"}))["code"] == 455


async def test_a_fault_lets_the_first_calls_pass_and_then_strikes_as_often_as_set(kie: Kie) -> None:
    kie.simulator.add_fault("create:code,times=2,after=1")
    codes = [(await kie.post(JOBS, IMAGEN4))["code"] for _ in range(4)]
    assert codes == [200, 500, 500, 200]
    assert kie.simulator.faults == []


async def test_a_fault_without_end_strikes_until_it_is_cleared(kie: Kie) -> None:
    number = kie.simulator.add_fault(FaultRule(endpoint="credit", kind="code", times=0))
    codes = [(await kie.get("/api/v1/chat/credit"))["code"] for _ in range(3)]
    kie.simulator.clear_faults(number)
    assert [*codes, (await kie.get("/api/v1/chat/credit"))["code"]] == [500, 500, 500, 200]


def test_a_fault_with_a_probability_strikes_about_that_often() -> None:
    book = FaultBook(random.Random(7))
    book.add(parse_fault("create:code,times=0,probability=0.25"))
    struck = sum(book.take("create", "arrival", None) is not None for _ in range(1000))
    assert 200 < struck < 300


@pytest.mark.parametrize(("path", "body"), ORDERS)
async def test_a_visible_task_can_vanish_for_one_query(kie: Kie, path: str, body: Any) -> None:
    task_id = await kie.create(path, body)
    kie.simulator.add_fault("record:not_visible")
    assert (await kie.get(RECORDS[path], taskId=task_id))["code"] == 422
    assert (await kie.get(RECORDS[path], taskId=task_id))["code"] == 200


async def test_a_record_can_show_a_state_that_nobody_documented(kie: Kie) -> None:
    kie.simulator.add_fault("record:unknown_state,times=2")
    assert (await kie.record(await kie.create()))["state"] == "archived"
    assert (await kie.record(await kie.create(VEO, VEO3), VEO))["successFlag"] == 9


async def test_a_success_can_come_without_urls_and_spares_pending_records(kie: Kie) -> None:
    task_id = await kie.create()
    kie.simulator.add_fault("record:no_urls")
    assert (await kie.record(task_id))["state"] == "waiting"
    kie.simulator.finish(task_id)
    assert json.loads((await kie.record(task_id))["resultJson"]) == {"resultUrls": []}
    assert json.loads((await kie.record(task_id))["resultJson"])["resultUrls"]


async def test_a_result_can_come_as_an_object_where_a_string_belongs(kie: Kie) -> None:
    kie.simulator.add_fault("record:result_object,times=2")
    jobs_id, mj_id = await kie.create(), await kie.create(MJ, MIDJOURNEY)
    kie.simulator.finish(jobs_id)
    kie.simulator.finish(mj_id)
    assert isinstance((await kie.record(jobs_id))["resultJson"], dict)
    assert isinstance((await kie.record(mj_id, MJ))["resultInfoJson"], str)


async def test_a_finished_task_can_look_unfinished_for_a_while(kie: Kie) -> None:
    task_id = await kie.create()
    kie.simulator.finish(task_id)
    kie.simulator.add_fault("record:late,times=2")
    states = [(await kie.record(task_id))["state"] for _ in range(3)]
    assert states == ["generating", "generating", "success"]


async def test_a_download_can_break_off_half_way(kie: Kie) -> None:
    task_id = await kie.create()
    kie.simulator.finish(task_id)
    kie.simulator.add_fault("result:truncate")
    with pytest.raises(aiohttp.ClientError):
        async with kie.session.get(f"{kie.simulator.url}/results/{task_id}_0.png") as answer:
            await answer.read()


@pytest.mark.parametrize(
    ("directive", "code"),
    [("create=402", 402), ("create=455 Maintenance", 455), ("nonsense", 422), ("seconds=x", 422)],
)
async def test_a_prompt_can_ask_for_its_own_refusal(kie: Kie, directive: str, code: int) -> None:
    body = {**MIDJOURNEY, "prompt": f"a cat [sim:{directive}]"}
    assert (await kie.post(MJ, body))["code"] == code
    assert bought(kie) == 0


async def test_a_refusal_that_a_prompt_asks_for_says_so(kie: Kie) -> None:
    answer = await kie.post(MJ, {**MIDJOURNEY, "prompt": "a cat [sim:create=402]"})
    assert answer["msg"] == "Refused by a directive of the prompt"


@pytest.mark.parametrize(("path", "body"), ORDERS)
async def test_a_prompt_can_ask_to_fail_at_once(kie: Kie, path: str, body: Any) -> None:
    prompt = "a cat [sim:fail=400 Too many cats] [sim:seconds=0]"
    wanted = {**body, "input": {"prompt": prompt}} if path == JOBS else {**body, "prompt": prompt}
    record = await kie.record(await kie.create(path, wanted), path)
    state = record.get("state") or record["successFlag"]
    assert state in {"fail", 2}
    assert "Too many cats" in record.values()


async def test_a_prompt_can_ask_for_a_success_without_urls_or_without_files(kie: Kie) -> None:
    prompts = "[sim:seconds=0] [sim:no-urls]", "[sim:seconds=0] [sim:no-file]"
    ids = [await kie.create(MJ, {**MIDJOURNEY, "prompt": prompt}) for prompt in prompts]
    without, missing = [(await kie.record(i, MJ))["resultInfoJson"]["resultUrls"] for i in ids]
    assert without == []
    async with kie.session.get(missing[0]["resultUrl"]) as answer:
        assert answer.status == 404


async def test_a_prompt_can_ask_for_a_paid_answer_to_be_lost(kie: Kie) -> None:
    with pytest.raises((aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)):
        await kie.post(VEO, {**VEO3, "prompt": "a cat [sim:lost]"})
    assert bought(kie) == 1


async def test_a_prompt_can_ask_never_to_end(kie: Kie) -> None:
    task_id = await kie.create(VEO, {**VEO3, "prompt": STUCK_PROMPT})
    (task,) = kie.simulator.tasks
    assert (task["id"], task["ends_ms"]) == (task_id, None)


@pytest.mark.parametrize("kind", KINDS)
def test_every_fault_can_be_spelled_in_a_line_and_in_json(kind: str) -> None:
    endpoint = min(KINDS[kind][0])
    rule = FaultRule(endpoint=endpoint, kind=kind, times=3, seconds=0.5, family="sora2")
    assert parse_fault(f"{endpoint}:{kind},times=3,seconds=0.5,family=sora2") == rule
    spelled = {"endpoint": endpoint, "kind": kind, "times": 3, "seconds": 0.5, "family": "sora2"}
    assert parse_fault(json.dumps(spelled)) == rule


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("create", "not of the form"),
        ("create:code,times", "not of the form"),
        ("nowhere:code", "unknown endpoint"),
        ("create:explode", "unknown fault"),
        ("callback:reset", "does not suit"),
        ("create:code,family=dalle", "unknown family"),
        ("create:code,model=dalle", "unknown model"),
        ("create:code,times=many", "times must be a number"),
        ("create:code,times=-1", "negative"),
        ("create:slow,seconds=nan", "negative"),
        ("create:code,probability=2", "between 0 and 1"),
        ("create:http,status=99", "status"),
        ("create:code,color=red", "unknown color"),
        ('{"endpoint": "create"}', "needs kind"),
        ('{"endpoint": "create", "kind": 7}', "kind must be"),
        ("{", "Expecting"),
    ],
)
def test_a_wrong_fault_is_refused_with_the_reason(spec: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_fault(spec)
