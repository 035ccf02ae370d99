"""Certificates that are replaced while the service runs, and those that expire."""

import asyncio
import math
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import ValidationError
from structlog.testing import capture_logs

from service.settings import Settings
from tests.support.certificates import (
    Authority,
    Replace,
    mounted_files,
    rename,
    swap_links,
    write_in_place,
)
from tests.support.harness import Serve, Service
from tests.support.metrics_page import ADMIN, Page, page_when, scrape
from tests.support.waiting import eventually_answered

DAY_SECONDS = 86_400
CURVE = ("-newkey", "ec", "-nodes", "-pkeyopt")
NAMED, EXPLICIT = "ec_paramgen_curve:", ("-pkeyopt", "ec_param_enc:explicit")
KEYS: dict[str, Sequence[str]] = {
    "secp256k1": (*CURVE, f"{NAMED}secp256k1"),
    "P-224": (*CURVE, f"{NAMED}secp224r1"),
    "brainpool": (*CURVE, f"{NAMED}brainpoolP256r1"),
    "an unnamed curve": (*CURVE, f"{NAMED}prime256v1", *EXPLICIT),
    "RSA-PSS": ("-newkey", "rsa-pss", "-pkeyopt", "rsa_keygen_bits:2048", "-nodes"),
    "Ed448": ("-newkey", "ed448", "-nodes"),
}
USABLE_KEYS: dict[str, Sequence[str]] = {
    "RSA": ("-newkey", "rsa:2048", "-nodes"),
    "P-384": (*CURVE, f"{NAMED}secp384r1"),
    "P-521": (*CURVE, f"{NAMED}secp521r1"),
    "Ed25519": ("-newkey", "ed25519", "-nodes"),
}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("tls")
    made = Authority.make(folder / "ours", "one", "two", "client", "expired")
    made.expire("expired")
    return made


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("tls") / "theirs", "client")


WAYS = [write_in_place, rename, swap_links]


@pytest.fixture
def mounted(tmp_path: Path) -> Path:
    """The folder of the service's files, which are replaced."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    return folder


def settings(folder: Path, *, with_clients: bool = False) -> dict[str, Any]:
    files = {"tls_cert_file": "tls.crt", "tls_key_file": "tls.key"}
    if with_clients:
        files["tls_client_ca_file"] = "ca.crt"
    return {**{name: folder / file for name, file in files.items()}, **ADMIN}


async def served(service: Service) -> str:
    """Return the certificate that a new connection gets."""
    host, _, port = service.address.rpartition(":")
    return await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)), timeout=10)


def certificate(authority: Authority, name: str) -> str:
    return authority.cert(name).read_text()


async def is_accepted(service: Service, credentials: grpc.ChannelCredentials) -> bool:
    """Whether a new connection gets an answer."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(service.address, credentials, options) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017 - nor a deadline
            return False
    return True


# --- replaced files ---


@pytest.mark.parametrize("replace", WAYS)
async def test_the_next_connection_gets_the_new_certificate_and_the_open_one_continues(
    serve: Serve, mounted: Path, authority: Authority, replace: Replace
) -> None:
    replace(mounted, mounted_files(authority, "one"))
    async with serve(**settings(mounted)) as service:
        assert await served(service) == certificate(authority, "one")
        credentials = authority.credentials(None)
        async with grpc.aio.secure_channel(service.address, credentials) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
            replace(mounted, mounted_files(authority, "two"))
            assert await served(service) == certificate(authority, "two")
            await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
        replace(mounted, mounted_files(authority, "one"))
        assert await served(service) == certificate(authority, "one")


async def test_a_replaced_certificate_is_logged_with_its_expiry(
    serve: Serve, mounted: Path, authority: Authority
) -> None:
    write_in_place(mounted, mounted_files(authority, "one"))
    async with serve(**settings(mounted)) as service:
        with capture_logs() as logged:
            write_in_place(mounted, mounted_files(authority, "two"))

            async def line() -> Any:
                await served(service)
                return next((e for e in logged if e["event"] == "certificates reloaded"), None)

            reloaded = await eventually_answered(line)
    assert reloaded["file"] == "tls_cert"
    assert reloaded["expires"].endswith(" UTC")


@pytest.mark.parametrize("replace", WAYS)
async def test_with_new_authorities_their_clients_are_accepted_and_those_of_the_old_ones_are_not(
    serve: Serve, mounted: Path, authority: Authority, others: Authority, replace: Replace
) -> None:
    ours, theirs = (authority.credentials((each, "client")) for each in (authority, others))
    replace(mounted, mounted_files(authority, "one"))
    async with serve(**settings(mounted, with_clients=True)) as service:
        assert await is_accepted(service, ours)
        assert not await is_accepted(service, theirs)
        replace(mounted, mounted_files(authority, "one") | {"ca.crt": others.cert("ca")})
        assert await is_accepted(service, theirs)
        assert not await is_accepted(service, ours)
        assert not await is_accepted(service, authority.credentials(None))


# --- files that cannot be used ---


@pytest.fixture(scope="module")
def broken(authority: Authority, others: Authority) -> dict[str, dict[str, Path]]:
    """Files that take the place of good ones."""
    folder = authority.folder
    (folder / "empty").touch()
    text = authority.cert("two").read_text()
    (folder / "torn").write_text(text[: len(text) // 2])
    authority.sign("k1", new_key=KEYS["secp256k1"])
    return {
        "another kind of key": mounted_files(authority, "k1"),
        "empty": dict.fromkeys(("tls.crt", "tls.key"), folder / "empty"),
        "torn": {"tls.crt": folder / "torn"},
        "another key": {"tls.key": authority.key("two")},
        "another certificate": {"tls.crt": authority.cert("two")},
        "expired": mounted_files(authority, "expired"),
        "no authorities": {"ca.crt": folder / "empty"},
    }


@pytest.mark.parametrize(
    "kind",
    [
        "another kind of key",
        "empty",
        "torn",
        "another key",
        "another certificate",
        "expired",
        "no authorities",
    ],
)
async def test_new_files_that_cannot_be_used_are_reported_and_the_old_ones_stay_in_use(
    serve: Serve,
    mounted: Path,
    authority: Authority,
    broken: dict[str, dict[str, Path]],
    kind: str,
) -> None:
    label = "tls_client_ca" if kind == "no authorities" else "tls_cert"

    def problems(page: Any) -> float:
        value: float = page.value("generation_config_problems", file=label)
        return value

    rename(mounted, mounted_files(authority, "one"))
    async with serve(**settings(mounted, with_clients=True)) as service:
        assert problems(await scrape(service)) == 0
        with capture_logs() as logged:
            rename(mounted, broken[kind])
            assert await served(service) == certificate(authority, "one")
            assert await is_accepted(service, authority.credentials((authority, "client")))
            await page_when(service, lambda page: problems(page) == 1)
        words = "the old certificates are still used"
        lines = [entry for entry in logged if entry["event"].startswith(words)]
        assert {line["file"] for line in lines} == {label}
        rename(mounted, mounted_files(authority, "two"))
        assert await served(service) == certificate(authority, "two")
        await page_when(service, lambda page: problems(page) == 0)


@pytest.mark.parametrize("kind", KEYS)
def test_a_key_that_only_openssl_can_use_is_refused_and_named(
    authority: Authority, kind: str
) -> None:
    authority.sign("odd", new_key=KEYS[kind])
    with pytest.raises(ValidationError, match="TLS_KEY_FILE: must have a key of RSA, P-256"):
        Settings(tls_cert_file=authority.cert("odd"), tls_key_file=authority.key("odd"))


def test_a_certificate_with_trust_settings_is_refused(authority: Authority, tmp_path: Path) -> None:
    trusted = tmp_path / "trusted.pem"
    text = certificate(authority, "one")
    trusted.write_text(
        text.replace("BEGIN CERT", "BEGIN TRUSTED CERT").replace("END C", "END TRUSTED C")
    )
    with pytest.raises(ValidationError, match="in plain PEM"):
        Settings(tls_cert_file=trusted, tls_key_file=authority.key("one"))


@pytest.mark.parametrize("kind", USABLE_KEYS)
async def test_the_other_keys_are_served(
    serve: Serve, mounted: Path, authority: Authority, kind: str
) -> None:
    authority.sign("usable", new_key=USABLE_KEYS[kind])
    rename(mounted, mounted_files(authority, "usable"))
    async with serve(**settings(mounted)) as service:
        assert await served(service) == certificate(authority, "usable")


async def test_files_with_a_byte_order_mark_are_served(
    serve: Serve, mounted: Path, authority: Authority
) -> None:
    for name, file in mounted_files(authority, "one").items():
        (mounted / name).write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    async with serve(**settings(mounted, with_clients=True)) as service:
        assert await is_accepted(service, authority.credentials((authority, "client")))


async def test_files_that_are_gone_for_a_while_change_nothing(
    serve: Serve, mounted: Path, authority: Authority
) -> None:
    write_in_place(mounted, mounted_files(authority, "one"))
    async with serve(**settings(mounted)) as service:
        away = mounted.with_name("away")
        await asyncio.to_thread(mounted.rename, away)
        assert await served(service) == certificate(authority, "one")
        name = "generation_config_problems"
        await page_when(service, lambda page: page.value(name, file="tls_cert") == 1)
        await asyncio.to_thread(away.rename, mounted)
        await page_when(service, lambda page: page.value(name, file="tls_cert") == 0)


# --- expiry ---


def seconds_left(page: Page) -> float:
    seconds = page.value("generation_tls_expiry_seconds")
    assert seconds is not None
    return seconds


@pytest.mark.parametrize("name", ["one", "two"])
async def test_the_time_until_a_certificate_expires_is_shown_and_follows_the_files(
    serve: Serve, mounted: Path, authority: Authority, name: str
) -> None:
    write_in_place(mounted, mounted_files(authority, name))
    async with serve(**settings(mounted, with_clients=True)) as service:
        left = seconds_left(await scrape(service))
        assert DAY_SECONDS < left <= 2 * DAY_SECONDS
        await page_when(service, lambda page: seconds_left(page) < left)


async def test_without_tls_nothing_expires(serve: Serve) -> None:
    async with serve(**ADMIN) as service:
        assert seconds_left(await scrape(service)) == math.inf


def test_an_expired_certificate_is_refused_at_start_and_named(authority: Authority) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(tls_cert_file=authority.cert("expired"), tls_key_file=authority.key("expired"))
    words = "TLS_CERT_FILE, TLS_KEY_FILE: expired at 2020-01-02 00:00:00 UTC"
    assert words in str(caught.value)


def test_authorities_are_refused_only_if_all_of_them_have_expired(
    authority: Authority, tmp_path: Path
) -> None:
    files: dict[str, Any] = {
        "tls_cert_file": authority.cert("one"),
        "tls_key_file": authority.key("one"),
    }
    expired = authority.cert("expired")
    with pytest.raises(ValidationError, match="TLS_CLIENT_CA_FILE: expired at 2020-01-02"):
        Settings(**files, tls_client_ca_file=expired)
    both = tmp_path / "both.pem"
    both.write_bytes(expired.read_bytes() + authority.cert("ca").read_bytes())
    assert Settings(**files, tls_client_ca_file=both).tls_client_ca_file == both
