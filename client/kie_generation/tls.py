"""TLS settings of the channel, and a diagnosis of why TLS fails.

gRPC reports a rejected client certificate, and a server that expects TLS, as a closed socket, just
like a restarted server. A TLS handshake made here distinguishes them.
"""

import asyncio
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from kie_generation.addresses import host_and_port

_PROBE_SECONDS = 2.0
_PROBES = 2
_PROBE_PAUSE_SECONDS = 0.3


@dataclass(frozen=True)
class Tls:
    """Paths of PEM files for an encrypted channel.

    Attributes:
        root_ca: The certificate of the authority that signed the server's certificate; None trusts
            the well-known authorities.
        client_cert: The client's certificate (chain), for a server that requires one.
        client_key: The private key of client_cert; both are set, or neither.
    """

    root_ca: str | Path | None = None
    client_cert: str | Path | None = None
    client_key: str | Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files.

        Raises:
            ValueError: Only one of client_cert and client_key is set.
            OSError: A file cannot be read.
        """
        if (self.client_cert is None) != (self.client_key is None):
            raise ValueError("client_cert and client_key must be set together")
        return grpc.ssl_channel_credentials(
            *(_read(path) for path in (self.root_ca, self.client_key, self.client_cert))
        )

    def context(self) -> ssl.SSLContext:
        """Return the same settings for Python's ssl module."""
        context = ssl.create_default_context(cafile=self.root_ca)
        if self.client_cert is not None:
            context.load_cert_chain(self.client_cert, self.client_key)
        return context


def _read(path: str | Path | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()


async def find_problem(address: str, tls: Tls | None) -> str:
    """Return why TLS makes the server close every connection; "" if TLS is not clearly the cause.

    Args:
        address: The address that the channel connects to.
        tls: The settings of the channel; None for plaintext.
    """
    found = ""
    for probe in range(_PROBES):  # a stopping server may also close one connection like this
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
    """Return the problem if a server that is used without TLS expects TLS."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    await _handshake(address, context)
    return "the server expects TLS"


async def _rejects(address: str, tls: Tls) -> str:
    """Return the problem if the server closes the connection because of the client certificate."""
    if await _handshake(address, tls.context()):  # it sent its HTTP/2 settings, so it accepts us
        return ""
    if tls.client_cert is None:
        return "the server closes the connection after the TLS handshake: it requires a certificate"
    return "the server closes the connection after the TLS handshake: it rejects the certificate"


async def _handshake(address: str, context: ssl.SSLContext) -> bytes:
    """Complete a TLS handshake; return the server's first byte, or nothing if it rejects us."""
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
