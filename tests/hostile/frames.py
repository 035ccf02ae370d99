"""HTTP/2 that a well-behaved client never sends, on top of the benchmark's client."""

import asyncio
import struct
from collections.abc import Callable
from typing import Self

from benchmarks.h2 import (
    ACK,
    DATA,
    END_HEADERS,
    FRAME_HEAD_BYTES,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    RST_STREAM,
    SETTINGS,
    WINDOW_DEFAULT,
    WINDOW_MAX,
    WINDOW_UPDATE,
    Connection,
    End,
    frame,
    request_headers,
)
from tests.hostile.target import Target
from tests.support.waiting import eventually

DATA_FRAME_BYTES = 16_384  # what each peer accepts initially
SETTING_BYTES = 6
LENGTH_IN_ONE_BYTE, MORE_BYTES = 0x7F, 0x80
CANCEL = struct.pack(">I", 8)


def headers(target: Target, path: str) -> bytes:
    """Return the header block of a call."""
    return request_headers(path, target.metadata)


def header(name: bytes, value: bytes) -> bytes:
    """Return one more header for the block of a call; its bytes may be any."""
    return b"\0" + _length(name) + name + _length(value) + value


def _length(data: bytes) -> bytes:
    """Return the length of a header's name or value, as RFC 7541 writes integers."""
    if len(data) < LENGTH_IN_ONE_BYTE:
        return bytes([len(data)])
    rest, more = len(data) - LENGTH_IN_ONE_BYTE, bytes([LENGTH_IN_ONE_BYTE])
    while rest > LENGTH_IN_ONE_BYTE:
        more += bytes([rest & LENGTH_IN_ONE_BYTE | MORE_BYTES])
        rest >>= 7
    return more + bytes([rest])


def half_open(block: bytes, message: bytes) -> Callable[[int], bytes]:
    """Return a function that makes the frames of a call whose request never ends."""
    body = b"\0" + struct.pack(">I", len(message)) + message
    return lambda stream: frame(HEADERS, END_HEADERS, stream, block) + frame(DATA, 0, stream, body)


def reset_call(block: bytes) -> Callable[[int], bytes]:
    """Return a function that makes the frames of a call that is reset at once."""
    begin = struct.pack(">I", len(block))[1:] + bytes([HEADERS, END_HEADERS])
    reset = struct.pack(">I", len(CANCEL))[1:] + bytes([RST_STREAM, 0])

    def frames(stream: int) -> bytes:
        number = stream.to_bytes(4, "big")
        return begin + number + block + reset + number + CANCEL

    return frames


class Stream:
    """The state of one call."""

    def __init__(self) -> None:
        self.messages = 0
        self.is_open = True

    def message(self, _data: bytes, _now: float) -> None:
        """Count a message."""
        self.messages += 1

    def ended(self, _end: End, _now: float) -> None:
        """Note the end."""
        self.is_open = False

    @property
    def is_served(self) -> bool:
        """Whether the server has answered and keeps the stream open."""
        return self.is_open and self.messages > 0


class Sender(Connection):
    """A connection that sends as much as the server's windows let it, and no more."""

    def __init__(self, window_bytes: int = WINDOW_MAX) -> None:
        super().__init__(window_bytes)
        self._first_window = WINDOW_DEFAULT
        self._window = WINDOW_DEFAULT
        self._windows: dict[int, int] = {}
        self._unsent: dict[int, memoryview] = {}
        self._writable = asyncio.Event()
        self._writable.set()

    @classmethod
    async def connect(cls, target: Target, window_bytes: int = WINDOW_MAX) -> Self:
        """Connect to the service."""
        host, port = target.address.rsplit(":", 1)
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: cls(window_bytes), host, int(port))
        return connection

    @property
    def is_closed(self) -> bool:
        """Whether the server has closed the connection."""
        return self._transport.is_closing()

    async def send(self, data: bytes) -> None:
        """Send bytes unchanged, once the server has read the previous ones."""
        await self._writable.wait()
        self._transport.write(data)

    def next_stream(self) -> int:
        """Return the number of the next stream."""
        stream = self._next_stream
        self._next_stream += 2
        return stream

    def begin_message(self, block: bytes, part: bytes) -> None:
        """Start a call, and send as much of its message as the server accepts."""
        stream = self.next_stream()
        self._windows[stream] = self._first_window
        self._unsent[stream] = memoryview(part)
        self._transport.write(frame(HEADERS, END_HEADERS, stream, block))
        self._fill()

    @property
    def unsent_bytes(self) -> int:
        """How many bytes of the started messages the server has not accepted yet."""
        return sum(map(len, self._unsent.values()))

    # --- asyncio's side ---

    def pause_writing(self) -> None:
        """Wait for the server to read."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Resume sending."""
        self._writable.set()
        self._fill()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake everything that waits for the server."""
        self._writable.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Handle the frames, and send what they allow."""
        super().data_received(data)
        self._fill()

    def _frame(self, received: bytes, at: int, after: int, now: float) -> None:
        kind, flags = received[at + 3], received[at + 4]
        stream = int.from_bytes(received[at + 5 : at + 9], "big")
        payload = received[at + FRAME_HEAD_BYTES : after]
        if kind == WINDOW_UPDATE:
            self._grow(stream, int.from_bytes(payload, "big"))
        elif kind == RST_STREAM or (kind == HEADERS and stream in self._unsent):
            self._unsent.pop(stream, None)  # refused: the rest of the message is not wanted
        elif kind == SETTINGS and not flags & ACK:
            self._learn(payload)
        super()._frame(received, at, after, now)

    def _grow(self, stream: int, size: int) -> None:
        if stream == 0:
            self._window += size
        elif stream in self._windows:
            self._windows[stream] += size

    def _learn(self, payload: bytes) -> None:
        for at in range(0, len(payload), SETTING_BYTES):
            name, value = struct.unpack_from(">HI", payload, at)
            if name == INITIAL_WINDOW_SIZE:
                grown = value - self._first_window
                self._first_window = value
                self._windows = {s: window + grown for s, window in self._windows.items()}

    def _fill(self) -> None:
        for stream in self._unsent:
            while self._window > 0 and self._writable.is_set():
                unsent, window = self._unsent[stream], min(self._windows[stream], self._window)
                piece = unsent[: max(0, min(window, DATA_FRAME_BYTES))]
                if not piece:
                    break
                self._transport.write(frame(DATA, 0, stream, bytes(piece)))
                self._windows[stream] -= len(piece)
                self._window -= len(piece)
                self._unsent[stream] = unsent[len(piece) :]


def pieces(total: int, size: int) -> list[int]:
    """Split a count into parts of at most `size`."""
    return [min(size, total - done) for done in range(0, total, size)]


async def comes_true(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until a condition holds; return whether it did in time."""
    try:
        await eventually(condition, seconds)
    except TimeoutError:
        return False
    return True


class Deaf(Sender):
    """A connection that ignores everything that the server sends."""

    def data_received(self, data: bytes) -> None:
        """Ignore the data."""
