"""TLS: who gets through, and which files are refused at start."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import ValidationError

from service.settings import Settings
from tests.conftest import Serve
from tests.support.harness import Service
from tests.support.paths import ROOT

NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=30)


@dataclass(frozen=True)
class Authority:
    """A certificate authority in a folder, and what it has signed."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> "Authority":
        folder.mkdir()
        made = cls(folder)
        files = ("-keyout", made.key("ca"), "-out", made.cert("ca"))
        openssl("req", "-x509", *NEW_KEY, "-subj", "/CN=the tests", "-days", "2", *files)
        return made

    def sign(self, name: str) -> None:
        """Make a key and a certificate for this machine's loopback."""
        request, extensions = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        files = ("-keyout", self.key(name), "-out", request)
        openssl("req", "-new", *NEW_KEY, "-subj", f"/CN={name}", *files)
        by = ("-CA", self.cert("ca"), "-CAkey", self.key("ca"), "-CAcreateserial", "-days", "2")
        openssl(
            "x509", "-req", "-in", request, *by, "-extfile", extensions, "-out", self.cert(name)
        )

    def cert(self, name: str) -> Path:
        return self.folder / f"{name}.pem"

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def credentials(self, client: "tuple[Authority, str] | None") -> grpc.ChannelCredentials:
        """Return what a client needs that trusts this authority."""
        root = self.cert("ca").read_bytes()
        if client is None:
            return grpc.ssl_channel_credentials(root)
        signer, name = client
        key, cert = signer.key(name).read_bytes(), signer.cert(name).read_bytes()
        return grpc.ssl_channel_credentials(root, key, cert)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    authority = Authority.make(tmp_path_factory.mktemp("tls") / "ours")
    for name in ("server", "client"):
        authority.sign(name)
    return authority


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Somebody else's."""
    authority = Authority.make(tmp_path_factory.mktemp("tls") / "theirs")
    for name in ("server", "client"):
        authority.sign(name)
    return authority


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
