"""WatchTasks, through a real channel: all changes of a caller's tasks, resumed by tokens."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from generated.generation.v1 import generation_pb2 as pb
from generated.generation.v1.generation_pb2_grpc import GenerationServiceStub
from providers.kie.simulator import Simulator
from service import watch_all
from service.bounds import BOUNDS, UpkeepBounds
from service.feed import OFFERED_AT_ONCE, FeedTimes
from service.resume_token import VERSION, _check
from tests.support.callers import Serving
from tests.support.databases import change, fill
from tests.support.following import Follower
from tests.support.harness import Serve, Service, ended, serving
from tests.support.metrics_page import ADMIN, scrape
from tests.support.prompts import STUCK
from tests.support.refusals import Refusal, refused

OLD_TASKS = 600  # more than two pages
MANY_STREAMS = OFFERED_AT_ONCE + 50
LONG_PROMPT = "\N{CAT FACE}" * 4_900 + "[sim:stuck]"


@pytest.fixture
async def still(serve: Serve) -> AsyncIterator[Service]:
    """A service whose stuck tasks do not change, unless somebody watches them."""
    async with serve(poll_interval_seconds=60) as service:
        yield service


async def refusal_of(service: Service, **request: Any) -> Refusal:
    async with Follower(service, **request) as stream:
        return await refused(stream.next())


async def test_a_stream_starts_with_all_tasks_and_then_follows_them(still: Service) -> None:
    stored = [await still.create(STUCK, prompt_id=f"p{n}") for n in range(3)]
    async with Follower(still) as stream:
        await stream.until(lambda seen: all(map(seen.has, stored)))
        assert list(stream.tasks) == [task.id for task in stored]
        created = await still.create(STUCK)
        await stream.until(lambda seen: seen.has(created))
        assert stream.tasks[created.id] == created


async def test_the_end_of_a_task_arrives(service: Service) -> None:
    async with Follower(service) as stream:
        created = await service.create({"imagen4": {"prompt": "x [sim:seconds=0.1]"}})
        end = await service.end(created.id)
        await stream.until(lambda seen: seen.has(end))
        assert stream.tasks[created.id] == end


async def test_the_initial_part_ends_with_one_bookmark(serve: Serve) -> None:
    async with (
        serve(poll_interval_seconds=60, watch_heartbeat_seconds=0.5) as service,
        Follower(service) as stream,
    ):
        await stream.initial()
        await service.create(STUCK)
        await stream.until(lambda seen: len(seen.tasks) == 1 and len(seen.bookmarks) > 2)
        first, *others = [b.initial_done for b in stream.bookmarks]
        assert first
        assert not any(others)


async def test_a_stream_from_now_has_only_what_changes_from_then_on(still: Service) -> None:
    async with Follower(still) as earlier:
        # Its last change may stay hidden by an open transaction of another test, but not once a
        # later change is visible.
        old, later = [await still.create(STUCK) for _ in range(2)]
        await earlier.until(lambda seen: seen.has(later))
        async with Follower(still, from_now=True) as stream:
            assert (await stream.next()).bookmark.initial_done
            created = await still.create(STUCK)
            assert (await stream.next()).HasField("task"), "one bookmark says it"
            await stream.until(lambda seen: created.id in seen.tasks)
            assert old.id not in stream.tasks


async def test_a_stream_resumes_after_the_last_message(still: Service) -> None:
    async with Follower(still) as stream:
        first = await still.create(STUCK)
        await stream.until(lambda seen: seen.has(first))
    missed = await still.create(STUCK)
    async with Follower(still, resume_token=stream.token) as resumed:
        await resumed.until(lambda seen: seen.has(missed))


async def test_the_token_of_every_message_resumes_after_it(still: Service) -> None:
    created = [await still.create(STUCK) for _ in range(5)]
    async with Follower(still) as stream:
        await stream.until(lambda seen: all(map(seen.has, created)))
    tokens = {m.task.id: m.resume_token for m in stream.messages if m.HasField("task")}
    for number, task in enumerate(created[:-1]):
        async with Follower(still, resume_token=tokens[task.id]) as resumed:
            await resumed.until(lambda seen: seen.has(created[-1]))
            assert not set(resumed.tasks) & {earlier.id for earlier in created[: number + 1]}


async def test_each_of_many_streams_of_a_caller_gets_every_change(still: Service) -> None:
    """A change goes out to so many streams in several steps, and streams join in between."""
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(Follower(still)) for _ in range(MANY_STREAMS)]
        reading = asyncio.gather(*(s.until(lambda seen: len(seen.tasks) == 8) for s in streams))
        created = [await still.create(STUCK) for _ in range(8)]
        await reading
        latest = [await still.query(task.id) for task in created]
        await asyncio.gather(*(s.until(lambda seen: seen.bookmarks) for s in streams))
        for stream in streams:
            async with Follower(still, resume_token=stream.token) as resumed:
                await resumed.initial()
                for task in latest:
                    assert stream.has(task) or resumed.has(task)


async def test_a_client_that_stops_reading_for_a_while_misses_nothing(
    still: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_all, "STALL_SECONDS", 0.0)
    long = {"imagen4": {"prompt": LONG_PROMPT, "negative_prompt": LONG_PROMPT}}
    created = [await still.create(long) for _ in range(20)]
    async with Follower(still) as stream:
        await stream.next()
        created.append(await still.create(long))  # while the stream waits for its client
        await stream.until(lambda seen: all(map(seen.has, created)))


async def test_a_token_works_after_a_restart(serve: Serve) -> None:
    async with serve() as service:
        old = await service.end((await service.create()).id)
        async with Follower(service) as stream:
            await stream.until(lambda seen: seen.has(old))
    async with serve() as service:
        created = await service.create(STUCK)
        async with Follower(service, resume_token=stream.token) as resumed:
            await resumed.until(lambda seen: seen.has(created))
            assert not resumed.repeats(stream)


async def test_a_filter_by_prompt_id_and_end_leaves_out_the_rest(service: Service) -> None:
    wanted = await service.create({"imagen4": {"prompt": "x"}}, prompt_id="mine")
    await service.create({"imagen4": {"prompt": "x"}}, prompt_id="other")
    await service.create(STUCK, prompt_id="mine")
    await service.end(wanted.id)
    async with Follower(service, prompt_id="mine", ended_only=True) as stream:
        await stream.until(lambda seen: wanted.id in seen.tasks)
        assert list(stream.tasks) == [wanted.id]
        later = await service.create({"imagen4": {"prompt": "y"}}, prompt_id="mine")
        await stream.until(lambda seen: later.id in seen.tasks)
        assert {m.task.status for m in stream.messages if m.HasField("task")} == {
            pb.TASK_STATUS_SUCCESS
        }


async def test_a_quiet_stream_sends_bookmarks(serve: Serve) -> None:
    async with serve(watch_heartbeat_seconds=0.02) as service, Follower(service) as stream:
        await stream.until(lambda seen: len(seen.bookmarks) == 4)
        times = [b.read_time.ToMicroseconds() for b in stream.bookmarks]
        assert times == sorted(times)


async def test_a_caller_never_sees_the_tasks_of_another(serve_both: Serving) -> None:
    async with serve_both() as (alice, bob):
        await alice.create(STUCK)
        theirs = await bob.create(STUCK)
        async with Follower(bob.service, metadata=bob.metadata) as stream:
            await stream.until(lambda seen: theirs.id in seen.tasks)
            await alice.create(STUCK)
            more = await bob.create(STUCK)
            await stream.until(lambda seen: more.id in seen.tasks)
            assert set(stream.tasks) == {theirs.id, more.id}
        error = await refusal_of(alice.service, resume_token=stream.token, metadata=alice.metadata)
        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PARAMS")


async def test_a_damaged_token_is_refused_wherever_it_is_damaged(service: Service) -> None:
    await service.create(STUCK)
    async with Follower(service) as stream:
        await stream.next()
    raw = base64.urlsafe_b64decode(stream.token)
    damaged = [raw[:end] for end in range(1, len(raw))]
    damaged += [
        raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :]
        for at in range(len(raw))
        for bit in (0, 7)
    ]
    damaged.append(raw + b"x")
    texts = [base64.urlsafe_b64encode(token).decode() for token in damaged]
    for token in [*texts, "x", "=", "é" * 10, "A" * 100_000, "a\0"]:
        error = await refusal_of(service, resume_token=token)
        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PARAMS")
        assert list(error.fields) == ["resume_token"]


@pytest.mark.parametrize("other", [{"prompt_id": "p"}, {"ended_only": True}])
async def test_a_token_of_another_filter_is_refused(
    service: Service, other: dict[str, Any]
) -> None:
    async with Follower(service) as stream:
        await stream.initial()
    error = await refusal_of(service, resume_token=stream.token, **other)
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PARAMS")


async def test_a_token_of_another_database_has_expired(tmp_path: Path, kie: Simulator) -> None:
    first, second = (f"sqlite:///{tmp_path}/{name}.db" for name in ("one", "two"))
    async with serving(tmp_path, kie, database_url=first) as service, Follower(service) as stream:
        await stream.initial()
    async with serving(tmp_path, kie, database_url=second) as service:
        error = await refusal_of(service, resume_token=stream.token)
    assert (error.code, error.reason) == (grpc.StatusCode.OUT_OF_RANGE, "RESUME_TOKEN_EXPIRED")
    assert "without a token" in error.message


async def test_a_token_of_another_version_has_expired_and_is_counted(serve: Serve) -> None:
    body = bytes([VERSION + 1]) + b"whatever that version keeps in its tokens"
    token = base64.urlsafe_b64encode(body + _check(body)).decode()
    async with serve(**ADMIN) as service:
        error = await refusal_of(service, resume_token=token)
        expired = (await scrape(service)).value(
            "generation_resume_tokens_expired_total", cause="version"
        )
    assert error.reason == "RESUME_TOKEN_EXPIRED"
    assert expired == 1


async def test_a_token_expires_when_a_change_after_it_was_deleted(service: Service) -> None:
    created = await service.create({"imagen4": {"prompt": "x [sim:seconds=0.2]"}})
    async with Follower(service) as stream:
        await stream.initial()
    await service.end(created.id)
    change(service.database_url, "DELETE FROM tasks WHERE id = ?", created.id)
    error = await refusal_of(service, resume_token=stream.token)
    assert error.reason == "RESUME_TOKEN_EXPIRED"


async def test_a_token_still_works_when_what_was_deleted_came_before_it(service: Service) -> None:
    created = await service.create()
    await service.end(created.id)
    async with Follower(service) as stream:
        await stream.until(lambda seen: created.id in seen.tasks)
        await stream.until(lambda seen: seen.messages[-1].HasField("bookmark"))
    change(service.database_url, "DELETE FROM tasks WHERE id = ?", created.id)
    async with Follower(service, resume_token=stream.token) as resumed:
        await resumed.initial()
        assert not resumed.tasks


async def test_an_old_stream_expires_and_resumes(serve: Serve) -> None:
    async with serve(watch_max_age_seconds=0.3) as service:
        async with Follower(service) as stream:
            await stream.initial()
            error = await refused(stream.next())
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "STREAM_EXPIRED")
        created = await service.create(STUCK)
        async with Follower(service, resume_token=stream.token) as resumed:
            await resumed.until(lambda seen: created.id in seen.tasks)


async def test_streams_of_all_changes_count_as_watches(serve: Serve) -> None:
    async with serve(watch_max_streams=1) as service, Follower(service) as stream:
        await stream.initial()
        error = await refusal_of(service)
        assert (error.reason, error.metadata["limit"]) == ("RATE_LIMITED", "watches")


async def test_a_shutdown_ends_the_streams_with_a_reason(serve: Serve) -> None:
    async with AsyncExitStack() as channels:
        async with serve() as service:
            channel = grpc.aio.insecure_channel(service.address)
            stub = GenerationServiceStub(await channels.enter_async_context(channel))
            call = stub.WatchTasks(pb.WatchTasksRequest(), timeout=60)
            await call.read()
        error = await refused(call.read())
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")


async def test_a_damaged_task_is_left_out_of_a_stream_and_does_not_end_it(
    serve: Serve, database_url: str
) -> None:
    async with serve(poll_interval_seconds=60) as service:
        damaged, whole = [await service.create(STUCK) for _ in range(2)]
    change(database_url, "UPDATE tasks SET artifacts = '7' WHERE id = ?", damaged.id)
    async with serve(poll_interval_seconds=60) as service, Follower(service) as stream:
        await stream.initial()
        assert list(stream.tasks) == [whole.id]
        created = await service.create(STUCK)
        await stream.until(lambda seen: seen.has(created))


async def test_a_reader_that_was_too_slow_catches_up(serve: Serve) -> None:
    async with serve() as service, Follower(service) as stream:
        await stream.initial()
        created = await asyncio.gather(*(service.create() for _ in range(300)))
        await asyncio.gather(*(service.end(task.id) for task in created))
        await stream.until(
            lambda seen: len(seen.tasks) == 300 and all(map(ended, seen.tasks.values()))
        )


async def pages_read(service: Service, streams: str) -> float:
    name = "generation_change_pages_read_total"
    return (await scrape(service)).value(name, streams=streams) or 0


async def test_a_stream_whose_queue_is_full_catches_up_by_pages(serve: Serve) -> None:
    small = FeedTimes(queue_changes=1, page_changes=2)
    bounds = replace(BOUNDS, upkeep=UpkeepBounds(feed=small))
    async with serve(bounds=bounds, **ADMIN) as service, Follower(service) as stream:
        await stream.initial()
        before = await pages_read(service, "one")
        created = await asyncio.gather(*(service.create() for _ in range(40)))
        ends = await asyncio.gather(*(service.end(task.id) for task in created))
        await stream.until(lambda seen: all(map(seen.has, ends)))
        assert await pages_read(service, "one") > before


async def test_idle_streams_read_nothing_of_their_own(serve: Serve) -> None:
    bounds = replace(BOUNDS, upkeep=UpkeepBounds(feed=FeedTimes(sweep_seconds=0.02)))
    async with (
        serve(watch_heartbeat_seconds=0.02, bounds=bounds, **ADMIN) as service,
        Follower(service) as first,
        Follower(service) as second,
    ):
        await first.initial()
        await second.initial()
        before = {streams: await pages_read(service, streams) for streams in ("one", "all")}
        await second.until(lambda seen: len(seen.bookmarks) > 10)
        assert await pages_read(service, "one") == before["one"]
        assert await pages_read(service, "all") > before["all"]


async def test_an_invalid_prompt_id_is_refused(service: Service) -> None:
    for prompt_id in ("x" * 256, "a\0"):
        error = await refusal_of(service, prompt_id=prompt_id)
        assert list(error.fields) == ["prompt_id"]


async def test_the_metrics_show_the_streams(serve: Serve) -> None:
    async with serve(**ADMIN) as service, Follower(service) as stream:
        await stream.initial()
        page = await scrape(service)
        assert page.value("generation_change_streams_open") == 1
        assert page.value("generation_change_lag_seconds") == 0
        assert page.value("generation_change_pages_read_total", streams="one")


# --- tasks that were deleted ---


@pytest.fixture
async def long_ago(serve: Serve, database_url: str) -> AsyncIterator[Service]:
    """A service with more tasks than a page has, one of which changed last and was deleted."""
    async with serve() as service:
        deleted = await service.end((await service.create()).id)
    fill(database_url, OLD_TASKS, time.time())
    change(database_url, "UPDATE tasks SET caller = 'default'")
    change(database_url, "UPDATE tasks SET revision = revision + 1 WHERE id = ?", deleted.id)
    change(database_url, "DELETE FROM tasks WHERE id = ?", deleted.id)
    async with serve() as service:
        yield service


async def test_what_was_deleted_before_a_stream_began_does_not_end_it(long_ago: Service) -> None:
    async with Follower(long_ago) as stream:
        await stream.until(lambda seen: len(seen.tasks) == OLD_TASKS)
        half = [m.resume_token for m in stream.messages][OLD_TASKS // 2]
    async with Follower(long_ago, resume_token=half) as resumed:
        await resumed.until(lambda seen: len(seen.tasks) == OLD_TASKS - OLD_TASKS // 2 - 1)


async def test_what_is_deleted_after_a_stream_began_expires_its_first_tokens_too(
    long_ago: Service,
) -> None:
    async with Follower(long_ago) as stream:
        await stream.until(lambda seen: len(seen.tasks) == OLD_TASKS)
    created = await long_ago.end((await long_ago.create()).id)
    change(long_ago.database_url, "DELETE FROM tasks WHERE id = ?", created.id)
    error = await refusal_of(long_ago, resume_token=stream.messages[1].resume_token)
    assert error.reason == "RESUME_TOKEN_EXPIRED"
