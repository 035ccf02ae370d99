"""The gRPC channel of a client, with keepalive options, and the metadata of its calls."""

import re

import grpc

from kie_generation.addresses import is_local
from kie_generation.errors import TokenError
from kie_generation.tls import Tls

_OPTIONS: tuple[tuple[str, int], ...] = (
    # A page of ListTasks is limited to 1 MiB, but its last task may be large.
    ("grpc.max_receive_message_length", 5 * 1024 * 1024),
    # Detects a dead connection under an open watch. The server permits a ping every 10 s.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # By default C-core stops after two pings without data, and a watch sends no data.
    ("grpc.http2.max_pings_without_data", 0),
    # By default C-core waits up to two minutes before it reconnects to a restarted server.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)

_TOKEN = re.compile(r"[\x20-\x7e]+")


def open_channel(address: str, tls: Tls | None) -> grpc.aio.Channel:
    """Return a channel to a service; `tls` None means plaintext."""
    options = _OPTIONS
    if is_local(address):  # by default gRPC uses the proxy even for loopback
        options += (("grpc.enable_http_proxy", 0),)
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, tls.credentials(), options=options)


def authorization(token: str) -> tuple[tuple[str, str], ...]:
    """Return the metadata that carries a token. A "Bearer " that was copied with it is ignored.

    Raises:
        TokenError: The token contains characters that cannot be sent.
    """
    words = token.split()
    bare = words[1] if len(words) == 2 and words[0].lower() == "bearer" else token.strip()  # noqa: PLR2004
    if not _TOKEN.fullmatch(bare):
        raise TokenError("the token must consist of printable ASCII characters")
    return (("authorization", f"Bearer {bare}"),)
