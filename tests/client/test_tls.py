"""Certificates that do not work, and proxies that must not be in the way."""

import asyncio
import socket
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from kie_generation import GenerationClient, Tls, UnauthenticatedError, UnavailableError
from kie_generation.addresses import is_local
from kie_generation.generated.generation.v1.generation_pb2_grpc import (
    add_GenerationServiceServicer_to_server,
)
from tests.support.certificates import Authority
from tests.support.command import DEAD_PROXY, command
from tests.support.paths import ROOT
from tests.support.scripted_server import FAST, ScriptedService, pending, serving, success


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("tls") / "ours", "server", "client")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("tls") / "theirs", "server", "client")


@asynccontextmanager
async def serving_tls(
    service: ScriptedService, authority: Authority, *, mutual: bool = False
) -> AsyncIterator[str]:
    pair = (authority.key("server").read_bytes(), authority.cert("server").read_bytes())
    roots = authority.cert("ca").read_bytes() if mutual else None
    server = grpc.aio.server()
    add_GenerationServiceServicer_to_server(service, server)
    credentials = grpc.ssl_server_credentials([pair], roots, mutual)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def client_tls(authority: Authority, client: Authority | None = None) -> Tls:
    if client is None:
        return Tls(authority.cert("ca"))
    return Tls(authority.cert("ca"), client.cert("client"), client.key("client"))


async def refused(address: str, tls: Tls | None) -> None:
    """A call and a watch both end at once, as no retry can help."""
    async with GenerationClient(address, tls=tls) as client:
        with pytest.raises(UnauthenticatedError):
            await client.get("t-1")
        with pytest.raises(UnauthenticatedError):
            await anext(client.watch("t-1"))


async def test_certificates_that_fit_are_accepted(ours: Authority) -> None:
    service = ScriptedService()
    service.answers.append(pending(1))
    async with (
        serving_tls(service, ours, mutual=True) as address,
        GenerationClient(address, tls=client_tls(ours, ours)) as client,
    ):
        assert (await client.get("t-1")).revision == 1


async def test_a_server_certificate_of_another_authority_is_an_authentication_error(
    ours: Authority, theirs: Authority
) -> None:
    async with serving_tls(ScriptedService(), ours) as address:
        await refused(address, client_tls(theirs))
        await refused(address, Tls())


async def test_a_missing_or_foreign_client_certificate_is_an_authentication_error(
    ours: Authority, theirs: Authority
) -> None:
    async with serving_tls(ScriptedService(), ours, mutual=True) as address:
        await refused(address, client_tls(ours))
        await refused(address, client_tls(ours, theirs))


async def test_a_key_that_does_not_fit_its_certificate_is_an_authentication_error(
    ours: Authority, theirs: Authority
) -> None:
    async with serving_tls(ScriptedService(), ours, mutual=True) as address:
        await refused(address, Tls(ours.cert("ca"), ours.cert("client"), theirs.key("client")))


async def test_tls_on_one_side_only_is_an_authentication_error(ours: Authority) -> None:
    async with serving(ScriptedService()) as address:
        await refused(address, client_tls(ours))
    for mutual in (False, True):
        async with serving_tls(ScriptedService(), ours, mutual=mutual) as address:
            await refused(address, None)


@pytest.mark.parametrize("encrypted", [False, True])
async def test_a_server_that_closes_connections_is_unavailable(
    ours: Authority, encrypted: bool
) -> None:
    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(close, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        tls = client_tls(ours) if encrypted else None
        async with GenerationClient(f"127.0.0.1:{port}", tls=tls, retry=FAST) as client:
            with pytest.raises(UnavailableError):
                await client.get("t-1")


async def test_the_command_line_exits_with_4_and_says_what_to_change(
    ours: Authority, theirs: Authority
) -> None:
    ca, foreign = str(ours.cert("ca")), str(theirs.cert("ca"))
    pair = ("--cert", str(theirs.cert("client")), "--key", str(theirs.key("client")))
    async with (
        serving_tls(ScriptedService(), ours, mutual=True) as address,
        serving(ScriptedService()) as plain,
    ):
        for to, arguments, hint in (
            (address, ("--ca", foreign, "get", "t-1"), "--ca"),
            (address, ("--ca", ca, "get", "t-1"), "--cert and --key"),
            (address, ("--ca", ca, *pair, "watch", "t-1"), "--cert"),
            (address, ("create", "imagen4", "x"), "use --tls"),
            (plain, ("--tls", "list"), "does not use TLS"),
        ):
            ran = await command(to, *arguments)
            assert ran.code == 4, ran.err
            assert hint in ran.err.splitlines()[-1]
            # gRPC's own lines begin with a level and a date.
            assert all(
                line.startswith(("error: ", "  hint: ", "task ")) for line in ran.err.splitlines()
            )


# --- proxies ---


@pytest.mark.parametrize(
    ("target", "local"),
    [
        ("127.0.0.1:50051", True),
        ("127.8.8.8:1", True),
        ("localhost:50051", True),
        ("LOCALHOST:1", True),
        ("[::1]:50051", True),
        ("dns:///localhost:50051", True),
        ("ipv4:127.0.0.1:50051", True),
        ("ipv6:[::1]:50051", True),
        ("ipv4:127.0.0.1:1,127.0.0.1:2", True),
        ("ipv4:127.0.0.1:1,10.0.0.1:2", False),
        ("unix:/run/generation.sock", True),
        ("unix:relative.sock", True),
        ("10.0.0.1:50051", False),
        ("127.0.0.1.example.com:50051", False),
        ("dns://8.8.8.8/gen.example.com:443", False),
        ("gen.example.com", False),
        ("", False),
        ("localhost", True),
        ("[::ffff:127.0.0.1]:50051", True),
        ("ipv6:%5B::1%5D:50051", True),
        ("::1", True),
        ("[::1]", True),
        ("kie.localhost:50051", True),
        ("127.1:50051", True),
        ("[2001:db8::1]:50051", False),
        ("2001:db8::1", False),
    ],
)
def test_loopback_targets_are_recognised(target: str, local: bool) -> None:
    assert is_local(target) is local


async def test_proxy_variables_do_not_apply_to_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in DEAD_PROXY.items():
        monkeypatch.setenv(name, value)
    service = ScriptedService()
    service.answers.extend([pending(1)] * 2)
    async with serving(service) as address:
        async with GenerationClient(address) as client:
            await client.get("t-1", timeout=10)
        how: dict[str, Any] = {**DEAD_PROXY}
        ran = await command(address, "get", "t-1", **how)
    assert ran.code == 0


async def test_an_error_behind_a_proxy_names_the_variable() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{unused.getsockname()[1]}"
    ran = await command("gen.example:50051", "--timeout", "0.5", "list", https_proxy=proxy)
    assert ran.code == 6
    assert "https_proxy" in ran.err
    assert "no_proxy" in ran.err


async def test_a_hint_to_watch_repeats_the_certificates_and_runs_as_it_is(
    ours: Authority,
) -> None:
    service = ScriptedService()
    service.answers.append(pending(1))
    service.streams.append([success(2)])
    arguments = ("--ca", str(ours.cert("ca")), "create", "imagen4", "x")
    async with serving_tls(service, ours) as address:
        created = await command("127.0.0.1:1", "--address", address, *arguments)
        hint = created.err.splitlines()[-1].partition(": ")[2]
        assert hint.endswith("watch t-1")
        process = await asyncio.create_subprocess_shell(hint, cwd=ROOT, stdout=DEVNULL)
        assert await asyncio.wait_for(process.wait(), 30) == 0
