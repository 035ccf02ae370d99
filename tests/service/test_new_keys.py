"""A key in a file that is replaced while the service runs: what it uses, and what it reports."""

import base64
import hmac
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from generated.generation.v1 import generation_pb2 as pb
from providers.kie.simulator import Simulator
from service.metrics import Metrics
from service.setting_types import webhook_key_in
from service.watched_secret import WatchedSecret
from tests.support.harness import INSTANT, Service, serving, upload_messages
from tests.support.refusals import refused

NEW_KEY = "the-new-key-of-the-account"
REVOKED_KEY = "the-old-key-that-was-revoked"


@pytest.fixture
async def strict_kie() -> AsyncIterator[Simulator]:
    """A simulator that accepts only the new key."""
    async with Simulator(replace(INSTANT, api_key=NEW_KEY)) as simulator:
        yield simulator


def with_key_file(file: Path, **settings: Any) -> dict[str, Any]:
    """Return the settings of a service whose key is in a file."""
    return {"kie_api_key": None, "kie_api_key_file": file, **settings}


async def problems(service: Service, file: str) -> float:
    """Return the metric of a file's problems."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{service.admin_address}/metrics") as response,
    ):
        text = await response.text()
    [line] = [
        line
        for line in text.splitlines()
        if line.startswith(f'generation_config_problems{{file="{file}"}}')
    ]
    return float(line.split()[-1])


def overwrite(file: Path, content: str) -> None:
    file.write_text(content)


def rename_over(file: Path, content: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(content)
    new.rename(file)


@pytest.mark.parametrize("write", [overwrite, rename_over])
async def test_a_new_key_is_used_for_the_next_create_poll_and_upload(
    tmp_path: Path, strict_kie: Simulator, write: Callable[[Path, str], None]
) -> None:
    file = tmp_path / "key"
    file.write_text(f"{REVOKED_KEY}\n")
    async with serving(tmp_path, strict_kie, **with_key_file(file)) as service:
        error = await refused(service.stub.UploadFile(iter(upload_messages(b"x")), timeout=20))
        assert error.reason == "PROVIDER_UNAUTHORIZED"
        write(file, f"{NEW_KEY}\n")
        await service.stub.UploadFile(iter(upload_messages(b"x")), timeout=20)
        end = await service.end((await service.create()).id)
        assert end.status == pb.TASK_STATUS_SUCCESS


async def test_a_new_key_behind_the_links_of_a_mounted_secret_is_used(
    tmp_path: Path, strict_kie: Simulator
) -> None:
    for version, key in (("1", REVOKED_KEY), ("2", NEW_KEY)):
        (tmp_path / version).mkdir()
        (tmp_path / version / "key").write_text(key)
    data, file = tmp_path / "..data", tmp_path / "key"
    data.symlink_to("1")
    file.symlink_to("..data/key")
    async with serving(tmp_path, strict_kie, **with_key_file(file)) as service:
        replacement = tmp_path / "..data_tmp"
        replacement.symlink_to("2")
        replacement.rename(data)
        end = await service.end((await service.create()).id)
        assert end.status == pb.TASK_STATUS_SUCCESS


async def test_a_new_key_never_reaches_a_caller_in_an_answer(
    tmp_path: Path, strict_kie: Simulator
) -> None:
    file = tmp_path / "key"
    file.write_text(REVOKED_KEY)
    async with serving(tmp_path, strict_kie, **with_key_file(file)) as service:
        file.write_text(NEW_KEY)
        strict_kie.add_fault(f"create:code,code=422,msg=no access with {NEW_KEY}")
        error = await refused(service.create())
        assert "no access with (hidden)" in error.message
        assert NEW_KEY not in error.message


@pytest.mark.parametrize("content", ["", "two words", "tab\there", "schlüssel", None])
async def test_a_file_without_a_valid_key_is_reported_and_the_old_key_is_kept(
    tmp_path: Path, strict_kie: Simulator, content: str | None
) -> None:
    file = tmp_path / "key"
    file.write_text(NEW_KEY)
    settings = with_key_file(file, admin_address="127.0.0.1:0")
    async with serving(tmp_path, strict_kie, **settings) as service:
        assert await problems(service, "kie_api_key") == 0
        with capture_logs() as logged:
            if content is None:
                file.unlink()
            else:
                file.write_text(content)
            for _ in range(2):
                end = await service.end((await service.create()).id)
                assert end.status == pb.TASK_STATUS_SUCCESS
        [line] = [line for line in logged if "old secret" in line["event"]]
        assert line["file"] == "KIE_API_KEY_FILE"
        assert NEW_KEY not in str(logged)
        assert await problems(service, "kie_api_key") == 1
        file.write_text(f"{NEW_KEY}\n")
        await service.end((await service.create()).id)
        assert await problems(service, "kie_api_key") == 0


def test_a_secret_that_changed_since_the_settings_were_read_is_current_from_the_start(
    tmp_path: Path,
) -> None:
    file = tmp_path / "key"
    file.write_text("new")
    secret = WatchedSecret("kie_webhook_key", "old", file, webhook_key_in, Metrics([]))
    assert secret.current() == "new"


async def test_a_new_webhook_key_verifies_the_next_callback(
    tmp_path: Path, kie: Simulator, unused_tcp_port: int
) -> None:
    file = tmp_path / "webhook-key"
    file.write_text("old")
    address = f"127.0.0.1:{unused_tcp_port}"
    settings: dict[str, Any] = {
        "kie_webhook_key_file": file,
        "public_url": f"http://{address}",
        "http_address": address,
        "poll_interval_seconds": 60,
    }

    async def call_back(url: str, key: str) -> str:
        now = str(int(time.time()))
        digest = hmac.digest(key.encode(), f"k-1.{now}".encode(), "sha256")
        headers = {
            "X-Webhook-Timestamp": now,
            "X-Webhook-Signature": base64.b64encode(digest).decode(),
        }
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, json={"taskId": "k-1"}, headers=headers) as response,
        ):
            status = (await response.json())["status"]
            assert isinstance(status, str)
            return status

    async with serving(tmp_path, kie, **settings) as service:
        kie.add_fault("callback:drop,times=0")
        await service.create({"imagen4": {"prompt": "a cat [sim:stuck]"}})
        url = kie.tasks[0]["body"]["callBackUrl"]
        assert await call_back(url, "old") == "received"
        file.write_text("new")
        assert await call_back(url, "old") == "wrong signature"
        assert await call_back(url, "new") == "received"
