"""Callers: tokens and their file, and that no caller sees another caller's tasks."""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from pydantic import ValidationError

from generated.generation.v1 import generation_pb2 as pb
from service.bounds import Bounds
from service.callers import TokensFileError, parse_tokens, read_tokens, read_tokens_file
from service.files import FILE_MAX_BYTES
from service.settings import Settings
from tests.support.harness import Serve, Service, create_request, upload_messages
from tests.support.metrics_page import page_when
from tests.support.prompts import STUCK
from tests.support.refusals import refusal, refused

Metadata = Sequence[tuple[str, str | bytes]]

ALICE, BOB = "alice's token", "bob's token"


def line(name: str, token: str) -> str:
    return f"{name} {sha256(token.encode()).hexdigest()}\n"


def bearer(token: str) -> Metadata:
    return [("authorization", f"Bearer {token}")]


@dataclass(frozen=True)
class Guarded:
    """A service that requires tokens, and the file with their hashes."""

    service: Service
    file: Path

    async def list(self, metadata: Metadata | None, **filters: Any) -> list[str]:
        request = pb.ListTasksRequest(**filters)
        answer = await self.service.stub.ListTasks(request, metadata=metadata, timeout=5)
        return [task.id for task in answer.tasks]

    async def create(self, token: str, **fields: Any) -> pb.GenerationTask:
        return await self.service.create(metadata=bearer(token), **fields)

    def write(self, text: str) -> None:
        """Replace the file in one step, as tools that manage secrets do."""
        new = self.file.with_suffix(".new")
        new.write_text(text)
        new.replace(self.file)


@pytest.fixture
async def guarded(
    request: pytest.FixtureRequest, serve: Serve, tmp_path: Path, stack: AsyncExitStack
) -> Guarded:
    """Alice and Bob, and a file that is checked at every call, unless the test changes that."""
    bounds = Bounds(recheck_seconds=getattr(request, "param", 0.0))
    file = tmp_path / "tokens"
    file.write_text(line("alice", ALICE) + line("bob", BOB))
    service = await stack.enter_async_context(
        serve(bounds=bounds, auth_tokens_file=file, admin_address="127.0.0.1:0")
    )
    return Guarded(service, file)


# --- tokens ---

UNKNOWN: dict[str, Metadata] = {
    "nothing": [],
    "an empty value": [("authorization", "")],
    "the scheme alone": [("authorization", "Bearer")],
    "an empty token": [("authorization", "Bearer ")],
    "a blank token": [("authorization", "Bearer    ")],
    "the token alone": [("authorization", ALICE)],
    "another scheme": [("authorization", f"Basic {ALICE}")],
    "a scheme that only begins well": [("authorization", f"Bearerx {ALICE}")],
    "no blank": [("authorization", f"Bearer:{ALICE}")],
    "a wrong token": bearer("mallory's token"),
    "a token of another case": bearer(ALICE.upper()),
    "a longer token": bearer(f"{ALICE}x"),
    "a shorter token": bearer(ALICE[:-1]),
    "the token's hash": bearer(sha256(ALICE.encode()).hexdigest()),
    "a name": bearer("alice"),
    "two tokens": bearer(f"{ALICE}, Bearer {BOB}"),
    "the token quoted": bearer(f'"{ALICE}"'),
    "only a binary key": [("authorization-bin", f"Bearer {ALICE}".encode())],
    "binary content": [("authorization-bin", bytes(range(256)))],
    "another key": [("x-authorization", f"Bearer {ALICE}")],
    "a large token": bearer("x" * 6_000),
    "all visible characters": bearer("".join(map(chr, range(0x20, 0x7F)))),
    "the same twice": [*bearer(ALICE), *bearer(ALICE)],
    "alice, then bob": [*bearer(ALICE), *bearer(BOB)],
    "bob, then alice": [*bearer(BOB), *bearer(ALICE)],
    "nobody, then alice": [*bearer("x"), *bearer(ALICE)],
    "alice, then nobody": [*bearer(ALICE), *bearer("x")],
    "alice, then an empty value": [*bearer(ALICE), ("authorization", "")],
}


@pytest.mark.parametrize("metadata", UNKNOWN.values(), ids=UNKNOWN.keys())
async def test_a_call_without_exactly_one_known_token_is_unauthenticated(
    guarded: Guarded, metadata: Metadata
) -> None:
    error = await refused(guarded.list(metadata))
    assert (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    assert error.metadata == {}
    assert error.retry_seconds is None
    assert ALICE not in error.message


@pytest.mark.parametrize(
    "value",
    [f"Bearer {ALICE}", f"bearer {ALICE}", f"BEARER {ALICE}", f"Bearer   {ALICE}  "],
)
async def test_a_known_token_is_enough_whatever_the_case_of_the_scheme(
    guarded: Guarded, value: str
) -> None:
    created = await guarded.create(ALICE)
    assert await guarded.list([("authorization", value)]) == [created.id]


async def test_more_metadata_than_a_call_may_carry_is_refused_before_it_is_read(
    guarded: Guarded,
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await guarded.list(bearer("x" * 100_000))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await guarded.list(bearer(ALICE)) == []


async def each_call(service: Service, metadata: Metadata | None) -> AsyncIterator[Awaitable[Any]]:
    """Yield a call of every RPC."""
    stub = service.stub
    options: Any = {"metadata": metadata, "timeout": 5}
    yield stub.CreateTask(create_request(), **options)
    yield stub.QueryTask(pb.QueryTaskRequest(task_id="x"), **options)
    yield stub.WatchTask(pb.WatchTaskRequest(task_id="x"), **options).read()
    yield stub.UploadFile(iter(upload_messages(b"x")), **options)
    yield stub.ListTasks(pb.ListTasksRequest(), **options)
    yield stub.CancelTask(pb.CancelTaskRequest(task_id="x"), **options)


@pytest.mark.parametrize("metadata", [None, bearer("wrong")], ids=["missing", "wrong"])
async def test_every_rpc_needs_the_token(guarded: Guarded, metadata: Metadata | None) -> None:
    async for call in each_call(guarded.service, metadata):
        assert (await refused(call)).reason == "UNAUTHENTICATED"
    assert await guarded.list(bearer(ALICE)) == []
    assert guarded.service.kie.stats["requests"] == {}


async def test_the_token_is_checked_before_the_message_is_read(guarded: Guarded) -> None:
    call: Any = guarded.service.channel.unary_unary("/generation.v1.GenerationService/QueryTask")
    assert (await refused(call(b"\xff\xff"))).reason == "UNAUTHENTICATED"


async def test_only_health_check_needs_no_token(guarded: Guarded) -> None:
    channel = guarded.service.channel
    health = health_pb2_grpc.HealthStub(channel)
    answer = await health.Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    watch = health.Watch(health_pb2.HealthCheckRequest())
    assert (await refused(watch.read())).reason == "UNAUTHENTICATED"
    reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    stream = reflection.ServerReflectionInfo(iter([request]))
    assert (await refused(stream.read())).reason == "UNAUTHENTICATED"


async def test_reflection_works_with_a_token(guarded: Guarded) -> None:
    channel = guarded.service.channel
    watch = health_pb2_grpc.HealthStub(channel).Watch(
        health_pb2.HealthCheckRequest(), metadata=bearer(ALICE)
    )
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
    reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    async for answer in reflection.ServerReflectionInfo(iter([request]), metadata=bearer(ALICE)):
        assert answer.list_services_response.service


async def test_without_a_tokens_file_all_calls_are_of_one_caller(
    service: Service,
) -> None:
    created = await service.create(metadata=bearer("whoever"))
    assert (await service.query(created.id)).id == created.id


# --- the file ---


def test_a_caller_may_have_several_tokens_among_comments_and_empty_lines() -> None:
    text = f"""
        # who may call
        {line("alice", "1")}
        alice\t{sha256(b"2").hexdigest().upper()}   # the one that comes next
        {line("bob", "3")}#{line("mallory", "4")}
    """
    digests = {sha256(token).digest(): name for token, name in [(b"1", "alice"), (b"3", "bob")]}
    assert read_tokens(text) == {sha256(b"2").digest(): "alice", **digests}


def test_a_duplicate_line_is_harmless() -> None:
    assert read_tokens(line("alice", "1") * 2) == {sha256(b"1").digest(): "alice"}


BAD_FILES = {
    "one word": "alice\n",
    "three words": f"{line('alice', '1').strip()} x\n",
    "the token itself": "alice secret-token\n",
    "a short hash": "alice 00\n",
    "a hash of 63 characters": f"alice {'0' * 63}\n",
    "a hash that is no hexadecimal": f"alice {'x' * 64}\n",
    "a hash in other digits": f"alice {'²' * 64}\n",
    "a long name": line("x" * 65, "1"),
    "one token of two callers": line("alice", "1") + line("bob", "1"),
    "a name with an invisible character": line("al\u200bice", "1"),
    "a name with an escape sequence": line("\x1b[31mbob", "1"),
}


@pytest.mark.parametrize("text", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_line_is_named_by_its_number_and_not_shown(text: str) -> None:
    with pytest.raises(TokensFileError) as caught:
        read_tokens("# first\n" + text)
    assert str(caught.value).startswith(f"line {1 + text.count(chr(10))}: ")
    assert "alice" not in str(caught.value)
    assert "secret-token" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"alice secret-token\n", b"\xff\xfe\x00", b"\0\1\2", b"#" * (FILE_MAX_BYTES + 1)],
    ids=["line", "utf", "binary", "large"],
)
def test_a_bad_file_is_named_at_start(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_bytes(content)
    with pytest.raises(ValidationError) as caught:
        Settings(auth_tokens_file=file)
    [error] = caught.value.errors(include_input=False)
    assert error["loc"] == ("auth_tokens_file",)
    assert "secret-token" not in str(caught.value)


def test_a_file_from_windows_names_the_same_callers(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(line("alice", "1"), encoding="utf-8-sig", newline="\r\n")
    assert read_tokens_file(file) == {sha256(b"1").digest(): "alice"}


def test_a_file_of_another_kind_is_reported_in_few_lines() -> None:
    problems = parse_tokens("no line of tokens\n" * 30).problems
    assert len(problems) == 21
    assert problems[-1] == "10 more lines are invalid"


async def test_a_token_that_is_added_counts_without_a_restart(guarded: Guarded) -> None:
    assert (await refused(guarded.list(bearer("carol's")))).reason == "UNAUTHENTICATED"
    guarded.write(guarded.file.read_text() + line("carol", "carol's"))
    assert await guarded.list(bearer("carol's")) == []
    assert await guarded.list(bearer(ALICE)) == []


async def test_a_revoked_token_is_refused(guarded: Guarded) -> None:
    assert await guarded.list(bearer(BOB)) == []
    guarded.write(line("alice", ALICE))
    assert (await refused(guarded.list(bearer(BOB)))).reason == "UNAUTHENTICATED"
    assert await guarded.list(bearer(ALICE)) == []


async def test_a_new_token_of_a_caller_gives_access_to_its_old_tasks(guarded: Guarded) -> None:
    created = await guarded.create(ALICE)
    guarded.write(line("alice", "rotated"))
    assert await guarded.list(bearer("rotated")) == [created.id]
    assert (await refused(guarded.list(bearer(ALICE)))).reason == "UNAUTHENTICATED"


async def test_a_file_changed_in_place_to_the_same_size_is_seen(guarded: Guarded) -> None:
    guarded.file.write_text(line("alice", ALICE) + line("bob", "changed"))
    os.utime(guarded.file, ns=(1, 1))
    assert await guarded.list(bearer("changed")) == []
    assert (await refused(guarded.list(bearer(BOB)))).reason == "UNAUTHENTICATED"


async def test_a_line_that_becomes_bad_is_ignored_and_logged_once(guarded: Guarded) -> None:
    with structlog.testing.capture_logs() as logs:
        guarded.write(line("mallory", "1") + "alice secret-token\n" + line("bob", BOB))
        assert await guarded.list(bearer("1")) == []
        assert await guarded.list(bearer(BOB)) == []
        assert (await refused(guarded.list(bearer(ALICE)))).reason == "UNAUTHENTICATED"
        guarded.write(line("mallory", "1") + "alice secret-token\n")
        assert (await refused(guarded.list(bearer(BOB)))).reason == "UNAUTHENTICATED"
    problems = [entry["problem"] for entry in logs if entry["log_level"] == "warning"]
    assert problems == ["line 2: must be `name sha256-of-token-in-hex`"]
    assert "secret-token" not in str(logs)


@pytest.mark.parametrize("text", ["", "# nobody\n", "alice secret-token\n"])
async def test_a_file_without_a_token_changes_nothing(guarded: Guarded, text: str) -> None:
    guarded.write(text)
    assert await guarded.list(bearer(ALICE)) == []
    guarded.write(line("bob", BOB))
    assert (await refused(guarded.list(bearer(ALICE)))).reason == "UNAUTHENTICATED"


async def test_a_file_that_becomes_a_pipe_blocks_nothing(guarded: Guarded) -> None:
    guarded.file.unlink()
    os.mkfifo(guarded.file)
    assert await guarded.list(bearer(ALICE)) == []
    guarded.write(line("bob", BOB))
    assert (await refused(guarded.list(bearer(ALICE)))).reason == "UNAUTHENTICATED"


async def test_a_file_that_becomes_too_large_changes_nothing(guarded: Guarded) -> None:
    guarded.write(line("bob", BOB) + "#" * FILE_MAX_BYTES)
    assert await guarded.list(bearer(ALICE)) == []
    guarded.write(line("bob", BOB))
    assert (await refused(guarded.list(bearer(ALICE)))).reason == "UNAUTHENTICATED"


async def test_a_deleted_file_changes_nothing(guarded: Guarded) -> None:
    guarded.file.unlink()
    assert await guarded.list(bearer(ALICE)) == []
    guarded.write(line("bob", BOB))
    assert (await refused(guarded.list(bearer(ALICE)))).reason == "UNAUTHENTICATED"


async def test_a_bad_line_is_seen_in_the_metrics(guarded: Guarded) -> None:
    guarded.write(line("alice", ALICE) + "bob secret-token\n")
    await page_when(
        guarded.service, lambda page: page.value("generation_config_problems", file="tokens") == 1
    )


async def test_a_token_that_is_revoked_ends_its_watches_and_uploads(guarded: Guarded) -> None:
    created = await guarded.create(ALICE, params=STUCK)
    watch: Any = guarded.service.stub.WatchTask(
        pb.WatchTaskRequest(task_id=created.id), metadata=bearer(ALICE)
    )
    assert (await watch.read()).task.id == created.id
    upload = guarded.service.stub.UploadFile(metadata=bearer(ALICE))
    await upload.write(pb.UploadFileRequest(metadata=pb.UploadMetadata(file_name="a.png")))
    await guarded.list(bearer(BOB))  # by then the upload has been admitted
    guarded.write(line("bob", BOB))

    async def end_of_watch() -> None:
        while await watch.read() is not grpc.aio.EOF:
            pass

    for stream in (end_of_watch(), upload):
        async with asyncio.timeout(5):
            error = await refused(stream)
        assert (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    assert error.message == "the token is no longer valid"


@pytest.mark.parametrize("guarded", [3_600.0], indirect=True)
async def test_the_file_is_checked_once_in_a_while_and_not_with_every_call(
    guarded: Guarded,
) -> None:
    assert await guarded.list(bearer(BOB)) == []
    guarded.write(line("alice", ALICE))
    assert await guarded.list(bearer(BOB)) == []


# --- a caller's own ---


def query(service: Service, task_id: str, metadata: Metadata) -> Any:
    return service.stub.QueryTask(pb.QueryTaskRequest(task_id=task_id), metadata=metadata)


def cancel(service: Service, task_id: str, metadata: Metadata) -> Any:
    return service.stub.CancelTask(pb.CancelTaskRequest(task_id=task_id), metadata=metadata)


def watch(service: Service, task_id: str, metadata: Metadata) -> Any:
    return service.stub.WatchTask(pb.WatchTaskRequest(task_id=task_id), metadata=metadata).read()


def watch_from(service: Service, task_id: str, metadata: Metadata) -> Any:
    request = pb.WatchTaskRequest(task_id=task_id, after_revision=1_000_000)
    return service.stub.WatchTask(request, metadata=metadata).read()


def rich_status(error: grpc.aio.AioRpcError) -> bytes:
    """Return the complete google.rpc.Status of an error, as it was sent."""
    trailers = dict(error.trailing_metadata())
    status = trailers["grpc-status-details-bin"]
    assert isinstance(status, bytes)
    return status


@pytest.mark.parametrize("ended", [False, True], ids=["in progress", "ended"])
@pytest.mark.parametrize("ask", [query, cancel, watch, watch_from])
async def test_another_callers_task_gets_the_same_error_as_a_missing_one(
    guarded: Guarded, ask: Callable[[Service, str, Metadata], Any], ended: bool
) -> None:
    created = await guarded.create(ALICE, params=None if ended else STUCK)
    if ended:
        async for _ in guarded.service.stub.WatchTask(
            pb.WatchTaskRequest(task_id=created.id), metadata=bearer(ALICE)
        ):
            pass
    nobody = uuid.uuid4().hex
    answers = []
    for task_id in (created.id, nobody):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(guarded.service, task_id, bearer(BOB))
        error = caught.value
        assert error.code() == grpc.StatusCode.NOT_FOUND
        assert refusal(error).reason == "TASK_NOT_FOUND"
        words = (error.details() or "").encode() + rich_status(error)
        answers.append(words.replace(task_id.encode(), b"<id>"))
        keys = [key for key, _ in error.trailing_metadata()]
        assert keys == ["grpc-status-details-bin"]
    assert answers[0] == answers[1]
    assert status_pb2.Status.FromString(rich_status(error)).message == f"there is no task {nobody}"


async def test_a_list_contains_only_the_callers_tasks(guarded: Guarded) -> None:
    alices = [(await guarded.create(ALICE, prompt_id="p")).id for _ in range(2)]
    bobs = [(await guarded.create(BOB, prompt_id="p")).id for _ in range(3)]
    for filters in ({}, {"prompt_id": "p"}, {"page_size": 200}):
        assert await guarded.list(bearer(ALICE), **filters) == alices[::-1]
        assert await guarded.list(bearer(BOB), **filters) == bobs[::-1]


async def test_another_can_neither_watch_nor_cancel_a_task_and_its_owner_still_can(
    guarded: Guarded,
) -> None:
    guarded.service.kie.add_fault("create:code,code=455,times=0")
    created = await guarded.create(ALICE, timeout=0.5)
    assert (await refused(cancel(guarded.service, created.id, bearer(BOB)))).reason == (
        "TASK_NOT_FOUND"
    )
    answer = await cancel(guarded.service, created.id, bearer(ALICE))
    assert answer.task.failure.reason == pb.ERROR_REASON_CANCELLED


async def test_the_same_request_id_of_two_callers_makes_two_tasks(guarded: Guarded) -> None:
    alices = await guarded.create(ALICE, request_id="r")
    bobs = await guarded.create(BOB, request_id="r")
    assert alices.id != bobs.id
    assert (await guarded.create(ALICE, request_id="r")).id == alices.id
    assert (await guarded.create(BOB, request_id="r")).id == bobs.id
    assert len(guarded.service.kie.tasks) == 2


async def test_another_callers_request_id_with_other_parameters_is_no_conflict(
    guarded: Guarded,
) -> None:
    await guarded.create(ALICE, request_id="r")
    bobs = await guarded.create(BOB, params={"veo3": {"prompt": "a dog"}}, request_id="r")
    assert bobs.provider_params.kie.veo3.prompt == "a dog"


@pytest.mark.parametrize("filters", [{}, {"prompt_id": "p"}])
async def test_a_page_token_of_another_caller_is_refused(
    guarded: Guarded, filters: dict[str, Any]
) -> None:
    for token in (ALICE, ALICE, BOB, BOB):
        await guarded.create(token)
    request = pb.ListTasksRequest(page_size=1, **filters)
    first = await guarded.service.stub.ListTasks(request, metadata=bearer(ALICE))
    assert first.next_page_token
    error = await refused(guarded.list(bearer(BOB), page_token=first.next_page_token, **filters))
    assert (error.reason, error.fields) == ("INVALID_PARAMS", ["page_token"])
    assert await guarded.list(bearer(ALICE), page_token=first.next_page_token, **filters)


# --- turning tokens on ---


async def test_tasks_from_before_tokens_were_turned_on_belong_to_the_token_named_default(
    serve: Serve, tmp_path: Path
) -> None:
    async with serve() as service:
        before = await service.create(STUCK, request_id="r")
    file = tmp_path / "tokens"
    file.write_text(line("alice", ALICE) + line("default", BOB))
    async with serve(auth_tokens_file=file) as service:
        guarded = Guarded(service, file)
        assert await guarded.list(bearer(BOB)) == [before.id]
        assert await guarded.list(bearer(ALICE)) == []
        again = await guarded.create(BOB, params=STUCK, request_id="r")
        assert again.id == before.id
    assert len(service.kie.tasks) == 1
