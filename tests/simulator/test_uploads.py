"""Uploads in every form, complete and aborted."""

import asyncio
import base64
import re
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.support.kie_client import BASE64, PNG, STREAM, Kie, form, running, upload
from tests.support.waiting import eventually

FETCH = "/api/file-url-upload"
ENCODED = base64.b64encode(PNG).decode()


async def content_of(kie: Kie, answer: Any) -> bytes:
    async with kie.session.get(answer["data"]["downloadUrl"]) as download:
        assert download.status == 200
        assert download.content_type == answer["data"]["mimeType"]
        return await download.read()


async def test_an_upload_answers_as_on_the_wire_and_can_be_downloaded(kie: Kie) -> None:
    answer = await upload(kie, form())
    data = answer["data"]
    assert (answer["success"], answer["code"]) == (True, 200)
    assert re.fullmatch(r"kieai/\d+/cats/tom\.png", data["filePath"])
    assert data["downloadUrl"] == f"{kie.simulator.url}/{data['filePath']}"
    assert (data["fileSize"], data["mimeType"], data["success"]) == (len(PNG), "image/png", True)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", data["uploadedAt"])
    assert await content_of(kie, answer) == PNG


async def test_the_upload_host_names_no_charset(kie: Kie) -> None:
    url = kie.simulator.url + STREAM
    for data in (form(), form("file")):
        async with kie.session.post(url, data=data) as answer:
            assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    "order",
    ["file uploadPath fileName", "uploadPath file", "fileName uploadPath file", "file uploadPath"],
)
async def test_the_parts_of_an_upload_come_in_any_order(kie: Kie, order: str) -> None:
    assert await content_of(kie, await upload(kie, form(order))) == PNG


async def test_an_upload_without_a_name_gets_one_with_its_extension(kie: Kie) -> None:
    name = (await upload(kie, form("file uploadPath")))["data"]["fileName"]
    assert re.fullmatch(r"\d{13}-[0-9a-f]{10}\.png", name)


async def test_a_chunked_upload_needs_no_content_length(kie: Kie) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield bytes(50_000)

    data = aiohttp.FormData()
    data.add_field("uploadPath", "cats")
    data.add_field("file", chunks(), filename="cat.bin")
    answer = await upload(kie, data)
    assert answer["data"]["fileSize"] == 2_000_000


async def test_the_same_name_overwrites(kie: Kie) -> None:
    first = await upload(kie, form())
    data = aiohttp.FormData({"uploadPath": "cats", "fileName": "tom.png"})
    data.add_field("file", b"other", filename="cat.png", content_type="image/png")
    second = await upload(kie, data)
    assert first["data"]["downloadUrl"] == second["data"]["downloadUrl"]
    assert await content_of(kie, first) == b"other"


@pytest.mark.parametrize(
    ("folder", "name", "shown"),
    [
        ("../../etc", "../../passwd", "etc/passwd"),
        ("/cats//tom/", "tom.png", "cats/tom/tom.png"),
        ("cats\\..\\dogs", "C:\\x\\a?b.png", "cats/dogs/a_b.png"),
        ("katzen", "größe 1.png", "katzen/größe 1.png"),
    ],
)
async def test_no_name_escapes_its_folder(kie: Kie, folder: str, name: str, shown: str) -> None:
    answer = await upload(kie, form(uploadPath=folder, fileName=name))
    assert answer["data"]["filePath"].split("/", 2)[2] == shown
    assert await content_of(kie, answer) == PNG


@pytest.mark.parametrize(
    ("order", "missing"), [("uploadPath", "file"), ("file", "uploadPath"), ("fileName", "file")]
)
async def test_a_missing_part_is_code_400(kie: Kie, order: str, missing: str) -> None:
    answer = await upload(kie, form(order))
    msg = f"Missing required parameter: {missing}"
    assert answer == {"success": False, "code": 400, "msg": msg}
    assert kie.simulator.stats["uploads"] == {"completed": 0, "aborted": 0, "refused": 1}


async def test_an_upload_without_a_key_is_code_401() -> None:
    async with (
        running() as kie,
        aiohttp.ClientSession() as session,
        session.post(kie.simulator.url + STREAM, data=form()) as answer,
    ):
        body = await answer.json()
    msg = "Authentication failed: Invalid API Key"
    assert body == {"success": False, "code": 401, "msg": msg}


HEAD = (
    "POST /api/file-stream-upload HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\n"
    "Content-Type: multipart/form-data; boundary=B\r\n"
)
PARTS = (
    '--B\r\nContent-Disposition: form-data; name="uploadPath"\r\n\r\ncats\r\n'
    '--B\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\nhalf of it'
)


async def test_an_upload_whose_client_disconnects_leaves_nothing_behind(kie: Kie) -> None:
    host, port = kie.simulator.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"{HEAD}Content-Length: 100000\r\n\r\n{PARTS}".encode())
    await writer.drain()
    await eventually(lambda: kie.simulator.stats["requests"].get(STREAM) == 1)
    writer.close()
    await eventually(lambda: kie.simulator.stats["uploads"]["aborted"] == 1)
    assert kie.simulator.stats["uploads"]["completed"] == 0


async def test_a_body_without_its_last_boundary_is_refused(kie: Kie) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    url = kie.simulator.url + STREAM
    for body in (PARTS, PARTS + "\r\n--B\r\n", "no boundary at all", ""):
        async with kie.session.post(url, data=body.encode(), headers=headers) as answer:
            assert (await answer.json())["code"] == 400
    assert kie.simulator.stats["uploads"] == {"completed": 0, "aborted": 4, "refused": 4}


async def test_an_upload_that_is_not_a_form_is_refused(kie: Kie) -> None:
    answer = await kie.post(STREAM, {"file": "x"})
    assert (answer["success"], answer["code"]) == (False, 400)


async def test_an_upload_over_the_limit_is_refused() -> None:
    async with running(upload_max_bytes=len(PNG) - 1) as kie:
        assert (await upload(kie, form()))["code"] == 400
        assert kie.simulator.stats["uploads"]["completed"] == 0


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
async def test_base64_is_accepted_raw_and_as_a_data_url(kie: Kie, prefix: str) -> None:
    body = {"base64Data": prefix + ENCODED, "uploadPath": "cats", "fileName": "a.png"}
    answer = await kie.post(BASE64, body)
    assert answer["data"]["mimeType"] == "image/png"
    assert await content_of(kie, answer) == PNG


@pytest.mark.parametrize(
    ("body", "msg"),
    [
        ({"uploadPath": "cats"}, "Missing required parameter: base64Data"),
        ({"base64Data": ENCODED}, "Missing required parameter: uploadPath"),
        (
            {"base64Data": "!", "uploadPath": "cats"},
            "Base64 decoding failed: Invalid Base64 format",
        ),
    ],
)
async def test_a_wrong_base64_upload_is_code_400(kie: Kie, body: Any, msg: str) -> None:
    assert await kie.post(BASE64, body) == {"success": False, "code": 400, "msg": msg}


async def test_a_url_on_loopback_is_fetched(kie: Kie) -> None:
    source = await upload(kie, form())
    body = {"fileUrl": source["data"]["downloadUrl"], "uploadPath": "copies"}
    answer = await kie.post(FETCH, body)
    assert answer["data"]["mimeType"] == "image/png"
    assert await content_of(kie, answer) == PNG


async def test_a_url_beyond_loopback_is_not_fetched_unasked(kie: Kie) -> None:
    body = {"fileUrl": "http://192.0.2.1/cat.png", "uploadPath": "copies"}
    assert (await kie.post(FETCH, body))["code"] == 400


async def test_a_url_that_answers_an_error_is_refused(kie: Kie) -> None:
    body = {"fileUrl": f"{kie.simulator.url}/kieai/1/none.png", "uploadPath": "copies"}
    answer = await kie.post(FETCH, body)
    assert (answer["code"], answer["msg"]) == (400, "Failed to download the file: HTTP 404")


async def test_the_answer_to_an_accepted_upload_can_be_lost(kie: Kie) -> None:
    kie.simulator.add_fault("upload:accept_then_reset")
    with pytest.raises((aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)):
        await upload(kie, form())
    assert kie.simulator.stats["uploads"]["completed"] == 1


async def test_an_upload_fault_looks_like_an_error_of_the_upload_host(kie: Kie) -> None:
    kie.simulator.add_fault("upload:code,code=500,msg=Internal server error")
    answer = await upload(kie, form())
    assert (answer["success"], answer["code"], answer["msg"]) == (
        False,
        500,
        "Internal server error",
    )
