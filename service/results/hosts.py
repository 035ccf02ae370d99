"""Which URLs may be fetched: they come from the provider, and must not reach our own network."""

import ipaddress
import re
import socket
from collections.abc import Iterable

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from providers.public_address import is_public_host, is_public_ip
from service.results.errors import NotAllowedError

ENCODED = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+")


class FetchRules:
    """Allows https URLs whose hosts are public; and the exceptions of the operator.

    The text of a URL is checked here, and the addresses of its host by `PublicResolver`.
    """

    def __init__(self, allowed_hosts: Iterable[str] = (), own_urls: Iterable[str] = ()) -> None:
        """Allow exceptions from the rules.

        Args:
            allowed_hosts: Hosts that need not be public, and may be asked over plain http.
            own_urls: The base URLs of the simulator, which the same holds for.
        """
        self._allowed = frozenset(host.casefold() for host in allowed_hosts)
        self._own = frozenset((url.raw_host, url.port) for url in map(URL, own_urls))

    def check(self, text: str) -> URL:
        """Return a URL that may be fetched.

        Raises:
            NotAllowedError: It may not.
        """
        try:
            # A URL that is encoded is used as it is: a signature in it must not change.
            url = URL(text, encoded=ENCODED.fullmatch(text) is not None)
            host, port = url.raw_host, url.port
        except ValueError:
            raise NotAllowedError("the URL of the result is invalid") from None
        if url.scheme not in {"http", "https"} or not host or url.raw_user is not None:
            raise NotAllowedError("the URL of the result is not an https URL")
        if self.is_exempt(host, port or 0):
            return url
        if url.scheme != "https":
            raise NotAllowedError("the URL of the result is not an https URL")
        if not is_public_host(host):
            raise NotAllowedError("the host of the result is not public")
        return url

    def is_exempt(self, host: str, port: int) -> bool:
        """Return whether a host need not be public."""
        return host.casefold() in self._allowed or (host, port) in self._own


class PublicResolver(AbstractResolver):
    """Resolves names to public addresses only.

    The connection is opened to the addresses that are returned here, so a name that resolves to
    another address a moment later gains nothing.
    """

    def __init__(self, rules: FetchRules) -> None:
        self._rules = rules
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a host.

        Raises:
            NotAllowedError: One of them is not public.
        """
        found = await self._resolver.resolve(host, port, family)
        if not self._rules.is_exempt(host, port) and not all(map(_is_public, found)):
            raise NotAllowedError("the host of the result has an address that is not public")
        return found

    async def close(self) -> None:
        """Close the resolver of the system."""
        await self._resolver.close()


def _is_public(found: ResolveResult) -> bool:
    address, _, zone = found["host"].partition("%")
    try:
        return not zone and is_public_ip(ipaddress.ip_address(address))
    except ValueError:
        return False
