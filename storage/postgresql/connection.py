"""A second hold on a connection, by which another thread can cut it."""

import math
import os
import socket
import time
from contextlib import suppress
from typing import Any


class Line:
    """The socket of a connection to PostgreSQL.

    The server bounds the time of its statements, and the kernel that of a line which is dead. What
    is left is a server, or something in front of it, that lives and says nothing: the thread that
    waits for it would wait for ever.

    Attributes:
        opened: When, by the monotonic clock; infinity once it was cut.
    """

    def __init__(self, connection: Any) -> None:
        self.opened = time.monotonic()
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))

    def cut(self) -> None:
        """Have whoever waits for the server find the connection closed."""
        self.opened = math.inf
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go; before the connection is closed, or the server would not see it closed."""
        self._socket.close()
