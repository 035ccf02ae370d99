"""Why the provider does not take tasks, in words that an operator can act on."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from generated.generation.v1 import generation_pb2 as pb
from providers.base import Postponed
from providers.kie.client import KieProvider
from providers.kie.simulator import Simulator
from tests.support.certificates import Authority
from tests.support.harness import API_KEY, create_request, serving

PARAMS = create_request().provider_params


@asynccontextmanager
async def listening(context: ssl.SSLContext | None) -> AsyncIterator[int]:
    """Greet every client, without a TLS handshake unless there is a context."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 ready\r\n")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def why_not(api_url: str) -> Postponed:
    """Send a task to an address; return why it was not accepted."""
    provider = KieProvider(api_url, api_url, API_KEY)
    outcome = await provider.submit(PARAMS, None)
    await provider.close()
    assert isinstance(outcome, Postponed)
    return outcome


async def test_the_log_names_a_dns_failure() -> None:
    outcome = await why_not("http://no-such-host.invalid")
    assert outcome.detail.startswith("not connected: DNS does not resolve no-such-host.invalid: ")
    assert not outcome.reached


async def test_the_log_names_a_refused_connection(unused_tcp_port: int) -> None:
    outcome = await why_not(f"http://127.0.0.1:{unused_tcp_port}")
    refused = f"not connected: 127.0.0.1 port {unused_tcp_port} refused the connection"
    assert outcome.detail == refused


async def test_the_log_names_a_rejected_certificate(
    tmp_path: Path,
) -> None:
    authority = Authority.make(tmp_path / "ca", "server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.cert("server"), authority.key("server"))
    async with listening(context) as port:
        outcome = await why_not(f"https://127.0.0.1:{port}")
    rejected = "not connected: the certificate of 127.0.0.1 was rejected: "
    assert outcome.detail.startswith(rejected)
    assert "certificate" in outcome.detail.removeprefix(rejected)


async def test_the_log_names_a_server_without_tls() -> None:
    async with listening(None) as port:
        outcome = await why_not(f"https://127.0.0.1:{port}")
    assert outcome.detail.startswith("not connected: TLS with 127.0.0.1 failed: ")


@pytest.mark.parametrize(
    ("code", "why"),
    [(429, "the account's limit is reached"), (455, "the provider is in maintenance")],
)
async def test_the_log_distinguishes_a_limit_and_maintenance(
    kie: Simulator, code: int, why: str
) -> None:
    kie.add_fault(f"create:code,code={code},msg=wait")
    outcome = await why_not(kie.url)
    assert outcome == Postponed(f"{why} (code {code}: wait)")


async def test_while_the_provider_cannot_be_reached_the_log_says_why_and_the_service_is_ready(
    tmp_path: Path, kie: Simulator, unused_tcp_port: int
) -> None:
    nowhere = f"http://127.0.0.1:{unused_tcp_port}"
    settings: dict[str, Any] = {
        "kie_api_url": nowhere,
        "admin_address": "127.0.0.1:0",
        "create_wait_seconds": 0.5,
    }
    async with serving(tmp_path, kie, **settings) as service, aiohttp.ClientSession() as session:
        with capture_logs() as logged:
            created = await service.create()
        assert created.stage == pb.TASK_STAGE_ACCEPTED
        [line, *_] = [entry for entry in logged if "does not accept tasks" in entry["event"]]
        assert line["detail"].endswith("refused the connection")
        async with session.get(f"http://{service.admin_address}/readyz") as response:
            assert response.status == 200
            assert (await response.text()).startswith("ok\n")


@pytest.mark.parametrize("code", [429, 455])
async def test_if_one_model_is_held_the_log_names_it_and_does_not_speak_for_all(
    tmp_path: Path, kie: Simulator, code: int
) -> None:
    kie.add_fault(f"create:code,code={code},msg=wait,times=0")
    async with serving(tmp_path, kie, create_wait_seconds=0) as service:
        with capture_logs() as logged:
            await service.until_put_back((await service.create()).id)
    [line, *_] = [entry for entry in logged if "does not accept tasks" in entry["event"]]
    assert line["event"] == "the provider does not accept tasks of one model now"
    assert line["model"] == "imagen4"
    assert f"code {code}" in line["detail"]
