"""The processes of a drill: the service, the simulator before it, and the attacker."""

import asyncio
import json
import os
import re
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from tests.hostile.target import Attack, Outcome, Target
from tests.support.harness import API_KEY
from tests.support.paths import ROOT
from tests.support.postgres import free_port
from tests.support.waiting import START_SECONDS, eventually

SERVICE_ROOT = Path(os.environ.get("HOSTILE_SERVICE_ROOT", ROOT)).resolve()

ATTACK_SECONDS = 180
STOP_SECONDS_MAX = 10.0
MIB = 1 << 20
TOKENS = {"alice": "token-of-alice", "bob": "token-of-bob"}
SIMULATOR_OPTIONS = (
    *("--seconds", "imagen4=0.2-0.3", "--visible-after-seconds", "0", "--seed", "1"),
    *("--creates-per-window", "0", "--records-per-second", "0", "--log-level", "ERROR"),
)


@dataclass(frozen=True)
class Descriptors:
    """How many files the service may open: its soft and its hard limit."""

    soft: int
    hard: int


@dataclass(frozen=True)
class Setup:
    """What the service is started with."""

    settings: dict[str, str] = field(default_factory=dict)
    caller_limits: str = ""
    descriptors: Descriptors | None = None


class Defender:
    """The service and its provider, on fixed addresses in a folder."""

    def __init__(self, folder: Path, setup: Setup) -> None:
        self._folder = folder
        self._setup = setup
        grpc_port, admin_port, http_port, self._simulator_port = (free_port() for _ in range(4))
        self.address = f"127.0.0.1:{grpc_port}"
        self.admin_address = f"127.0.0.1:{admin_port}"
        self.http_address = f"127.0.0.1:{http_port}"
        self.simulator_url = f"http://127.0.0.1:{self._simulator_port}"
        self._log = folder / "log"
        self._process: Process
        self._simulator: Process

    def target(self, *, token: str, count: int, seconds: float) -> Target:
        """Return what an attacker gets to know."""
        return Target(
            self.address,
            self.admin_address,
            self.http_address,
            self.simulator_url,
            str(self._tokens_file),
            token,
            count,
            seconds,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run both, and kill them at the end."""
        lines = (f"{name} {sha256(t.encode()).hexdigest()}\n" for name, t in TOKENS.items())
        self._tokens_file.write_text("".join(lines))
        self._limits_file.write_text(self._setup.caller_limits)
        arguments = ("providers.kie.simulator", "--port", str(self._simulator_port))
        self._simulator = await self._start(DEVNULL, *arguments, *SIMULATOR_OPTIONS)
        with self._log.open("wb") as log:
            self._process = await self._start(log.fileno(), "service")
        try:
            await eventually(self._is_serving, START_SECONDS)
            yield
        finally:
            await _kill(self._process)
            await _kill(self._simulator)

    @property
    def log_bytes(self) -> int:
        """The length of the log so far."""
        return self._log.stat().st_size

    @property
    def log_tail(self) -> str:
        """The end of the log, for a person."""
        return self._log.read_text(errors="replace")[-2_000:]

    @property
    def database_mib(self) -> float:
        """The size of the database."""
        return sum(file.stat().st_size for file in self._folder.glob("generation.db*")) / MIB

    def peak_mib(self) -> float:
        """Return the most memory that the service ever held; infinity if it is dead."""
        try:
            status = Path(f"/proc/{self._process.pid}/status").read_text()
        except FileNotFoundError:
            status = ""
        found = re.search(r"VmHWM:\s+(\d+) kB", status)  # a zombie has none
        return int(found[1]) / 1_024 if found else float("inf")

    @property
    def pids(self) -> tuple[int, int]:
        """The numbers of both processes."""
        return self._process.pid, self._simulator.pid

    async def stop(self) -> float:
        """Send SIGTERM; return the seconds until the process has ended, or infinity."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        if self._process.returncode is None:
            self._process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS_MAX):
                code = await self._process.wait()
        except TimeoutError:
            return float("inf")
        return loop.time() - begun if code == 0 else float("inf")

    def _is_serving(self) -> bool:
        assert self._process.returncode is None, self.log_tail
        return "serving " in self._log.read_text()

    @property
    def _tokens_file(self) -> Path:
        return self._folder / "tokens"

    @property
    def _limits_file(self) -> Path:
        return self._folder / "limits.toml"

    async def _start(self, output: int, *module: str) -> Process:
        command = [sys.executable, "-m", *module]
        if self._setup.descriptors and module == ("service",):
            command = [*_limited(self._setup.descriptors), *command]
        return await asyncio.create_subprocess_exec(
            *command, env=self._environment(), cwd=SERVICE_ROOT, stdout=output, stderr=output
        )

    def _environment(self) -> dict[str, str]:
        limits = {"CALLER_LIMITS_FILE": str(self._limits_file)} if self._setup.caller_limits else {}
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(SERVICE_ROOT),
            "TMPDIR": str(self._folder),
            "LISTEN_ADDRESS": self.address,
            "ADMIN_ADDRESS": self.admin_address,
            "HTTP_ADDRESS": self.http_address,
            "PUBLIC_URL": f"http://{self.http_address}",
            "DATABASE_URL": f"sqlite:///{self._folder}/generation.db",
            "AUTH_TOKENS_FILE": str(self._tokens_file),
            "KIE_API_KEY": API_KEY,
            "KIE_API_URL": self.simulator_url,
            "KIE_UPLOAD_URL": self.simulator_url,
            "KIE_CREATES_PER_10_SECONDS": "0",
            "KIE_STATUS_PER_SECOND": "0",
            "KIE_RUNNING_MAX": "0",
            "POLL_INTERVAL_SECONDS": "0.1",
            # A create is answered once it is stored, so that its time is the service's own and not
            # the provider's.
            "CREATE_WAIT_SECONDS": "0",
            **limits,
            **self._setup.settings,
        }


def _limited(descriptors: Descriptors) -> list[str]:
    """Return a command before another that limits its descriptors."""
    limit = f"ulimit -S -n {descriptors.soft} && ulimit -H -n {descriptors.hard}"
    return ["/bin/sh", "-c", f'{limit} && exec "$@"', "sh"]


class Attacker:
    """The attacker's process, which waits for a line on stdin."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    async def attack(self) -> Outcome:
        """Attack, and return the outcome; connections of the attacker stay open."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"go\n")
        async with asyncio.timeout(ATTACK_SECONDS):
            line = await self._process.stdout.readline()
        outcome: Outcome = json.loads(line) if line else {"the attacker died": 1}
        return outcome


@asynccontextmanager
async def attacker(attack: Attack, target: Target) -> AsyncIterator[Attacker]:
    """Start an attacker; kill it at the end."""
    name = f"{attack.__module__}:{getattr(attack, '__name__')}"  # noqa: B009 - not of a callable
    arguments = ("-m", "tests.hostile.attacker", name, target.to_json())
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=ROOT, stdin=PIPE, stdout=PIPE
    )
    try:
        yield Attacker(process)
    finally:
        await _kill(process)


async def _kill(process: Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.communicate()  # also closes the pipes
