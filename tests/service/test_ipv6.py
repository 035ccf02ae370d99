"""IPv6: every address that can be set, and the clients of each."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from kie_generation import GenerationClient, Imagen4Params, save_artifacts
from providers.kie.simulator import Simulator
from service.calls import Call, add_call, current_call
from tests.support.command import command
from tests.support.harness import INSTANT, Service, serving, upload_messages
from tests.support.paths import ROOT


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


pytestmark = pytest.mark.skipif(not has_ipv6(), reason="NOT TESTED: this machine has no IPv6")


def unused_port(host: str = "::1") -> int:
    with socket.create_server((host, 0), family=socket.AF_INET6) as server:
        port: int = server.getsockname()[1]
        return port


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    """Run the service, with callbacks and with its provider, on IPv6 only."""
    simulator = Simulator(INSTANT)
    await simulator.start("::1")
    port = unused_port()
    settings: dict[str, Any] = {
        "listen_address": "[::1]:0",
        "admin_address": "[::1]:0",
        "http_address": f"[::1]:{port}",
        "public_url": f"http://[::1]:{port}",
    }
    try:
        async with serving(tmp_path, simulator, **settings) as service:
            yield service
    finally:
        await simulator.stop()


@pytest.mark.parametrize("scheme", ["", "ipv6:", "dns:///"])
async def test_a_task_is_created_watched_and_saved_over_ipv6(
    service: Service, tmp_path: Path, scheme: str
) -> None:
    assert service.address.startswith("[::1]:")
    assert service.kie.url.startswith("http://[::1]:")
    async with GenerationClient(scheme + service.address) as client:
        created = await client.create(Imagen4Params(prompt="a cat"), prompt_id="p")
        ended = await client.wait(created.id, timeout=20)
    [saved] = await save_artifacts(ended, tmp_path / "results")
    assert saved.stat().st_size


async def test_uploads_and_the_command_line_use_ipv6(service: Service) -> None:
    answer = await service.stub.UploadFile(iter(upload_messages(b"a cat")))
    assert answer.file.download_url.startswith("http://[::1]:")
    ran = await command(service.address, "list")
    assert ran.code == 0


async def test_callbacks_arrive_at_an_ipv6_address(service: Service) -> None:
    created = await service.create()
    await service.end(created.id)
    [task] = service.bodies()
    assert task["callBackUrl"].startswith(f"http://{service.http_address}/callbacks/kie/")
    async with aiohttp.ClientSession() as session, session.post(task["callBackUrl"]) as response:
        assert response.status == 200


@pytest.mark.parametrize("host", ["[::]", "[::1]", "[0:0:0:0:0:0:0:0]"])
async def test_the_health_check_of_the_image_asks_an_ipv6_address(
    tmp_path: Path, kie: Simulator, host: str
) -> None:
    async with serving(tmp_path, kie, admin_address=f"{host}:0") as service:
        port = service.admin_address.rpartition(":")[2]
        check = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service.ready"),
            cwd=ROOT,
            env={"ADMIN_ADDRESS": f"{host}:{port}", "http_proxy": "http://127.0.0.1:1"},
            stderr=subprocess.PIPE,
        )
        _, errors = await check.communicate()
    assert (check.returncode, errors) == (0, b"")


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_an_address_for_everything_serves_ipv4_as_well(
    tmp_path: Path, kie: Simulator, host: str
) -> None:
    port = unused_port("::")
    settings: dict[str, Any] = {
        "listen_address": "[::]:0",
        "allow_unauthenticated": True,
        "admin_address": "[::]:0",
        "http_address": f"[::]:{port}",
        "public_url": f"http://127.0.0.1:{port}",
    }
    async with serving(tmp_path, kie, **settings) as service:
        ports = [
            address.rpartition(":")[2]
            for address in (service.address, service.admin_address, service.http_address)
        ]
        async with grpc.aio.insecure_channel(f"{host}:{ports[0]}") as channel:
            await asyncio.wait_for(channel.channel_ready(), 10)
        async with aiohttp.ClientSession() as session:
            for http_port in ports[1:]:
                async with session.get(f"http://{host}:{http_port}/") as response:
                    assert response.status in {200, 404}


async def test_an_ipv6_port_that_is_in_use_is_named(tmp_path: Path, kie: Simulator) -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        for address in (f"[::]:{port}", f"[::1]:{port}"):
            with pytest.raises(
                Exception, match=r"ADMIN_ADDRESS: cannot listen on .*already in use"
            ):
                async with serving(tmp_path, kie, admin_address=address):
                    pass


def test_the_log_shows_the_address_of_a_peer_as_it_is_written() -> None:
    class Context:
        def peer(self) -> str:
            return "ipv6:%5B2001:db8::1%5D:50000"

        def auth_context(self) -> dict[str, list[bytes]]:
            return {}

    call = Call(())
    call.context = Context()
    token = current_call.set(call)
    try:
        assert add_call(None, "info", {})["peer"] == "ipv6:[2001:db8::1]:50000"
    finally:
        current_call.reset(token)
