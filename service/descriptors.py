"""File descriptors: how many this process may open, and how many connections they allow."""

import resource
from contextlib import suppress

RESERVED = 1_000  # for the provider, the database, files, and the HTTP servers
OTHER_DESCRIPTORS = 500  # for everything else: behind a proxy each watch may be a connection
UNLIMITED = 1 << 20


def raise_limit() -> None:
    """Raise this process's soft limit to the hard one, if the system allows it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS reports no limit, and rejects one above its own
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def limit() -> int:
    """Return how many descriptors this process may have open at a time."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return UNLIMITED if soft == resource.RLIM_INFINITY else soft


def connections_max(setting: int, descriptors: int) -> int:
    """Return how many incoming gRPC connections to accept.

    Args:
        setting: MAX_CONNECTIONS; 0 derives the number from `descriptors`.
        descriptors: The result of `limit`.
    """
    return setting or max(descriptors - RESERVED, descriptors // 2)


def missing(watch_max_streams: int, descriptors: int) -> int:
    """Return how many descriptors are missing for the watches allowed; 0 if none."""
    return max(0, watch_max_streams + OTHER_DESCRIPTORS - descriptors)
