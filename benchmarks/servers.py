"""The measured service, as in production: a separate process, callers with tokens, metrics.

Only its environment, its ports, its memory and its CPU time are used.
"""

import contextlib
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc

from benchmarks.databases import CALLER

ROOT = Path(__file__).parent.parent
ABSENT = Path(__file__).parent / "absent"  # packages that the image does not have
TOKEN = "0123456789abcdef" * 4
CALLERS = 1_000
START_SECONDS = 60.0
STOP_SECONDS = 30.0
CONNECT_PAUSE_SECONDS = 0.002
HEALTH_SERVING = b"\x08\x01"  # HealthCheckResponse{status: SERVING}
HOUR = "3600"

# The settings of every measurement: no limits of the account, and no polls, heartbeats or ages, so
# that a slice contains only its calls. Measurements of polls set another interval.
QUIET = {
    "KIE_CREATES_PER_10_SECONDS": "0",
    "KIE_STATUS_PER_SECOND": "0",
    "KIE_RUNNING_MAX": "0",
    "KIE_CREATES_IN_FLIGHT_MAX": "0",
    "QUEUE_MAX_TASKS": "100000",
    "POLL_INTERVAL_SECONDS": HOUR,
    "TASK_MAX_AGE_SECONDS": "1000000",
    "WATCH_HEARTBEAT_SECONDS": HOUR,
    "WATCH_MAX_AGE_SECONDS": HOUR,
}


class ServiceError(Exception):
    """The service did not start; the message has the end of its log."""


class Service:
    """A service process with its own ports.

    Attributes:
        start_seconds: The time from the last start of the process to SERVING.
    """

    def __init__(
        self,
        folder: Path,
        database_url: str,
        provider_url: str,
        root: Path = ROOT,
        **settings: str,
    ) -> None:
        ports = free_ports(3)
        self.address, self.admin_address, self.http_address = (f"127.0.0.1:{p}" for p in ports)
        self.database_url = database_url
        self.token = TOKEN
        self.start_seconds = math.nan
        self._root = root
        self._log = folder / f"service-{ports[0]}.log"
        tokens = folder / "tokens"
        tokens.write_text("".join(_tokens()))
        self._env = {
            "PATH": os.environ["PATH"],
            **{name: value for name, value in os.environ.items() if name.startswith("AWS_")},
            "PYTHONPATH": f"{ABSENT}{os.pathsep}{root}",
            "LISTEN_ADDRESS": self.address,
            "ADMIN_ADDRESS": self.admin_address,
            "HTTP_ADDRESS": self.http_address,
            "PUBLIC_URL": f"http://{self.http_address}",
            "AUTH_TOKENS_FILE": str(tokens),
            "DATABASE_URL": database_url,
            "KIE_API_KEY": "key-of-the-bench",
            "KIE_API_URL": provider_url,
            "KIE_UPLOAD_URL": provider_url,
            "LOG_FORMAT": "json",
            **QUIET,
            **settings,
        }
        self._process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @contextlib.contextmanager
    def running(self) -> Iterator["Service"]:
        """Run it for as long as the context lasts.

        Raises:
            ServiceError: It exited, or does not serve in time.
        """
        self._start()
        try:
            yield self
        finally:
            self._stop()

    def _start(self) -> None:
        started = time.monotonic()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service"],
                env=self._env, cwd=self._root, stdin=subprocess.DEVNULL, stderr=log,
            )  # fmt: skip
        try:
            self._wait_until_it_serves(started + START_SECONDS)
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        self.start_seconds = time.monotonic() - started

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        finally:
            self._process.kill()
            self._process.wait()

    def _wait_until_it_serves(self, deadline: float) -> None:
        while not self._takes_connections():
            self._pause(deadline)
        with grpc.insecure_channel(self.address) as channel:
            check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
            while check(b"", timeout=START_SECONDS) != HEALTH_SERVING:
                self._pause(deadline)

    def _takes_connections(self) -> bool:
        host, port = self.address.split(":")
        with contextlib.suppress(OSError):
            socket.create_connection((host, int(port))).close()
            return True
        return False

    def _pause(self, deadline: float) -> None:
        if time.monotonic() > deadline or self._process.poll() is not None:
            raise ServiceError(f"the service did not start: {self._log.read_text()[-2000:]}")
        time.sleep(CONNECT_PAUSE_SECONDS)


def free_ports(count: int) -> list[int]:
    """Return ports that are free now."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def other_tokens() -> list[str]:
    """Return the tokens of all callers but the first."""
    return [f"token {number}" for number in range(CALLERS - 1)]


def _tokens() -> Iterator[str]:
    for number, token in enumerate(other_tokens()):
        yield f"caller-{number} {sha256(token.encode()).hexdigest()}\n"
    yield f"{CALLER} {sha256(TOKEN.encode()).hexdigest()}\n"
