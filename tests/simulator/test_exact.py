"""Messages of any form: exactly the requested bytes are sent."""

import asyncio
import base64
import json
from typing import Any

import aiohttp
import pytest

from providers.kie.simulator import FaultRule, parse_fault
from providers.kie.simulator.exact import Exact, exact_from_json
from tests.support.kie_client import (
    IMAGEN4,
    JOBS,
    RECORDS,
    VEO,
    VEO3,
    Kie,
    bought,
    form,
    raw,
    running,
    settled,
    upload,
)
from tests.support.receiver import Receiver, receiving
from tests.support.waiting import eventually


def order(kie: Kie, endpoint: str, kind: str = "exact", times: int = 1, **exact: Any) -> None:
    rule = {"endpoint": endpoint, "kind": kind, "times": times, "exact": exact}
    kie.simulator.add_fault(json.dumps(rule))


async def on_the_wire(kie: Kie, path: str) -> bytes:
    """Everything that the socket answers to a GET until it is closed."""
    host, port = kie.simulator.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\n\r\n".encode())
    async with asyncio.timeout(5):
        said = await reader.read()
    writer.close()
    return said


async def test_an_answer_is_sent_byte_for_byte_and_buys_nothing(kie: Kie) -> None:
    order(kie, "create", status=413, body="too large", headers={"X-Odd": "ü", "content-type": "a"})
    async with kie.session.post(kie.simulator.url + JOBS, json=IMAGEN4) as answer:
        assert (answer.status, await answer.read()) == (413, b"too large")
        assert answer.headers["X-Odd"].encode("utf-8", "surrogateescape").decode() == "ü"
        assert answer.headers.getall("Content-Type") == ["a"]
    assert bought(kie) == 0
    assert (await raw(kie))[0] == 200


@pytest.mark.parametrize(
    "body",
    [
        '{"code":200,"msg":"success","data":"{taskId}"}',
        '{"code":200,"msg":"success","data":[{"taskId":"{taskId}"}]}',
        '{"code":200,"taskId":"{taskId}"}',
        '{"code":500,"msg":"{taskId}"}',
    ],
)
async def test_a_paid_create_is_answered_in_any_shape_with_its_real_id(kie: Kie, body: str) -> None:
    order(kie, "create", "accept_then_exact", body=body)
    _, said = await raw(kie)
    (task,) = kie.simulator.tasks
    assert said.decode() == body.replace("{taskId}", task["id"])


async def test_a_paid_create_is_answered_after_its_callback_came() -> None:
    async with receiving() as receiver, running(seconds={"imagen4": (0, 0)}) as kie:
        answer = '{"code":200,"msg":"success","data":{"taskId":"{taskId}"}}'
        order(kie, "create", "accept_then_exact", body=answer, delay_seconds=0.2)
        create = asyncio.create_task(kie.create(JOBS, {**IMAGEN4, "callBackUrl": receiver.url}))
        await eventually(lambda: len(receiver.requests) == 1)
        assert not create.done()
        assert receiver.bodies[0]["data"]["taskId"] == await create


async def test_a_record_is_answered_in_any_shape(kie: Kie) -> None:
    task_id = await kie.create()
    record = {"taskId": "{taskId}", "state": "success", "response": {"resultUrls": ["http://x/y"]}}
    order(kie, "record", body=json.dumps({"code": 200, "data": record}))
    answer = await kie.get(RECORDS[JOBS], taskId=task_id)
    assert answer["data"] == {**record, "taskId": task_id}


async def test_an_answer_can_contain_bytes_that_are_not_text(kie: Kie) -> None:
    content = b'{"code":200,"msg":"\xe3\x81'
    order(kie, "credit", body_base64=base64.b64encode(content).decode())
    assert (await on_the_wire(kie, "/api/v1/chat/credit")).endswith(b"\r\n\r\n" + content)


async def test_an_answer_can_be_cut(kie: Kie) -> None:
    order(kie, "credit", body="0123456789", cut_after_bytes=4)
    said = await on_the_wire(kie, "/api/v1/chat/credit")
    assert said.endswith(b"\r\n\r\n0123")
    assert b"Content-Length: 10" in said


async def test_an_answer_can_lie_about_its_framing_and_never_end(kie: Kie) -> None:
    order(
        kie,
        "credit",
        headers={"Transfer-Encoding": "chunked"},
        body="2\r\n{}\r\n",
        stays_open=True,
    )
    async with kie.session.get(f"{kie.simulator.url}/api/v1/chat/credit") as answer:
        assert await answer.content.readany() == b"{}"
        assert not answer.content.at_eof()


async def test_a_header_can_be_large(kie: Kie) -> None:
    order(kie, "credit", headers={"X-Large": "a" * 9_000}, body="{}")
    said = await on_the_wire(kie, "/api/v1/chat/credit")
    assert b"X-Large: " + b"a" * 9_000 in said


async def test_an_upload_can_fail_with_code_200_and_words(kie: Kie) -> None:
    order(kie, "upload", body='{"success":false,"code":200,"msg":"file type not supported"}')
    answer = await upload(kie, form())
    assert answer == {"success": False, "code": 200, "msg": "file type not supported"}
    assert kie.simulator.stats["uploads"]["completed"] == 0


async def test_a_stored_upload_is_answered_in_any_shape_with_its_real_url(kie: Kie) -> None:
    order(kie, "upload", "accept_then_exact", body='{"data": {"downloadUrl": " {downloadUrl} "}}')
    url = (await upload(kie, form()))["data"]["downloadUrl"].strip()
    async with kie.session.get(url) as answer:
        assert answer.status == 200


async def test_an_upload_answer_has_no_expiry(kie: Kie) -> None:
    assert "expiresAt" not in (await upload(kie, form()))["data"]


async def test_a_result_can_be_redirected(kie: Kie) -> None:
    order(kie, "result", status=302, headers={"Location": "/kieai/elsewhere?a=%2F"})
    url = f"{kie.simulator.url}/results/x"
    async with kie.session.get(url, allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (302, "/kieai/elsewhere?a=%2F")


async def called_back(kie: Kie, receiver: Receiver) -> str:
    task_id = await kie.create(VEO, {**VEO3, "callBackUrl": receiver.url})
    kie.simulator.finish(task_id)
    await settled(kie)
    return task_id


async def test_a_callback_is_sent_in_any_shape_and_as_often_as_wanted() -> None:
    async with receiving() as receiver, running(webhook_key="k", callback_duplicates=2) as kie:
        order(kie, "callback", body='{"task_id":"{taskId}"}', headers={"x-webhook-timestamp": "0"})
        task_id = await called_back(kie, receiver)
        assert receiver.bodies == [{"task_id": task_id}] * 3
        headers = {name.lower(): value for name, value in receiver.requests[0][0].items()}
        assert headers["x-webhook-timestamp"] == "0"
        assert headers["x-webhook-signature"]


async def test_faults_that_are_exact_are_listed_with_their_message(kie: Kie) -> None:
    order(kie, "create", body="x", times=7)
    (fault,) = kie.simulator.faults
    assert (fault["kind"], fault["times"], fault["exact"]["body"]) == ("exact", 7, "x")
    async with kie.session.get(f"{kie.simulator.url}/simulator/faults") as answer:
        assert (await answer.json())["faults"] == [fault]


async def test_an_exact_answer_without_a_message_is_an_empty_http_200(kie: Kie) -> None:
    kie.simulator.add_fault("create:exact")
    assert await raw(kie) == (200, b"")


async def test_an_exact_answer_can_be_limited_to_one_family(kie: Kie) -> None:
    kie.simulator.add_fault(
        FaultRule(endpoint="create", kind="exact", family="veo3", exact=Exact(body='{"code": 1}'))
    )
    assert (await kie.post(JOBS, IMAGEN4))["code"] == 200
    assert (await kie.post(VEO, VEO3))["code"] == 1


async def test_a_client_that_disconnects_ends_an_answer_that_stays_open(kie: Kie) -> None:
    order(kie, "credit", stays_open=True, headers={"Content-Length": "9"})
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await kie.get("/api/v1/chat/credit")
    assert isinstance((await kie.get("/api/v1/chat/credit"))["data"], float)


@pytest.mark.parametrize(
    ("exact", "complaint"),
    [
        ([], "exact must be an object"),
        ({"colour": "red"}, "unknown colour"),
        ({"status": 99}, "between 200 and 599"),
        ({"status": True}, "status must not be True"),
        ({"status": "200"}, "status must not be"),
        ({"body": {}}, "body must not be"),
        ({"headers": {"X": 1}}, "headers must be strings"),
        ({"body_base64": "?"}, "must be base64"),
        ({"delay_seconds": -1}, "negative"),
        ({"cut_after_bytes": -1}, "negative"),
        ({"stays_open": 1}, "stays_open must not be 1"),
    ],
)
def test_a_wrong_message_is_refused_with_the_reason(exact: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        exact_from_json(exact)
    with pytest.raises(ValueError, match=complaint):
        parse_fault(json.dumps({"endpoint": "create", "kind": "exact", "exact": exact}))


async def test_only_what_was_bought_can_be_answered_after_the_purchase(kie: Kie) -> None:
    order(kie, "create", "accept_then_exact", body="{}")
    assert (await kie.post(JOBS, {}))["code"] == 422
    assert (await raw(kie))[1] == b"{}"
    with pytest.raises(ValueError, match="does not suit"):
        parse_fault("record:accept_then_exact")


async def test_a_reset_connection_is_not_an_exact_answer(kie: Kie) -> None:
    order(kie, "credit", headers={"Content-Length": "9"}, cut_after_bytes=0, body="123456789")
    with pytest.raises(aiohttp.ClientPayloadError):
        await kie.get("/api/v1/chat/credit")
