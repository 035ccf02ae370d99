"""What is kept of a call while it is in progress."""

from service.calls import Call


def test_of_the_metadata_only_what_is_used_later_is_kept() -> None:
    traceparent = ("traceparent", f"00-{'a' * 32}-{'b' * 16}-01")
    others = [(f"key-{number}", "x" * 70) for number in range(200)]
    sent = [("authorization", "Bearer token"), ("x-request-id", "r-1"), traceparent, *others]
    call = Call(sent)
    call.identify("alice", b"key")
    assert (call.caller, call.credential_key) == ("alice", b"key")
    assert list(call.metadata) == [("x-request-id", "r-1"), traceparent]
    assert call.request_id == "r-1"


def test_values_that_are_too_long_to_be_used_are_not_kept() -> None:
    call = Call([("x-request-id", "x" * 513), ("tracestate", "x" * 513)])
    call.identify("alice", b"key")
    assert not call.metadata
    assert call.request_id
