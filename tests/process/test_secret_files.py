"""Secrets from files: what their content may be, and how a bad one is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from providers.kie.simulator import Simulator
from service.environment import SettingsError, load_settings
from service.settings import Settings
from tests.support.harness import API_KEY
from tests.support.paths import ROOT
from tests.support.processes import Launch, to

SECRET = "never-to-be-shown"
GOOD = {
    "DATABASE_URL": f"postgresql://user:{SECRET}@host/name",
    "KIE_API_KEY": SECRET,
    "KIE_WEBHOOK_KEY": SECRET,
    "CALLBACK_SECRET": f"{SECRET},older",
}
ENDS = ("", "\n", "\r\n", "\n\n", "\r\n\r\n")
# What must not be in a file, around or inside any secret.
BLANKS = (
    "{} ",
    " {}",
    "{}\t",
    "{}\n ",
    "\n{}",
    "{}\nmore",
    "{} more",
    "{}\tmore",
    "{}\rmore",
    "{}\x00",
    "\ufeff{}",  # what editors on Windows put before UTF-8
)
Environment = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: Environment) -> None:
    """Hide the settings in the developer's environment."""
    for field in Settings.model_fields:
        monkeypatch.delenv(field.upper(), raising=False)


def load(monkeypatch: Environment, folder: Path, **contents: bytes) -> Settings:
    """Load settings whose secrets are in files with these contents."""
    for name, content in contents.items():
        file = folder / name
        file.write_bytes(content)
        monkeypatch.setenv(f"{name}_FILE", str(file))
    return load_settings()


def refused(monkeypatch: Environment, folder: Path, **contents: bytes) -> str:
    with pytest.raises(SettingsError) as caught:
        load(monkeypatch, folder, **contents)
    assert SECRET not in str(caught.value)
    return str(caught.value)


def value(settings: Settings, name: str) -> str:
    secret = getattr(settings, name.lower())
    text = secret.get_secret_value()
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", GOOD)
def test_a_secret_is_the_content_of_its_file_without_the_line_feeds_at_its_end(
    name: str, end: str, tmp_path: Path, monkeypatch: Environment
) -> None:
    settings = load(monkeypatch, tmp_path, **{name: f"{GOOD[name]}{end}".encode()})
    assert value(settings, name) == GOOD[name]
    assert SECRET not in repr(settings)


def test_all_secrets_can_come_from_files(tmp_path: Path, monkeypatch: Environment) -> None:
    contents = {name: f"{secret}\n".encode() for name, secret in GOOD.items()}
    settings = load(monkeypatch, tmp_path, **contents)
    assert {name: value(settings, name) for name in GOOD} == GOOD


@pytest.mark.parametrize("pattern", BLANKS)
@pytest.mark.parametrize("name", GOOD)
def test_blanks_in_the_file_of_a_secret_are_refused_by_its_name(
    name: str, pattern: str, tmp_path: Path, monkeypatch: Environment
) -> None:
    line = refused(monkeypatch, tmp_path, **{name: pattern.format(GOOD[name]).encode()})
    assert line.startswith(f"{name}_FILE: ")
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n\n", b"\xff\xfe", b"a" * 100_000])
@pytest.mark.parametrize("name", GOOD)
def test_a_file_that_contains_no_secret_is_refused_by_its_name(
    name: str, content: bytes, tmp_path: Path, monkeypatch: Environment
) -> None:
    line = refused(monkeypatch, tmp_path, **{name: content})
    assert line.startswith(f"{name}_FILE: ")


@pytest.mark.parametrize("name", GOOD)
def test_a_pipe_is_refused_and_not_waited_for(
    name: str, tmp_path: Path, monkeypatch: Environment
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    monkeypatch.setenv(f"{name}_FILE", str(pipe))
    with pytest.raises(SettingsError, match=f"{name}_FILE: must be a file"):
        load_settings()


@pytest.mark.parametrize("name", GOOD)
def test_a_secret_and_its_file_together_are_refused(
    name: str, tmp_path: Path, monkeypatch: Environment
) -> None:
    monkeypatch.setenv(name, GOOD[name])
    line = refused(monkeypatch, tmp_path, **{name: GOOD[name].encode()})
    assert line == f"{name}, {name}_FILE: only one of the two may be set"


def test_contradictions_of_all_secrets_are_named_at_once(
    tmp_path: Path, monkeypatch: Environment
) -> None:
    for name, secret in GOOD.items():
        monkeypatch.setenv(name, secret)
    contents = {name: secret.encode() for name, secret in GOOD.items()}
    lines = refused(monkeypatch, tmp_path, **contents).splitlines()
    assert [line.partition(",")[0] for line in lines] == list(GOOD)


@pytest.mark.parametrize("name", GOOD)
def test_an_empty_variable_next_to_a_file_counts_as_unset(
    name: str, tmp_path: Path, monkeypatch: Environment
) -> None:
    monkeypatch.setenv(name, "")
    settings = load(monkeypatch, tmp_path, **{name: GOOD[name].encode()})
    assert value(settings, name) == GOOD[name]


def test_a_key_in_a_file_contradicts_a_simulator(tmp_path: Path, monkeypatch: Environment) -> None:
    monkeypatch.setenv("KIE_SIMULATOR", "true")
    assert refused(monkeypatch, tmp_path, KIE_API_KEY=b"key").startswith("KIE_SIMULATOR: ")


async def test_a_process_serves_with_its_secrets_in_files(
    launch: Launch, tmp_path: Path, kie: Simulator
) -> None:
    (tmp_path / "key").write_text(f"{API_KEY}\n")
    (tmp_path / "url").write_text("sqlite:///elsewhere.db\n")
    urls = {name: url for name, url in to(kie.url).items() if name != "KIE_API_KEY"}
    async with launch(KIE_API_KEY_FILE="key", DATABASE_URL_FILE="url", **urls) as process:
        assert (await process.end((await process.create()).id)).artifacts
        assert API_KEY not in process.process.text
    assert (tmp_path / "elsewhere.db").exists()
    assert not (tmp_path / "generation.db").exists()


def test_a_command_reads_the_url_of_the_database_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("sqlite:///elsewhere.db\n")
    done = subprocess.run(
        [sys.executable, "-m", "service", "migrate"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "DATABASE_URL_FILE": "url"},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "elsewhere.db").exists()
