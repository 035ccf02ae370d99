"""The settings: defaults, bad values that are named and never shown, and contradictions."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from service.environment import SettingsError, check_serving, load_settings
from service.settings import Settings
from tests.support.paths import ROOT

SECRET = "never-to-be-shown"

DEFAULTS = {
    "LISTEN_ADDRESS": "127.0.0.1:50051",
    "ALLOW_UNAUTHENTICATED": False,
    "AUTH_TOKENS_FILE": None,
    "CALLER_LIMITS_FILE": None,
    "TLS_CERT_FILE": None,
    "TLS_KEY_FILE": None,
    "TLS_CLIENT_CA_FILE": None,
    "HTTP_ADDRESS": "127.0.0.1:8080",
    "ADMIN_ADDRESS": "127.0.0.1:9090",
    "DATABASE_URL_FILE": None,
    "DATABASE_URL": "sqlite:///generation.db",
    "DATABASE_HINTS": True,
    "TASK_RETENTION_SECONDS": 0.0,
    "KIE_SIMULATOR": None,
    "KIE_API_KEY_FILE": None,
    "KIE_API_KEY": None,
    "KIE_API_URL": "https://api.kie.ai",
    "KIE_UPLOAD_URL": "https://kieai.redpandaai.co",
    "PUBLIC_URL": None,
    "KIE_WEBHOOK_KEY_FILE": None,
    "KIE_WEBHOOK_KEY": None,
    "CALLBACK_SECRET_FILE": None,
    "CALLBACK_SECRET": None,
    "KIE_CREATES_PER_10_SECONDS": 20,
    "KIE_STATUS_PER_SECOND": 10,
    "KIE_RUNNING_MAX": 100,
    "DISABLED_MODELS": frozenset(),
    "QUEUE_MAX_TASKS": 10_000,
    "CREATE_WAIT_SECONDS": 10,
    "POLL_INTERVAL_SECONDS": 2,
    "TASK_MAX_AGE_SECONDS": 3_600,
    "MAX_STREAMS_PER_CONNECTION": 1_000,
    "MAX_CONNECTIONS": 0,
    "MAX_PENDING_CALLS": 3_000,
    "CONNECTION_IDLE_SECONDS": 3_600,
    "CONNECTION_AGE_SECONDS": 7_200,
    "WATCH_MAX_STREAMS": 20_000,
    "WATCH_HEARTBEAT_SECONDS": 20,
    "WATCH_MAX_AGE_SECONDS": 1_800,
    "UPLOADS_MAX": 64,
    "UPLOAD_MAX_BYTES": 104_857_600,
    "UPLOAD_RETENTION_SECONDS": 86_400,
    "METRICS_PER_CALLER": False,
    "OTEL_EXPORTER_OTLP_ENDPOINT": None,
    "LOG_FORMAT": "text",
    "LOG_LEVEL": "info",
}
OFF_WHEN_EMPTY = {"ADMIN_ADDRESS", "HTTP_ADDRESS"}


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the settings in the developer's environment."""
    for field in Settings.model_fields:
        monkeypatch.delenv(field.upper(), raising=False)


def load(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return load_settings()


def refused(monkeypatch: pytest.MonkeyPatch, **variables: str) -> list[str]:
    """Return the lines that refuse these variables."""
    with pytest.raises(SettingsError) as caught:
        load(monkeypatch, **variables)
    return str(caught.value).splitlines()


def plain(settings: Settings, name: str) -> object:
    value = getattr(settings, name.lower())
    return value.get_secret_value() if isinstance(value, SecretStr) else value


# --- defaults ---


@pytest.mark.parametrize("name", DEFAULTS)
def test_an_unset_variable_has_its_documented_default(name: str) -> None:
    assert plain(load_settings(), name) == DEFAULTS[name]


@pytest.mark.parametrize("name", sorted(DEFAULTS.keys() - OFF_WHEN_EMPTY))
def test_an_empty_variable_counts_as_unset(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plain(load(monkeypatch, **{name: ""}), name) == DEFAULTS[name]


@pytest.mark.parametrize("name", sorted(OFF_WHEN_EMPTY))
def test_an_empty_http_address_is_off(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plain(load(monkeypatch, **{name: ""}), name) == ""


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, 0),
        ({"PUBLIC_URL": "https://here.example"}, 900),
        ({"UNKNOWN_WAIT_SECONDS": "", "PUBLIC_URL": "https://here.example"}, 900),
        ({"UNKNOWN_WAIT_SECONDS": "0", "PUBLIC_URL": "https://here.example"}, 0),
        ({"UNKNOWN_WAIT_SECONDS": "60", "PUBLIC_URL": "https://here.example"}, 60),
        ({"UNKNOWN_WAIT_SECONDS": "60"}, 60),
    ],
)
def test_an_unknown_create_waits_for_its_callback_only_where_one_can_come(
    variables: dict[str, str], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(monkeypatch, **variables).effective_unknown_wait_seconds == seconds


def test_every_variable_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "LISTEN_ADDRESS": "[::1]:1",
        "ALLOW_UNAUTHENTICATED": "true",
        "HTTP_ADDRESS": "0.0.0.0:0",
        "ADMIN_ADDRESS": "0.0.0.0:65535",
        "DATABASE_URL": "postgresql://user:word@host:6432/name?sslmode=require",
        "DATABASE_HINTS": "false",
        "TASK_RETENTION_SECONDS": "86400",
        "KIE_API_KEY": SECRET,
        "KIE_API_URL": "http://localhost:8099/",
        "KIE_UPLOAD_URL": "https://upload.example/base/",
        "PUBLIC_URL": "https://here.example/generation",
        "KIE_WEBHOOK_KEY": SECRET,
        "CALLBACK_SECRET": SECRET,
        "DISABLED_MODELS": "sora2",
        "LOG_FORMAT": "json",
        "LOG_LEVEL": "debug",
        **{
            name: "7"
            for name, default in DEFAULTS.items()
            if isinstance(default, int) and not isinstance(default, bool)
        },
    }
    settings = load(monkeypatch, **values)
    expected: dict[str, object] = {
        **{name: 7 if value == "7" else value for name, value in values.items()},
        "ALLOW_UNAUTHENTICATED": True,
        "DATABASE_HINTS": False,
        "TASK_RETENTION_SECONDS": 86_400.0,
        "KIE_API_URL": "http://localhost:8099",
        "KIE_UPLOAD_URL": "https://upload.example/base",
        "DISABLED_MODELS": frozenset({"sora2"}),
    }
    assert {name: plain(settings, name) for name in values} == expected


@pytest.mark.parametrize(
    ("listed", "secrets"),
    [
        ("", ()),
        ("one", (b"one",)),
        ("new,old", (b"new", b"old")),
        ("näw,c", ("näw".encode(), b"c")),
    ],
)
def test_callback_secrets_are_separated_by_commas(
    listed: str, secrets: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(monkeypatch, CALLBACK_SECRET=listed).callback_secrets == secrets


def test_zero_turns_the_limits_of_the_account_and_the_wait_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("KIE_CREATES_PER_10_SECONDS", "KIE_STATUS_PER_SECOND", "KIE_RUNNING_MAX")
    settings = load(monkeypatch, **dict.fromkeys((*names, "CREATE_WAIT_SECONDS"), "0"))
    assert settings.kie_creates_per_10_seconds == 0
    assert settings.kie_status_per_second == 0
    assert settings.kie_running_max == 0
    assert settings.create_wait_seconds == 0


@pytest.mark.parametrize(
    ("text", "models"),
    [
        ("sora2", {"sora2"}),
        ("sora2,veo3", {"sora2", "veo3"}),
        (" sora2 , veo3 ,, ", {"sora2", "veo3"}),
        ("sora2,sora2", {"sora2"}),
        (",", set()),
        ("imagen4,midjourney,veo3,sora2", {"imagen4", "midjourney", "veo3", "sora2"}),
    ],
)
def test_disabled_models_are_names_between_commas(
    text: str, models: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(monkeypatch, DISABLED_MODELS=text).disabled_models == models


# --- bad values ---

SECRETS_IN_FILES = (
    "DATABASE_URL_FILE",
    "KIE_API_KEY_FILE",
    "KIE_WEBHOOK_KEY_FILE",
    "CALLBACK_SECRET_FILE",
)
BAD_ADDRESSES = (
    "50051",
    ":50051",
    "127.0.0.1",
    "127.0.0.1:",
    "127.0.0.1:http",
    "127.0.0.1:65536",
    "127.0.0.1:-1",
    "127.0.0.1:\u0665",  # a digit, but not one that gRPC reads
    "::1:50051",  # gRPC takes it for one address without a port
    "[::1]",
    "unix:/tmp/socket:1",
    "dns:localhost:50051",
    "a b:1",
)
BAD_COUNTS = ("-1", "many", "1.5", "1e3", "0x10", "inf", "1" + 30 * "0")
BAD_SECONDS = ("-1", "soon", "nan", "inf", "-inf", "1e308", "1e10")
BAD_URLS = ("ftp://kie.example", "kie.example", "https://", "https:///path", "https://a b", "x:")
BAD = {
    "LISTEN_ADDRESS": BAD_ADDRESSES,
    "ADMIN_ADDRESS": BAD_ADDRESSES,
    "HTTP_ADDRESS": BAD_ADDRESSES,
    "ALLOW_UNAUTHENTICATED": ("maybe", "2"),
    "AUTH_TOKENS_FILE": ("/no/such/file", "/"),
    "CALLER_LIMITS_FILE": ("/no/such/file", "/", str(ROOT / "README.md")),
    "TLS_CERT_FILE": ("/no/such/file", "/"),
    "TLS_KEY_FILE": ("/no/such/file", "/"),
    "TLS_CLIENT_CA_FILE": ("/no/such/file", "/"),
    **dict.fromkeys(SECRETS_IN_FILES, ("/no/such/file", "/", str(ROOT / "docs/demo.svg"))),
    "DATABASE_URL": (
        "mysql://user:word@host/db",
        "postgresql://host/db?what=1",
        "generation.db",
        "sqlite:///",
        "sqlite:///generation.db\n",
        "sqlite:///generation.db\r",
        "sqlite:///generation.db ",
        "sqlite:///gener\nation.db",
        "sqlite:/// generation.db",
        " sqlite:///generation.db",
        "sqlite:///\tgeneration.db",
        "postgresql://host/name\n",
        "postgresql://host/name ",
        " postgresql://host/name",
        "postgresql://host/na me",
        "postgresql://host/name?application_name=a b",
    ),
    "DATABASE_HINTS": ("maybe", "2"),
    "TASK_RETENTION_SECONDS": ("60", "-1", "nan", "inf", "a day", "1e10"),
    "KIE_SIMULATOR": ("maybe", "2"),
    "KIE_API_KEY": ("two words", "ends-with-a-newline\n", "schlüssel", "tab\t"),
    "KIE_WEBHOOK_KEY": (
        "ends-with-a-newline\n",
        " begins-with-a-space",
        "ends-with-cr\r",
        "two words",
        "tab\tinside",
        "no-break\u00a0space",
    ),
    "CALLBACK_SECRET": (
        "ends-with-a-newline\n",
        " begins-with-a-space",
        "two words",
        "first, second",
        "first,second ",
        "first\n,second",
        "first,\tsecond",
        "first\rsecond",
        "first,,second",
        "first,",
        ",",
    ),
    "KIE_API_URL": BAD_URLS,
    "KIE_UPLOAD_URL": BAD_URLS,
    "PUBLIC_URL": BAD_URLS,
    "OTEL_EXPORTER_OTLP_ENDPOINT": (*BAD_URLS, "collector:4318", "grpc://collector:4317"),
    "KIE_CREATES_PER_10_SECONDS": BAD_COUNTS,
    "KIE_STATUS_PER_SECOND": BAD_COUNTS,
    "KIE_RUNNING_MAX": BAD_COUNTS,
    "KIE_CREATES_IN_FLIGHT_MAX": BAD_COUNTS,
    "QUEUE_MAX_TASKS": (*BAD_COUNTS, "0"),
    "MAX_STREAMS_PER_CONNECTION": (*BAD_COUNTS, "0", "2147483648"),
    "MAX_CONNECTIONS": (*BAD_COUNTS, "99999999999999"),
    "MAX_PENDING_CALLS": (*BAD_COUNTS, "0", "1000000001"),
    "CONNECTION_IDLE_SECONDS": BAD_SECONDS,
    "CONNECTION_AGE_SECONDS": BAD_SECONDS,
    "WATCH_MAX_STREAMS": (*BAD_COUNTS, "0"),
    "UPLOADS_MAX": (*BAD_COUNTS, "0"),
    "UPLOAD_MAX_BYTES": (*BAD_COUNTS, "0"),
    "CREATE_WAIT_SECONDS": BAD_SECONDS,
    "UNKNOWN_WAIT_SECONDS": BAD_SECONDS,
    "DRAIN_DELAY_SECONDS": BAD_SECONDS,
    "ACCOUNT_HOLD_SECONDS": BAD_SECONDS,
    "POLL_INTERVAL_SECONDS": (*BAD_SECONDS, "0"),
    "TASK_MAX_AGE_SECONDS": (*BAD_SECONDS, "0"),
    "WATCH_HEARTBEAT_SECONDS": (*BAD_SECONDS, "0"),
    "WATCH_MAX_AGE_SECONDS": (*BAD_SECONDS, "0"),
    "UPLOAD_RETENTION_SECONDS": (*BAD_SECONDS, "0"),
    "SHUTDOWN_SECONDS": (*BAD_SECONDS, "0"),
    "DISABLED_MODELS": ("sora", "sora2;veo3", "SORA2", "veo3,x"),
    "METRICS_PER_CALLER": ("maybe", "2"),
    "LOG_FORMAT": ("xml", "JSON "),
    "LOG_LEVEL": ("loud", "20"),
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in BAD.items() for v in values])
def test_a_bad_value_is_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    [line] = refused(monkeypatch, **{name: value})
    assert line.startswith(f"{name}: ")


def test_all_bad_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = refused(monkeypatch, **{name: values[0] for name, values in BAD.items()})
    assert sorted(line.partition(":")[0] for line in lines) == sorted(BAD)


def test_all_contradictions_are_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty.pem"
    empty.touch()
    lines = refused(
        monkeypatch,
        LISTEN_ADDRESS="0.0.0.0:1",
        TLS_KEY_FILE=str(empty),
        TLS_CLIENT_CA_FILE=str(empty),
        KIE_API_URL="http://localhost:1",
        PUBLIC_URL="https://here.example",
        HTTP_ADDRESS="",
    )
    names = [line.partition(":")[0] for line in lines]
    assert list(dict.fromkeys(names)) == [
        "LISTEN_ADDRESS",
        "TLS_CERT_FILE, TLS_KEY_FILE",
        "TLS_CLIENT_CA_FILE",
        "KIE_API_KEY",
        "HTTP_ADDRESS",
    ]


SECRETIVE = {
    **{
        name: SECRET
        for name in BAD
        if name not in {"KIE_API_KEY", "KIE_API_URL", "KIE_UPLOAD_URL", "AUTH_TOKENS_FILE"}
    },
    "KIE_API_KEY": f"{SECRET} ",
    "KIE_WEBHOOK_KEY": f"{SECRET}\n",
    "CALLBACK_SECRET": f" {SECRET}",
    "KIE_API_URL": f"ftp://user:{SECRET}@host",
    "KIE_UPLOAD_URL": f"https://user:{SECRET} @host",
    "AUTH_TOKENS_FILE": f"/no/{SECRET}",
    "DATABASE_URL": f"postgresql://user:{SECRET}@host/db?what=1",
}


def test_no_bad_value_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SECRET not in "\n".join(refused(monkeypatch, **SECRETIVE))


def test_the_settings_show_no_secret_when_they_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = dict.fromkeys(("KIE_API_KEY", "KIE_WEBHOOK_KEY", "CALLBACK_SECRET"), SECRET)
    database = f"sqlite:///{SECRET}.db"
    settings = load(monkeypatch, DATABASE_URL=database, **secrets)
    assert SECRET not in f"{settings} {settings!r}"


# --- contradictions ---


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:0", "127.0.0.5:50051", "127.255.255.254:1", "[::1]:50051", "localhost:50051"],
)
def test_a_loopback_address_needs_no_authentication(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(monkeypatch, LISTEN_ADDRESS=address).listen_address == address


BEYOND_LOOPBACK = (
    "0.0.0.0:50051",
    "[::]:50051",
    "10.0.0.1:50051",
    "192.168.1.1:50051",
    "[fe80::1]:50051",
    "[::ffff:10.0.0.1]:50051",
    "generation.example:50051",
    "localhost.example:50051",
    "128.0.0.1:50051",
)


@pytest.mark.parametrize("address", BEYOND_LOOPBACK)
def test_an_address_beyond_loopback_is_refused_by_default(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    [line] = refused(monkeypatch, LISTEN_ADDRESS=address)
    assert line.startswith("LISTEN_ADDRESS: ")
    assert "AUTH_TOKENS_FILE" in line
    assert "ALLOW_UNAUTHENTICATED=true" in line


@pytest.mark.parametrize("address", BEYOND_LOOPBACK)
def test_an_address_beyond_loopback_can_be_allowed(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load(monkeypatch, LISTEN_ADDRESS=address, ALLOW_UNAUTHENTICATED="true")
    assert settings.listen_address == address


@pytest.mark.parametrize("address", BEYOND_LOOPBACK)
def test_an_address_beyond_loopback_is_allowed_with_tokens(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"alice {'0' * 64}\n")
    settings = load(monkeypatch, LISTEN_ADDRESS=address, AUTH_TOKENS_FILE=str(tokens))
    assert settings.auth_tokens_file == tokens


def test_allow_unauthenticated_false_allows_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert refused(monkeypatch, LISTEN_ADDRESS="0.0.0.0:1", ALLOW_UNAUTHENTICATED="false")


def test_a_public_url_without_an_address_that_serves_it_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    [line] = refused(monkeypatch, PUBLIC_URL="https://here.example", HTTP_ADDRESS="")
    assert line.startswith("HTTP_ADDRESS: ")


@pytest.mark.parametrize("name", ["KIE_API_URL", "KIE_UPLOAD_URL"])
def test_an_address_of_kie_without_a_key_is_refused_rather_than_simulated(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    [line] = refused(monkeypatch, **{name: "https://kie.example"})
    assert line.startswith("KIE_API_KEY: ")


@pytest.mark.parametrize("name", ["KIE_API_URL", "KIE_UPLOAD_URL"])
@pytest.mark.parametrize(
    "url",
    ["http://api.kie.ai", "HTTP://kie.example:8080/base", "http://1.1.1.1", "http://[2606::1]"],
)
def test_a_key_is_not_sent_to_a_public_host_without_tls(
    name: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    [line] = refused(monkeypatch, KIE_API_KEY=SECRET, **{name: url})
    assert line.startswith(f"{name}: must be https")


SIMULATORS = (
    "http://127.0.0.1:8099",
    "http://localhost:8099",
    "http://[::1]:8099",
    "http://10.0.0.7:8099",
    "http://simulator:8099",
    "http://kie.internal",
)
KIE = "https://kie.example"


@pytest.mark.parametrize("url", SIMULATORS)
def test_a_simulator_can_be_named_and_needs_no_key(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load(monkeypatch, KIE_SIMULATOR="true", KIE_API_URL=url, KIE_UPLOAD_URL=url)
    assert settings.simulated
    assert not settings.uses_bundled_simulator


@pytest.mark.parametrize(
    "urls",
    [
        {"KIE_API_URL": KIE, "KIE_UPLOAD_URL": KIE},
        {"KIE_API_URL": SIMULATORS[0], "KIE_UPLOAD_URL": KIE},
        {"KIE_API_URL": KIE, "KIE_UPLOAD_URL": SIMULATORS[0]},
        {"KIE_API_URL": SIMULATORS[0]},
        {"KIE_UPLOAD_URL": SIMULATORS[0]},
    ],
)
def test_a_simulator_that_would_be_mixed_with_a_public_host_is_refused(
    urls: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    [line] = refused(monkeypatch, KIE_SIMULATOR="true", **urls)
    assert line.startswith("KIE_API_URL, KIE_UPLOAD_URL: ")


@pytest.mark.parametrize("urls", [{}, {"KIE_API_URL": KIE}, {"KIE_API_URL": SIMULATORS[0]}])
def test_a_key_together_with_a_simulator_is_refused(
    urls: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = refused(monkeypatch, KIE_SIMULATOR="true", KIE_API_KEY=SECRET, **urls)
    assert lines[0].startswith("KIE_SIMULATOR: ")
    assert "KIE_API_KEY" in lines[0]


@pytest.mark.parametrize(
    ("variables", "simulated"),
    [
        ({}, True),
        ({"KIE_SIMULATOR": "true"}, True),
        ({"KIE_API_KEY": SECRET}, False),
        ({"KIE_API_KEY": SECRET, "KIE_API_URL": KIE}, False),
        ({"KIE_API_KEY": SECRET, "KIE_SIMULATOR": "false"}, False),
        *(({"KIE_API_KEY": SECRET, "KIE_API_URL": url}, True) for url in SIMULATORS),
        ({"KIE_API_KEY": SECRET, "KIE_API_URL": SIMULATORS[0], "KIE_SIMULATOR": "false"}, False),
    ],
)
def test_results_count_as_samples_unless_the_provider_is_public_or_declared_real(
    variables: dict[str, str], simulated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(monkeypatch, **variables).simulated is simulated


ALLOWED = {"ALLOW_UNAUTHENTICATED": "true"}


@pytest.mark.parametrize(
    "variables",
    [
        {"DATABASE_URL": "postgresql://host/name"},
        {"DATABASE_URL": "postgres://host/name"},
        {"DATABASE_URL": "postgresql://host/name", "KIE_SIMULATOR": ""},
        {"DATABASE_URL": "postgresql://host/name", "KIE_API_KEY": ""},
        *({"LISTEN_ADDRESS": address, **ALLOWED} for address in BEYOND_LOOPBACK),
        {"KIE_SIMULATOR": "false"},
    ],
)
def test_a_service_without_a_key_does_not_start_where_samples_could_be_taken_for_results(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load(monkeypatch, **variables)
    with pytest.raises(SettingsError) as caught:
        check_serving(settings)
    assert str(caught.value).startswith("KIE_API_KEY: ")
    assert "KIE_SIMULATOR=true" in str(caught.value)


@pytest.mark.parametrize("provider", [{"KIE_SIMULATOR": "true"}, {"KIE_API_KEY": SECRET}])
@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"DATABASE_URL": "postgresql://host/name"},
        {"LISTEN_ADDRESS": "0.0.0.0:50051", **ALLOWED},
    ],
)
def test_a_service_with_a_key_or_an_explicit_simulator_starts_anywhere(
    variables: dict[str, str], provider: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_serving(load(monkeypatch, **variables, **provider))


def test_a_trial_on_loopback_with_sqlite_needs_neither_key_nor_simulator() -> None:
    check_serving(load_settings())


@pytest.mark.parametrize("alone", ["TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_CLIENT_CA_FILE"])
def test_a_part_of_tls_alone_is_refused(
    alone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file.pem"
    file.touch()
    lines = refused(monkeypatch, **{alone: str(file)})
    assert "TLS_CERT_FILE" in lines[0]
    assert "TLS_KEY_FILE" in lines[0]
    assert alone in lines[0]


# --- the process ---


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({"HTTPS_PROXY": f"socks5://{SECRET}@proxy.example:1080"}, ["HTTPS_PROXY"]),
        ({"https_proxy": f"https://{SECRET}@proxy.example"}, ["https_proxy"]),
        ({"SSL_CERT_FILE": "/no/such/file"}, ["SSL_CERT_FILE"]),
        ({"SSL_CERT_FILE": str(ROOT / "README.md")}, ["SSL_CERT_FILE"]),
        (
            {"HTTPS_PROXY": "socks5://proxy.example", "SSL_CERT_FILE": "/no/such/file"},
            ["HTTPS_PROXY", "SSL_CERT_FILE"],
        ),
    ],
)
def test_variables_for_outgoing_requests_that_cannot_be_used_are_named(
    tmp_path: Path, variables: dict[str, str], names: list[str]
) -> None:
    done = start(tmp_path, KIE_API_KEY=SECRET, **variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == names
    assert SECRET not in done.stderr


def start(folder: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run a process that cannot start, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "service"],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_the_process_ends_with_2_and_names_each_bad_value_and_shows_none(tmp_path: Path) -> None:
    done = start(tmp_path, **SECRETIVE)
    assert (done.returncode, done.stdout) == (2, "")
    assert sorted(line.partition(":")[0] for line in done.stderr.splitlines()) == sorted(BAD)
    assert SECRET not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_database_url_of_an_unknown_kind_is_named_and_not_shown(tmp_path: Path) -> None:
    done = start(
        tmp_path,
        LISTEN_ADDRESS="127.0.0.1:0",
        ADMIN_ADDRESS="",
        LOG_FORMAT="json",
        DATABASE_URL=f"mysql://user:{SECRET}@127.0.0.1:1/db",
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "DATABASE_URL: must look like sqlite:///generation.db or postgresql://host/name\n"
    )
    assert SECRET not in done.stderr


def test_every_bad_caller_limit_is_named_with_its_table_and_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "limits.toml"
    file.write_text("[default]\nqueue = 0\n[callers.alice]\nruning = 1\n")
    [line] = refused(monkeypatch, CALLER_LIMITS_FILE=str(file))
    assert line.startswith("CALLER_LIMITS_FILE: ")
    assert "[default] queue must be" in line
    assert "[callers.alice] runing is unknown" in line


@pytest.mark.parametrize("name", ["AUTH_TOKENS_FILE", "CALLER_LIMITS_FILE", "TLS_CERT_FILE"])
def test_a_pipe_is_refused_as_a_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    lines = refused(monkeypatch, **{name: str(pipe)})
    assert f"{name}: must be a file" in lines
