"""Calls that must be refused."""

from collections.abc import Awaitable
from typing import Any

import grpc
import pytest

from tests.support.harness import Refusal, refusal


async def refused(call: Awaitable[Any]) -> Refusal:
    """Await a call that must be refused, and return how."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return refusal(caught.value)
