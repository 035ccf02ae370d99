"""The client as others install it: a wheel in an empty environment, next to code of their own."""

import asyncio
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from kie_generation import __version__
from tests.support.examples import example_in
from tests.support.paths import ROOT

SECONDS = 180
UV = ("-m", "uv", "--quiet")
PROTOC = ("-m", "grpc_tools.protoc", "-I", ROOT / "protos", "generation/v1/generation.proto")


async def run(*command: str | Path, cwd: Path, **env: str) -> tuple[int | None, str]:
    """Run a program without the checkout on its path; return its exit code and its output."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        cwd=cwd,
        env=inherited | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), SECONDS)
    return process.returncode, out.decode()


async def succeed(*command: str | Path, cwd: Path) -> str:
    code, shown = await run(*command, cwd=cwd)
    assert code == 0, shown
    return shown


@pytest.fixture(scope="module")
async def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = ("build", "--wheel", "--out-dir", folder, ROOT / "client")
    await succeed(sys.executable, *UV, *build, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


async def unpack(wheel: Path, folder: Path) -> None:
    """Install the client without its dependencies, for the Python of the tests."""
    python = ("--python", sys.executable)
    install = ("pip", "install", *python, "--no-deps", "--target", folder, wheel)
    await succeed(sys.executable, *UV, *install, cwd=folder)


@dataclass(frozen=True)
class Project:
    """A folder with a `client` of its own and its own stubs, and an environment for it."""

    folder: Path
    scripts: Path

    async def run(self, program: str, *options: str) -> str:
        (self.folder / "program.py").write_text(program)
        python = self.scripts / "python"
        return await succeed(python, *options, "program.py", cwd=self.folder)


@pytest.fixture(scope="module")
async def project(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Only the client and mypy are installed."""
    folder = tmp_path_factory.mktemp("project")
    scripts = folder / ".venv" / "bin"
    await succeed(sys.executable, *UV, "venv", "--python", sys.executable, cwd=folder)
    install = ("pip", "install", "--python", scripts / "python", wheel, "mypy")
    await succeed(sys.executable, *UV, *install, cwd=folder)
    (folder / "client").mkdir()
    (folder / "client" / "__init__.py").write_text("OWNER = 'the project'\n")
    await succeed(sys.executable, *PROTOC, "--python_out=.", "--grpc_python_out=.", cwd=folder)
    return Project(folder, scripts)


# --- the wheel ---


async def test_the_wheel_has_one_package_with_its_types_and_license(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    metadata = f"kie_generation_client-{__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"kie_generation", metadata}
    messages = "kie_generation/generated/generation/v1/generation_pb2"
    expected = {"kie_generation/py.typed", f"{messages}.py", f"{messages}.pyi"}
    assert expected - set(names) == set()
    assert any(name.endswith("/LICENSE") for name in names)


async def test_the_command_line_is_a_script_that_knows_its_version(
    wheel: Path, tmp_path: Path
) -> None:
    await unpack(wheel, tmp_path)
    script = tmp_path / "bin" / "kie-generation"
    code, shown = await run(script, "--version", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert (code, shown) == (0, f"kie-generation {__version__}\n")


async def test_a_hint_of_the_script_can_be_pasted(wheel: Path, tmp_path: Path) -> None:
    await unpack(wheel, tmp_path)
    scripts = tmp_path / "bin"
    env = {"PYTHONPATH": str(tmp_path), "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    _, shown = await run(scripts / "kie-generation", "nonsense", cwd=tmp_path, **env)
    assert "hint: try: kie-generation --help" in shown
    env["PATH"] = os.environ["PATH"]
    _, shown = await run(scripts / "kie-generation", "nonsense", cwd=tmp_path, **env)
    assert "hint: try: bin/kie-generation --help" in shown


async def test_without_the_extra_the_command_line_says_what_to_install(project: Project) -> None:
    code, shown = await run(project.scripts / "kie-generation", "list", cwd=project.folder)
    assert code == 1
    assert "pip install 'kie-generation-client[cli]'" in shown
    assert "Traceback" not in shown


# --- the project ---


@pytest.mark.parametrize(
    ("page", "first_line"),
    [
        ("README.md", "import asyncio"),
        ("docs/client.md", "import asyncio"),
        ("docs/client.md", "from kie_generation import"),
    ],
)
async def test_an_example_is_typed_and_runs_where_only_the_client_is_installed(
    project: Project, address: str, page: str, first_line: str
) -> None:
    program = example_in(page, first_line)
    await project.run(program, "-m", "mypy", "--strict")
    shown = await project.run(program.replace("127.0.0.1:50051", address))
    assert "SUCCESS" in shown
    (saved,) = re.findall(r"PosixPath\('(.*?)'\)", shown)
    assert (project.folder / saved).read_bytes().startswith(b"\x89PNG")


TYPED = """
from typing import assert_type

from kie_generation import GenerationClient, GenerationTask, Imagen4Params, TaskStatus, UploadedFile
from kie_generation import sync


async def asynchronous(client: GenerationClient) -> None:
    assert_type(await client.create(Imagen4Params(), prompt_id="p-1"), GenerationTask)
    async for task in client.list(status=TaskStatus.TASK_STATUS_FAILED):
        assert_type(task, GenerationTask)
    await client.get(1)  # type: ignore[arg-type]


def blocking(client: sync.GenerationClient) -> None:
    assert_type(client.create(Imagen4Params(), prompt_id="p-1"), GenerationTask)
    assert_type(client.upload("sea.png"), UploadedFile)
    for task in client.watch("t-1", after_revision=2):
        assert_type(task, GenerationTask)
        assert_type(task.result_json, str)
    client.get(1)  # type: ignore[arg-type]
    client.upload("sea.png", nothing=1)  # type: ignore[call-arg]
"""


async def test_both_clients_are_typed(project: Project) -> None:
    await project.run(TYPED, "-m", "mypy", "--strict")


OWN_STUBS = """
import asyncio
import sys

{first}
{second}
import client
import grpc
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from grpc_status import rpc_status


async def main(address: str) -> None:
    assert client.OWNER == "the project"
    params = generation_pb2.Imagen4Params(prompt="a lighthouse")
    async with GenerationClient(address) as ours:
        created = await ours.create(params, prompt_id="p-1")
    async with grpc.aio.insecure_channel(address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        request = generation_pb2.QueryTaskRequest(task_id=created.id)
        task = (await stub.QueryTask(request)).task
        assert isinstance(task, GenerationTask)
        assert isinstance(created, generation_pb2.GenerationTask)
        info = ErrorInfo()
        try:
            await stub.QueryTask(generation_pb2.QueryTaskRequest(task_id="nothing"))
        except grpc.aio.AioRpcError as error:
            status = rpc_status.from_call(error)
            assert any(detail.Unpack(info) for detail in status.details)
    print(task.prompt_id, info.reason)


asyncio.run(main(sys.argv[1]))
"""
STUBS = "from generation.v1 import generation_pb2, generation_pb2_grpc"
CLIENT = "from kie_generation import GenerationClient, GenerationTask"


@pytest.mark.parametrize(("first", "second"), [(STUBS, CLIENT), (CLIENT, STUBS)])
async def test_the_client_works_next_to_stubs_and_a_client_package_of_the_project(
    project: Project, address: str, first: str, second: str
) -> None:
    program = OWN_STUBS.format(first=first, second=second)
    program = program.replace("sys.argv[1]", repr(address))
    assert await project.run(program) == "p-1 TASK_NOT_FOUND\n"
