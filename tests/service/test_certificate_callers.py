"""Callers that are named by the certificates of their clients."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from generated.generation.v1 import generation_pb2 as pb
from generated.generation.v1.generation_pb2_grpc import GenerationServiceStub
from service.bounds import BOUNDS
from service.settings import Settings
from tests.support.certificates import Authority
from tests.support.harness import Serve, Service, create_request
from tests.support.metrics_page import ADMIN, page_when, scrape
from tests.support.prompts import STUCK
from tests.support.refusals import refused

SPIFFE = "spiffe://example.org/team/billing"
CLIENTS = {
    "alice": "DNS:alice.example",
    "billing": f"URI:{SPIFFE},DNS:billing.example",
    "mail": "email:carol@example.org",
    "address": "IP:192.0.2.7",
    "v6": "IP:2001:db8::7",
    "both": "DNS:alice.example,DNS:bob.example",
    "unknown": "DNS:alice.example.org,DNS:ALICE",
}
TOKENS = f"""
alice san:alice.example
billing san:{SPIFFE}
carol san:carol@example.org
dave san:192.0.2.7
erin san:2001:db8::7
bob san:bob.example  # a comment
bob {sha256(b"bob").hexdigest()}
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority.make(tmp_path_factory.mktemp("tls") / "ours", "server")
    for name, alternatives in CLIENTS.items():
        made.sign(name, alternatives)
    return made


@dataclass(frozen=True)
class Guarded:
    """A service that asks for client certificates, and its tokens file."""

    service: Service
    authority: Authority
    file: Path

    @asynccontextmanager
    async def connected(self, client: str) -> AsyncIterator[Any]:
        """Connect with a client's certificate."""
        credentials = self.authority.credentials((self.authority, client))
        async with grpc.aio.secure_channel(self.service.address, credentials) as channel:
            yield GenerationServiceStub(channel)

    async def create(self, client: str, *metadata: tuple[str, str]) -> pb.GenerationTask:
        """Create a task that does not end."""
        async with self.connected(client) as stub:
            call = stub.CreateTask(create_request(STUCK), metadata=metadata, timeout=10)
            task: pb.GenerationTask = (await call).task
            return task

    async def visible(self, client: str, *metadata: tuple[str, str]) -> list[str]:
        """Return the ids of the tasks that a client sees."""
        async with self.connected(client) as stub:
            page = await stub.ListTasks(pb.ListTasksRequest(), metadata=metadata, timeout=10)
        return [task.id for task in page.tasks]


@pytest.fixture
async def guarded(serve: Serve, authority: Authority, tmp_path: Path) -> AsyncIterator[Guarded]:
    file = tmp_path / "tokens"
    file.write_text(TOKENS)
    settings = {
        "auth_tokens_file": file,
        "tls_cert_file": authority.cert("server"),
        "tls_key_file": authority.key("server"),
        "tls_client_ca_file": authority.cert("ca"),
        "metrics_per_caller": True,
    }
    bounds = replace(BOUNDS, recheck_seconds=0)  # the file is checked at every call
    async with serve(bounds=bounds, **settings, **ADMIN) as service:
        yield Guarded(service, authority, file)


BOBS_TOKEN = ("authorization", "Bearer bob")


async def test_each_kind_of_name_in_a_certificate_identifies_its_caller(guarded: Guarded) -> None:
    clients = ("alice", "billing", "mail", "address", "v6")
    created = {client: (await guarded.create(client)).id for client in clients}
    for client, task_id in created.items():
        assert await guarded.visible(client) == [task_id]
    page = await scrape(guarded.service)
    for caller in ("alice", "billing", "carol", "dave", "erin"):
        assert page.value("generation_caller_creates_total", caller=caller) == 1


async def test_a_token_and_a_certificate_of_the_same_caller_are_equal_and_a_token_comes_first(
    guarded: Guarded,
) -> None:
    created = await guarded.create("alice", BOBS_TOKEN)
    assert await guarded.visible("alice") == []
    assert await guarded.visible("unknown", BOBS_TOKEN) == [created.id]


@pytest.mark.parametrize(
    ("client", "metadata", "message"),
    [
        ("unknown", (), "the certificate names no caller"),
        ("both", (), "the certificate names several callers"),
        ("alice", (("authorization", "Bearer wrong"),), "the token is not valid"),
        ("alice", (("authorization", ""),), "send metadata"),
        ("alice", (BOBS_TOKEN, BOBS_TOKEN), "send metadata"),
    ],
)
async def test_a_call_is_refused_if_it_does_not_clearly_have_a_caller(
    guarded: Guarded, client: str, metadata: tuple[tuple[str, str], ...], message: str
) -> None:
    refusal = await refused(guarded.visible(client, *metadata))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    assert message in refusal.message


async def test_streams_and_health_watches_of_a_certificate_work(guarded: Guarded) -> None:
    created = await guarded.create("alice")
    async with guarded.connected("alice") as stub:
        watch = stub.WatchTask(pb.WatchTaskRequest(task_id=created.id))
        assert (await watch.read()).task.id == created.id
        watch.cancel()
    credentials = guarded.authority.credentials((guarded.authority, "unknown"))
    async with grpc.aio.secure_channel(guarded.service.address, credentials) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest()
        serving = health_pb2.HealthCheckResponse.SERVING
        assert (await health.Check(request, timeout=10)).status == serving
        assert (await refused(health.Watch(request).read())).reason == "UNAUTHENTICATED"


async def test_a_certificate_that_is_removed_from_the_file_ends_its_open_streams(
    guarded: Guarded,
) -> None:
    created = await guarded.create("alice")
    async with guarded.connected("alice") as stub:
        watch = stub.WatchTask(pb.WatchTaskRequest(task_id=created.id), timeout=20)
        assert (await watch.read()).task.id == created.id
        guarded.file.write_text(TOKENS.replace("alice", "anna"))

        async def end() -> None:
            while await watch.read() is not grpc.aio.EOF:
                pass

        assert (await refused(end())).message == "the certificate is no longer valid"


# --- certificates that nobody checks name nobody ---


def test_names_without_an_authority_for_clients_are_refused_at_start(
    tmp_path: Path,
) -> None:
    file = tmp_path / "tokens"
    file.write_text("alice san:alice.example\n")
    with pytest.raises(ValueError, match=r"AUTH_TOKENS_FILE: .*TLS_CLIENT_CA_FILE"):
        Settings(auth_tokens_file=file)


async def test_names_that_are_added_without_an_authority_for_clients_are_reported(
    serve: Serve, tmp_path: Path
) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"bob {sha256(b'bob').hexdigest()}\n")
    async with serve(auth_tokens_file=file, **ADMIN) as service:
        file.write_text(f"bob {sha256(b'bob').hexdigest()}\nalice san:alice.example\n")
        name = "generation_config_problems"
        await page_when(service, lambda page: page.value(name, file="tokens") == 1)
        call = service.stub.ListTasks(pb.ListTasksRequest(), metadata=[BOBS_TOKEN])
        assert not (await call).tasks


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("alice san:", "line 1: must be"),
        ("alice SAN:x", "line 1: must be"),
        ("alice san: x", "line 1: must be"),
        ("alice san:x\nbob san:x", "line 2: the name in certificates already belongs"),
    ],
)
def test_a_bad_line_with_a_name_is_refused_at_start(
    tmp_path: Path, text: str, problem: str
) -> None:
    file = tmp_path / "tokens"
    file.write_text(text)
    with pytest.raises(ValueError, match=problem):
        Settings(auth_tokens_file=file)
