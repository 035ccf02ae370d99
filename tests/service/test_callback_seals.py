"""The seals of callback URLs, and the bodies that come with them."""

import asyncio
import gzip
import hmac
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr

from providers.kie.simulator import Simulator
from service.bounds import Bounds
from service.callbacks import CallbackUrls
from service.http import HttpLimits
from storage.opening import open_store
from storage.postgresql.connection import is_postgres
from tests.support.calling_back import callback_url, polls_of, post, post_raw, with_callbacks
from tests.support.databases import rows
from tests.support.harness import API_KEY, Serve, ended, serving
from tests.support.prompts import STUCK
from tests.support.waiting import eventually


async def test_a_forged_callback_is_refused(serve: Serve, port: int) -> None:
    async with serve(**with_callbacks(port)) as service:
        first = await service.create(STUCK)
        second = await service.create(STUCK)
        base, seal = callback_url(service.kie).rsplit("/", 1)
        assert base.endswith(second.id)
        forged = base.removesuffix(second.id) + first.id
        for url in (f"{forged}/{seal}", f"{base}/{'0' * 64}", f"{base}/%00%ff", f"{base}/x"):
            assert await post(url, {"data": {"taskId": "x"}}) == 401


async def seals(serve: Serve, port: int, urls: dict[str, str], **settings: Any) -> dict[str, int]:
    """Return how each of these callbacks for no task is answered: 404 for a right seal."""
    async with serve(**with_callbacks(port, **settings)):
        return {name: await post(url) for name, url in urls.items()}


async def made_url(serve: Serve, port: int, **settings: Any) -> str:
    """Return the callback URL of a task that a service with these settings creates."""
    async with serve(**with_callbacks(port, **settings)) as service:
        await service.create(STUCK)
        return callback_url(service.kie)


async def test_the_first_of_several_secrets_makes_urls_and_all_of_them_verify(
    serve: Serve, port: int
) -> None:
    base = f"http://127.0.0.1:{port}"
    secrets = SecretStr("new,old")
    url = await made_url(serve, port, callback_secret=secrets)
    assert url == CallbackUrls(base, b"new").url(url.split("/")[-2])
    known = {name: CallbackUrls(base, name.encode()).url("nobody") for name in ("new", "old", "x")}
    answers = await seals(serve, port, known, callback_secret=secrets)
    assert answers == {"new": 404, "old": 404, "x": 401}


async def test_callbacks_in_progress_survive_a_new_key(serve: Serve, port: int) -> None:
    url = await made_url(serve, port)
    async with serve(**with_callbacks(port, kie_api_key=SecretStr("another-key"))):
        assert await post(url) == 200


async def test_an_older_replica_and_this_version_verify_each_others_urls(
    serve: Serve, port: int
) -> None:
    """Versions before this one derive the secret from the key."""
    derived = hmac.digest(API_KEY.encode(), b"generation.v1 callback URLs", "sha256")
    older = CallbackUrls(f"http://127.0.0.1:{port}", derived)
    url = await made_url(serve, port)
    assert older.is_ours(*url.split("/")[-2:])
    assert await seals(serve, port, {"older": older.url("nobody")}) == {"older": 404}


async def test_the_secret_of_a_database_is_not_derived_from_a_later_key_and_both_verify(
    serve: Serve, port: int
) -> None:
    url = await made_url(serve, port)
    task_id = url.split("/")[-2]
    derived = hmac.digest(b"another-key", b"generation.v1 callback URLs", "sha256")
    base = f"http://127.0.0.1:{port}"
    async with serve(**with_callbacks(port, kie_api_key=SecretStr("another-key"))) as service:
        assert await post(CallbackUrls(base, derived).url(task_id)) == 200
        assert await post(CallbackUrls(base, b"x").url(task_id)) == 401
        [(kept,)] = rows(service.database_url, "SELECT value FROM secrets WHERE name = 'callbacks'")
    assert CallbackUrls(base, bytes(kept)).url(task_id) == url


async def test_processes_that_start_at_once_keep_one_secret(database_url: str) -> None:
    opened = [open_store(database_url) for _ in range(4 if is_postgres(database_url) else 1)]
    proposals = [bytes([number]) * 32 for number in range(16)]
    kept = await asyncio.gather(
        *(opened[i % len(opened)].callback_secrets(p) for i, p in enumerate(proposals))
    )
    assert kept == [kept[0]] * 16
    assert kept[0][0] in proposals
    assert await opened[0].callback_secrets(b"later") == kept[0]
    for store in opened:
        await store.close()


GZIPPED = gzip.compress(b'{"data": {"taskId": "x"}}')
ODD_BODIES: dict[str, tuple[bytes, dict[str, str]]] = {
    "nothing": (b"", {}),
    "garbage": (b"\x00\xff\xfe garbage", {}),
    "a list": (b"[]", {}),
    "a text": (b'"x"', {}),
    "data as a list": (b'{"data": []}', {}),
    "an id that is a number": (b'{"data": {"taskId": 5}}', {}),
    "an id that is null": (b'{"taskId": null}', {}),
    "deep nesting": (b"[" * 60_000, {}),
    "a number of 5,000 digits": (b'{"data": {"costTime": ' + b"9" * 5_000 + b"}}", {}),
    "1.1 MiB": (b'{"data": "' + b"x" * 1_153_434 + b'"}', {}),
    "a cut character": ('{"data": {"msg": "größ'.encode()[:-1], {}),
    "a byte order mark": (b'\xef\xbb\xbf{"data": {"taskId": "x"}}', {}),
    "UTF-16": ('{"data": {"taskId": "x"}}'.encode("utf-16"), {}),
    "false gzip": (b"no gzip", {"Content-Encoding": "gzip"}),
    "gzip": (GZIPPED, {"Content-Encoding": "gzip"}),
    "gzip that is cut": (GZIPPED[:-12], {"Content-Encoding": "gzip"}),
    "a gzip bomb": (gzip.compress(bytes(50_000_000)), {"Content-Encoding": "gzip"}),
    "an unknown encoding": (b"{}", {"Content-Encoding": "zstd"}),
    "an unknown charset": (b"{}", {"Content-Type": "application/json; charset=none"}),
    "form data": (b"--x--", {"Content-Type": "multipart/form-data"}),
}


@pytest.mark.parametrize(("body", "headers"), ODD_BODIES.values(), ids=ODD_BODIES.keys())
async def test_a_valid_seal_is_enough_to_poll_whatever_the_body(
    tmp_path: Path, kie: Simulator, port: int, body: bytes, headers: dict[str, str]
) -> None:
    async with serving(tmp_path, kie, **with_callbacks(port)) as service:
        created = await service.create(STUCK)
        assert await post_raw(f"{callback_url(kie)}/", body, **headers) == 200
        await eventually(lambda: polls_of(kie, created.provider_task_id) == 1)
        assert not ended(await service.query(created.id))


async def test_a_body_that_never_ends_is_abandoned_and_the_task_is_polled(
    tmp_path: Path, kie: Simulator, port: int
) -> None:
    bounds = Bounds(http=HttpLimits(request_seconds=0.3))
    async with serving(tmp_path, kie, bounds=bounds, **with_callbacks(port)) as service:
        created = await service.create(STUCK)
        path = urlsplit(callback_url(kie)).path
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
        )
        writer.write(head.encode())
        async with asyncio.timeout(5):
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            await reader.read()
        writer.close()
        await eventually(lambda: polls_of(kie, created.provider_task_id) == 1)


@pytest.mark.parametrize(
    "body",
    [
        b'{"data": {"taskId": "%s", "cost": 999}}',
        b'\xef\xbb\xbf{"task_id": "%s"}',
        b'{"taskId": "%s", "data": {"costTime": ' + b"9" * 5_000 + b"}}",
        b'{"data": {"taskId" : "%s", "resultJson": "gr\xc3',
        b'{"code": 200, "data": {"msg": "\xff\xff", "taskId": "%s"}}',
        b'{"code": 200, "data": {"taskId": "%s", "more": "' + b"x" * 100_000,
    ],
)
async def test_an_id_is_found_in_a_body_that_is_odd_or_cut(
    tmp_path: Path, kie: Simulator, port: int, body: bytes
) -> None:
    settings = with_callbacks(port, create_wait_seconds=0)
    async with serving(tmp_path, kie, **settings) as service:
        kie.add_fault("create:accept_then_reset")
        kie.add_fault("callback:drop")
        created = await service.create()
        await eventually(lambda: service.kie.tasks)
        url, bought = callback_url(kie), kie.tasks[0]["id"]
        async with asyncio.timeout(10):
            while not ended(await service.query(created.id)):
                assert await post_raw(url, body.replace(b"%s", bought.encode())) == 200
        assert (await service.query(created.id)).provider_task_id == bought
