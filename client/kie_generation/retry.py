"""Retries: limited attempts, growing delays with jitter, and the delay that the server asks for."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import grpc

from kie_generation.errors import GenerationError, UnavailableError, from_rpc

T = TypeVar("T")
Diagnose: TypeAlias = Callable[[UnavailableError], Awaitable[GenerationError]]
OnRetry: TypeAlias = Callable[[UnavailableError], None]

# The last attempt starts this long before the end of the timeout, so that it can still succeed.
_LAST_TRY_SECONDS = 1.0
_LAST_TRY_SHARE = 0.25
# A stream may be reopened for as long as it takes, so a broken server or proxy must not delay it
# for years.
_SERVER_DELAY_MAX_SECONDS = 300.0


@dataclass(frozen=True)
class Retry:
    """How calls that fail with UnavailableError are retried.

    Attributes:
        attempts: The maximum number of attempts of a call; None means as many as fit into its
            timeout. It does not apply to watches.
        first_delay_seconds: The delay after the first failure; it doubles with each further one.
        max_delay_seconds: The maximum of this delay.
    """

    attempts: int | None = None
    first_delay_seconds: float = 0.1
    max_delay_seconds: float = 5.0


class Backoff:
    """The delays after consecutive failures."""

    def __init__(self, retry: Retry) -> None:
        self._retry = retry
        self.reset()

    def reset(self) -> None:
        """Start again with the first delay."""
        self._delay_seconds = self._retry.first_delay_seconds

    def next_delay(self, error: GenerationError) -> float:
        """Return the seconds to wait before the next attempt.

        Our delay with jitter is added to the one that the server asks for, so that callers do not
        all retry at the same time.
        """
        ours = self._delay_seconds * random.uniform(0.5, 1)
        self._delay_seconds = min(2 * self._delay_seconds, self._retry.max_delay_seconds)
        return ours + min(error.retry_after or 0, _SERVER_DELAY_MAX_SECONDS)


async def retrying(
    attempt: Callable[[float], Awaitable[T]],
    *,
    timeout: float,
    retry: Retry,
    diagnose: Diagnose,
    on_retry: OnRetry,
) -> T:
    """Await `attempt(seconds left)` until it succeeds.

    Args:
        attempt: Makes the call, with the given timeout in seconds. It must be safe to repeat.
        timeout: Seconds for all attempts and the delays between them.
        retry: How often and how soon to retry.
        diagnose: Returns the permanent error behind an error, or the error itself.
        on_retry: Called with the error before each further attempt.

    Raises:
        GenerationError: The error of the last attempt; at once if a retry cannot help or would be
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
