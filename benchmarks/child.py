"""A process that answers commands: one JSON object per line on its stdin, and one on its stdout.

The parent's end blocks, because the benchmarks do one thing at a time.
"""

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LINE_MAX_BYTES = 1 << 28
STOP_SECONDS = 10

Command = Callable[..., Awaitable[Any]]


class ChildError(Exception):
    """A child process exited, or a command failed."""


class Child:
    """A process that runs one of the modules that answer commands."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._module = module
        # In a new session, a Ctrl-C at the terminal does not reach it: the parent stops it.
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,
        )
        self.hello = self._receive()

    @property
    def address(self) -> str:
        """The address of a server."""
        return str(self.hello["address"])

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def ask(self, command: str, **arguments: Any) -> Any:
        """Send a command and return its answer.

        Raises:
            ChildError: The command failed.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
        self._process.stdin.flush()
        answer = self._receive()
        if "error" in answer:
            raise ChildError(f"{self._module}: {answer['error']}")
        return answer["answer"]

    def kill(self) -> None:
        """Kill the process; `close` must still be called."""
        self._process.kill()

    def close(self) -> None:
        """Stop the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it is dead, and a command was not sent
            self._process.stdin.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ChildError(f"{self._module} exited with {self._process.wait()}")
        return json.loads(line)


async def answer_commands(commands: Mapping[str, Command], hello: Mapping[str, Any]) -> None:
    """Print `hello`, then answer commands one after the other until stdin ends."""
    lines = asyncio.StreamReader(limit=LINE_MAX_BYTES)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    print(json.dumps(hello), flush=True)
    while line := await lines.readline():
        arguments = json.loads(line)
        try:
            answer = {"answer": await commands[arguments.pop("command")](**arguments)}
        except Exception as error:  # noqa: BLE001 - the parent raises it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
