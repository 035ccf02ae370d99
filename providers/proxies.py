"""How HTTP requests leave: as HTTP_PROXY, HTTPS_PROXY, NO_PROXY and SSL_CERT_FILE say.

A name in lower case comes before the same name in upper case. Loopback is always reached directly.
"""

import functools
import ipaddress
import re
import socket
import ssl
from collections.abc import Mapping
from urllib.parse import urlsplit

DEFAULT_PORTS = {"http": 80, "https": 443}
# An entry of NO_PROXY with a port, or with an IPv6 address in brackets.
ENTRY = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<name>[^:\[\]]+))(?::(?P<port>\d+))?")


class ProxyError(ValueError):
    """A variable that names no usable proxy. The message has its name, and not its value."""


class Proxies:
    """Decides through which proxy a URL is requested."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Read the variables."""
        self._proxies = {s: _variable(environment, f"{s}_proxy") for s in DEFAULT_PORTS}
        self._direct = re.split(r"[,\s]+", _variable(environment, "no_proxy")[1].lower())

    def for_url(self, url: str) -> str | None:
        """Return the URL of the proxy for a URL; None if it is requested directly.

        Raises:
            ProxyError: The variable for the URL names no usable proxy.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or DEFAULT_PORTS.get(parts.scheme)
        except ValueError:  # the request itself will fail
            return None
        host = (parts.hostname or "").removesuffix(".")
        name, proxy = self._proxies.get(parts.scheme, ("", ""))
        is_direct = any(entry and _matches(entry, host, port) for entry in self._direct)
        if not proxy or is_direct or is_loopback(host):
            return None
        return _usable(name, proxy)


def tls_context(environment: Mapping[str, str]) -> ssl.SSLContext:
    """Return a context that trusts the authorities of the environment of this process.

    aiohttp makes its own when it is imported, which may be before the variables are set.
    """
    return _tls_context(environment.get("SSL_CERT_FILE"), environment.get("SSL_CERT_DIR"))


@functools.cache  # creating one takes 0.05 s
def _tls_context(*variables: str | None) -> ssl.SSLContext:
    del variables  # OpenSSL reads them itself
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine, by its text."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            address = ipaddress.IPv4Address(socket.inet_aton(host))  # a form such as 127.1
        except (OSError, ValueError):
            return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified  # clients reach loopback by both


def _variable(environment: Mapping[str, str], name: str) -> tuple[str, str]:
    """Return the name of the variable that applies, and its value."""
    name = name if name in environment else name.upper()
    return name, environment.get(name, "").strip()


def _usable(name: str, value: str) -> str:
    """Return the URL of a proxy.

    Raises:
        ProxyError: It cannot be used.
    """
    proxy = value if "://" in value else f"http://{value}"
    try:
        parts = urlsplit(proxy)
        usable = parts.scheme == "http" and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not proxy.isprintable() or " " in proxy:
        raise ProxyError(f"{name}: must be an http URL such as http://proxy.example:3128")
    return proxy


def _matches(entry: str, host: str, port: int | None) -> bool:
    """Return whether an entry of NO_PROXY covers a host: by address, network, name or domain."""
    if entry == "*":
        return True
    parts = ENTRY.fullmatch(entry)
    name = (parts["v6"] or parts["name"]) if parts else entry
    if parts and parts["port"] and int(parts["port"]) != port:
        return False
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(name, strict=False)
    except ValueError:
        domain = name.removeprefix("*").strip(".")
        return host == domain or host.endswith(f".{domain}")
