"""A storage that cannot be used ends the start with its own words, and without secrets."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.results.bucket import Bucket
from service.results.errors import StoreError
from service.results.places import place_of
from tests.support.kept_places import KEY, PLACES, SECRET, S3Place
from tests.support.paths import ROOT
from tests.support.processes import Launch, started


@pytest.fixture(params=["moto", "versitygw"])
async def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[S3Place]:
    async with PLACES[request.param](tmp_path) as place:
        assert isinstance(place, S3Place)
        yield place


async def refused(folder: Path, **variables: str) -> str:
    """Return what a process says that must not start."""
    async with started(folder, **variables) as process:
        assert await process.exit_code() == 2
        assert SECRET not in process.text
        assert KEY not in process.text
        return process.text


async def test_a_bucket_that_does_not_exist_is_named_by_the_store(
    bucket: S3Place, tmp_path: Path
) -> None:
    text = await refused(tmp_path, **bucket.variables, RESULTS_URL="s3://no-such-bucket/x")
    assert "RESULTS_URL" in text
    assert "NoSuchBucket" in text


@pytest.mark.parametrize("bucket", ["versitygw"], indirect=True)
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("AWS_SECRET_ACCESS_KEY", f"{SECRET}-wrong", "SignatureDoesNotMatch"),
        ("AWS_ACCESS_KEY_ID", f"{KEY}-WRONG", "No user exists"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:1", "error sending request"),
    ],
)
async def test_a_store_says_why_it_refuses_and_no_credential_is_shown(
    bucket: S3Place, tmp_path: Path, name: str, value: str, words: str
) -> None:
    variables = bucket.variables | {name: value}
    text = await refused(tmp_path, **variables, RESULTS_URL=bucket.url)
    assert words in text


WRONG_ENDPOINTS = ("", "storage", "storage:9000", "http://", "http://user:word@", "ftp://storage")


@pytest.mark.parametrize("endpoint", [*WRONG_ENDPOINTS, "http://127.0.0.1:99999", "http://a b"])
@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"])
def test_an_endpoint_that_is_no_url_is_an_error_of_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, endpoint: str
) -> None:
    monkeypatch.setenv(name, endpoint)
    with pytest.raises(StoreError, match=rf"^{name} must be an http or https URL") as found:
        Bucket(place_of("s3://bucket/x"))
    assert "word" not in str(found.value)


async def test_an_endpoint_that_is_no_url_ends_the_start(tmp_path: Path) -> None:
    variables = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": ""}
    text = await refused(tmp_path, **variables, RESULTS_URL="s3://bucket/x")
    assert "RESULTS_URL: AWS_ENDPOINT_URL must be" in text
    assert "Traceback" not in text


async def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    text = await refused(tmp_path, RESULTS_URL=f"{file.as_uri()}/results")
    assert "Not a directory" in text


@pytest.mark.parametrize(
    "url",
    [
        *(
            "results",
            "/results",
            "file://results",
            "file:///",
            "file:///a/../b",
            "s3://",
            "s3:///x",
        ),
        *("http://bucket/x", "s3://user:word@bucket/x", "s3://bucket/x?y=z", "s3://bucket/a b"),
        *("s3://bucket/a/../b", "s3://bucket/a//b", "azure://x/y", "s3://[bucket/x"),
        *("file:results", "s3://bucket/a/./b", "gs://bucket/."),
    ],
)
async def test_a_url_that_names_no_place_is_an_error_of_the_setting(
    tmp_path: Path, url: str
) -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "RESULTS_URL": url}
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "service"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("RESULTS_URL: must ")
    assert "word" not in done.stderr


async def test_the_probe_leaves_nothing_behind_and_no_proxy_is_used_for_loopback(
    bucket: S3Place, launch: Launch
) -> None:
    dead = dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY"), "http://127.0.0.1:1")
    async with launch(**bucket.variables, **dead, RESULTS_URL=bucket.url) as served:
        task = await served.create()
        [artifact] = (await served.end(task.id)).artifacts
        content = await asyncio.to_thread(bucket.content, artifact.storage_uri)
        assert len(content) == artifact.size_bytes
        assert len(await asyncio.to_thread(bucket.names)) == 1


@pytest.mark.parametrize("results_url", ["", "file:///tmp"])
def test_without_an_object_store_its_library_is_not_loaded(results_url: str) -> None:
    code = (
        "import sys, service.__main__, service.kept; from service.results.objects import _objects;"
        " assert 'obstore' not in sys.modules"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "RESULTS_URL": results_url}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=60)
