"""The rules between settings: what cannot be combined, and what needs something else.

A message begins with the names of the settings, and never contains a value.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from providers.public_address import is_public_url
from service.callers import NO_CLIENT_CERTIFICATES, names_certificates, read_tokens_file
from service.certificates import CertificateError, Certificates, read_authorities, read_pair
from service.setting_types import is_loopback

if TYPE_CHECKING:
    from service.settings import Settings

# The secrets that can come from a file, whose setting has the same name with _FILE.
FROM_FILES = ("database_url", "kie_api_key", "kie_webhook_key", "callback_secret")


def broken_rules(settings: "Settings") -> Iterator[str]:
    """Yield a sentence for each rule that the settings break."""
    yield from _secret_rules(settings)
    yield from _caller_rules(settings)
    yield from _tls_rules(settings)
    yield from _provider_rules(settings)
    yield from _results_rules(settings)


def _secret_rules(settings: "Settings") -> Iterator[str]:
    for name in FROM_FILES:
        if {name, f"{name}_file"} <= settings.model_fields_set:
            yield f"{name.upper()}, {name.upper()}_FILE: only one of the two may be set"


def _caller_rules(settings: "Settings") -> Iterator[str]:
    authenticated = settings.auth_tokens_file or settings.allow_unauthenticated
    if not authenticated and not is_loopback(settings.listen_address):
        yield (
            "LISTEN_ADDRESS: an address that other machines can reach needs AUTH_TOKENS_FILE"
            " or ALLOW_UNAUTHENTICATED=true"
        )
    file = settings.auth_tokens_file
    if file and not settings.tls_client_ca_file and _names_certificates(file):
        yield f"AUTH_TOKENS_FILE: {NO_CLIENT_CERTIFICATES}"


def _names_certificates(tokens_file: Path) -> bool:
    return names_certificates(read_tokens_file(tokens_file))


def _tls_rules(settings: "Settings") -> Iterator[str]:
    cert, key = settings.tls_cert_file, settings.tls_key_file
    ca = settings.tls_client_ca_file
    if (cert is None) != (key is None):
        yield "TLS_CERT_FILE, TLS_KEY_FILE: must be set together"
    now = time.time()
    if cert and key:
        yield from _problem("TLS_CERT_FILE, TLS_KEY_FILE", lambda: read_pair(cert, key, now))
    if ca and not cert:
        yield "TLS_CLIENT_CA_FILE: needs TLS_CERT_FILE and TLS_KEY_FILE"
    if ca:
        yield from _problem("TLS_CLIENT_CA_FILE", lambda: read_authorities(ca, now))


def _problem(names: str, read: Callable[[], Certificates]) -> Iterator[str]:
    try:
        read()
    except CertificateError as error:
        yield f"{names}: {error}"
    except OSError as error:
        yield f"{names}: cannot be read: {error.strerror}"


def _provider_rules(settings: "Settings") -> Iterator[str]:
    given = {"kie_api_url", "kie_upload_url"} & settings.model_fields_set
    if settings.kie_simulator:
        yield from _simulator_rules(settings, given)
    elif settings.kie_api_key is None and given:
        yield "KIE_API_KEY: must be set with KIE_API_URL or KIE_UPLOAD_URL"
    if settings.kie_api_key is not None:
        for name in ("kie_api_url", "kie_upload_url"):
            url = getattr(settings, name)
            if url.lower().startswith("http:") and is_public_url(url):
                yield f"{name.upper()}: must be https, or the key would be sent unencrypted"
    if settings.public_url and not settings.http_address:
        yield "HTTP_ADDRESS: must be set with PUBLIC_URL"


def _results_rules(settings: "Settings") -> Iterator[str]:
    if settings.results_url is None and settings.results_public_url:
        yield "RESULTS_PUBLIC_URL: needs RESULTS_URL"
    if settings.results_url is None and settings.results_delete_on_purge:
        yield "RESULTS_DELETE_ON_PURGE: needs RESULTS_URL"


def _simulator_rules(settings: "Settings", given: set[str]) -> Iterator[str]:
    if settings.kie_api_key is not None:
        yield "KIE_SIMULATOR: must not be true with KIE_API_KEY: its results are samples"
    if len(given) == 1 or any(is_public_url(getattr(settings, name)) for name in given):
        yield (
            "KIE_API_URL, KIE_UPLOAD_URL: with KIE_SIMULATOR=true, set both to a simulator on a"
            " loopback or private address, or neither"
        )
