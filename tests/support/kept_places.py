"""Places for results: a folder, moto's S3 in this process, and versitygw, an S3 server."""

import asyncio
import logging
import os
import shutil
import subprocess
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.support.postgres import free_port
from tests.support.tools import tool
from tests.support.waiting import eventually

KEY, SECRET = "AKIATESTSOFRESULTS", "secret-of-the-tests-of-results"


@dataclass
class KeptPlace:
    """A place, and what is in it.

    Attributes:
        url: The value of RESULTS_URL.
        variables: The environment that it needs.
    """

    url: str
    variables: dict[str, str] = field(default_factory=dict)

    def content(self, uri: str) -> bytes:
        """Return the content of an object."""
        raise NotImplementedError

    def names(self) -> set[str]:
        """Return the keys of all objects."""
        raise NotImplementedError

    def temporary(self) -> list[str]:
        """Return the temporary objects that no life-cycle rule of a bucket removes."""
        return []

    def disappear(self) -> None:
        """Make the place unavailable."""
        raise NotImplementedError

    def reappear(self) -> None:
        """Make it available again, with what was in it."""
        raise NotImplementedError


class FolderPlace(KeptPlace):
    """A folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder.as_uri())
        self.folder = folder

    def content(self, uri: str) -> bytes:
        assert uri.startswith(f"{self.url}/")
        return (self.folder / uri.removeprefix(f"{self.url}/")).read_bytes()

    def names(self) -> set[str]:
        files = (path for path in self.folder.rglob("*") if path.is_file())
        names = {str(path.relative_to(self.folder)) for path in files}
        return {name for name in names if not name.startswith(".incoming/")}

    def temporary(self) -> list[str]:
        return [path.name for path in (self.folder / ".incoming").iterdir()]

    def disappear(self) -> None:
        self.folder.rename(self.folder.with_suffix(".gone"))

    def reappear(self) -> None:
        self.folder.with_suffix(".gone").rename(self.folder)


class S3Place(KeptPlace):
    """A bucket on a server, with a prefix."""

    def __init__(self, endpoint: str, bucket: str) -> None:
        variables = {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": endpoint,
        }
        super().__init__(f"s3://{bucket}/kept", variables)
        self.endpoint, self.bucket = endpoint, bucket

    def client(self) -> Any:
        import boto3  # noqa: PLC0415 - it takes half a second
        from botocore.config import Config  # noqa: PLC0415

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
            config=Config(proxies={}, s3={"addressing_style": "path"}),
        )

    def object(self, uri: str) -> Any:
        start = f"s3://{self.bucket}/"
        assert uri.startswith(start)
        return self.client().get_object(Bucket=self.bucket, Key=uri.removeprefix(start))

    def content(self, uri: str) -> bytes:
        content: bytes = self.object(uri)["Body"].read()
        return content

    def names(self) -> set[str]:
        listed = self.client().list_objects_v2(Bucket=self.bucket).get("Contents", [])
        return {each["Key"].removeprefix("kept/") for each in listed}

    def disappear(self) -> None:
        client = self.client()
        for name in self.names():
            client.delete_object(Bucket=self.bucket, Key=f"kept/{name}")
        client.delete_bucket(Bucket=self.bucket)

    def reappear(self) -> None:
        self.client().create_bucket(Bucket=self.bucket)


Open = Callable[[Path], AbstractAsyncContextManager[KeptPlace]]


@asynccontextmanager
async def a_folder(folder: Path) -> AsyncIterator[KeptPlace]:
    yield FolderPlace(folder / "results")


@asynccontextmanager
async def a_moto_bucket(folder: Path) -> AsyncIterator[KeptPlace]:
    del folder
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 - it takes half a second

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    await asyncio.to_thread(server.start)
    host, port = server.get_host_and_port()
    place = S3Place(f"http://{host}:{port}", f"b{uuid4().hex}")
    await asyncio.to_thread(place.reappear)
    yield place
    await asyncio.to_thread(server.stop)


@asynccontextmanager
async def a_versitygw_bucket(folder: Path) -> AsyncIterator[KeptPlace]:
    program, root, port = tool("versitygw"), folder / "versitygw", free_port()
    for name in ("buckets", "metadata"):
        (root / name).mkdir(parents=True)
    process = await asyncio.create_subprocess_exec(
        program,
        *("--port", f"127.0.0.1:{port}", "--access", KEY, "--secret", SECRET, "--quiet"),
        *("posix", "--sidecar", root / "metadata", root / "buckets"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        endpoint = f"http://127.0.0.1:{port}"
        await eventually(lambda: _answers(endpoint))
        place = S3Place(endpoint, f"b{uuid4().hex}")
        await asyncio.to_thread(place.reappear)
        yield place
    finally:
        process.kill()
        await process.wait()
        shutil.rmtree(root)


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(url, timeout=1).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


PLACES: dict[str, Open] = {
    "folder": a_folder,
    "moto": a_moto_bucket,
    "versitygw": a_versitygw_bucket,
}


@contextmanager
def environment(place: KeptPlace) -> Iterator[None]:
    """Give this process the environment that a place needs."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in place.variables.items():
            patch.setenv(name, value)
        yield
