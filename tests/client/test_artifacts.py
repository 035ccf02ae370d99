"""Results through the service: the client resumes, and notices what is wrong."""

import fcntl
import hashlib
from pathlib import Path
from typing import Any

import grpc
import pytest

from kie_generation import ArtifactNotFoundError, DownloadError, InvalidRequestError
from kie_generation.generated.generation.v1.generation_pb2 import (
    Artifact,
    ArtifactInfo,
    DownloadArtifactResponse,
    SignArtifactResponse,
)
from tests.support.results_server import PNG, Results, serving_results
from tests.support.scripted_server import (
    LOST,
    UNAVAILABLE,
    Failure,
    ScriptedService,
    Silence,
    connected,
    success,
)

CONTENT = PNG + bytes(range(256)) * 9
DIGEST = hashlib.sha256(CONTENT).digest()
EXPIRED = Failure(grpc.StatusCode.UNAVAILABLE, "STREAM_EXPIRED", retry_after_ms=0)
GONE = Failure(grpc.StatusCode.NOT_FOUND, "ARTIFACT_NOT_FOUND", "it is gone")
BEYOND = Failure(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PARAMS", fields={"offset": "too far"})
NO_LINK = Failure(grpc.StatusCode.FAILED_PRECONDITION, "ARTIFACT_NOT_STORED")


def info(**fields: Any) -> DownloadArtifactResponse:
    usual: dict[str, Any] = {"file_name": "t-1_1.png", "mime_type": "image/png"}
    usual |= {"size_bytes": len(CONTENT), "sha256": DIGEST}
    return DownloadArtifactResponse(info=ArtifactInfo(**usual | fields))


def chunk(start: int, end: int | None = None) -> DownloadArtifactResponse:
    return DownloadArtifactResponse(chunk=CONTENT[start:end])


def offsets(service: ScriptedService) -> list[int]:
    return [request.offset for request in service.requests]


def saved_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- streams ---


@pytest.mark.parametrize(
    "loss",
    [*(Failure(code) for code in LOST), EXPIRED, Silence(), None],
    ids=lambda loss: str(getattr(loss, "code", type(loss).__name__)),
)
async def test_a_lost_download_continues_after_the_last_byte(loss: Any) -> None:
    service = ScriptedService()
    first = [info(), chunk(0, 10), chunk(10, 100)]
    service.streams += [[*first, loss] if loss else first, [info(), chunk(100)]]
    seen: list[ArtifactInfo] = []
    async with connected(service) as client:
        chunks = client.download_artifact("t-1", 2, on_info=seen.append, timeout=0.3)
        assert b"".join([each async for each in chunks]) == CONTENT
    assert offsets(service) == [0, 100]
    assert {request.index for request in service.requests} == {2}
    assert [each.size_bytes for each in seen] == [len(CONTENT)]


async def test_a_download_that_is_complete_is_not_asked_for_more() -> None:
    service = ScriptedService()
    service.streams += [[info(), chunk(0), UNAVAILABLE], [info()]]
    async with connected(service) as client:
        assert b"".join([each async for each in client.download_artifact("t-1")]) == CONTENT
    assert offsets(service) == [0, len(CONTENT)]


async def test_a_download_without_progress_is_given_up() -> None:
    service = ScriptedService()
    service.streams.extend([[info(), chunk(0, 5)], *([info(), EXPIRED] for _ in range(1_000))])
    async with connected(service) as client:
        with pytest.raises(Exception, match="scripted"):
            async for _ in client.download_artifact("t-1", timeout=0.2):
                pass


@pytest.mark.parametrize("sha256", [b"", bytes(32)])
async def test_the_content_must_have_the_sha256_of_the_copy(sha256: bytes) -> None:
    service = ScriptedService()
    service.streams.append([info(sha256=sha256), chunk(0)])
    async with connected(service) as client:
        chunks = client.download_artifact("t-1")
        if sha256:
            with pytest.raises(DownloadError, match="SHA-256"):
                [each async for each in chunks]
        else:
            assert b"".join([each async for each in chunks]) == CONTENT


async def test_a_result_that_exists_nowhere_is_an_error_of_its_own() -> None:
    service = ScriptedService()
    service.streams.append([GONE])
    service.answers.append(GONE)
    async with connected(service) as client:
        with pytest.raises(ArtifactNotFoundError):
            [each async for each in client.download_artifact("t-1")]
        with pytest.raises(ArtifactNotFoundError):
            await client.sign_artifact("t-1")


# --- files ---


async def test_a_file_continues_where_an_earlier_download_ended(tmp_path: Path) -> None:
    service = ScriptedService()
    service.streams += [[info(), chunk(0, 500), GONE], [info(), chunk(500)]]
    async with connected(service) as client:
        with pytest.raises(ArtifactNotFoundError):
            await client.save_artifact("t-1", 0, tmp_path)
        assert list(saved_in(tmp_path).values()) == [CONTENT[:500]]
        assert await client.save_artifact("t-1", 0, tmp_path) == tmp_path / "t-1_1.png"
    assert offsets(service) == [0, 500]
    assert saved_in(tmp_path) == {"t-1_1.png": CONTENT}


async def test_a_partial_file_that_is_longer_than_the_result_is_replaced(tmp_path: Path) -> None:
    service = ScriptedService()
    (tmp_path / ".t-1_1.part").write_bytes(bytes(100_000))
    service.streams += [[BEYOND], [info(), chunk(0)]]
    async with connected(service) as client:
        await client.save_artifact("t-1", 0, tmp_path, name="mine")
    assert offsets(service) == [100_000, 0]
    assert saved_in(tmp_path) == {"mine_1.png": CONTENT}


async def test_a_file_that_became_another_one_is_not_kept(tmp_path: Path) -> None:
    service = ScriptedService()
    (tmp_path / ".t-1_1.part").write_bytes(b"x" * 500)
    service.streams += [[info(), chunk(500)], [info(), chunk(0)]]
    async with connected(service) as client:
        with pytest.raises(DownloadError, match="SHA-256"):
            await client.save_artifact("t-1", 0, tmp_path)
        assert saved_in(tmp_path) == {}
        await client.save_artifact("t-1", 0, tmp_path)
    assert saved_in(tmp_path) == {"t-1_1.png": CONTENT}


async def test_a_file_that_another_process_downloads_is_left_to_it(tmp_path: Path) -> None:
    service = ScriptedService()
    with (tmp_path / ".t-1_1.part").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        async with connected(service) as client:
            with pytest.raises(DownloadError, match="in progress"):
                await client.save_artifact("t-1", 0, tmp_path)
    assert not service.requests


async def test_a_planted_link_is_not_written_through(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"keep me")
    (tmp_path / ".t-1_1.part").symlink_to(secret)
    async with connected(ScriptedService()) as client:
        with pytest.raises(OSError, match="symbolic"):
            await client.save_artifact("t-1", 0, tmp_path)
    assert secret.read_bytes() == b"keep me"


@pytest.mark.parametrize("max_bytes", [0, 1, len(CONTENT) - 1])
async def test_a_file_that_is_too_large_is_not_downloaded(tmp_path: Path, max_bytes: int) -> None:
    service = ScriptedService()
    service.streams.append([info(), chunk(0)])
    async with connected(service) as client:
        with pytest.raises(DownloadError, match="larger"):
            await client.save_artifact("t-1", 0, tmp_path, max_bytes=max_bytes)
    assert saved_in(tmp_path) == {}


@pytest.mark.parametrize(
    ("file_name", "expected"),
    [("x.mp3", ".mp3"), ("x", ".bin"), ("../x.m/p3", ".bin"), ("x.MP3", ".bin"), ("", ".bin")],
)
async def test_an_extension_is_that_of_the_service_if_it_is_one(
    tmp_path: Path, file_name: str, expected: str
) -> None:
    service = ScriptedService()
    sound = b"ID3 sound"
    first = info(file_name=file_name, mime_type="audio/mpeg", size_bytes=len(sound), sha256=b"")
    service.streams.append([first, DownloadArtifactResponse(chunk=sound)])
    async with connected(service) as client:
        path = await client.save_artifact("t-1", 0, tmp_path)
    assert path.name == f"t-1_1{expected}"


# --- the results of a task whose links are dead ---


def stored(results: Results, **fields: Any) -> Artifact:
    """A result that the provider does not have any longer."""
    url = f"{results.base}/gone.png"
    usual = {"mime_type": "image/png", "storage_uri": "s3://b/0.png", "sha256": DIGEST}
    return Artifact(url=url, **usual | fields)


async def test_the_public_url_is_used_when_the_providers_link_is_dead(tmp_path: Path) -> None:
    service = ScriptedService()
    async with connected(service) as client, serving_results() as results:
        results.add("/public.png", CONTENT)
        artifact = stored(results, public_url=f"{results.base}/public.png")
        [path] = await client.save_artifacts(success(1, artifacts=[artifact]), tmp_path)
        assert path.read_bytes() == CONTENT
        assert results.asked == ["/gone.png", "/public.png"]
    assert not service.requests


async def test_a_link_is_signed_only_when_no_other_url_works(tmp_path: Path) -> None:
    service = ScriptedService()
    async with connected(service) as client, serving_results() as results:
        results.add("/signed.png", CONTENT)
        service.answers.append(SignArtifactResponse(url=f"{results.base}/signed.png?key=1"))
        artifact = stored(results, public_url=f"{results.base}/private.png")
        [path] = await client.save_artifacts(success(1, artifacts=[artifact]), tmp_path)
        assert path.read_bytes() == CONTENT
        assert results.asked == ["/gone.png", "/private.png", "/signed.png?key=1"]


@pytest.mark.parametrize("has_copy", [True, False])
async def test_the_service_is_asked_when_no_link_works(tmp_path: Path, has_copy: bool) -> None:
    service = ScriptedService()
    if has_copy:
        service.answers.append(NO_LINK)
    service.streams.append([info(), chunk(0)])
    async with connected(service) as client, serving_results() as results:
        artifact = stored(results) if has_copy else Artifact(url=f"{results.base}/gone.png")
        tasks = success(1, artifacts=[artifact])
        assert await client.save_artifacts(tasks, tmp_path, name="n") == [tmp_path / "n_1.png"]
    assert saved_in(tmp_path) == {"n_1.png": CONTENT}


async def test_a_copy_with_another_content_is_not_saved(tmp_path: Path) -> None:
    service = ScriptedService()
    service.answers.append(NO_LINK)
    service.streams.append([info(), chunk(0)])
    async with connected(service) as client, serving_results() as results:
        artifact = stored(results, public_url=f"{results.base}/picture.png")
        [path] = await client.save_artifacts(success(1, artifacts=[artifact]), tmp_path)
    assert path.read_bytes() == CONTENT


async def test_the_error_says_what_the_provider_and_the_service_said(tmp_path: Path) -> None:
    service = ScriptedService()
    service.streams.append([GONE])
    async with connected(service) as client, serving_results() as results:
        artifact = Artifact(url=f"{results.base}/gone.png")
        with pytest.raises(DownloadError, match="HTTP 404; it is gone") as caught:
            await client.save_artifacts(success(1, artifacts=[artifact]), tmp_path)
    assert caught.value.url == artifact.url
    assert not caught.value.is_transient
    assert saved_in(tmp_path) == {}


async def test_a_live_link_is_used_without_asking_the_service(tmp_path: Path) -> None:
    service = ScriptedService()
    async with connected(service) as client, serving_results() as results:
        artifact = results.add("/picture.png", PNG)
        [path] = await client.save_artifacts(success(1, artifacts=[artifact]), tmp_path)
    assert path.read_bytes() == PNG
    assert not service.requests


async def test_a_result_that_is_too_large_is_not_looked_for_elsewhere(tmp_path: Path) -> None:
    service = ScriptedService()
    async with connected(service) as client, serving_results() as results:
        artifact = results.add("/picture.png", PNG)
        artifact.storage_uri = "s3://b/0.png"
        with pytest.raises(DownloadError, match="larger"):
            await client.save_artifacts(success(1, artifacts=[artifact]), tmp_path, max_bytes=3)
    assert not service.requests


async def test_invalid_arguments_are_errors_of_the_request(tmp_path: Path) -> None:
    service = ScriptedService()
    service.streams.append([BEYOND])
    async with connected(service) as client:
        with pytest.raises(InvalidRequestError):
            await client.save_artifact("t-1", 0, tmp_path)
    assert saved_in(tmp_path) == {}
