"""A provider's URL, or a redirect of it, reaches nothing inside our network."""

import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from service.results.source import SourceTimes
from tests.support.copying import Copying, copying
from tests.support.kept_places import FolderPlace
from tests.support.media_host import PNG_START, MediaHost, media_host

PUBLIC = "93.184.216.34"


@pytest.fixture
async def host() -> AsyncIterator[MediaHost]:
    """The host that may be asked."""
    async with media_host() as host:
        yield host


@pytest.fixture
async def inside() -> AsyncIterator[MediaHost]:
    """A host inside our network, which must not be asked."""
    async with media_host() as host:
        host.add("a.png", PNG_START)
        yield host
        assert not host.asked


@pytest.fixture
async def copies(host: MediaHost, tmp_path: Path, stack: AsyncExitStack) -> Copying:
    times = SourceTimes(connect_seconds=0.3)
    return await copying(host, FolderPlace(tmp_path / "results"), stack, times)


class Names:
    """What names resolve to: for each, a list of answers in turn, the last one forever."""

    def __init__(self) -> None:
        self.addresses: dict[str, list[list[str]]] = {}
        self.asked: list[str] = []

    def resolve(self, name: Any, port: Any, *_: Any, **__: Any) -> list[Any]:
        self.asked.append(name)
        answers = self.addresses.get(name.casefold())
        if answers is None:
            raise socket.gaierror(socket.EAI_NONAME, "unknown name")
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        return [_address(each, port) for each in found]


def _address(text: str, port: int) -> Any:
    if ":" in text:
        return socket.AF_INET6, socket.SOCK_STREAM, 6, "", (text, port, 0, 0)
    return socket.AF_INET, socket.SOCK_STREAM, 6, "", (text, port)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    names = Names()
    monkeypatch.setattr(socket, "getaddrinfo", names.resolve)
    return names


async def refused(copies: Copying, url: str) -> None:
    [artifact] = await copies.copy(url)
    assert artifact.copy is None
    assert copies.outcomes() == {"not_allowed": 1}, artifact.storage_error


LITERALS = [
    *("127.0.0.1", "127.1", "0x7f.0.0.1", "2130706433", "0177.0.0.1", "127.0.0.1.", "0.0.0.0"),  # noqa: S104 - nothing is bound
    *("169.254.169.254", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "224.0.0.1"),
    *("[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[fe80::1]", "[fd00::1]"),
    *("[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[::127.0.0.1]", "[ff02::1]"),
    *("localhost", "LOCALHOST", "a.localhost", "db", "kubernetes.default.svc", "x.internal"),
]


@pytest.mark.parametrize("literal", LITERALS)
async def test_a_url_of_a_host_that_is_not_public_is_refused(
    copies: Copying, inside: MediaHost, names: Names, literal: str
) -> None:
    port = inside.base.rpartition(":")[2]
    await refused(copies, f"https://{literal}:{port}/results/a.png")
    assert names.asked == []


@pytest.mark.parametrize(
    "url",
    [
        *("http://media.example.com/a.png", "ftp://media.example.com/a.png", "file:///etc/passwd"),
        *("https://user:word@media.example.com/a.png", "https:///a.png", "//a.png", "a.png", ""),
        *("https://media.example.com:99999/a.png", "https://[::1", "gopher://x.example.com/"),
        *("https://media.example.com\\@127.0.0.1/a.png", "https://127.0.0.1#@media.example.com/"),
    ],
)
async def test_a_url_that_is_no_https_url_is_refused(
    copies: Copying, names: Names, url: str
) -> None:
    await refused(copies, url)
    assert names.asked == []


async def test_plain_http_to_this_machine_is_for_the_simulator_only(
    copies: Copying, host: MediaHost, inside: MediaHost
) -> None:
    url = host.add("a.png", PNG_START)
    [artifact] = await copies.copy(url)
    assert artifact.copy
    [artifact] = await copies.copy(url.replace("127.0.0.1", "localhost"))
    assert artifact.copy is None
    [artifact] = await copies.copy(inside.url("a.png"))
    assert artifact.copy is None


ADDRESSES = [
    *("127.0.0.1", "169.254.169.254", "10.1.2.3", "0.0.0.0", "100.64.1.1"),  # noqa: S104 - nothing is bound
    *("::1", "::ffff:169.254.169.254", "fe80::1", "fd00::1", "64:ff9b::a00:1"),
]


@pytest.mark.parametrize("address", ADDRESSES)
async def test_a_name_that_resolves_to_an_address_inside_is_refused(
    copies: Copying, names: Names, inside: MediaHost, address: str
) -> None:
    port = inside.base.rpartition(":")[2]
    names.addresses["media.example.com"] = [[address]]
    await refused(copies, f"https://media.example.com:{port}/results/a.png")


async def test_one_inside_address_among_public_ones_is_enough_to_refuse_a_name(
    copies: Copying, names: Names, inside: MediaHost
) -> None:
    port = inside.base.rpartition(":")[2]
    names.addresses["media.example.com"] = [[PUBLIC, "127.0.0.1"]]
    await refused(copies, f"https://media.example.com:{port}/results/a.png")


async def test_a_dns_answer_that_changes_is_not_asked_for_twice(
    copies: Copying, names: Names, inside: MediaHost
) -> None:
    port = inside.base.rpartition(":")[2]
    names.addresses["media.example.com"] = [[PUBLIC], ["127.0.0.1"]]
    url = f"https://media.example.com:{port}/results/a.png"
    [artifact] = await copies.copy(url)
    assert artifact.copy is None
    assert names.asked == ["media.example.com"]
    [artifact] = await copies.copy(url)
    assert "not public" in artifact.storage_error


def redirect_to(host: MediaHost, *locations: str) -> str:
    """Return a URL of the host that is redirected to these in turn."""

    def redirect(location: str) -> Any:
        async def answer(request: web.Request) -> web.StreamResponse:
            del request
            return web.Response(status=302, headers={"Location": location})

        return answer

    for number, location in enumerate(locations):
        host.answers[f"{number}.png"] = redirect(location)
    return host.url("0.png")


@pytest.mark.parametrize(
    "location",
    [
        *("http://127.0.0.1:{port}/results/a.png", "https://127.0.0.1:{port}/results/a.png"),
        *("https://169.254.169.254/latest/meta-data", "https://[::1]:{port}/results/a.png"),
        *("http://media.example.com/a.png", "https://inside.example.com:{port}/results/a.png"),
        *("file:///etc/passwd", "//127.0.0.1:{port}/results/a.png", "https://localhost:{port}/"),
    ],
)
async def test_a_redirect_is_checked_like_the_url(
    copies: Copying, host: MediaHost, inside: MediaHost, names: Names, location: str
) -> None:
    port = inside.base.rpartition(":")[2]
    names.addresses["inside.example.com"] = [["127.0.0.1"]]
    await refused(copies, redirect_to(host, location.format(port=port)))


async def test_a_redirect_after_allowed_ones_is_checked_too(
    copies: Copying, host: MediaHost, inside: MediaHost
) -> None:
    locations = ["1.png", "/results/2.png", inside.url("a.png")]
    await refused(copies, redirect_to(host, *locations))


async def test_allowed_redirects_are_followed(copies: Copying, host: MediaHost) -> None:
    host.add("a.png", PNG_START)
    [artifact] = await copies.copy(redirect_to(host, "1.png", host.url("2.png"), "a.png"))
    copies.check(artifact, PNG_START)


async def test_redirects_are_followed_a_limited_number_of_times(
    copies: Copying, host: MediaHost
) -> None:
    [artifact] = await copies.copy(redirect_to(host, "0.png"))
    assert artifact.storage_error == "the result is redirected too often"
    assert host.asked["0.png"] == 6


async def test_a_fresh_link_is_checked_like_the_url(
    copies: Copying, host: MediaHost, inside: MediaHost
) -> None:
    host.fresh[host.url("gone.png")] = inside.url("a.png")
    await refused(copies, host.url("gone.png"))


@pytest.mark.parametrize("name", ["127.0.0.1", "media.example.com"])
async def test_hosts_that_the_operator_allows_may_be_inside(
    host: MediaHost, tmp_path: Path, stack: AsyncExitStack, names: Names, name: str
) -> None:
    host.add("a.png", PNG_START)
    names.addresses["media.example.com"] = [["127.0.0.1"]]
    port = host.base.rpartition(":")[2]
    host.base = "http://127.0.0.1:1"
    place = FolderPlace(tmp_path / "results")
    copies = await copying(host, place, stack, allowed_hosts=[name])
    [artifact] = await copies.copy(f"http://{name.upper()}:{port}/results/a.png")
    copies.check(artifact, PNG_START)
