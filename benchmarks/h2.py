"""A cheap gRPC client: it sends prepared HTTP/2 frames.

It supports only what a load generator needs: unary calls and server streams without compression, to
a trusted server on this machine. A call costs a fifth of a call of grpc.aio, so that on two cores
the server is what is measured.
"""

import asyncio
import enum
import struct
import time
from collections.abc import Callable, Sequence
from typing import Protocol, cast

DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
HEADER_TABLE_SIZE, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 0x1, 0x3, 0x4
SETTING = struct.Struct(">HI")
WINDOW_MAX = (1 << 31) - 1
WINDOW_DEFAULT = 65_535
STREAMS_UNLIMITED = (1 << 31) - 1
FRAME_HEAD_BYTES = 9
PREFIX_BYTES = 5
# Because the header table has size 0, the server sends its trailers as literals.
STATUS_OK = b"grpc-status\x010"
STATUS_DETAILS = b"grpc-status-details-bin"  # the service sends them with every error


class End(enum.Enum):
    """How a call ended."""

    OK = enum.auto()
    REFUSED = enum.auto()  # by the service, with an error
    DROPPED = enum.auto()  # by gRPC's core, which limits the calls that are not accepted yet


class Call(Protocol):
    """Receives the messages and the end of one call."""

    def message(self, data: bytes, now: float) -> None:
        """Receive a message; `now` is `time.monotonic()`."""

    def ended(self, end: End, now: float) -> None:
        """Receive the end of the call."""


def request_headers(path: str, metadata: Sequence[tuple[str, str]] = ()) -> bytes:
    """Return the header block of a call: literals without indexing, RFC 7541."""
    pairs = [("te", "trailers"), ("content-type", "application/grpc"), *metadata]
    post_http = b"\x83\x86"
    return (
        post_http
        + b"\x04"
        + _text(path)
        + b"\x01"
        + _text("localhost")
        + b"".join(b"\x00" + _text(name) + _text(value) for name, value in pairs)
    )


def _text(text: str) -> bytes:
    data = text.encode()
    if len(data) < 127:  # noqa: PLR2004 - the largest number of seven bits
        return bytes([len(data)]) + data
    return bytes([127, len(data) - 127]) + data


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return a frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def request(headers: bytes, message: bytes) -> Callable[[int], bytes]:
    """Return a function that returns the frames of a call for a stream id."""
    body = b"\0" + struct.pack(">I", len(message)) + message
    before = struct.pack(">I", len(headers))[1:] + bytes([HEADERS, END_HEADERS])
    between = headers + struct.pack(">I", len(body))[1:] + bytes([DATA, END_STREAM])

    def frames(stream: int) -> bytes:
        number = stream.to_bytes(4, "big")
        return before + number + between + number + body

    return frames


class Connection(asyncio.Protocol):
    """One connection with any number of calls."""

    def __init__(self, window_bytes: int = WINDOW_MAX) -> None:
        self._window_bytes = window_bytes
        self._calls: dict[int, Call] = {}
        self._partial: dict[int, bytes] = {}
        self._received = b""
        self._to_send: list[bytes] = []
        self._next_stream = 1
        self._unacknowledged_bytes = 0
        self._transport: asyncio.Transport
        loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[Exception | None] = loop.create_future()
        self.max_streams: asyncio.Future[int] = loop.create_future()  # from the server's settings

    # --- calling ---

    def call(self, frames: Callable[[int], bytes], call: Call) -> None:
        """Start a call; `flush` sends it."""
        stream = self._next_stream
        self._next_stream += 2
        self._calls[stream] = call
        self._to_send.append(frames(stream))

    def flush(self) -> None:
        """Send all waiting frames."""
        self._transport.write(b"".join(self._to_send))
        self._to_send.clear()

    def stop_reading(self) -> None:
        """Stop reading, as a client that hangs."""
        self._transport.pause_reading()

    def close(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    # --- callbacks of asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the preface and the settings, and open the window."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not inherit from it
        settings = ((HEADER_TABLE_SIZE, 0), (INITIAL_WINDOW_SIZE, self._window_bytes))
        self._transport.write(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + frame(SETTINGS, 0, 0, b"".join(SETTING.pack(*item) for item in settings))
            + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", WINDOW_MAX - WINDOW_DEFAULT))
        )

    def connection_lost(self, exc: Exception | None) -> None:
        """End all calls."""
        now = time.monotonic()
        calls, self._calls = self._calls, {}  # an ended call may start another
        for call in calls.values():
            call.ended(End.REFUSED, now)
        if not self.lost.done():
            self.lost.set_result(exc)
        if not self.max_streams.done():
            self.max_streams.set_exception(ConnectionError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        """Handle complete frames, and keep the rest."""
        now = time.monotonic()
        received = self._received + data if self._received else data
        at, end = 0, len(received)
        while end - at >= FRAME_HEAD_BYTES:
            size = (received[at] << 16) | (received[at + 1] << 8) | received[at + 2]
            after = at + FRAME_HEAD_BYTES + size
            if after > end:
                break
            self._frame(received, at, after, now)
            at = after
        self._received = received[at:]
        if self._to_send:
            self.flush()

    def _frame(self, received: bytes, at: int, after: int, now: float) -> None:
        kind, flags = received[at + 3], received[at + 4]
        stream = int.from_bytes(received[at + 5 : at + 9], "big")
        payload = received[at + FRAME_HEAD_BYTES : after]
        if kind == DATA:
            self._data(stream, payload, now)
        elif kind == HEADERS:
            if flags & END_STREAM:
                self._end(stream, _end_of(payload), now)
        elif kind == RST_STREAM:
            self._end(stream, End.DROPPED, now)
        elif kind == SETTINGS and not flags & ACK:
            self._settings(payload)
        elif kind == PING and not flags & ACK:
            self._to_send.append(frame(PING, ACK, 0, payload))

    def _settings(self, payload: bytes) -> None:
        self._to_send.append(frame(SETTINGS, ACK, 0, b""))
        if not self.max_streams.done():
            limits = dict(SETTING.iter_unpack(payload))
            self.max_streams.set_result(limits.get(MAX_CONCURRENT_STREAMS, STREAMS_UNLIMITED))

    def _data(self, stream: int, payload: bytes, now: float) -> None:
        self._unacknowledged_bytes += len(payload)
        if self._unacknowledged_bytes > WINDOW_MAX // 2:
            grown = struct.pack(">I", self._unacknowledged_bytes)
            self._to_send.append(frame(WINDOW_UPDATE, 0, 0, grown))
            self._unacknowledged_bytes = 0
        call = self._calls.get(stream)
        if call is None:
            return
        data = self._partial.pop(stream, b"") + payload
        while len(data) >= PREFIX_BYTES:
            end = PREFIX_BYTES + int.from_bytes(data[1:PREFIX_BYTES], "big")
            if len(data) < end:
                break
            call.message(data[PREFIX_BYTES:end], now)
            data = data[end:]
        if data:
            self._partial[stream] = data

    def _end(self, stream: int, end: End, now: float) -> None:
        self._partial.pop(stream, None)
        if call := self._calls.pop(stream, None):
            call.ended(end, now)


def _end_of(trailers: bytes) -> End:
    if STATUS_OK in trailers:
        return End.OK
    return End.REFUSED if STATUS_DETAILS in trailers else End.DROPPED


async def connect(address: str, window_bytes: int = WINDOW_MAX) -> Connection:
    """Connect to `host:port`, and wait for the server's settings.

    Raises:
        ConnectionError: The server closed the connection before it sent them.
    """
    host, port = address.rsplit(":", 1)
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Connection(window_bytes), host, int(port))
    await connection.max_streams
    return connection
