"""Messages are received within bounds: for all callers, for each, and in time."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import pytest

from service.calls import Call
from service.errors import ServiceError
from service.inbox import Inbox, InboxLimits

LIMITS = InboxLimits(
    requests=4,
    requests_per_caller=2,
    waiting_per_caller=1,
    stall_seconds=0,
    request_max_bytes=10,
    open_requests=2,
    streams_per_caller=2,
    stream_message_max_bytes=5,
)


NOBODY: Any = None


@dataclass
class Sender:
    """The other end of a call: sends its messages on demand."""

    sent: "asyncio.Queue[Any]" = field(default_factory=asyncio.Queue)
    began: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(self) -> Any:
        self.began.set()
        return await self.sent.get()


class Calls:
    """Calls that receive their request through one inbox."""

    def __init__(self, limits: InboxLimits = LIMITS) -> None:
        self.refusals: list[tuple[str, str]] = []
        self.inbox = Inbox(limits, lambda caller, limit: self.refusals.append((caller, limit)))
        self.tasks: list[asyncio.Task[Any]] = []

    def call(self, caller: str, sender: Sender, *, is_open: bool = False) -> "asyncio.Task[bytes]":
        async def run() -> bytes:
            call = Call([])
            call.begin(NOBODY)
            call.caller = caller
            receive = self.inbox.receive_open if is_open else self.inbox.receive
            try:
                return await receive(call, sender)
            except asyncio.CancelledError:
                raise call.end_error or asyncio.CancelledError from None

        task = asyncio.create_task(run())
        self.tasks.append(task)
        return task


@pytest.fixture
async def calls() -> AsyncIterator[Calls]:
    made = Calls()
    yield made
    for task in made.tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, ServiceError):
            await task


async def settle() -> None:
    """Let everything run that can run."""
    for _ in range(10):
        await asyncio.sleep(0)


async def refused(task: "asyncio.Task[bytes]") -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        async with asyncio.timeout(5):
            await task
    return caught.value


async def test_a_caller_receives_two_requests_at_a_time_and_the_third_waits(calls: Calls) -> None:
    senders = [Sender() for _ in range(3)]
    tasks = [calls.call("alice", sender) for sender in senders]
    await settle()
    assert [sender.began.is_set() for sender in senders] == [True, True, False]
    senders[1].sent.put_nowait(b"b")
    assert await tasks[1] == b"b"
    await settle()
    assert senders[2].began.is_set()


async def test_stalled_requests_of_one_caller_leave_room_for_others(calls: Calls) -> None:
    for _ in range(2):
        calls.call("alice", Sender())
    await settle()
    bob = Sender()
    bob.sent.put_nowait(b"bob's")
    assert await calls.call("bob", bob) == b"bob's"


async def test_more_calls_than_may_wait_are_refused_while_requests_stall(calls: Calls) -> None:
    senders = [Sender() for _ in range(5)]
    waiting = [calls.call("alice", sender) for sender in senders]
    await settle()
    calls.inbox.check()
    assert not any(task.done() for task in waiting), "one check could have come late"
    calls.inbox.check()
    for refused_call in (*waiting[3:], calls.call("alice", Sender())):
        error = await refused(refused_call)
    assert not waiting[2].done(), "one may wait"
    assert error.reason == "RATE_LIMITED"
    assert error.metadata == {"limit": "requests", "max": "2", "scope": "caller"}
    assert calls.refusals == [("alice", "requests")] * 3


async def test_a_request_that_arrives_ends_the_stall(calls: Calls) -> None:
    senders = [Sender() for _ in range(3)]
    tasks = [calls.call("alice", sender) for sender in senders]
    await settle()
    calls.inbox.check()
    calls.inbox.check()
    senders[0].sent.put_nowait(b"x")
    assert await tasks[0] == b"x"
    more = [calls.call("alice", Sender()) for _ in range(5)]
    await settle()
    calls.inbox.check()
    assert not any(task.done() for task in more)


async def test_any_number_waits_while_requests_arrive() -> None:
    calls = Calls(InboxLimits(requests=4, requests_per_caller=2, waiting_per_caller=1))
    senders = [Sender() for _ in range(100)]
    for sender in senders:
        sender.sent.put_nowait(b"x")
    assert await asyncio.gather(*(calls.call("alice", s) for s in senders)) == [b"x"] * 100


async def test_callers_take_turns_when_all_places_are_taken(calls: Calls) -> None:
    first = [Sender() for _ in range(4)]
    tasks = [calls.call(name, first[i]) for i, name in enumerate(("a", "a", "b", "b"))]
    await settle()
    waiting = {name: Sender() for name in ("c", "d")}
    for name, sender in waiting.items():
        calls.call(name, sender)
    await settle()
    assert not any(sender.began.is_set() for sender in waiting.values())
    first[0].sent.put_nowait(b"")
    await tasks[0]
    await settle()
    assert [sender.began.is_set() for sender in waiting.values()] == [True, False]
    first[2].sent.put_nowait(b"")
    await tasks[2]
    await settle()
    assert [sender.began.is_set() for sender in waiting.values()] == [True, True]


async def test_a_cancelled_call_frees_its_place(calls: Calls) -> None:
    senders = [Sender() for _ in range(4)]
    tasks = [calls.call("alice", sender) for sender in senders[:3]]
    await settle()
    tasks[2].cancel()  # it waits for its turn
    await settle()
    last = calls.call("alice", senders[3])
    tasks[0].cancel()  # it receives
    await settle()
    assert senders[3].began.is_set()
    senders[3].sent.put_nowait(b"x")
    assert await last == b"x"


async def test_a_request_that_does_not_arrive_is_abandoned_and_its_place_is_free(
    calls: Calls,
) -> None:
    calls.inbox = Inbox(replace(LIMITS, patience_seconds=0))
    stalled = [calls.call("alice", Sender()) for _ in range(2)]
    await settle()
    assert (await refused(calls.call("alice", Sender()))).reason == "RATE_LIMITED"
    calls.inbox.check()
    for task in stalled:
        assert (await refused(task)).reason == "STREAM_EXPIRED"
    prompt = Sender()
    prompt.sent.put_nowait(b"x")
    assert await calls.call("alice", prompt) == b"x"


async def test_a_new_request_to_an_open_method_ends_the_oldest(calls: Calls) -> None:
    stalled = [calls.call("", Sender(), is_open=True) for _ in range(2)]
    await settle()
    prompt = Sender()
    prompt.sent.put_nowait(b"check")
    assert await calls.call("", prompt, is_open=True) == b"check"
    assert (await refused(stalled[0])).reason == "STREAM_EXPIRED"
    assert not stalled[1].done()


@pytest.mark.parametrize(
    ("sent", "words"),
    [(b"x" * 11, "has 11 bytes; the limit is 10"), (grpc.aio.EOF, "without a request")],
)
async def test_a_request_that_is_too_long_or_missing_is_invalid(
    calls: Calls, sent: Any, words: str
) -> None:
    sender = Sender()
    sender.sent.put_nowait(sent)
    error = await refused(calls.call("alice", sender))
    assert error.reason == "INVALID_PARAMS"
    assert words in error.message


async def test_a_third_stream_of_a_caller_ends_the_one_that_waits_longest(calls: Calls) -> None:
    async def run(caller: str, sender: Sender) -> list[bytes]:
        call = Call([])
        call.begin(NOBODY)
        call.caller = caller
        try:
            return [message async for message in calls.inbox.receive_stream(call, sender)]
        except asyncio.CancelledError:
            raise call.end_error or asyncio.CancelledError from None

    senders = [Sender() for _ in range(3)]
    tasks = [asyncio.create_task(run("alice", sender)) for sender in senders]
    bob = asyncio.create_task(run("bob", Sender()))
    calls.tasks += [*tasks, bob]
    assert (await refused(tasks[0])).reason == "STREAM_EXPIRED"  # type: ignore[arg-type]
    for message in (b"1", b"22", grpc.aio.EOF):
        senders[1].sent.put_nowait(message)
    assert await tasks[1] == [b"1", b"22"]
    senders[2].sent.put_nowait(b"666666")
    assert (await refused(tasks[2])).reason == "INVALID_PARAMS"  # type: ignore[arg-type]
    assert not bob.done()
