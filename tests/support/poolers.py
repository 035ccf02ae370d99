"""Poolers between a service and PostgreSQL, as far as they differ from the server itself."""

import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

PROTOCOL_3 = struct.pack("!I", 3 << 16)
# The answer of PgBouncer to a parameter that it is not configured to ignore.
REFUSAL = b"SFATAL\0C08P01\0Munsupported startup parameter: options\0\0"


class _Pooler(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, target: tuple[str, int], *, refuses: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.target = target
        self.refuses = refuses


class _Connection(socketserver.BaseRequestHandler):
    """A connection of a client: its `options` are dropped or refused."""

    server: _Pooler
    request: socket.socket

    def handle(self) -> None:
        client = self.request
        start = self._start(client)
        while start[4:8] != PROTOCOL_3:  # the client asks for encryption first
            client.sendall(b"N")
            start = self._start(client)
        words = start[8:].split(b"\0")
        pairs = [pair for pair in zip(words[::2], words[1::2], strict=False) if pair[0]]
        if self.server.refuses and b"options" in dict(pairs):
            client.sendall(b"E" + struct.pack("!I", len(REFUSAL) + 4) + REFUSAL)
            return
        kept = b"".join(b"%s\0%s\0" % pair for pair in pairs if pair[0] != b"options")
        message = PROTOCOL_3 + kept + b"\0"
        with socket.create_connection(self.server.target) as server:
            server.sendall(struct.pack("!I", len(message) + 4) + message)
            back = threading.Thread(target=self._copy, args=(server, client))
            back.start()
            self._copy(client, server)
            back.join()

    @staticmethod
    def _start(client: socket.socket) -> bytes:
        size = client.recv(4, socket.MSG_WAITALL)
        return size + client.recv(struct.unpack("!I", size)[0] - 4, socket.MSG_WAITALL)

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        while data := source.recv(65_536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def pooler(url: str, *, refuses: bool = False) -> Iterator[str]:
    """Yield the URL of a database through a pooler that drops or refuses `options`."""
    parts = urlsplit(url)
    server = _Pooler((parts.hostname or "localhost", parts.port or 5432), refuses=refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    user = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    try:
        yield parts._replace(netloc=f"{user}127.0.0.1:{server.server_address[1]}").geturl()
    finally:
        server.shutdown()
        server.server_close()
