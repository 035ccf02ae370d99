"""Requests to the provider through the proxy of the environment, and with its authorities."""

import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from generated.generation.v1 import generation_pb2 as pb
from providers.base import Accepted, Postponed, Unavailable
from providers.kie.client import KieProvider
from providers.kie.simulator import Simulator
from tests.support.certificates import Authority
from tests.support.egress import (
    Behaviour,
    EgressProxy,
    answering,
    egress_proxy,
    resetting,
    with_tls,
    writing,
)
from tests.support.harness import API_KEY, create_request, serving, upload_messages
from tests.support.prompts import STUCK
from tests.support.refusals import refused

API = "https://api.kie.example"
UPLOADS = "https://uploads.kie.example"
PARAMS = create_request().provider_params
REFUSALS: dict[str, Behaviour] = {
    "403": answering("403 Forbidden"),
    "407": answering("407 Proxy Authentication Required"),
    "429": answering("429 Too Many Requests"),
    "500": answering("500 Internal Server Error"),
    "502": answering("502 Bad Gateway"),
    "503": answering("503 Service Unavailable"),
    "a redirect": answering("302 Found\r\nLocation: https://login.example/"),
    "a status without words": writing(b"HTTP/1.1 599\r\n\r\n"),
    "nothing": writing(b""),
    "garbage": writing(b"220 smtp.example ESMTP\r\n"),
    "half an answer": writing(b"HTTP/1.1 200 Conn"),
    "a reset": resetting,
    "no tunnel behind its 200": writing(b"HTTP/1.1 200 Connection established\r\n\r\n"),
    "plain text in the tunnel": writing(b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"),
}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority.make(tmp_path_factory.mktemp("tls") / "ours")
    made.sign("kie", "DNS:*.kie.example")
    return made


@dataclass(frozen=True)
class Border:
    """The way out of the network: a proxy, and Kie behind it."""

    proxy: EgressProxy
    kie: Simulator


@pytest.fixture
async def border(
    kie: Simulator, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Border]:
    address = kie.url.removeprefix("http://")
    async with (
        with_tls(address, authority, "kie") as port,
        egress_proxy("127.0.0.1", port) as proxy,
    ):
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("//", "//user:pass%2Dword@"))
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.cert("ca")))
        yield Border(proxy, kie)


def beyond(tmp_path: Path, border: Border, **settings: Any) -> Any:
    """Run the service with Kie beyond the border."""
    urls = {"kie_api_url": API, "kie_upload_url": UPLOADS}
    return serving(tmp_path, border.kie, **urls | settings)


async def test_creates_polls_and_uploads_go_through_the_proxy_with_the_authorities_of_ssl_cert_file(
    tmp_path: Path, border: Border
) -> None:
    async with beyond(tmp_path, border) as service:
        ended = await service.end((await service.create()).id)
        stored = await service.stub.UploadFile(iter(upload_messages(b"a cat")))
    assert ended.status == pb.TASK_STATUS_SUCCESS
    assert stored.file.size_bytes == 5
    hosts = {line.split()[1] for line in border.proxy.asked}
    assert hosts == {"api.kie.example:443", "uploads.kie.example:443"}
    assert {line.split()[0] for line in border.proxy.asked} == {"CONNECT"}


async def test_the_proxy_gets_its_own_password_and_not_our_key(
    tmp_path: Path, border: Border
) -> None:
    async with beyond(tmp_path, border) as service:
        await service.create()
    word = base64.b64encode(b"user:pass-word").decode()
    assert set(border.proxy.authorizations) == {f"Basic {word}"}
    assert API_KEY.encode() not in border.proxy.readable


@pytest.mark.parametrize("kind", REFUSALS)
async def test_what_a_proxy_does_not_let_through_was_not_sent(border: Border, kind: str) -> None:
    border.proxy.behaviour = REFUSALS[kind]
    provider = KieProvider(API, UPLOADS, API_KEY)
    try:
        outcome = await provider.submit(PARAMS, None)
        poll = await provider.poll("imagen4", "an-id")
        border.proxy.behaviour = None
        later = await provider.submit(PARAMS, None)
    finally:
        await provider.close()
    assert isinstance(outcome, Postponed)
    assert outcome.detail.startswith("not connected: ")
    assert not outcome.reached
    assert "pass-word" not in outcome.detail
    assert isinstance(poll, Unavailable)
    assert isinstance(later, Accepted)
    assert len(border.kie.tasks) == 1


async def test_a_task_waits_while_the_proxy_refuses_and_is_paid_for_once(
    tmp_path: Path, border: Border
) -> None:
    border.proxy.behaviour = answering("403 Forbidden")
    async with beyond(tmp_path, border, create_wait_seconds=0.2) as service:
        created = await service.create(STUCK)
        waiting = await service.until_put_back(created.id)
        assert waiting.status == pb.TASK_STATUS_PENDING
        refusal = await refused(service.stub.UploadFile(iter(upload_messages(b"a cat"))))
        assert (refusal.code, refusal.reason) == (
            grpc.StatusCode.UNAVAILABLE,
            "PROVIDER_UNAVAILABLE",
        )
        assert "the proxy refused, HTTP 403" in refusal.message
        border.proxy.behaviour = None
        await service.until(created.id, lambda task: bool(task.provider_task_id))
    assert len(border.kie.tasks) == 1


async def test_a_proxy_that_is_unreachable_is_named(
    monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    monkeypatch.setenv("https_proxy", f"user:pass-word@127.0.0.1:{unused_tcp_port}")
    provider = KieProvider(API, UPLOADS, API_KEY)
    outcome = await provider.submit(PARAMS, None)
    await provider.close()
    assert isinstance(outcome, Postponed)
    assert f"the proxy 127.0.0.1 port {unused_tcp_port} cannot be reached" in outcome.detail
    assert not outcome.reached


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_provider_on_loopback_is_reached_directly(
    tmp_path: Path, kie: Simulator, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    url = kie.url.replace("127.0.0.1", host)
    async with serving(tmp_path, kie, kie_api_url=url, kie_upload_url=url) as service:
        ended = await service.end((await service.create()).id)
        stored = await service.stub.UploadFile(iter(upload_messages(b"a cat")))
    assert ended.status == pb.TASK_STATUS_SUCCESS
    assert stored.file.size_bytes == 5


async def test_hosts_in_no_proxy_are_reached_directly(
    border: Border, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "uploads.example,.kie.example")
    provider = KieProvider(API, UPLOADS, API_KEY)
    outcome = await provider.submit(PARAMS, None)
    await provider.close()
    assert isinstance(outcome, Postponed)
    assert outcome.detail.startswith("not connected: DNS does not resolve api.kie.example")
    assert not border.proxy.asked


async def test_without_ssl_cert_file_an_unknown_authority_is_rejected(
    border: Border, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    provider = KieProvider(API, UPLOADS, API_KEY)
    outcome = await provider.submit(PARAMS, None)
    await provider.close()
    assert isinstance(outcome, Postponed)
    assert "the certificate of api.kie.example was rejected" in outcome.detail
    assert border.proxy.asked
