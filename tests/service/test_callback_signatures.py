"""Kie's signatures of callbacks: they are read in every form, and counted if they are wrong."""

import asyncio
import hmac
import json
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from providers.kie.simulator import Simulator
from storage.store import Store
from tests.support.calling_back import (
    a_while,
    callback_url,
    polls_of,
    post,
    post_raw,
    verdicts,
    with_callbacks,
)
from tests.support.harness import INSTANT, Service, serving
from tests.support.prompts import STUCK
from tests.support.waiting import eventually

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


@asynccontextmanager
async def signed_callbacks(folder: Path, port: int) -> AsyncIterator[Service]:
    """The service with a webhook key, and an admin port."""
    async with Simulator(replace(INSTANT, webhook_key=KEY)) as kie:
        settings = with_callbacks(port, kie_webhook_key=SecretStr(KEY), admin_address="127.0.0.1:0")
        async with serving(folder, kie, **settings) as service:
            yield service


@pytest.mark.parametrize(("encode", "unit"), SIGNATURES.values(), ids=SIGNATURES.keys())
async def test_kies_signature_is_read_in_every_form(
    tmp_path: Path, port: int, encode: Callable[[bytes], str], unit: float
) -> None:
    async with signed_callbacks(tmp_path, port) as service:
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
        assert await verdicts(service) == {"received": 1}


async def test_a_wrong_signature_with_a_valid_seal_is_counted_and_the_task_is_polled(
    tmp_path: Path, port: int
) -> None:
    async with signed_callbacks(tmp_path, port) as service:
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
        assert await verdicts(service) == {"received": 1, "wrong signature": 5}
        await eventually(lambda: polls_of(service.kie, created.provider_task_id) >= 1)


async def test_an_unsigned_id_is_not_looked_up(tmp_path: Path, port: int) -> None:
    async with signed_callbacks(tmp_path, port) as service:
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
    async with signed_callbacks(tmp_path, port) as service:
        created = await service.create(STUCK)
        stamp = str(int(time.time() + ahead))
        signature = b64encode(digest_of(created.provider_task_id, stamp)).decode()
        headers = {"X-Webhook-Timestamp": stamp, "X-Webhook-Signature": signature}
        await post(callback_url(service.kie), {"taskId": created.provider_task_id}, **headers)
        assert await verdicts(service) == {"received": 1}
