"""Open the ports: bind gRPC and HTTP servers, and say why an address cannot be used."""

import os
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack
from ipaddress import IPv6Address, ip_address

import grpc
from aiohttp import web

from service import descriptors
from service.http import HttpServer
from service.setting_types import split_address
from service.settings import Settings

C_INT_MAX = 2**31 - 1
PENDING_HARD = 3  # times the limit: up to there C-core drops calls at random, beyond it all
ANY_IPV6 = IPv6Address("::")
HTTP_END_SECONDS = 0.1  # for the response to a request that is in progress at the end
AGE_GRACE_SECONDS = 60.0  # more than WATCH_MAX_AGE_SECONDS: the age of a stream has a jitter
CHANNEL_OPTIONS = (
    ("grpc.so_reuseport", 0),  # fail if the port is already in use
    # How much of an upload waits here for a slow provider: fixed, or it would grow with the
    # connection's bandwidth. 64 KiB would be slower, 1 MiB is not faster.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 256 << 10),
    # Clients may ping once a second, even without a call. gRPC's default for connections without
    # calls is two hours, and it disconnects clients that ping more often. Half a second allows for
    # jitter.
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 60_000),
)


class StartError(Exception):
    """The server cannot start; the message says why."""


def channel_options(settings: Settings, handshake_seconds: float) -> tuple[tuple[str, int], ...]:
    """Return the options of the gRPC server."""
    return (
        *CHANNEL_OPTIONS,
        *_connection_options(settings),
        ("grpc.server_handshake_timeout_ms", _milliseconds(handshake_seconds)),
    )


def _connection_options(settings: Settings) -> Iterator[tuple[str, int]]:
    """Yield the limits of one connection, and the limit on their number."""
    connections = descriptors.connections_max(settings.max_connections, descriptors.limit())
    yield "grpc.max_allowed_incoming_connections", connections
    yield "grpc.max_concurrent_streams", settings.max_streams_per_connection
    # Calls of all connections that wait until Python accepts them. Each one delays those behind it:
    # a flood of streams that are reset at once would fill any queue.
    yield "grpc.server.max_pending_requests", settings.max_pending_calls
    yield "grpc.server.max_pending_requests_hard_limit", PENDING_HARD * settings.max_pending_calls
    yield "grpc.max_connection_idle_ms", _milliseconds(settings.connection_idle_seconds)
    yield "grpc.max_connection_age_ms", _milliseconds(settings.connection_age_seconds)
    grace = settings.watch_max_age_seconds + AGE_GRACE_SECONDS
    yield "grpc.max_connection_age_grace_ms", _milliseconds(grace)


def _milliseconds(seconds: float) -> int:
    """Return a time for C-core, where the largest number means no limit."""
    return min(round(seconds * 1_000), C_INT_MAX) or C_INT_MAX


def bind(
    server: grpc.aio.Server, settings: Settings, credentials: grpc.ServerCredentials | None
) -> str:
    """Bind a gRPC server to LISTEN_ADDRESS, and return the bound address.

    Args:
        server: The server.
        settings: They have the address.
        credentials: For TLS; None serves plaintext.

    Raises:
        StartError: The address cannot be used.
    """
    host, _ = split_address(settings.listen_address)
    try:
        if credentials is None:
            port = server.add_insecure_port(settings.listen_address)
        else:
            port = server.add_secure_port(settings.listen_address, credentials)
    except RuntimeError as error:
        raise StartError(
            f"LISTEN_ADDRESS: cannot listen on {settings.listen_address}:"
            f" {_why_not_bound(settings.listen_address)}"
        ) from error
    return f"{_bracketed(host)}:{port}"


def _why_not_bound(address: str) -> str:
    """Find out why gRPC cannot listen on an address: its error does not say."""
    host, port = split_address(address)
    try:
        for family, kind, protocol, _, target in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(target)
                probe.listen()
    except OSError as error:
        return _words(error)
    return "GRPC_VERBOSITY=error shows why"


def _words(error: OSError) -> str:
    """Return the system's message for an error, without the additions of libraries."""
    if isinstance(error, socket.gaierror) or error.errno is None:
        return error.strerror or str(error)
    return os.strerror(error.errno).lower()


async def start_http(server: HttpServer, setting: str, address: str, stack: AsyncExitStack) -> str:
    """Serve HTTP on an address until the stack closes, and return the bound address.

    Raises:
        StartError: The address cannot be used; the message names the setting.
    """
    host, port = split_address(address)
    runner = web.ServerRunner(server, shutdown_timeout=HTTP_END_SECONDS)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    try:
        await _http_site(runner, host, port).start()
    except OSError as error:
        raise StartError(f"{setting}: cannot listen on {address}: {_words(error)}") from error
    bound_host, bound_port = runner.addresses[0][:2]
    return f"{_bracketed(bound_host)}:{bound_port}"


def _http_site(runner: web.ServerRunner, host: str, port: int) -> web.BaseSite:
    if not socket.has_dualstack_ipv6() or not _is_any_ipv6(host):
        return web.TCPSite(runner, host, port)
    # asyncio would serve IPv6 only, unlike gRPC.
    both = socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True)
    return web.SockSite(runner, both)


def _is_any_ipv6(host: str) -> bool:
    try:
        return ip_address(host) == ANY_IPV6
    except ValueError:
        return False


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
