"""The stream of all changes: it never ends, resumes, and remembers where."""

import asyncio
import json
import logging
import os
import stat
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from kie_generation import (
    GenerationClient,
    GenerationError,
    InvalidRequestError,
    StateFileError,
    TaskChange,
    TaskStatus,
    UnauthenticatedError,
    UnavailableError,
    sync,
)
from providers.kie.simulator import Simulator
from tests.support.changing import EXPIRED, bookmark, changed
from tests.support.harness import Service
from tests.support.harness import serving as serving_real
from tests.support.prompts import STUCK
from tests.support.scripted_server import (
    FAST,
    UNAVAILABLE,
    Failure,
    ScriptedService,
    Silence,
    connected,
    pending,
    serving,
    success,
)
from tests.support.waiting import eventually

SECONDS = 30.0
FINAL = [
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
]
OTHERS = [code for code in grpc.StatusCode if code not in (grpc.StatusCode.OK, *FINAL)]


async def take(client: GenerationClient, count: int, **how: Any) -> list[TaskChange]:
    """Return the first changes of a stream; the last one counts as not handled."""
    found: list[TaskChange] = []
    async with asyncio.timeout(SECONDS), aclosing(client.watch_tasks(**how)) as changes:
        async for change in changes:
            found.append(change)
            if len(found) == count:
                break
    return found


def revisions(changes: list[TaskChange]) -> list[int]:
    return [change.task.revision for change in changes if change.task is not None]


def tokens(service: ScriptedService) -> list[str]:
    return [request.resume_token for request in service.requests]


# --- what it yields ---


async def test_tasks_and_bookmarks_arrive_with_their_tokens() -> None:
    service = ScriptedService()
    service.streams.append([changed(pending(1), "a"), bookmark("b", initial_done=True)])
    async with connected(service) as client:
        first, second = await take(client, 2, prompt_id="p-1", ended_only=True, from_now=True)
    assert (first.task, first.bookmark, first.resume_token) == (pending(1), None, "a")
    assert second.task is None
    assert second.bookmark is not None
    assert second.bookmark.initial_done
    assert second.resume_token == "b"
    (request,) = service.requests
    assert (request.prompt_id, request.ended_only, request.from_now) == ("p-1", True, True)


async def test_an_event_of_a_newer_service_is_passed_over() -> None:
    service = ScriptedService()
    service.streams.append([changed(None, "a"), changed(pending(1), "b"), UNAVAILABLE])
    service.streams.append([changed(pending(2), "c")])
    async with connected(service) as client:
        assert revisions(await take(client, 2)) == [1, 2]


# --- reconnecting ---


@pytest.mark.parametrize("code", OTHERS)
async def test_a_stream_that_ends_without_an_error_of_the_service_is_resumed(
    code: grpc.StatusCode,
) -> None:
    service = ScriptedService()
    lost = Failure(code)
    service.streams.extend([[lost], [changed(pending(1), "a"), lost], [changed(pending(2), "b")]])
    async with connected(service) as client:
        assert revisions(await take(client, 2)) == [1, 2]
    assert tokens(service) == ["", "", "a"]


@pytest.mark.parametrize("reason", ["STREAM_EXPIRED", "SHUTTING_DOWN", "STORAGE_UNAVAILABLE"])
async def test_a_stream_that_the_service_ends_is_resumed(reason: str) -> None:
    service = ScriptedService()
    ended = Failure(grpc.StatusCode.UNAVAILABLE, reason, retry_after_ms=1)
    service.streams.extend([[bookmark("a"), ended], [changed(pending(2), "b")]])
    async with connected(service) as client:
        assert revisions(await take(client, 2)) == [2]
    assert tokens(service) == ["", "a"]


async def test_a_stream_that_ends_ok_or_falls_silent_is_resumed() -> None:
    service = ScriptedService()
    service.streams.extend([[bookmark("a")], [bookmark("b"), Silence()], [bookmark("c")]])
    async with connected(service, heartbeat_timeout=0.05) as client:
        assert [each.resume_token for each in await take(client, 3)] == ["a", "b", "c"]
    assert tokens(service) == ["", "a", "b"]


@pytest.mark.parametrize("code", FINAL)
@pytest.mark.parametrize("reason", ["", "SOME_REASON"])
async def test_a_permanent_refusal_ends_the_stream(code: grpc.StatusCode, reason: str) -> None:
    service = ScriptedService()
    service.streams.append([bookmark("a"), Failure(code, reason)])
    async with connected(service) as client:
        with pytest.raises(GenerationError) as caught:
            await take(client, 2)
    assert caught.value.code is code
    assert len(service.requests) == 1


async def test_an_error_of_the_service_that_a_new_stream_would_get_again_is_raised() -> None:
    service = ScriptedService()
    service.streams.append([Failure(grpc.StatusCode.INTERNAL, "INTERNAL", "bug 1")])
    async with connected(service) as client:
        with pytest.raises(GenerationError, match="bug 1"):
            await take(client, 1)


async def test_a_lost_connection_and_its_recovery_are_reported() -> None:
    service = ScriptedService()
    service.streams.extend([[bookmark("a"), UNAVAILABLE], [UNAVAILABLE], [bookmark("b")]])
    seen: list[bool] = []
    async with connected(service) as client:
        await take(client, 2, on_connection=lambda error: seen.append(error is None))
    assert seen == [False, False, True]


async def test_a_stream_gives_up_only_if_the_client_says_so() -> None:
    service = ScriptedService()
    service.streams.extend([[UNAVAILABLE]] * 1000)
    async with connected(service, give_up_after_seconds=0.05) as client:
        with pytest.raises(UnavailableError):
            await take(client, 1)


# --- starting over ---


async def test_an_expired_token_starts_over_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    service = ScriptedService()
    service.streams.extend([[EXPIRED], [changed(pending(1), "b"), EXPIRED], [bookmark("c")]])
    with caplog.at_level(logging.WARNING):
        async with connected(service) as client:
            first, second, third, fourth = await take(client, 4, resume_token="old", from_now=True)
    assert (first.started_over, first.task, first.bookmark) == (True, None, None)
    assert second.task == pending(1)
    assert third.started_over
    assert fourth.bookmark is not None
    assert tokens(service) == ["old", "", ""]
    assert [request.from_now for request in service.requests] == [True, False, False]
    assert sum("starts over" in record.message for record in caplog.records) == 2


async def test_an_expired_token_that_was_not_sent_is_an_error() -> None:
    service = ScriptedService()
    service.streams.append([EXPIRED])
    async with connected(service) as client:
        with pytest.raises(GenerationError, match="RESUME_TOKEN_EXPIRED"):
            await take(client, 1)


# --- the state file ---


async def test_an_item_is_remembered_when_the_next_one_is_requested(tmp_path: Path) -> None:
    state = tmp_path / "feed.json"
    service = ScriptedService()
    service.streams.append([changed(pending(1), "a"), changed(pending(2), "b"), Silence()])
    async with connected(service) as client, aclosing(client.watch_tasks(state=state)) as changes:
        await anext(changes)
        assert "resume_token" not in json.loads(state.read_text())
        await anext(changes)
        assert json.loads(state.read_text())["resume_token"] == "a"
        waiting = asyncio.ensure_future(anext(changes))
        await eventually(lambda: json.loads(state.read_text())["resume_token"] == "b")
        waiting.cancel()
        await asyncio.wait([waiting])
    assert stat.S_IMODE(state.stat().st_mode) == 0o600
    assert await asyncio.to_thread(os.listdir, tmp_path) == ["feed.json"]


async def test_a_new_process_continues_after_the_last_item_that_was_handled(
    tmp_path: Path,
) -> None:
    state = tmp_path / "feed.json"
    service = ScriptedService()
    service.streams.append([changed(pending(1), "a"), changed(pending(2), "b")])
    service.streams.append([changed(pending(2), "b")])
    for expected in [[1, 2], [2]]:
        async with connected(service) as client:
            taken = await take(client, len(expected), state=str(state), from_now=True)
        assert revisions(taken) == expected
    assert tokens(service) == ["", "a"]


async def test_a_process_that_stops_while_it_starts_over_does_not_skip_existing_tasks(
    tmp_path: Path,
) -> None:
    state = tmp_path / "feed.json"
    service = ScriptedService()
    service.streams.extend([[bookmark("a"), EXPIRED], [Silence()], [bookmark("b")]])
    async with connected(service) as client:
        changes = client.watch_tasks(state=state, from_now=True)
        assert (await anext(changes)).resume_token == "a"
        assert (await anext(changes)).started_over
        waiting = asyncio.ensure_future(anext(changes))
        await service.watched.wait()
        waiting.cancel()
        await asyncio.wait([waiting])
        await take(client, 1, state=state, from_now=True)
    assert [request.from_now for request in service.requests] == [True, False, False]
    assert tokens(service) == ["", "", ""]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 60_000,
        b'{"format": "kie-generation watch_tasks 1", "resume_token": 7}',
        b'{"format": "kie-generation watch_tasks 1", "resume_token": "\\ud800"}',
        b'{"format": "kie-generation watch_tasks 1", "other": "x"}',
        b'{"format": "kie-generation watch_tasks 2", "resume_token": "a"}',
        b'{"resume_token": "a"}',
        b'{"format": "kie-generation watch_tasks 1", "resume_token": "' + b"a" * 70_000 + b'"}',
    ],
)
async def test_a_damaged_or_foreign_file_is_an_error_and_is_kept(
    tmp_path: Path, content: bytes
) -> None:
    state = tmp_path / "feed.json"
    state.write_bytes(content)
    service = ScriptedService()
    async with connected(service) as client:
        with pytest.raises(StateFileError, match=r"feed\.json: is .*delete this one"):
            await take(client, 1, state=state)
    assert state.read_bytes() == content
    assert not service.requests


@pytest.mark.parametrize("other", [{"prompt_id": "p-2"}, {"prompt_id": "p-1", "ended_only": True}])
async def test_a_file_of_another_filter_is_an_error(tmp_path: Path, other: dict[str, Any]) -> None:
    state = tmp_path / "feed.json"
    service = ScriptedService()
    service.streams.append([bookmark("a")])
    async with connected(service) as client:
        await take(client, 1, state=state, prompt_id="p-1")
        with pytest.raises(StateFileError, match="a stream with prompt_id 'p-1' and ended_only F"):
            await take(client, 1, state=state, **other)
    assert len(service.requests) == 1


@pytest.mark.parametrize("name", ["missing/feed.json", "."])
async def test_a_file_that_cannot_be_written_is_named_before_anything_is_delivered(
    tmp_path: Path, name: str
) -> None:
    service = ScriptedService()
    async with connected(service) as client:
        with pytest.raises(OSError, match=str(tmp_path / name)):
            await take(client, 1, state=tmp_path / name)
    assert not service.requests


async def test_a_symbolic_link_to_the_file_is_kept(tmp_path: Path) -> None:
    link, target = tmp_path / "link.json", tmp_path / "there.json"
    link.symlink_to(target)
    service = ScriptedService()
    service.streams.append([bookmark("a"), bookmark("b")])
    async with connected(service) as client:
        await take(client, 2, state=link)
    assert link.is_symlink()
    assert json.loads(target.read_text())["resume_token"] == "a"


async def test_a_token_and_a_file_contradict_each_other(tmp_path: Path) -> None:
    async with connected(ScriptedService()) as client:
        with pytest.raises(ValueError, match="cannot be used together"):
            client.watch_tasks(resume_token="a", state=tmp_path / "feed.json")


# --- without asyncio ---


async def test_the_blocking_client_yields_the_same_and_remembers(tmp_path: Path) -> None:
    state = tmp_path / "feed.json"
    service = ScriptedService()
    service.streams.append([changed(pending(1), "a"), UNAVAILABLE])
    service.streams.append([changed(success(2), "b")])

    def work(address: str) -> list[int]:
        with sync.GenerationClient(address, retry=FAST) as client:
            changes = client.watch_tasks(state=state)
            return revisions([next(changes), next(changes)])

    async with serving(service) as address:
        found = await asyncio.wait_for(asyncio.to_thread(work, address), SECONDS)
    assert found == [1, 2]
    assert tokens(service) == ["", "a"]
    assert json.loads(state.read_text())["resume_token"] == "a"


# --- against the real service ---


def database_in(folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    return f"sqlite:///{folder}/generation.db"


@asynccontextmanager
async def real(folder: Path, kie: Simulator, **settings: Any) -> AsyncIterator[Service]:
    async with serving_real(folder, kie, database_url=database_in(folder), **settings) as service:
        yield service


async def until_ended(client: GenerationClient, task_id: str, **how: Any) -> list[TaskChange]:
    """Follow until a task has ended, and handle its end."""
    found: list[TaskChange] = []
    async with asyncio.timeout(SECONDS), aclosing(client.watch_tasks(**how)) as changes:
        async for change in changes:
            if any(each.task and each.task.id == task_id for each in found[-1:]):
                return found
            if change.task is None or change.task.status != TaskStatus.TASK_STATUS_PENDING:
                found.append(change)
    raise AssertionError("the stream ended")


async def test_what_ends_while_nobody_follows_arrives_afterwards_and_only_once(
    tmp_path: Path, kie: Simulator
) -> None:
    state = tmp_path / "feed.json"
    async with real(tmp_path, kie) as service, GenerationClient(service.address) as client:
        before = await service.end((await service.create()).id)
        first = await until_ended(client, before.id, state=state, ended_only=True)
        meanwhile = await service.end((await service.create()).id)
        then = await until_ended(client, meanwhile.id, state=state, ended_only=True)
    assert [each.task.id for each in first if each.task] == [before.id]
    assert [each.task.id for each in then if each.task] == [meanwhile.id]


async def test_a_file_of_another_database_starts_over(tmp_path: Path, kie: Simulator) -> None:
    state = tmp_path / "feed.json"
    for name in ("one", "two"):
        async with real(tmp_path / name, kie) as service:
            created = await service.create(STUCK)
            async with GenerationClient(service.address) as client:
                changes = await take(client, 3, state=state)
    assert changes[0].started_over
    assert [each.task.id for each in changes if each.task][:1] == [created.id]


@pytest.mark.parametrize("damage", ["cut", "flipped", "another"])
async def test_a_file_whose_token_the_service_refuses_is_an_error_that_names_it(
    tmp_path: Path, kie: Simulator, damage: str
) -> None:
    state = tmp_path / "feed.json"
    async with real(tmp_path, kie) as service, GenerationClient(service.address) as client:
        await service.create(STUCK)
        await take(client, 3, state=state)
        stored = json.loads(state.read_text())
        token = stored["resume_token"]
        (other,) = await take(client, 1, prompt_id="p")
        stored["resume_token"] = {
            "cut": token[:-4],
            "flipped": ("A" if token[0] != "A" else "B") + token[1:],
            "another": other.resume_token,
        }[damage]
        state.write_text(json.dumps(stored))
        with pytest.raises(StateFileError, match=r"feed\.json: .*resume_token") as caught:
            await take(client, 1, state=state)
        with pytest.raises(InvalidRequestError):
            await take(client, 1, resume_token=stored["resume_token"])
    assert isinstance(caught.value.__cause__, InvalidRequestError)


async def test_a_rejected_caller_is_an_error(tmp_path: Path, kie: Simulator) -> None:
    (tmp_path / "tokens").write_text(f"a {'0' * 64}\n")
    async with (
        real(tmp_path, kie, auth_tokens_file=tmp_path / "tokens") as service,
        GenerationClient(service.address, token="wrong") as client,
    ):
        with pytest.raises(UnauthenticatedError):
            await take(client, 1)
