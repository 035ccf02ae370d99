"""The sample clients in other languages against the real service, over a connection that fails.

`make examples` builds them and runs these tests.
"""

import asyncio
import hashlib
import os
import re
import shutil
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from providers.kie.simulator import Simulator
from service.resume_token import ChangeFilter, ResumePoint, write_token
from storage.changes import Position
from tests.support.harness import INSTANT, Service, serving
from tests.support.paths import ROOT
from tests.support.tcp_proxy import proxied

DEADLINE_SECONDS = 60.0  # starting a JVM takes seconds if other tests run
HEARTBEAT_SECONDS = 0.5
TOKEN = "token-of-the-samples"
METADATA = (("authorization", f"Bearer {TOKEN}"),)
FINISHED_BY_TEST = replace(INSTANT, seconds=dict.fromkeys(INSTANT.seconds, (600, 600)))


@dataclass(frozen=True)
class Example:
    """A sample program: what `make examples` builds, and how to run it.

    Attributes:
        built: A file that the build leaves behind.
        command: Creates a task, watches it, uploads a file, and shows an error.
        follow: Follows the changes of all tasks, with the file of a token as its argument.
    """

    built: Path
    command: Sequence[str]
    follow: Sequence[str] = ()


EXAMPLES = {
    "go": Example(
        ROOT / "examples/go/build/example",
        ["examples/go/build/example"],
        ["examples/go/build/example", "follow"],
    ),
    "node": Example(
        ROOT / "examples/node/node_modules",
        ["node", "examples/node/example.js"],
        ["node", "examples/node/follow.js"],
    ),
    "java": Example(
        ROOT / "examples/java/target/example.jar",
        ["java", "-jar", "examples/java/target/example.jar"],
    ),
}


@pytest.fixture(params=EXAMPLES)
def command(request: pytest.FixtureRequest) -> Sequence[str]:
    """The command of each sample."""
    return _built(request.param).command


@pytest.fixture(params=[language for language, example in EXAMPLES.items() if example.follow])
def follow(request: pytest.FixtureRequest) -> Sequence[str]:
    """The command of each sample that follows all tasks."""
    return _built(request.param).follow


def _built(language: str) -> Example:
    example = EXAMPLES[language]
    if not example.built.exists() or shutil.which(example.command[0], path=_path()) is None:
        pytest.skip(f"THE SAMPLE IN {language.upper()} IS NOT TESTED: `make examples` builds it")
    return example


def _path() -> str:
    return f"{os.environ['PATH']}{os.pathsep}{ROOT}"


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    """The service with one caller, who may create three tasks a minute."""
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    (tmp_path / "tokens").write_text(f"samples {digest}\n")
    (tmp_path / "limits.toml").write_text("[callers.samples]\ncreates_per_minute = 3\n")
    async with (
        Simulator(FINISHED_BY_TEST) as kie,
        serving(
            tmp_path,
            kie,
            auth_tokens_file=tmp_path / "tokens",
            caller_limits_file=tmp_path / "limits.toml",
            watch_heartbeat_seconds=HEARTBEAT_SECONDS,
        ) as running_service,
    ):
        yield running_service


class Run:
    """A running sample and what it has printed."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.output = ""

    async def until(self, pattern: str) -> re.Match[str]:
        """Read until a line matches."""
        assert self.process.stdout is not None
        async with asyncio.timeout(DEADLINE_SECONDS):
            while line := (await self.process.stdout.readline()).decode():
                self.output += line
                if found := re.search(pattern, line):
                    return found
        raise AssertionError(f"{pattern} is not in:\n{self.output}")

    async def end(self) -> int:
        """Read to the end; return the exit code."""
        rest, _ = await asyncio.wait_for(self.process.communicate(), DEADLINE_SECONDS)
        self.output += rest.decode()
        assert self.process.returncode is not None
        return self.process.returncode


@asynccontextmanager
async def started(
    command: Sequence[str], address: str, *arguments: str, token: str = TOKEN
) -> AsyncIterator[Run]:
    process = await asyncio.create_subprocess_exec(
        *command,
        *arguments,
        cwd=ROOT,
        env={
            **os.environ,
            "ADDRESS": address,
            "TOKEN": token,
            "HEARTBEAT_SECONDS": str(HEARTBEAT_SECONDS),
        },
        stdout=PIPE,
        stderr=STDOUT,
    )
    try:
        yield Run(process)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_a_sample_follows_a_task_over_a_lost_and_a_silent_connection_and_uploads(
    command: Sequence[str], service: Service, tmp_path: Path
) -> None:
    picture = tmp_path / "cat.png"
    picture.write_bytes(os.urandom(2_500_000))
    async with (
        proxied(service.address) as (proxy, address),
        started(command, address, str(picture)) as run,
    ):
        await run.until(r"^created \w+")
        await run.until(r"^revision \d+: TASK_STATUS_PENDING")
        proxy.cut()
        await run.until(r"^the stream was lost .* reconnecting after revision \d+")
        await run.until("^reconnected")
        proxy.flowing.clear()
        await run.until(r"^the stream was lost .*no message for 1\.5 ?s")
        proxy.flowing.set()
        await run.until("^reconnected")
        service.kie.finish(service.kie.tasks[0]["id"])
        await run.until(r"^revision \d+: TASK_STATUS_SUCCESS")
        await run.until("^result: http")
        sent = await run.until(r"^uploaded (\d+) bytes with SHA-256 (\w+): http.*cat\.png")
        assert sent.groups() == ("2500000", hashlib.sha256(picture.read_bytes()).hexdigest())
        assert await run.end() == 0
    revisions = [int(number) for number in re.findall(r"^revision (\d+)", run.output, re.MULTILINE)]
    assert revisions == sorted(set(revisions)), "each snapshot is shown once"
    assert len(service.kie.tasks) == 1


async def test_a_sample_shows_the_reason_the_violations_and_the_delay_of_an_error(
    command: Sequence[str], service: Service
) -> None:
    async with started(command, service.address) as run:
        await run.until("^created")
        service.kie.finish(service.kie.tasks[0]["id"])
        await run.until(r"invalid parameters: \w+ INVALID_PARAMS: ")
        await run.until(r"^  provider_params\.kie\.imagen4\.prompt: is required")
        await run.until(r"^  provider_params\.kie\.imagen4\.num_images: must be ")
        assert await run.end() == 0
    await service.create(metadata=METADATA)
    await service.create(metadata=METADATA)
    async with started(command, service.address) as run:
        assert await run.end() == 1
        assert re.search(r"^\w+ RATE_LIMITED: .*\n  retry in \d+", run.output, re.MULTILINE)


async def test_a_sample_ends_with_the_reason_if_its_token_is_wrong(
    command: Sequence[str], service: Service
) -> None:
    async with started(command, service.address, token="wrong") as run:
        assert await run.end() == 1
    assert re.search(r"^\w+ UNAUTHENTICATED: ", run.output), run.output


async def test_a_sample_follows_all_tasks_over_lost_connections_and_continues_after_its_end(
    follow: Sequence[str], service: Service, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    first = await service.create(metadata=METADATA)
    async with proxied(service.address) as (proxy, address):
        async with started(follow, address, str(token)) as run:
            await run.until(rf"^task {first.id} revision \d+: TASK_STATUS_PENDING")
            await run.until("^up to date")
            proxy.cut()
            await run.until("^the stream was lost .* reconnecting")
            await run.until("^reconnected")
            proxy.flowing.clear()
            await run.until(r"^the stream was lost .*no message for 1\.5 ?s")
            proxy.flowing.set()
            await run.until("^reconnected")
            service.kie.finish(service.kie.tasks[0]["id"])
            await run.until(rf"^task {first.id} revision \d+: TASK_STATUS_SUCCESS")
        second = await service.create(metadata=METADATA)
        async with started(follow, address, str(token)) as again:
            await again.until(rf"^task {second.id} revision \d+: TASK_STATUS_PENDING")
            await again.until("^up to date")
    assert not re.search(rf"{first.id} .*PENDING", again.output), "it was handled before"


async def test_a_sample_starts_over_if_its_token_has_expired(
    follow: Sequence[str], service: Service, tmp_path: Path
) -> None:
    binding = ChangeFilter("samples").binding()
    point = ResumePoint(b"restored", 7, Position(7))
    (tmp_path / "token").write_text(write_token(point, binding))
    created = await service.create(metadata=METADATA)
    async with started(follow, service.address, str(tmp_path / "token")) as run:
        await run.until("^the resume token has expired: starting over with all tasks")
        await run.until(rf"^task {created.id} ")


async def test_a_sample_ends_if_its_token_is_damaged_or_cannot_be_stored(
    follow: Sequence[str], service: Service, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("damaged")
    async with started(follow, service.address, str(tmp_path / "token")) as run:
        assert await run.end() == 1
        assert re.search(r"^\w+ INVALID_PARAMS: .*\n  resume_token: must be ", run.output)
    await service.create(metadata=METADATA)
    async with started(follow, service.address, str(tmp_path / "missing" / "token")) as run:
        assert await run.end() == 1
        assert "no such file" in run.output.lower()
