"""Calls that must be refused."""

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status


@dataclass(frozen=True)
class Refusal:
    """A refused call as a caller sees it."""

    code: grpc.StatusCode
    reason: str
    message: str
    metadata: dict[str, str]
    fields: Sequence[str]
    retry_seconds: float | None


def refusal(error: grpc.aio.AioRpcError) -> Refusal:
    """Read the rich status of an error, which every error of ours must carry."""
    status = rpc_status.from_call(error)
    assert status is not None, f"{error.code()} without google.rpc.Status: {error.details()}"
    info, bad, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    )
    found = [detail.Unpack(into) for detail in status.details for into in (info, bad, retry)]
    assert any(found)
    assert info.domain == "generation.v1"
    seconds = retry.retry_delay.ToTimedelta().total_seconds()
    has_retry = any(detail.Is(retry.DESCRIPTOR) for detail in status.details)
    return Refusal(
        error.code(),
        info.reason,
        error.details() or "",
        dict(info.metadata),
        [violation.field for violation in bad.field_violations],
        seconds if has_retry else None,
    )


async def refused(call: Awaitable[Any]) -> Refusal:
    """Await a call that must be refused, and return how."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return refusal(caught.value)
