"""The ports in links of an earlier run, so that they can be served again."""

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

PORTS_MAX: Final = 8
"""How many ports are reopened, the newest first."""


def url_of(address: tuple[Any, ...]) -> str:
    """Return the base URL of a bound address."""
    host, port = address[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def base_urls_by_port(base_urls: Sequence[str]) -> dict[int, list[str]]:
    """Return the base URLs on loopback by port, newest first; `base_urls` are oldest first."""
    found: dict[int, list[str]] = {}
    for url in dict.fromkeys(reversed(base_urls)):
        port = _loopback_port(url)
        if port is not None and (port in found or len(found) < PORTS_MAX):
            found.setdefault(port, []).append(url)
    return found


def is_loopback(url: str) -> bool:
    """Return whether the host of `url` is this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _loopback_port(url: str) -> int | None:
    try:
        return urlsplit(url).port if is_loopback(url) else None
    except ValueError:
        return None
