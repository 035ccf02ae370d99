"""File descriptors: how many this process may have, and how many of them are for callers."""

import resource
from contextlib import suppress

RESERVED = 1_000  # for the provider, the database, files, and the HTTP servers
BESIDE_WATCHES = 500  # behind a proxy each watch is a connection; so many are needed for the rest
UNLIMITED = 1 << 20


def raise_limit() -> None:
    """Raise this process's soft limit to the hard one, as far as the system lets it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS names no limit, and takes none above its own
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def limit() -> int:
    """Return how many descriptors this process may have open at a time."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return UNLIMITED if soft == resource.RLIM_INFINITY else soft


def connections_max(setting: int, descriptors: int) -> int:
    """Return how many incoming gRPC connections to accept.

    Args:
        setting: MAX_CONNECTIONS; 0 leaves it to the limit of descriptors.
        descriptors: What `limit` says.
    """
    return setting or max(descriptors - RESERVED, descriptors // 2)


def missing(watch_max_streams: int, descriptors: int) -> int:
    """Return how many descriptors are too few for the watches that are allowed; 0 if none."""
    return max(0, watch_max_streams + BESIDE_WATCHES - descriptors)
