"""A connection to PostgreSQL that tests cut as networks do: cleanly, silently, or at a commit."""

import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

COMMIT = b"COMMIT\0"
CHUNK_BYTES = 1 << 18
ANSWER_SECONDS = 10


@dataclass(frozen=True)
class Fate:
    """A cut that waits for the commit of a transaction with a certain statement."""

    said: re.Pattern[bytes]
    committed: bool
    struck: threading.Event = field(default_factory=threading.Event)


class Wire:
    """Passes bytes between clients and a server until a test cuts it.

    It has its own threads, because a service opens its database before its event loop continues.
    """

    def __init__(self, database_url: str) -> None:
        self._server_url = urlsplit(database_url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lines: set[_Line] = set()
        self._is_cut = False
        self.flowing = threading.Event()
        self.flowing.set()
        self.fate: Fate | None = None

    def __enter__(self) -> Self:
        _run(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @property
    def url(self) -> str:
        """The database's URL through this proxy."""
        port = self._listener.getsockname()[1]
        user, _, _ = self._server_url.netloc.rpartition("@")
        query = "&".join(filter(None, (self._server_url.query, "sslmode=disable")))
        return self._server_url._replace(netloc=f"{user}@127.0.0.1:{port}", query=query).geturl()

    def cut(self) -> None:
        """Close every connection, and new ones at once, until `repair`."""
        self._is_cut = True
        self.flowing.set()
        for line in list(self._lines):
            line.close()

    def repair(self) -> None:
        """Accept connections again."""
        self._is_cut = False

    def freeze(self) -> None:
        """Silently pass nothing on until `thaw` or `cut`."""
        self.flowing.clear()

    def thaw(self) -> None:
        """Pass on everything that waits."""
        self.flowing.set()

    def cut_at_commit(self, said: bytes, *, committed: bool) -> threading.Event:
        """Cut everything at the next commit of a transaction with this statement.

        The commit is or is not done, and its response is lost. The event is set when it happened.
        """
        self.fate = Fate(re.compile(said, re.DOTALL), committed)
        return self.fate.struck

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            _run(self._connect, client)

    def _connect(self, client: socket.socket) -> None:
        address = self._server_url.hostname or "localhost", self._server_url.port or 5432
        with client, suppress(OSError), socket.create_connection(address) as server:
            line = _Line(self, client, server)
            self._lines.add(line)
            if not self._is_cut:
                line.carry()
            self._lines.discard(line)


class _Line:
    """One connection, with a thread for each direction."""

    def __init__(self, wire: Wire, client: socket.socket, server: socket.socket) -> None:
        self._wire = wire
        self._client = client
        self._server = server
        self._said = False
        self._answer_is_lost = False
        self._answered = threading.Event()

    def carry(self) -> None:
        """Pass bytes in both directions until one end is closed."""
        down = _run(self._pass, self._server, self._pass_down)
        self._pass(self._client, self._pass_up)
        down.join()

    def close(self) -> None:
        """Close both ends, which ends reads from them."""
        for end in (self._client, self._server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _pass(self, source: socket.socket, forward: Callable[[bytes], None]) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK_BYTES):
                self._wire.flowing.wait()
                forward(data)
        self.close()

    def _pass_down(self, data: bytes) -> None:
        if self._answer_is_lost:
            self._answered.set()
        else:
            self._client.sendall(data)

    def _pass_up(self, data: bytes) -> None:
        fate = self._wire.fate
        self._said |= bool(fate and fate.said.search(data))
        if COMMIT in data:
            if fate and self._said:
                self._meet(fate, data)
                return
            self._said = False
        self._server.sendall(data)

    def _meet(self, fate: Fate, commit: bytes) -> None:
        self._wire.fate = None
        if fate.committed:
            self._answer_is_lost = True
            self._server.sendall(commit)
            assert self._answered.wait(ANSWER_SECONDS)
        self._wire.cut()
        fate.struck.set()


def _run(work: Callable[..., None], *args: object) -> threading.Thread:
    thread = threading.Thread(target=work, args=args, daemon=True)
    thread.start()
    return thread
