"""The commands that hints tell people to run: they must work when they are pasted."""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from client.addresses import is_local


def program() -> list[str]:
    """Returns how this program was started, up to its arguments."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None or not spec.name:
        return [sys.argv[0]]
    return [_shortest(sys.executable), "-m", spec.name.removesuffix(".__main__")]


def _shortest(executable: str) -> str:
    """Return the path of Python relative to the working directory if it is below it."""
    path = Path(executable)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else executable


@dataclass
class Invocation:
    """How the command line was called, as far as further commands repeat it.

    Attributes:
        program: what starts it.
        connection: the options that say how to reach the service, but not the token.
        address: the service's address.
        command: the words that name the command, as in `create veo3`.
        task_id: the task it is about, once that is known.
        folder: where its results are saved.
    """

    program: list[str] = field(default_factory=program)
    connection: list[str] = field(default_factory=list)
    address: str = ""
    command: str = ""
    task_id: str = ""
    folder: str = ""

    def connect(self, address: str, files: Mapping[str, Path | None], *, encrypted: bool) -> None:
        """Keeps the options that a further command needs to reach the same service.

        Args:
            address: the service.
            files: the options that name certificates, and their paths.
            encrypted: whether the connection uses TLS.
        """
        named = [word for option, path in files.items() if path for word in (option, str(path))]
        self.address = address
        self.connection = ["--address", address, *(named or (["--tls"] if encrypted else []))]

    def line(self, *arguments: str) -> str:
        """Returns a command that reaches the same service."""
        return shlex.join([*self.program, *self.connection, *arguments])

    def help_line(self) -> str:
        """Returns the command that shows the help of this command."""
        return shlex.join([*self.program, *self.command.split(), "--help"])

    @property
    def is_local(self) -> bool:
        """Whether the service is on this machine."""
        return is_local(self.address)
