"""What counts as a public address: one that every host on the internet can reach.

Only the text of a host is examined; no name is resolved. Code that connects to a host must also
check the addresses that its name resolves to, with `is_public_ip`.
"""

import ipaddress
import unicodedata
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

NAME_MAX_CHARACTERS = 253
# Top-level domains that are only ever resolved inside a network (RFC 6761, 6762, 8375).
INTERNAL_DOMAINS = frozenset(
    {
        *("localhost", "localdomain", "local", "internal", "intranet", "private"),
        *("corp", "home", "lan", "home.arpa", "svc", "onion"),
    }
)
NOT_IN_A_HOST = frozenset("#%/:<>?@[\\]^|`{}\"'")
IPV4_BITS = 0xFFFF_FFFF
# IPv6 prefixes whose last 32 bits are an IPv4 address: NAT64, IPv4-translated, IPv4-compatible.
EMBEDS_IPV4 = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "::ffff:0:0:0/96", "::/96")))
LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")  # older Pythons call it global


def is_public_url(url: str) -> bool:
    """Return whether the host of a URL is public; False for a URL without a host."""
    try:
        host = urlsplit(url).hostname
    except ValueError:
        return False
    return host is not None and is_public_host(host)


def is_public_host(host: str) -> bool:
    """Return whether a host in a URL is a public IP address or may be a public name.

    Spellings that some clients take for an IPv4 address, such as 127.1 or 0x7f000001, are not.
    """
    host = _normalized(host)
    if ":" in host:
        return _is_public_literal(host)
    if len(host) > NAME_MAX_CHARACTERS or not NOT_IN_A_HOST.isdisjoint(host):
        return False
    labels = host.split(".")
    if labels[-1][:1].isdigit():  # no top-level domain starts with a digit
        return _is_public_literal(host)
    internal = not INTERNAL_DOMAINS.isdisjoint({labels[-1], ".".join(labels[-2:])})
    return len(labels) > 1 and all(labels) and not internal


def is_public_ip(address: IPAddress) -> bool:
    """Return whether an IP address, and any IPv4 address inside it, is globally reachable."""
    if not address.is_global or address.is_multicast:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return True
    local = address.is_site_local or address in LOCAL_NAT64
    return not local and all(map(is_public_ip, _embedded(address)))


def _normalized(host: str) -> str:
    """Return a host as clients read it: decoded, and without a trailing dot."""
    decoded = unicodedata.normalize("NFKC", unquote(host)).casefold()
    return decoded.replace("\N{IDEOGRAPHIC FULL STOP}", ".").removesuffix(".")


def _is_public_literal(host: str) -> bool:
    try:
        return is_public_ip(ipaddress.ip_address(host))
    except ValueError:
        return False


def _embedded(address: ipaddress.IPv6Address) -> Iterator[ipaddress.IPv4Address]:
    if address.ipv4_mapped:
        yield address.ipv4_mapped
    if address.sixtofour:
        yield address.sixtofour
    if any(address in network for network in EMBEDS_IPV4):
        yield ipaddress.IPv4Address(int(address) & IPV4_BITS)
