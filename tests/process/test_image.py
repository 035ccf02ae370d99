"""The container image: what the Dockerfile copies serves, and its health check tells the truth.

Docker is not needed: the folders of the Dockerfile are copied, and its commands are run there.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from providers.kie.simulator import Simulator
from service import ready
from service.settings import Settings
from tests.support.paths import ROOT
from tests.support.processes import served, to

DOCKERFILE = (ROOT / "Dockerfile").read_text()
PINNED = re.compile(r"[a-z]+:\d+\.\d+(\.\d+)?(-[a-z]+)*")
DEAD_PROXY = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy"), "http://127.0.0.1:1")


def command(instruction: str) -> list[str]:
    """Return the command of HEALTHCHECK or CMD."""
    [last] = re.findall(rf"^{instruction}\b(?:.*\\\n)?.*?(\[.+\])$", DOCKERFILE, re.MULTILINE)
    words: list[str] = json.loads(last)
    assert words[0] == "python"
    return [sys.executable, *words[1:]]


def healthy(admin_address: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the health check of the image as Docker does: in the container's environment."""
    return subprocess.run(
        command("HEALTHCHECK"),
        cwd=ROOT,
        env=environment | {"ADMIN_ADDRESS": admin_address},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "localhost"])  # noqa: S104
async def test_the_health_check_follows_the_admin_address_and_ignores_proxies(
    host: str, kie: Simulator, tmp_path: Path, unused_tcp_port: int
) -> None:
    address = f"{host}:{unused_tcp_port}"
    async with served(tmp_path, ADMIN_ADDRESS=address, **to(kie.url)):
        check = healthy(address, **DEAD_PROXY)
    assert (check.returncode, check.stderr) == (0, "")


def test_the_health_check_fails_and_says_why_if_nothing_listens(unused_tcp_port: int) -> None:
    check = healthy(f"127.0.0.1:{unused_tcp_port}")
    assert check.returncode == 1
    assert f"127.0.0.1:{unused_tcp_port}: " in check.stderr


def test_the_health_check_succeeds_if_the_admin_port_is_off() -> None:
    assert healthy("").returncode == 0


def test_the_health_check_has_the_default_of_the_setting() -> None:
    assert Settings.model_fields["admin_address"].default == ready.DEFAULT_ADDRESS


def test_the_image_contains_everything_that_the_service_imports(tmp_path: Path) -> None:
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for source in shlex.split(sources):
            copy = ["cp", "-r", str(ROOT / source), str(tmp_path)]
            subprocess.run(copy, check=True)
    environment = {"PYTHONPATH": str(tmp_path), "PATH": os.environ["PATH"]}
    for module in ("service", "providers.kie.simulator"):
        arguments = [sys.executable, "-m", module, "--help"]
        subprocess.run(arguments, cwd="/", env=environment, check=True, capture_output=True)


def test_the_build_context_contains_only_what_the_image_copies() -> None:
    copied = set(re.findall(r"^COPY (?!--from)(\S+) ", DOCKERFILE, re.MULTILINE))
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied


def test_the_image_runs_as_a_user_with_a_number() -> None:
    assert re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE) == ["10001:10001"]


def test_the_base_image_has_a_full_version() -> None:
    [image] = re.findall(r"^ARG PYTHON_IMAGE=(.+)$", DOCKERFILE, re.MULTILINE)
    assert PINNED.fullmatch(image)
    assert image.count(".") == 2
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert set(bases) == {"${PYTHON_IMAGE}"}
