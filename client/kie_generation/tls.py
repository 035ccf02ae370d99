"""Encryption of the channel, and why a server and a client may not agree on it.

gRPC reports a rejected client certificate, and a server that expects TLS, as a closed socket, like
any restart. One TLS handshake of our own tells them apart.
"""

import asyncio
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from client.addresses import host_and_port

_PROBE_SECONDS = 2.0
_PROBES = 2
_PROBE_PAUSE_SECONDS = 0.3


@dataclass(frozen=True)
class Tls:
    """Paths of PEM files for an encrypted channel.

    Attributes:
        root_ca: the certificate of the authority that signed the server's certificate; None trusts
            the well-known authorities.
        client_cert: our certificate (chain), for a server that asks for one; with client_key or not
            at all.
        client_key: the private key of client_cert.
    """

    root_ca: str | Path | None = None
    client_cert: str | Path | None = None
    client_key: str | Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files. Raises ValueError for half a pair, OSError for an unreadable file."""
        if (self.client_cert is None) != (self.client_key is None):
            raise ValueError("a client certificate and its key go together")
        return grpc.ssl_channel_credentials(
            *(_read(path) for path in (self.root_ca, self.client_key, self.client_cert))
        )

    def context(self) -> ssl.SSLContext:
        """Returns the same settings for Python's own TLS."""
        context = ssl.create_default_context(cafile=self.root_ca)
        if self.client_cert is not None:
            context.load_cert_chain(self.client_cert, self.client_key)
        return context


def _read(path: str | Path | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()


async def find_problem(address: str, tls: Tls | None) -> str:
    """Returns why the server closes every connection, "" unless it is certain to be TLS.

    Args:
        address: what the channel connects to.
        tls: how the channel encrypts; None is plaintext.
    """
    found = ""
    for probe in range(_PROBES):  # a server that stops may also close one connection like this
        if probe:
            await asyncio.sleep(_PROBE_PAUSE_SECONDS)
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                found = await (_speaks_tls(address) if tls is None else _rejects(address, tls))
        except (OSError, TimeoutError, ValueError):  # ssl.SSLError is an OSError
            return ""
        if not found:
            return ""
    return found


async def _speaks_tls(address: str) -> str:
    """Finds that a server to which we speak plaintext expects TLS."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    await _handshake(address, context)
    return "the server expects TLS"


async def _rejects(address: str, tls: Tls) -> str:
    """Finds that a server closes the connection once it has seen our certificate, or none."""
    if await _handshake(address, tls.context()):  # its HTTP/2 settings: it has accepted us
        return ""
    if tls.client_cert is None:
        return "the server closes the connection after the TLS handshake: it wants a certificate"
    return "the server closes the connection after the TLS handshake: it rejects the certificate"


async def _handshake(address: str, context: ssl.SSLContext) -> bytes:
    """Completes a TLS handshake; returns the server's first byte, nothing if it rejects us."""
    context.set_alpn_protocols(["h2"])
    host, port = host_and_port(address)
    try:
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
        try:
            return await reader.read(1)
        finally:
            writer.transport.abort()
    except ssl.SSLError as error:
        if "ALERT" in (error.reason or ""):
            return b""
        raise
