"""The proxies and certificate authorities for outgoing requests.

They come from environment variables that other programs use as well, not from settings of ours.
"""

import ssl
from collections.abc import Iterator, Mapping

from providers.proxies import Proxies, ProxyError
from providers.urls import without_userinfo
from service.environment import SettingsError
from service.settings import Settings

CERTIFICATES = "SSL_CERT_FILE"
PROXY_VARIABLES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")
UNUSED_VARIABLES = ("ALL_PROXY", "all_proxy")


def check_environment(settings: Settings, environment: Mapping[str, str]) -> None:
    """Refuse what would make every request to the provider fail.

    Raises:
        SettingsError: A variable cannot be used; the message names it.
    """
    if broken := list(_problems(settings, environment)):
        raise SettingsError("\n".join(broken))


def _problems(settings: Settings, environment: Mapping[str, str]) -> Iterator[str]:
    try:
        _used_proxies(settings, environment)
    except ProxyError as error:
        yield str(error)
    if file := environment.get(CERTIFICATES):
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
        except (OSError, ValueError):  # ssl's errors are of both kinds
            yield f"{CERTIFICATES}: must be a file with certificates in PEM"


def describe_proxy(settings: Settings, environment: Mapping[str, str]) -> str:
    """Return through which proxy the provider is reached, without its password."""
    used = _used_proxies(settings, environment)
    if not used:
        variables = (*PROXY_VARIABLES, *UNUSED_VARIABLES)
        ignored = next(filter(environment.get, variables), None)
        return f"none, {ignored} is ignored" if ignored else "none"
    if len(used) > 1 and len({*used.values()}) == 1:
        return without_userinfo(used["KIE_API_URL"])
    return ", ".join(f"{without_userinfo(proxy)} for {name}" for name, proxy in used.items())


def _used_proxies(settings: Settings, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the proxy for each URL of the provider that is reached through one."""
    if settings.uses_bundled_simulator:
        return {}
    proxies = Proxies(environment)
    urls = {"KIE_API_URL": settings.kie_api_url, "KIE_UPLOAD_URL": settings.kie_upload_url}
    return {name: proxy for name, url in urls.items() if (proxy := proxies.for_url(url))}
