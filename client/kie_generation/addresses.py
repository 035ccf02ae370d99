"""Network addresses: of gRPC targets, local ones, and public ones."""

import errno
import ipaddress
import re
import socket
from typing import TypeAlias
from urllib.parse import unquote

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver

from kie_generation.proxies import is_loopback

# Top-level domains that are only ever resolved inside a network.
_INTERNAL_DOMAINS = frozenset(
    {
        *("localhost", "localdomain", "local", "internal", "intranet", "private"),
        *("corp", "home", "lan", "home.arpa", "svc", "onion"),
    }
)

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

# A host, with or without a port. An IPv6 address without brackets has no port.
_HOST = re.compile(r"(?:\[([^\]]+)\]|([^:]+))(?::\d+)?")
# An IPv6-only network reaches IPv4 through this prefix, which ends in the IPv4 address.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_public(text: str) -> bool:
    """Return whether a literal address is on the public internet; False for anything else."""
    try:
        address = _unwrapped(ipaddress.ip_address(text))
    except ValueError:
        return False
    site_local = isinstance(address, ipaddress.IPv6Address) and address.is_site_local
    internal = address.is_multicast or address.is_reserved or site_local
    return address.is_global and not internal


def is_literal(host: str) -> bool:
    """Return whether a URL's host is an address rather than a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_public_name(host: str) -> bool:
    """Return whether a URL's host is a name, and one that can be public, by its text."""
    labels = host.removesuffix(".").lower().split(".")
    # No top-level domain starts with a digit, so 127.1 is an address.
    is_name = len(labels) > 1 and all(labels) and ":" not in host and not labels[-1][0].isdigit()
    return is_name and _INTERNAL_DOMAINS.isdisjoint({labels[-1], ".".join(labels[-2:])})


def host_and_port(target: str) -> tuple[str, int]:
    """Return the host and the port of a gRPC target.

    Raises:
        ValueError: The target has no port, for example a Unix socket.
    """
    for scheme in ("dns:", "ipv4:", "ipv6:"):
        target = target.removeprefix(scheme)
    host, _, port = target.rpartition("/")[2].rpartition(":")
    return host.strip("[]"), int(port)


def is_local(target: str) -> bool:
    """Return whether a gRPC target is on this machine: a loopback address or a Unix socket."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    return all(_is_loopback(each) for each in target.split(","))  # `ipv4:` may list several


def _is_loopback(target: str) -> bool:
    for scheme in ("dns:", "ipv4:", "ipv6:"):
        target = target.removeprefix(scheme)
    target = unquote(target).rpartition("/")[2].lower()
    parts = _HOST.fullmatch(target)
    return is_loopback((parts[1] or parts[2]) if parts else target)


def _unwrapped(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address leads to, or the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(address.packed[-4:])
    return address.ipv4_mapped or address.sixtofour or address


class PublicResolver(AbstractResolver):
    """Resolves names; fails if any address of a name is not public.

    aiohttp connects to the addresses that are returned here, so a second lookup cannot differ.
    """

    def __init__(self) -> None:
        self._resolver = DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a name.

        Raises:
            OSError: One of them is not public, or the name cannot be resolved.
        """
        found = await self._resolver.resolve(host, port, family)
        if private := next((each["host"] for each in found if not is_public(each["host"])), None):
            message = f"{host} resolves to {private}, which is not a public address"
            raise OSError(errno.EADDRNOTAVAIL, message)
        return found

    async def close(self) -> None:
        """Close the resolver."""
        await self._resolver.close()
