"""Responses that a client does not read are limited for each caller."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from service.calls import Call
from service.errors import ServiceError
from service.outbox import COUNTED_FROM_BYTES, Outbox, StreamOutbox

LARGE = b"x" * COUNTED_FROM_BYTES


class Context:
    """The part of grpc's context that says when a call is over."""

    def __init__(self) -> None:
        self._over: list[Callable[[Any], None]] = []

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._over.append(callback)

    def over(self) -> None:
        for callback in self._over:
            callback(self)


def call_of(caller: str) -> Call:
    call = Call([])
    call.caller = caller
    return call


def test_a_caller_that_reads_no_response_is_refused_until_a_call_ends() -> None:
    refusals: list[tuple[str, str]] = []
    outbox = Outbox(2 * len(LARGE), lambda caller, limit: refusals.append((caller, limit)))
    finish = outbox.finisher(bytes)
    contexts = [Context(), Context()]
    for context in contexts:
        assert finish(call_of("alice"), LARGE, context) == LARGE
    with pytest.raises(ServiceError) as refused:
        finish(call_of("alice"), LARGE, Context())
    assert refused.value.reason == "RATE_LIMITED"
    assert refused.value.metadata == {
        "limit": "answers",
        "max": str(2 * len(LARGE)),
        "scope": "caller",
    }
    assert refusals == [("alice", "answers")]
    contexts[0].over()
    assert finish(call_of("alice"), LARGE, Context()) == LARGE


def test_a_response_to_a_call_that_had_an_effect_is_counted_and_never_refused() -> None:
    outbox = Outbox(len(LARGE))
    finish = outbox.finisher(bytes, may_refuse=False)
    contexts = [Context(), Context()]
    for context in contexts:
        outbox.check("alice")
        assert finish(call_of("alice"), LARGE, context) == LARGE
    with pytest.raises(ServiceError):
        outbox.check("alice")
    contexts[0].over()
    outbox.check("alice")


def test_other_callers_and_small_responses_are_not_affected() -> None:
    finish = Outbox(len(LARGE)).finisher(bytes)
    assert finish(call_of("alice"), LARGE, Context()) == LARGE
    assert finish(call_of("bob"), LARGE, Context()) == LARGE
    for _ in range(3):
        assert finish(call_of("alice"), LARGE[1:], Context()) == LARGE[1:]


def test_a_call_that_streams_its_responses_is_not_counted() -> None:
    assert Outbox().finisher(bytes)(call_of("alice"), None, Context()) is None


# --- streams ---


class Reader:
    """A client that reads a message when the test says so."""

    def __init__(self) -> None:
        self.writes: list[asyncio.Future[None]] = []

    def write(self) -> Awaitable[None]:
        self.writes.append(asyncio.get_running_loop().create_future())
        return self.writes[-1]


async def settled() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_message_of_a_stream_is_made_once_the_earlier_ones_are_read() -> None:
    outbox, reader = StreamOutbox(2 * len(LARGE)), Reader()
    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(_awaited(outbox.write("alice", len(LARGE), reader.write)))
        for number in range(4):
            await settled()
            assert len(reader.writes) == min(4, number + 2)
            reader.writes[number].set_result(None)


async def test_a_stream_that_waits_for_too_long_is_refused_and_leaves_no_trace() -> None:
    refusals: list[tuple[str, str]] = []
    outbox = StreamOutbox(
        len(LARGE), lambda caller, limit: refusals.append((caller, limit)), patience_seconds=0.01
    )
    reader = Reader()
    first = asyncio.ensure_future(outbox.write("alice", len(LARGE), reader.write))
    await settled()
    with pytest.raises(ServiceError) as refused:
        await outbox.write("alice", len(LARGE), reader.write)
    assert refused.value.reason == "RATE_LIMITED"
    assert refused.value.metadata["limit"] == "answers"
    assert refusals == [("alice", "answers")]
    assert len(reader.writes) == 1
    reader.writes[0].set_result(None)
    await first
    await _read(outbox, reader, "alice")


async def test_a_stream_that_ends_while_it_waits_or_writes_makes_room() -> None:
    outbox, reader = StreamOutbox(len(LARGE)), Reader()
    writing, waiting, last = (
        asyncio.ensure_future(outbox.write("alice", len(LARGE), reader.write)) for _ in range(3)
    )
    await settled()
    waiting.cancel()
    writing.cancel()
    await settled()
    assert len(reader.writes) == 2
    reader.writes[1].set_result(None)
    await last
    await _read(outbox, reader, "alice")


async def test_streams_of_other_callers_small_messages_and_a_single_large_one_do_not_wait() -> None:
    outbox, reader = StreamOutbox(len(LARGE)), Reader()
    waiting = asyncio.ensure_future(outbox.write("alice", 2 * len(LARGE), reader.write))
    await settled()
    assert len(reader.writes) == 1
    await _read(outbox, reader, "alice", size=1)
    await _read(outbox, reader, "bob")
    reader.writes[0].set_result(None)
    await waiting


async def _awaited(write: Awaitable[None]) -> None:
    await write


async def _read(outbox: StreamOutbox, reader: Reader, caller: str, size: int = len(LARGE)) -> None:
    """Write a message that is read at once."""
    known = len(reader.writes)
    write = asyncio.ensure_future(outbox.write(caller, size, reader.write))
    await settled()
    assert len(reader.writes) == known + 1
    reader.writes[-1].set_result(None)
    await write
