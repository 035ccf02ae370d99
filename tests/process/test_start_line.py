"""The first line of the log: what runs, and whether it spends money."""

import re
import tomllib
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from providers.kie.simulator import Simulator
from service import VERSION
from tests.support.certificates import Authority
from tests.support.harness import API_KEY
from tests.support.paths import ROOT
from tests.support.processes import Launch, served, started, to

NAMES = {"version", "database", "tls", "callers", "proxy", "provider"}


def first(log: list[dict[str, Any]]) -> dict[str, Any]:
    line = log[0]
    assert (line["event"], line["level"]) == ("starting", "info")
    assert line.keys() >= NAMES
    return line


def test_the_version_is_that_of_the_project_and_of_the_chart() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    chart = (ROOT / "deploy/helm/generation/Chart.yaml").read_text()
    app_version = re.search(r'^appVersion: "?([^"\n]+)', chart, re.MULTILINE)
    assert app_version
    assert VERSION == project["version"] == app_version[1]


async def test_a_trial_is_described_as_one(launch: Launch) -> None:
    async with launch() as process:
        line = first(process.process.log)
    assert line["version"] == VERSION
    assert line["database"] == "SQLite, generation.db"
    assert line["tls"] == "off"
    assert line["callers"] == "everybody, without tokens"
    assert line["proxy"] == "none"
    assert line["provider"] == "the bundled simulator, results are samples"


@pytest.mark.parametrize(
    ("declared", "described"), [({}, "simulated"), ({"KIE_SIMULATOR": "false"}, "REAL MONEY")]
)
async def test_the_line_says_whether_money_is_spent_and_shows_no_secret(
    launch: Launch, kie: Simulator, declared: dict[str, str], described: str
) -> None:
    host = kie.url.removeprefix("http://")
    urls = to(kie.url) | {"KIE_API_URL": f"http://user:pass-word@{host}"}
    async with launch(**urls, **declared) as process:
        line = first(process.process.log)
    assert line["provider"] == f"{kie.url}, {described}"
    assert "pass-word" not in process.process.text
    assert API_KEY not in process.process.text


async def test_kie_itself_means_real_money(tmp_path: Path) -> None:
    # It ends before it serves, so that nothing can reach Kie.
    nowhere = {"KIE_API_KEY": API_KEY, "DATABASE_URL": "sqlite:///no/such/folder/x.db"}
    async with started(tmp_path, **nowhere) as process:
        assert await process.exit_code() == 1
    assert first(process.log)["provider"] == "https://api.kie.ai, REAL MONEY"


async def test_postgresql_is_named_without_its_user_and_password(
    tmp_path: Path, postgresql_url: str
) -> None:
    variables = {"DATABASE_URL": postgresql_url, "KIE_SIMULATOR": "true"}
    async with served(tmp_path, **variables) as process:
        database = first(process.process.log)["database"]
    assert re.fullmatch(r"PostgreSQL, \w[\w ]* on \S+|PostgreSQL, .+ on the local socket", database)
    assert "@" not in database


async def test_a_password_is_not_logged_if_the_database_is_unavailable(tmp_path: Path) -> None:
    url = "postgresql://somebody:pass-word@127.0.0.1:1/generation"
    async with started(tmp_path, DATABASE_URL=url, KIE_SIMULATOR="true") as process:
        assert await process.exit_code() == 1
    assert first(process.log)["database"] == "PostgreSQL, generation on 127.0.0.1"
    assert "pass-word" not in process.text
    assert "somebody" not in process.text


async def test_tls_and_the_callers_with_tokens_are_counted(launch: Launch, tmp_path: Path) -> None:
    authority = Authority.make(tmp_path / "tls", "server")
    digests = [sha256(token.encode()).hexdigest() for token in ("a", "b", "c")]
    names = ("alice", "alice", "bob")
    (tmp_path / "tokens").write_text(
        "".join(f"{name} {digest}\n" for name, digest in zip(names, digests, strict=True))
    )
    variables = {
        "AUTH_TOKENS_FILE": "tokens",
        "TLS_CERT_FILE": str(authority.cert("server")),
        "TLS_KEY_FILE": str(authority.key("server")),
    }
    async with launch(**variables) as process:
        line = first(process.process.log)
    assert (line["tls"], line["callers"]) == ("on", "2, with tokens")


async def test_a_proxy_that_is_not_used_is_reported(launch: Launch) -> None:
    async with launch(HTTPS_PROXY="http://user:pass-word@127.0.0.1:1") as process:
        line = first(process.process.log)
    assert line["proxy"] == "none, HTTPS_PROXY is ignored"
    assert "pass-word" not in process.process.text


@pytest.mark.parametrize(
    ("variables", "proxy"),
    [
        ({"HTTPS_PROXY": "http://user:pass-word@p.example:1"}, "http://p.example:1"),
        ({"https_proxy": "user:pass-word@p.example:1"}, "http://p.example:1"),
        ({"HTTP_PROXY": "http://p.example:1"}, "none, HTTP_PROXY is ignored"),
        ({"ALL_PROXY": "http://p.example:1"}, "none, ALL_PROXY is ignored"),
        ({"HTTPS_PROXY": "http://p.example:1", "NO_PROXY": "*"}, "none, HTTPS_PROXY is ignored"),
        (
            {"HTTPS_PROXY": "http://p.example:1", "NO_PROXY": "redpandaai.co"},
            "http://p.example:1 for KIE_API_URL",
        ),
    ],
)
async def test_the_proxy_to_kie_is_named_without_its_password(
    tmp_path: Path, variables: dict[str, str], proxy: str
) -> None:
    # It ends before it serves, so that nothing can reach Kie.
    nowhere = {"KIE_API_KEY": API_KEY, "DATABASE_URL": "sqlite:///no/such/folder/x.db"}
    async with started(tmp_path, **nowhere, **variables) as process:
        assert await process.exit_code() == 1
    assert first(process.log)["proxy"] == proxy
    assert "pass-word" not in process.text
