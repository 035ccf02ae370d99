"""The commands in hints: they must work when they are pasted into a shell."""

import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kie_generation.addresses import is_local


def program() -> list[str]:
    """Return the command that started this program, without its arguments."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name:
        return [_relative(sys.executable), "-m", spec.name.removesuffix(".__main__")]
    name = Path(sys.argv[0]).name
    return [name if shutil.which(name) == sys.argv[0] else _relative(sys.argv[0])]


def _relative(executable: str) -> str:
    """Return a path relative to the working directory if the executable is below it."""
    path = Path(executable)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else executable


@dataclass
class Invocation:
    """How the command line was called, for the commands in hints.

    Attributes:
        program: The words that start the program.
        connection: The options that say how to reach the service, except for the token.
        address: The service's address.
        command: The name of the command, such as `create veo3`.
        task_id: The id of the command's task, once it is known.
        folder: The folder for its results.
        market_model: The model that `create market` sends.
    """

    program: list[str] = field(default_factory=program)
    connection: list[str] = field(default_factory=list)
    address: str = ""
    command: str = ""
    task_id: str = ""
    folder: str = ""
    market_model: str = ""

    def connect(self, address: str, files: Mapping[str, Path | None], *, encrypted: bool) -> None:
        """Record the options that a further command needs to reach the same service.

        Args:
            address: The service.
            files: The options that name certificates, and their paths.
            encrypted: Whether the connection uses TLS.
        """
        named = [word for option, path in files.items() if path for word in (option, str(path))]
        self.address = address
        self.connection = ["--address", address, *(named or (["--tls"] if encrypted else []))]

    def line(self, *arguments: str) -> str:
        """Return a command that reaches the same service."""
        return shlex.join([*self.program, *self.connection, *arguments])

    def help_line(self) -> str:
        """Return the command that shows the help of this command."""
        return shlex.join([*self.program, *self.command.split(), "--help"])

    @property
    def is_local(self) -> bool:
        """Return whether the service is on this machine."""
        return is_local(self.address)
