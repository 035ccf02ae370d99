"""The channel of a client, with the options that keep it alive."""

import grpc

from client.addresses import is_local
from client.tls import Tls

_OPTIONS: tuple[tuple[str, int], ...] = (
    # A page of tasks ends at 1 MiB, but its last task may be large.
    ("grpc.max_receive_message_length", 5 * 1024 * 1024),
    # Finds a dead connection under an open watch; the server permits a ping every 10 s.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Without it C-core stops pinging after two pings, and a watch sends no data of its own.
    ("grpc.http2.max_pings_without_data", 0),
    # C-core would wait up to two minutes before it looks for a restarted server again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)


def open_channel(address: str, tls: Tls | None) -> grpc.aio.Channel:
    """Returns a channel to a service; without TLS it is plaintext."""
    options = _OPTIONS
    if is_local(address):  # gRPC would send loopback through the proxy, too
        options += (("grpc.enable_http_proxy", 0),)
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, tls.credentials(), options=options)
