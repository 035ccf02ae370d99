"""The connection of a client: its channel, and how its calls are retried."""

from collections.abc import Awaitable, Callable
from typing import Self, TypeVar

import grpc

from kie_generation.channel import authorization, open_channel
from kie_generation.errors import GenerationError, UnauthenticatedError, UnavailableError
from kie_generation.generated.generation.v1.generation_pb2_grpc import GenerationServiceStub
from kie_generation.retry import OnRetry, Retry, retrying
from kie_generation.streams import StreamPolicy
from kie_generation.tls import Tls, find_problem

# More than CREATE_WAIT_SECONDS of the service, so that a create can return the provider's response.
CALL_TIMEOUT_SECONDS = 30.0
HEARTBEAT_TIMEOUT_SECONDS = 60.0  # three of the server's heartbeats

Q = TypeVar("Q")
A = TypeVar("A")


class Connection:
    """What the methods of a client share. It connects when its context is entered."""

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        tls: Tls | None = None,
        retry: Retry | None = None,
        heartbeat_timeout: float = HEARTBEAT_TIMEOUT_SECONDS,
        give_up_after_seconds: float | None = None,
        on_retry: OnRetry | None = None,
    ) -> None:
        """Configure the client; it connects after the context is entered.

        Args:
            address: host:port, or any target that gRPC resolves. Except for loopback, gRPC connects
                through the proxy that the environment names (`https_proxy`, `no_proxy`).
            token: The caller's token, if the service requires one.
            tls: The certificates; None disables TLS.
            retry: How calls are retried; None uses the defaults of Retry.
            heartbeat_timeout: Seconds of silence after which a watch reconnects.
            give_up_after_seconds: How long a watch tries to reconnect before it raises; None means
                without limit.
            on_retry: Called with the error before each retry of a call. Watches call on_connection.

        Raises:
            TokenError: The token contains characters that cannot be sent.
        """
        self._address = address
        self._metadata = authorization(token) if token else ()
        self._tls = tls
        self._retry = retry or Retry()
        self._on_retry = on_retry or ignore
        self._watch_policy = StreamPolicy(
            self._retry, heartbeat_timeout, give_up_after_seconds, self._diagnose
        )

    async def __aenter__(self) -> Self:
        self._channel = open_channel(self._address, self._tls)
        self._stub = GenerationServiceStub(self._channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def _call(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Q, A], request: Q, timeout: float
    ) -> A:
        async def attempt(seconds: float) -> A:
            return await method(request, timeout=seconds, metadata=self._metadata)

        return await self._retrying(attempt, timeout, self._retry)

    async def _retrying(
        self, attempt: Callable[[float], Awaitable[A]], timeout: float, retry: Retry
    ) -> A:
        return await retrying(
            attempt,
            timeout=timeout,
            retry=retry,
            diagnose=self._diagnose,
            on_retry=self._on_retry,
        )

    async def _diagnose(self, error: UnavailableError) -> GenerationError:
        """Return an UnauthenticatedError if TLS cannot work with this server, else the error."""
        closed = any(text in error.message for text in ("Socket closed", "reset", "Broken pipe"))
        if error.reason or "failed to connect" not in error.message or not closed:
            return error
        problem = await find_problem(self._address, self._tls)
        return UnauthenticatedError(error.code, problem) if problem else error


def ignore(_: object) -> None:
    """Do nothing: the default callback."""
