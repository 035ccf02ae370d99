"""Callbacks: a hint to poll at once, an orphan's way home, and nothing else."""

import asyncio
import gzip
import hmac
import io
import json
import re
import statistics
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from pydantic import SecretStr

from generated.generation.v1 import generation_pb2 as pb
from providers.kie.simulator import Simulator
from service.bounds import Bounds
from service.callbacks import CallbackUrls
from service.http import HttpLimits
from service.schedule import Overdue
from storage.opening import open_store
from storage.postgresql.connection import is_postgres
from storage.store import Store
from tests.support.databases import change, rows
from tests.support.harness import (
    API_KEY,
    INSTANT,
    Serve,
    Service,
    ended,
    has_artifacts,
    poller_bounds,
    serving,
)
from tests.support.prompts import STUCK
from tests.support.waiting import eventually

MODELS: dict[str, dict[str, Any]] = {
    "imagen4": {"prompt": "a cat"},
    "midjourney": {"prompt": "a cat", "task_type": "TASK_TYPE_TXT2IMG"},
    "veo3": {"prompt": "a cat"},
    "sora2": {"prompt": "a cat"},
}
SLOW_POLLS: dict[str, Any] = {"poll_interval_seconds": 5}


@pytest.fixture
def port(unused_tcp_port: int) -> int:
    """A free port for the callback server."""
    return unused_tcp_port


def with_callbacks(port: int, **settings: Any) -> dict[str, Any]:
    return {
        "http_address": f"127.0.0.1:{port}",
        "public_url": f"http://127.0.0.1:{port}",
        **SLOW_POLLS,
        **settings,
    }


async def post(url: str, body: Any = None, **headers: str) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json=body if body is not None else {}, headers=headers) as response,
    ):
        return response.status


async def post_raw(url: str, body: bytes, **headers: str) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=io.BytesIO(body), headers=headers) as response,
    ):
        return response.status


def callback_url(kie: Simulator) -> str:
    url: str = kie.tasks[-1]["callBackUrl"]
    return url


@pytest.mark.parametrize("model", MODELS)
async def test_a_callback_ends_a_task_long_before_its_next_poll(
    serve: Serve, port: int, model: str
) -> None:
    async with serve(**with_callbacks(port)) as service:
        service.kie.update(seconds={model: [0.1, 0.1]})
        started = time.monotonic()
        end = await service.end((await service.create({model: MODELS[model]})).id)
        assert end.status == pb.TASK_STATUS_SUCCESS
        assert time.monotonic() - started < 4


async def test_a_watcher_sees_the_end_within_50_ms_at_the_median(serve: Serve, port: int) -> None:
    async with serve(**with_callbacks(port)) as service:
        took = []
        for _ in range(15):
            created = await service.create(STUCK)
            watch = service.watch(created.id, after_revision=created.revision)
            waiting = asyncio.ensure_future(anext(watch))
            await service.query(created.id)
            started = time.monotonic()
            service.kie.finish(created.provider_task_id)
            assert ended(await waiting)
            took.append(time.monotonic() - started)
            await watch.aclose()  # type: ignore[attr-defined]
    assert statistics.median(took) < 0.05, took


async def test_callbacks_arrive_under_the_path_of_the_public_url(serve: Serve, port: int) -> None:
    base = f"http://127.0.0.1:{port}/behind/a/proxy"
    async with serve(**with_callbacks(port, public_url=base)) as service:
        service.kie.update(seconds={"imagen4": [0.1, 0.1]})
        started = time.monotonic()
        await service.end((await service.create()).id)
        assert time.monotonic() - started < 4
        assert callback_url(service.kie).startswith(f"{base}/callbacks/kie/")
        assert await post(f"http://127.0.0.1:{port}/elsewhere") == 404


LOST = [
    "create:accept_then_reset",
    "create:accept_then_http,status=502",
    "create:accept_then_garbage",
    "create:accept_then_empty",
    "create:accept_then_no_id",
]


@pytest.mark.parametrize("fault", LOST)
@pytest.mark.parametrize("model", ["imagen4", "midjourney"])
async def test_a_create_whose_response_was_lost_is_recovered_by_its_callback(
    serve: Serve, port: int, fault: str, model: str
) -> None:
    async with serve(**with_callbacks(port, create_wait_seconds=0)) as service:
        service.kie.update(seconds={model: [0.2, 0.2]})
        service.kie.add_fault(fault)
        created = await service.create({model: MODELS[model]}, request_id="r")
        end = await service.end(created.id)
        assert end.status == pb.TASK_STATUS_SUCCESS
        assert end.provider_task_id == service.kie.tasks[0]["id"]
        assert (await service.create({model: MODELS[model]}, request_id="r")).id == created.id
    assert len(service.kie.tasks) == 1


async def test_a_callback_that_names_another_request_is_not_believed(
    serve: Serve, port: int
) -> None:
    async with serve(**with_callbacks(port, create_wait_seconds=0)) as service:
        service.kie.add_fault("create:accept_then_reset")
        orphan = await service.create({"imagen4": {"prompt": "mine [sim:stuck]"}})
        await eventually(lambda: service.kie.tasks)
        url = callback_url(service.kie)
        other = await service.create({"imagen4": {"prompt": "another's [sim:stuck]"}})
        other = await service.until(other.id, lambda task: bool(task.provider_task_id))
        assert await post(url, {"data": {"taskId": other.provider_task_id}}) == 200
        polls = polls_of(service.kie, other.provider_task_id)
        async with asyncio.timeout(10):
            while polls_of(service.kie, other.provider_task_id) == polls:
                await service.query(orphan.id)
        assert (await service.query(orphan.id)).stage == pb.TASK_STAGE_SUBMITTING
        assert not (await service.query(orphan.id)).provider_task_id


async def test_an_unknown_create_without_a_callback_ends_once_its_wait_is_over(
    serve: Serve, port: int
) -> None:
    async with serve(**with_callbacks(port, unknown_wait_seconds=0.2)) as service:
        service.kie.add_fault("create:reset")
        end = await service.end((await service.create()).id)
        assert end.failure.reason == pb.ERROR_REASON_SUBMISSION_UNKNOWN


async def test_a_callback_after_the_wait_adds_the_paid_result_to_the_failed_task(
    serve: Serve, port: int
) -> None:
    async with serve(**with_callbacks(port, unknown_wait_seconds=0)) as service:
        service.kie.add_fault("create:accept_then_reset")
        failed = await service.create(STUCK)
        assert failed.failure.reason == pb.ERROR_REASON_SUBMISSION_UNKNOWN
        service.kie.finish(service.kie.tasks[0]["id"])
        late = await service.until(failed.id, has_artifacts)
        assert late.status == pb.TASK_STATUS_FAILED
        assert late.failure == failed.failure


async def test_an_orphan_is_recovered_after_a_restart(serve: Serve, port: int) -> None:
    settings = with_callbacks(port, create_wait_seconds=0)
    async with serve(**settings) as service:
        service.kie.add_fault("create:accept_then_reset")
        created = await service.create(STUCK)
        await eventually(lambda: service.kie.tasks)
    async with serve(**settings) as service:
        service.kie.finish(service.kie.tasks[0]["id"])
        assert (await service.end(created.id)).status == pb.TASK_STATUS_SUCCESS


async def test_a_duplicate_or_late_callback_is_received_and_changes_nothing(
    serve: Serve, port: int
) -> None:
    async with serve(**with_callbacks(port)) as service:
        end = await service.end((await service.create()).id)
        body = {"data": {"taskId": end.provider_task_id, "state": "fail"}}
        assert [await post(callback_url(service.kie), body) for _ in range(3)] == [200] * 3
        assert await service.query(end.id) == end


async def test_a_callback_for_a_missing_task_is_404(serve: Serve, port: int) -> None:
    secret = {"callback_secret": SecretStr("s")}
    async with serve(**with_callbacks(port, **secret)) as service:
        urls = CallbackUrls(f"http://127.0.0.1:{port}", b"s")
        assert await post(urls.url("nobody")) == 404
        assert service.kie.tasks == []


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
        [(kept,)] = rows(service.database_url, "SELECT value FROM secrets")
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


KEY = "webhook-key-of-the-tests"


def digest_of(task_id: str, stamp: str, key: str = KEY) -> bytes:
    return hmac.digest(key.encode(), f"{task_id}.{stamp}".encode(), "sha256")


SIGNATURES: dict[str, tuple[Callable[[bytes], str], float]] = {
    "base64": (lambda d: b64encode(d).decode(), 1),
    "base64 without padding": (lambda d: b64encode(d).decode().rstrip("="), 1),
    "url-safe base64": (lambda d: urlsafe_b64encode(d).decode(), 1),
    "url-safe base64 without padding": (lambda d: urlsafe_b64encode(d).decode().rstrip("="), 1),
    "hex": (bytes.hex, 1),
    "upper-case hex": (lambda d: d.hex().upper(), 1),
    "milliseconds": (lambda d: b64encode(d).decode(), 1_000),
}


class Metered:
    """The callbacks that a service has counted."""

    def __init__(self, service: Service) -> None:
        self._url = f"http://{service.admin_address}/metrics"

    async def verdicts(self) -> dict[str, int]:
        async with aiohttp.ClientSession() as session, session.get(self._url) as response:
            lines = re.findall(
                r'generation_callbacks_total{verdict="(.*)"} (\d+)', await response.text()
            )
        return {verdict: int(count) for verdict, count in lines}


@asynccontextmanager
async def signed_callbacks(folder: Path, port: int) -> AsyncIterator[tuple[Service, Metered]]:
    """The service with a webhook key, a task that never ends, and its callbacks' verdicts."""
    async with Simulator(replace(INSTANT, webhook_key=KEY)) as kie:
        settings = with_callbacks(port, kie_webhook_key=SecretStr(KEY), admin_address="127.0.0.1:0")
        async with serving(folder, kie, **settings) as service:
            yield service, Metered(service)


@pytest.mark.parametrize(("encode", "unit"), SIGNATURES.values(), ids=SIGNATURES.keys())
async def test_kies_signature_is_read_in_every_form(
    tmp_path: Path, port: int, encode: Callable[[bytes], str], unit: float
) -> None:
    async with signed_callbacks(tmp_path, port) as (service, metered):
        created = await service.create(STUCK)
        stamp = str(int(time.time() * unit))
        body = b"\xef\xbb\xbf" + json.dumps({"taskId": created.provider_task_id}).encode()
        status = await post_raw(
            callback_url(service.kie),
            body,
            **{
                "X-Webhook-Timestamp": stamp,
                "X-Webhook-Signature": encode(digest_of(created.provider_task_id, stamp)),
            },
        )
        assert status == 200
        assert await metered.verdicts() == {"received": 1}


async def test_a_wrong_signature_with_a_valid_seal_is_counted_and_the_task_is_polled(
    tmp_path: Path, port: int
) -> None:
    async with signed_callbacks(tmp_path, port) as (service, metered):
        created = await service.create(STUCK)
        url, body = callback_url(service.kie), {"data": {"taskId": created.provider_task_id}}

        async def signed(task_id: str, when: float, by: str) -> int:
            stamp = str(int(when))
            digest = b64encode(digest_of(task_id, stamp, by)).decode()
            headers = {"X-Webhook-Timestamp": stamp, "X-Webhook-Signature": digest}
            return await post(url, body, **headers)

        now = time.time()
        assert await signed(created.provider_task_id, now, KEY) == 200
        assert await signed(created.provider_task_id, now - 3_600, KEY) == 200
        assert await signed(created.provider_task_id, now, "another key") == 200
        assert await signed("another task", now, KEY) == 200
        assert await post(url, body) == 200
        assert await post(url, body, **{"X-Webhook-Timestamp": "²"}) == 200
        assert await metered.verdicts() == {"received": 1, "wrong signature": 5}
        await eventually(lambda: polls_of(service.kie, created.provider_task_id) >= 1)


async def test_an_unsigned_id_is_not_looked_up(tmp_path: Path, port: int) -> None:
    async with signed_callbacks(tmp_path, port) as (service, _):
        service.kie.add_fault("create:accept_then_reset")
        creating = asyncio.create_task(service.create(STUCK))
        await eventually(lambda: service.kie.tasks)
        url, bought = callback_url(service.kie), service.kie.tasks[0]["id"]
        assert await post(url, {"data": {"taskId": bought}}) == 200
        await a_while(service)
        assert polls_of(service.kie, bought) == 0
        creating.cancel()


async def test_signatures_are_checked_with_the_stores_clock(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On PostgreSQL all replicas and the callbacks' window share the database's clock."""
    ahead = 7_200.0
    monkeypatch.setattr(Store, "now", lambda _: time.time() + ahead)
    async with signed_callbacks(tmp_path, port) as (service, metered):
        created = await service.create(STUCK)
        stamp = str(int(time.time() + ahead))
        signature = b64encode(digest_of(created.provider_task_id, stamp)).decode()
        headers = {"X-Webhook-Timestamp": stamp, "X-Webhook-Signature": signature}
        await post(callback_url(service.kie), {"taskId": created.provider_task_id}, **headers)
        assert await metered.verdicts() == {"received": 1}


# --- many callbacks ---


async def test_one_poll_runs_at_a_time_however_many_callbacks_arrive(
    tmp_path: Path, kie: Simulator, port: int
) -> None:
    async with serving(tmp_path, kie, **with_callbacks(port, poll_interval_seconds=60)) as service:
        created = await service.create(STUCK)
        kie.add_fault("record:slow,seconds=1.5,times=100")
        url = callback_url(kie)
        async with asyncio.timeout(20):
            started = time.monotonic()
            while time.monotonic() - started < 1.4:
                assert await post(url) == 200
        assert kie.stats["requests"].get("/api/v1/jobs/recordInfo", 0) == 1
        kie.finish(created.provider_task_id)  # it is a callback, too: while the poll is in progress
        await service.until(created.id, ended)


async def test_a_callback_that_repeats_within_a_second_costs_no_status_request(
    tmp_path: Path, kie: Simulator, port: int
) -> None:
    async with serving(tmp_path, kie, **with_callbacks(port, poll_interval_seconds=60)) as service:
        created = await service.create(STUCK)
        url = callback_url(kie)
        assert await asyncio.gather(*(post(url) for _ in range(50))) == [200] * 50
        await eventually(lambda: polls_of(kie, created.provider_task_id) >= 1)
        await a_while(service)
        assert polls_of(kie, created.provider_task_id) == 1


async def test_a_different_callback_within_a_second_causes_a_poll_a_second_later(
    tmp_path: Path, kie: Simulator, port: int
) -> None:
    async with serving(tmp_path, kie, **with_callbacks(port, poll_interval_seconds=60)) as service:
        created = await service.create(STUCK)
        url = callback_url(kie)
        assert await post(url, {"data": {"state": "generating"}}) == 200
        await eventually(lambda: polls_of(kie, created.provider_task_id) == 1)
        kie.add_fault("callback:drop")
        kie.finish(created.provider_task_id)
        assert await post(url, {"data": {"state": "success"}}) == 200
        await service.until(created.id, ended)
        assert polls_of(kie, created.provider_task_id) == 2


async def test_callbacks_of_one_task_do_not_starve_the_polls_of_others(
    tmp_path: Path, kie: Simulator, port: int
) -> None:
    settings = with_callbacks(port, kie_status_per_second=4, poll_interval_seconds=0.5)
    async with serving(tmp_path, kie, **settings) as service:
        await service.create(STUCK)
        url = callback_url(kie)
        other = await service.create({"imagen4": {"prompt": "other [sim:seconds=1]"}})
        kie.add_fault("callback:drop")

        async def flood() -> None:
            async with aiohttp.ClientSession() as session:
                while True:
                    async with session.post(url, json={}) as response:
                        assert response.status == 200

        floods = [asyncio.create_task(flood()) for _ in range(4)]
        started = time.monotonic()
        end = await service.end(other.id)
        took = time.monotonic() - started
        for task in floods:
            task.cancel()
        await asyncio.gather(*floods, return_exceptions=True)
        assert end.status == pb.TASK_STATUS_SUCCESS
        assert took < 5


async def test_a_scanner_of_the_callback_port_is_counted_and_not_logged(
    tmp_path: Path, kie: Simulator, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    settings = with_callbacks(port, admin_address="127.0.0.1:0")
    async with serving(tmp_path, kie, **settings) as service:
        base = f"http://127.0.0.1:{port}"
        for path in ("/", "/wp-login.php", "/callbacks/kie/", "/callbacks/kie/x", "/%1b[2Jx"):
            assert await post(f"{base}{path}") == 404
        for _ in range(20):
            assert await post(f"{base}/callbacks/kie/%1b[2J%0aINFO/%c2%85") == 401
        verdicts = await Metered(service).verdicts()
    assert verdicts == {"no callback": 5, "forged": 20}
    assert "\x1b" not in caplog.text
    assert "[2J" not in caplog.text


async def test_callback_urls_are_kept_out_of_results_messages_and_the_database(
    serve: Serve, port: int
) -> None:
    async with serve(**with_callbacks(port)) as service:
        end = await service.end((await service.create()).id)
        url = callback_url(service.kie)
        seal = url.rsplit("/", 1)[1]
        assert url.startswith(f"http://127.0.0.1:{port}/callbacks/kie/{end.id}/")
        assert seal not in str(end)
        [row] = rows(service.database_url, "SELECT * FROM tasks")
        assert end.provider_task_id in row
        assert not any(seal in str(value) for value in row)


async def test_without_a_public_url_no_callback_is_asked_for(service: Service) -> None:
    await service.create()
    assert service.kie.tasks[-1]["callBackUrl"] is None


OFTEN: dict[str, Any] = {"poll_interval_seconds": 0.02}


async def test_a_task_that_nobody_watches_costs_at_most_two_status_requests(
    serve: Serve, port: int
) -> None:
    async with serve(**with_callbacks(port, **OFTEN)) as service:
        created = await service.create({"imagen4": {"prompt": "x [sim:seconds=0.5]"}})
        await service.until(created.id, ended)
        assert polls_of(service.kie, created.provider_task_id) <= 2


async def test_a_task_is_polled_while_it_is_watched_and_left_to_its_callback_before_and_after(
    serve: Serve, port: int
) -> None:
    async with serve(**with_callbacks(port, **OFTEN)) as service:
        created = await service.create(STUCK)
        await a_while(service)
        assert polls_of(service.kie, created.provider_task_id) == 0
        watch = service.stub.WatchTask(pb.WatchTaskRequest(task_id=created.id))
        await eventually(lambda: polls_of(service.kie, created.provider_task_id) >= 5)
        watch.cancel()
        await a_while(service)
        left = polls_of(service.kie, created.provider_task_id)
        await a_while(service)
        assert polls_of(service.kie, created.provider_task_id) == left


async def test_a_task_that_was_watched_before_it_was_sent_is_polled(
    serve: Serve, port: int
) -> None:
    async with serve(**with_callbacks(port, create_wait_seconds=0, **OFTEN)) as service:
        service.kie.add_fault("create:slow,seconds=0.2")
        service.kie.add_fault("callback:drop")
        assert ended(await service.end((await service.create()).id))


async def test_a_watch_makes_a_task_due_that_another_process_left_to_its_callback(
    tmp_path: Path, kie: Simulator, postgresql_url: str, port: int
) -> None:
    settings = with_callbacks(port, watch_heartbeat_seconds=0.05, poll_interval_seconds=0.2)
    async with serving(tmp_path, kie, database_url=postgresql_url, **settings) as service:
        created = await service.create(STUCK)
        watching = asyncio.ensure_future(service.end(created.id))
        await eventually(lambda: polls_of(service.kie, created.provider_task_id) >= 1)
        sql = "UPDATE tasks SET due_time = due_time + 9999, version = version + 1"
        change(postgresql_url, sql)
        polls = polls_of(service.kie, created.provider_task_id)
        await eventually(lambda: polls_of(service.kie, created.provider_task_id) >= polls + 3)
        service.kie.finish(created.provider_task_id)
        assert ended(await watching)


async def test_a_lost_callback_is_noticed_once_it_is_overdue(serve: Serve, port: int) -> None:
    bounds = poller_bounds(overdue=Overdue(factor=0.0, min_seconds=0.3))
    async with serve(bounds=bounds, **with_callbacks(port, **OFTEN)) as service:
        service.kie.add_fault("callback:drop")
        created = await service.create()
        await service.until(created.id, ended)
        assert polls_of(service.kie, created.provider_task_id) == 1


async def test_a_record_that_lags_behind_its_callback_is_polled_again(
    serve: Serve, port: int
) -> None:
    async with serve(**with_callbacks(port, **OFTEN)) as service:
        service.kie.add_fault("record:late,times=3")
        created = await service.create()
        await service.until(created.id, ended)
        assert polls_of(service.kie, created.provider_task_id) == 4


async def a_while(service: Service) -> None:
    """Let another task of 0.5 s come and go: many intervals."""
    another = await service.create({"imagen4": {"prompt": "x [sim:seconds=0.5]"}})
    await service.until(another.id, ended)


def polls_of(kie: Simulator, task_id: str) -> int:
    [task] = [task for task in kie.tasks if task["id"] == task_id]
    count: int = task["polls"]["count"]
    return count
