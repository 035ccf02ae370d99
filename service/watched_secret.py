"""Secrets that are read again when their file changes."""

from collections.abc import Callable
from pathlib import Path

import structlog
from pydantic import SecretStr

from service.files import WatchedFile, read_file
from service.metrics import Metrics

log = structlog.get_logger()


class WatchedSecret:
    """A secret in a file. New content that is invalid is reported, and the old secret is kept."""

    def __init__(
        self,
        name: str,
        secret: str,
        path: Path,
        parse: Callable[[bytes], str],
        metrics: Metrics,
    ) -> None:
        """Read the file, as it may have changed since the settings were read.

        Args:
            name: The name of the secret's setting, in lower case.
            secret: The secret in the file when the settings were read.
            path: The file.
            parse: Returns the secret in the content of the file, or raises ValueError.
            metrics: They show whether the file is valid.

        Raises:
            OSError: The file is gone.
        """
        self._name = name
        self._secret = secret
        self._file = WatchedFile(path)
        self._parse = parse
        self._metrics = metrics
        self._problem = ""
        metrics.show_config_problems(name, 0)
        self._update(lambda: read_file(path))

    def current(self) -> str:
        """Return the secret as it is now; reads the file only if it has changed."""
        self._update(self._file.changed)
        return self._secret

    def _update(self, read: Callable[[], bytes | None]) -> None:
        try:
            if (content := read()) is None:
                return
            secret = self._parse(content)
        except OSError as error:
            self._report(f"cannot be read: {error.strerror or error}")
            return
        except ValueError as error:
            self._report(str(error))
            return
        if secret != self._secret:
            self._secret = secret
            log.info("secret reloaded", file=f"{self._name.upper()}_FILE")
        self._report("")

    def _report(self, problem: str) -> None:
        if problem == self._problem:
            return
        self._problem = problem
        self._metrics.show_config_problems(self._name, int(bool(problem)))
        if problem:
            log.warning(
                "the old secret is still used, as its file is invalid",
                file=f"{self._name.upper()}_FILE",
                problem=problem,
            )


def current_secret(
    name: str,
    secret: SecretStr,
    path: Path | None,
    parse: Callable[[bytes], str],
    metrics: Metrics,
) -> Callable[[], str]:
    """Return a function that returns a secret as it is now: from its file, if it has one."""
    if path is None:
        return secret.get_secret_value
    return WatchedSecret(name, secret.get_secret_value(), path, parse, metrics).current
