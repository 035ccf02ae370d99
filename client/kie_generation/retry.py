"""When to try again: bounded attempts, growing delays with jitter, and the server's own word."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import grpc

from client.errors import GenerationError, UnavailableError, from_rpc

T = TypeVar("T")
Diagnose: TypeAlias = Callable[[UnavailableError], Awaitable[GenerationError]]
OnRetry: TypeAlias = Callable[[UnavailableError], None]

# The last try begins this long before the end of the timeout, or it could not succeed.
_LAST_TRY_SECONDS = 1.0
_LAST_TRY_SHARE = 0.25


@dataclass(frozen=True)
class Retry:
    """How to try again what was UnavailableError.

    Attributes:
        attempts: the most tries of one call; None is as many as fit into its timeout. A watch is
            not bounded by it.
        first_delay_seconds: the delay after the first failure; it doubles with each further one.
        max_delay_seconds: where it stops doubling.
    """

    attempts: int | None = None
    first_delay_seconds: float = 0.1
    max_delay_seconds: float = 5.0


class Backoff:
    """The delays of one sequence of failures."""

    def __init__(self, retry: Retry) -> None:
        self._retry = retry
        self.reset()

    def reset(self) -> None:
        """Starts anew at the first delay."""
        self._delay_seconds = self._retry.first_delay_seconds

    def next_delay(self, error: GenerationError) -> float:
        """Returns the seconds to wait.

        They are the server's wish, if it has one, and then ours, so that callers spread.
        """
        ours = self._delay_seconds * random.uniform(0.5, 1)
        self._delay_seconds = min(2 * self._delay_seconds, self._retry.max_delay_seconds)
        return ours + (error.retry_after or 0)


async def retrying(
    attempt: Callable[[float], Awaitable[T]],
    *,
    timeout: float,
    retry: Retry,
    diagnose: Diagnose,
    on_retry: OnRetry,
) -> T:
    """Awaits `attempt(seconds left)` until it succeeds.

    Args:
        attempt: makes the call; it must be safe to repeat. It is given its deadline in seconds.
        timeout: seconds for all attempts and the delays between them.
        retry: how often and how soon.
        diagnose: returns the error itself, or the lasting one behind it.
        on_retry: called with the error before each further attempt.

    Raises:
        GenerationError: the last attempt's, at once when a further one cannot help or would come
            too late.
    """
    deadline = time.monotonic() + timeout
    last_start = deadline - min(_LAST_TRY_SECONDS, _LAST_TRY_SHARE * timeout)
    backoff = Backoff(retry)
    attempts = 0
    while True:
        try:
            return await attempt(max(0.0, deadline - time.monotonic()))
        except grpc.aio.AioRpcError as rpc_error:
            error = from_rpc(rpc_error)
        attempts += 1
        if isinstance(error, UnavailableError):
            error = await diagnose(error)
        if not isinstance(error, UnavailableError) or attempts == retry.attempts:
            raise error
        seconds_left = last_start - time.monotonic()
        if seconds_left <= 0 or (error.retry_after or 0) > seconds_left:
            raise error
        on_retry(error)
        await asyncio.sleep(min(backoff.next_delay(error), seconds_left))
