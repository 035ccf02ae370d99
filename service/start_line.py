"""The first line of the log: what runs, and whether it spends money."""

import os

import structlog

from providers.urls import without_userinfo
from service import VERSION
from service.callers import read_tokens_file
from service.egress import describe_proxy
from service.settings import Settings
from storage.postgresql.connection import connection_params, is_postgres
from storage.sqlite import sqlite_path

log = structlog.get_logger()


def log_start(settings: Settings) -> None:
    """Log what is about to run, without secrets."""
    log.info(
        "starting",
        version=VERSION,
        database=_database(settings.database_url.get_secret_value()),
        tls=_tls(settings),
        callers=_callers(settings),
        proxy=describe_proxy(settings, os.environ),
        traces=_traces(settings),
        provider=_provider(settings),
    )


def _database(url: str) -> str:
    """Return where the tasks are, without the user and the password."""
    if not is_postgres(url):
        return f"SQLite, {sqlite_path(url)}"
    params = connection_params(url)
    host = params.get("host") or params.get("hostaddr") or "the local socket"
    return f"PostgreSQL, {params['dbname'] or 'the default database'} on {host}"


def _tls(settings: Settings) -> str:
    if settings.tls_cert_file is None:
        return "off"
    return "on, with client certificates" if settings.tls_client_ca_file else "on"


def _callers(settings: Settings) -> str:
    if settings.auth_tokens_file is None:
        return "everybody, without tokens"
    names = set(read_tokens_file(settings.auth_tokens_file).values())
    return f"{len(names)}, with tokens"


def _traces(settings: Settings) -> str:
    endpoint = settings.otel_exporter_otlp_endpoint
    return "off" if endpoint is None else f"sent to {without_userinfo(endpoint)}"


def _provider(settings: Settings) -> str:
    if settings.uses_bundled_simulator:
        return "the bundled simulator, results are samples"
    url = without_userinfo(settings.kie_api_url)
    return f"{url}, simulated" if settings.simulated else f"{url}, REAL MONEY"
