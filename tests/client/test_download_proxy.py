"""Downloads through the proxy of the environment."""

import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kie_generation import DownloadError, save_artifacts
from kie_generation.generated.generation.v1.generation_pb2 import Artifact
from tests.support.certificates import Authority
from tests.support.egress import EgressProxy, answering, egress_proxy, with_tls, writing
from tests.support.results_server import PNG, Results, serving_results
from tests.support.scripted_server import success

PICTURE = "https://files.example/picture.png"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority.make(tmp_path_factory.mktemp("tls") / "ours")
    made.sign("files", "DNS:files.example,DNS:cdn.files.example")
    return made


@dataclass(frozen=True)
class Border:
    """A proxy, and a server of results behind it and in front of it."""

    proxy: EgressProxy
    results: Results


@pytest.fixture
async def border(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Border]:
    async with serving_results() as results:
        address = results.base.removeprefix("http://")
        async with (
            with_tls(address, authority, "files") as port,
            egress_proxy("127.0.0.1", port) as proxy,
        ):
            monkeypatch.setenv("https_proxy", proxy.url.replace("//", "//user:pass-word@"))
            monkeypatch.setenv("SSL_CERT_FILE", str(authority.cert("ca")))
            yield Border(proxy, results)


async def save(folder: Path, url: str, **how: Any) -> list[bytes]:
    artifact = Artifact(url=url, mime_type="image/png")
    saved = await save_artifacts(success(1, artifacts=[artifact]), folder, **how)
    return [path.read_bytes() for path in saved]


async def test_a_download_goes_through_the_proxy_and_trusts_ssl_cert_file(
    border: Border, tmp_path: Path
) -> None:
    assert await save(tmp_path, PICTURE) == [PNG]
    assert border.proxy.asked == ["CONNECT files.example:443 HTTP/1.1"]
    assert border.proxy.authorizations


async def test_loopback_and_hosts_in_no_proxy_are_reached_directly(
    border: Border, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", border.proxy.url)
    assert await save(tmp_path, f"{border.results.base}/picture.png") == [PNG]
    monkeypatch.setenv("no_proxy", "files.example")
    with pytest.raises(DownloadError, match=r"files\.example"):
        await save(tmp_path, PICTURE)
    assert border.proxy.asked == []


async def test_a_proxy_that_refuses_is_named_without_its_password(
    border: Border, tmp_path: Path
) -> None:
    border.proxy.behaviour = answering("407 Proxy Authentication Required")
    with pytest.raises(DownloadError, match="the proxy refused, HTTP 407") as caught:
        await save(tmp_path, PICTURE)
    assert "pass-word" not in str(caught.value)


async def test_a_proxy_that_cannot_be_used_is_a_download_error(
    border: Border, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "socks5://user:pass-word@127.0.0.1:1")
    assert await save(tmp_path, f"{border.results.base}/picture.png") == [PNG]
    with pytest.raises(DownloadError, match="https_proxy: must be an http URL") as caught:
        await save(tmp_path, PICTURE)
    assert "pass-word" not in str(caught.value)


# --- redirects, whose addresses only the proxy knows ---


async def test_a_redirect_to_a_public_name_is_followed_and_logged_once(
    border: Border, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    border.results.redirects = {"/moved": "https://cdn.files.example/picture.png"}
    for _ in range(2):
        assert await save(tmp_path, f"{border.results.base}/moved") == [PNG]
    assert set(border.proxy.asked) == {"CONNECT cdn.files.example:443 HTTP/1.1"}
    [line] = [record.getMessage() for record in caplog.records]
    assert border.proxy.url in line
    assert "pass-word" not in line


@pytest.mark.parametrize(
    "location",
    [
        *("http://cdn.files.example/x.png", "https://93.184.215.14/x.png", "https://127.1/x.png"),
        *("https://[2606:4700::1111]/x.png", "https://10.0.0.1/x.png", "https://0x5db8d70e/x.png"),
        *("https://intranet/x.png", "https://cdn.internal/x.png", "https://printer.local/x.png"),
        *("https://kie.svc/x.png", "https://router.home.arpa./x.png", "https://169.254.169.254./"),
        *("https://db.cluster.local/x.png", "https://localhost/x.png", "https://kie.localhost/"),
    ],
)
async def test_a_redirect_is_followed_only_to_https_on_a_name_that_can_be_public(
    border: Border, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    monkeypatch.setenv("http_proxy", border.proxy.url)
    border.results.redirects = {"/moved": location}
    with pytest.raises(DownloadError):
        await save(tmp_path, f"{border.results.base}/moved")
    assert border.proxy.asked == []


async def test_other_redirects_through_the_proxy_are_followed_when_allowed(
    border: Border, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", border.proxy.url)
    border.results.redirects = {"/moved": "http://intranet/picture.png"}
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(PNG)}\r\n\r\n"
    border.proxy.behaviour = writing(head.encode() + PNG)
    assert await save(tmp_path, f"{border.results.base}/moved", allow_private=True) == [PNG]
    assert border.proxy.asked == ["GET http://intranet/picture.png HTTP/1.1"]
