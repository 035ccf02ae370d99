"""Responses that a client does not read are limited for each caller."""

from collections.abc import Callable
from typing import Any

import pytest

from service.calls import Call
from service.errors import ServiceError
from service.outbox import COUNTED_FROM_BYTES, Outbox

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
