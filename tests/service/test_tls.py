"""TLS: who gets through, and which files are refused at start."""

import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import ValidationError

from service.settings import Settings
from tests.support.certificates import Authority, openssl
from tests.support.harness import Serve, Service
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("tls") / "ours", "server", "client")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("tls") / "theirs", "server", "client")


async def check(channel: grpc.aio.Channel) -> bool:
    """Whether the service serves over a channel."""
    stub = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def served(service: Service, credentials: grpc.ChannelCredentials) -> bool:
    async with grpc.aio.secure_channel(service.address, credentials) as channel:
        return await check(channel)


async def test_with_a_certificate_calls_are_encrypted_and_plaintext_is_refused(
    serve: Serve, ours: Authority
) -> None:
    files = {"tls_cert_file": ours.cert("server"), "tls_key_file": ours.key("server")}
    async with serve(**files) as service:
        assert await served(service, ours.credentials(None))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(service.channel)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert await served(service, ours.credentials(None))


async def test_a_client_that_trusts_another_authority_does_not_take_the_server(
    serve: Serve, ours: Authority, theirs: Authority
) -> None:
    files = {"tls_cert_file": ours.cert("server"), "tls_key_file": ours.key("server")}
    async with serve(**files) as service:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served(service, theirs.credentials(None))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_with_an_authority_for_clients_only_those_it_signed_are_served(
    serve: Serve, ours: Authority, theirs: Authority
) -> None:
    files = {
        "tls_cert_file": ours.cert("server"),
        "tls_key_file": ours.key("server"),
        "tls_client_ca_file": ours.cert("ca"),
    }
    async with serve(**files) as service:
        for client in (None, (theirs, "client")):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await served(service, ours.credentials(client))
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.aio.AioRpcError):
            await check(service.channel)
        assert await served(service, ours.credentials((ours, "client")))


# --- files that are refused ---


@pytest.fixture(scope="module")
def files(ours: Authority, theirs: Authority) -> dict[str, Path]:
    """Files that somebody may name by mistake."""
    folder = ours.folder
    (folder / "empty").touch()
    (folder / "garbage").write_bytes(b"garbage \xff\0\n")
    whole = ours.cert("server").read_text()
    (folder / "torn").write_text(whole[: len(whole) // 2])
    protected = folder / "protected"
    plain = ours.key("server")
    openssl("ec", "-in", plain, "-aes128", "-passout", "pass:secret", "-out", protected)
    return {
        **{name: folder / name for name in ("empty", "garbage", "torn", "protected")},
        "cert": ours.cert("server"),
        "key": ours.key("server"),
        "another key": theirs.key("server"),
    }


PAIRS = [
    *((kind, "key") for kind in ("empty", "garbage", "torn", "key")),
    *(("cert", kind) for kind in ("empty", "garbage", "cert", "another key", "protected")),
]


@pytest.mark.parametrize(("cert", "key"), PAIRS)
def test_files_that_are_not_a_certificate_and_its_key_are_named(
    files: dict[str, Path], cert: str, key: str
) -> None:
    with pytest.raises(ValidationError, match="TLS_CERT_FILE, TLS_KEY_FILE: must be a certifi"):
        Settings(tls_cert_file=files[cert], tls_key_file=files[key])


@pytest.mark.parametrize("kind", ["empty", "garbage", "torn", "key"])
def test_a_file_without_certificates_is_no_authority_for_clients(
    files: dict[str, Path], kind: str
) -> None:
    with pytest.raises(ValidationError, match="TLS_CLIENT_CA_FILE: must contain certificates"):
        Settings(
            tls_cert_file=files["cert"], tls_key_file=files["key"], tls_client_ca_file=files[kind]
        )


def test_the_process_ends_with_2_and_shows_neither_a_traceback_nor_the_key(
    files: dict[str, Path], tmp_path: Path
) -> None:
    environment = {
        "PYTHONPATH": str(ROOT),
        "TLS_CERT_FILE": str(files["garbage"]),
        "TLS_KEY_FILE": str(files["key"]),
        "TLS_CLIENT_CA_FILE": str(files["garbage"]),
    }
    done = subprocess.run(
        [sys.executable, "-m", "service"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (2, "")
    named = [line.partition(":")[0] for line in done.stderr.splitlines()]
    assert named == ["TLS_CERT_FILE, TLS_KEY_FILE", "TLS_CLIENT_CA_FILE"]
    secret = max(files["key"].read_text().splitlines(), key=len)
    assert secret not in done.stderr
