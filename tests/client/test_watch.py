"""Watches of the client: they resume, and end with the task."""

import asyncio
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import grpc
import pytest

from kie_generation import (
    GenerationClient,
    GenerationError,
    InvalidRequestError,
    Retry,
    TaskNotFoundError,
    UnavailableError,
)
from tests.support.scripted_server import (
    FAST,
    LOST,
    NOT_FOUND,
    UNAVAILABLE,
    Failure,
    ScriptedService,
    Silence,
    connected,
    failed,
    pending,
    serving,
    success,
)

RATE_LIMITED = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", retry_after_ms=80)


async def revisions(client: GenerationClient, after_revision: int = 0) -> list[int]:
    return [task.revision async for task in client.watch("t-1", after_revision)]


def asked_after(service: ScriptedService) -> list[int]:
    return [request.after_revision for request in service.requests]


async def test_a_watch_ends_after_the_terminal_snapshot() -> None:
    service = ScriptedService()
    service.streams.append([pending(1), pending(2), success(3), Silence()])
    async with connected(service) as client:
        assert await revisions(client) == [1, 2, 3]


async def test_a_stream_that_ends_ok_without_a_terminal_snapshot_is_resumed() -> None:
    service = ScriptedService()
    service.streams.extend([[pending(1), pending(2)], [], [success(3)]])
    async with connected(service) as client:
        assert await revisions(client) == [1, 2, 3]
    assert asked_after(service) == [0, 2, 2]


@pytest.mark.parametrize("reason", ["", "STREAM_EXPIRED", "SHUTTING_DOWN", "STORAGE_UNAVAILABLE"])
async def test_a_stream_that_breaks_is_resumed_after_the_last_revision_seen(reason: str) -> None:
    service = ScriptedService()
    broken = Failure(grpc.StatusCode.UNAVAILABLE, reason)
    service.streams.extend([[pending(4), broken], [broken], [pending(6), success(7)]])
    async with connected(service) as client:
        assert await revisions(client) == [4, 6, 7]
    assert asked_after(service) == [0, 4, 4]


async def test_a_stream_cut_by_a_proxy_under_another_code_is_resumed() -> None:
    service = ScriptedService()
    cut = Failure(grpc.StatusCode.INTERNAL, message="Received RST_STREAM with error code 2")
    service.streams.extend([[pending(1), cut], [success(2)]])
    async with connected(service) as client:
        assert await revisions(client) == [1, 2]


@pytest.mark.parametrize("code", [*LOST, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.OUT_OF_RANGE])
async def test_a_stream_that_ends_without_an_error_of_the_service_was_lost_and_is_resumed(
    code: grpc.StatusCode,
) -> None:
    service = ScriptedService()
    service.streams.extend([[Failure(code)], [pending(1), Failure(code)], [success(2)]])
    async with connected(service) as client:
        assert await revisions(client) == [1, 2]
    assert asked_after(service) == [0, 0, 1]


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
    ],
)
async def test_a_permanent_refusal_by_a_proxy_ends_the_watch(code: grpc.StatusCode) -> None:
    service = ScriptedService()
    service.streams.append([pending(1), Failure(code, message="RST_STREAM")])
    async with connected(service) as client:
        with pytest.raises(GenerationError) as caught:
            await revisions(client)
    assert caught.value.code is code
    assert len(service.requests) == 1


async def test_a_watch_that_is_cancelled_here_ends_and_is_not_resumed() -> None:
    service = ScriptedService()
    service.streams.append([pending(1), Silence()])
    async with connected(service) as client:
        watch = asyncio.create_task(revisions(client))
        await service.watched.wait()
        watch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watch
    assert len(service.requests) == 1


async def test_a_silent_stream_is_reopened() -> None:
    service = ScriptedService()
    service.streams.extend([[pending(1), Silence()], [success(2)]])
    async with connected(service, heartbeat_timeout=0.05) as client:
        assert await revisions(client) == [1, 2]
    assert asked_after(service) == [0, 1]


async def test_heartbeats_and_older_snapshots_are_dropped() -> None:
    service = ScriptedService()
    service.streams.append([pending(2), pending(2), pending(1), pending(3), pending(3), success(4)])
    async with connected(service) as client:
        assert await revisions(client) == [2, 3, 4]


async def test_a_task_that_ended_at_the_revision_already_seen_is_still_shown() -> None:
    service = ScriptedService()
    service.streams.append([failed(5)])
    async with connected(service) as client:
        assert await revisions(client, after_revision=5) == [5]


async def test_rate_limited_streams_are_opened_again_after_the_time_the_server_names() -> None:
    service = ScriptedService()
    service.streams.extend([[RATE_LIMITED], [success(1)]])
    async with connected(service) as client:
        assert await revisions(client) == [1]
    assert service.times[1] - service.times[0] >= 0.08


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (NOT_FOUND, TaskNotFoundError),
        (Failure(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PARAMS"), InvalidRequestError),
    ],
)
async def test_an_error_that_a_retry_cannot_fix_is_raised_at_once(
    failure: Failure, raised: type[Exception]
) -> None:
    service = ScriptedService()
    service.streams.append([pending(1), failure])
    async with connected(service) as client:
        with pytest.raises(raised):
            await revisions(client)
    assert len(service.requests) == 1


async def test_a_watch_gives_up_after_reconnecting_without_success_for_long_enough() -> None:
    service = ScriptedService()
    service.streams.extend([[UNAVAILABLE]] * 1000)
    async with connected(service, give_up_after_seconds=0.1) as client:
        with pytest.raises(UnavailableError):
            await revisions(client)
    assert len(service.requests) > 2


async def test_a_watch_reconnects_for_as_long_as_it_may() -> None:
    service = ScriptedService()
    service.streams.extend([[UNAVAILABLE]] * 10)
    slow = Retry(first_delay_seconds=0.4, max_delay_seconds=30)
    async with connected(service, retry=slow, give_up_after_seconds=2) as client:
        began = time.monotonic()
        with pytest.raises(UnavailableError):
            await revisions(client)
        assert 2 <= time.monotonic() - began <= 3


async def test_a_lost_connection_and_its_recovery_are_reported() -> None:
    service = ScriptedService()
    service.streams.extend([[pending(1), UNAVAILABLE], [pending(1), success(2)]])
    changes: list[str] = []
    async with connected(service) as client:
        watch = client.watch(
            "t-1", on_connection=lambda error: changes.append("lost" if error else "back")
        )
        assert [task.revision async for task in watch] == [1, 2]
    assert changes == ["lost", "back"]


async def test_a_watch_outlives_a_server_that_restarts() -> None:
    service = ScriptedService()
    service.streams.extend([[pending(1), Silence()], [success(2)]])
    lost = asyncio.Event()
    async with aclosing(_restarting(service, lost)) as addresses:
        address = await anext(addresses)
        async with GenerationClient(address, retry=FAST) as client:
            watch = client.watch("t-1", on_connection=lambda _: lost.set())
            assert (await anext(watch)).revision == 1
            restart = asyncio.create_task(anext(addresses))
            assert (await anext(watch)).revision == 2
            assert await restart == address


async def _restarting(service: ScriptedService, lost: asyncio.Event) -> AsyncGenerator[str, None]:
    async with serving(service) as address:
        yield address
    await lost.wait()
    async with serving(service, int(address.rpartition(":")[2])) as same:
        yield same


async def test_a_watch_waits_for_a_server_that_comes_up_only_later() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    service = ScriptedService()
    service.streams.append([success(1)])
    lost = asyncio.Event()
    async with GenerationClient(f"127.0.0.1:{port}", retry=FAST) as client:
        watch = client.watch("t-1", on_connection=lambda _: lost.set())
        first = asyncio.create_task(anext(watch))
        await lost.wait()
        async with serving(service, port):
            assert (await first).revision == 1
            await watch.aclose()


async def test_wait_returns_the_terminal_snapshot() -> None:
    service = ScriptedService()
    service.streams.extend([[pending(1)], [failed(2)]])
    async with connected(service) as client:
        assert (await client.wait("t-1")).revision == 2


async def test_wait_raises_after_its_timeout() -> None:
    service = ScriptedService()
    service.streams.append([pending(1), Silence()])
    async with connected(service) as client:
        with pytest.raises(TimeoutError):
            await client.wait("t-1", timeout=0.05)
