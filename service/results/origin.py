"""Results at the provider: by their URLs, or by fresh ones where those are dead."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import structlog

from providers.base import Unavailable
from service.results.errors import CopyError, StatusError
from service.results.source import Download, Source

DEAD_LINK_STATUSES = frozenset({403, 404, 410})

FreshUrl = Callable[[str], Awaitable[str | Unavailable | None]]

log = structlog.get_logger()


class Origin:
    """Opens results at the provider."""

    def __init__(self, source: Source, fresh_url: FreshUrl) -> None:
        """Keep what is needed.

        Args:
            source: Downloads from URLs.
            fresh_url: Asks the provider for another URL of a result, which works for a while only.
        """
        self._source = source
        self._fresh_url = fresh_url

    def asking(self, fresh_url: FreshUrl) -> "Origin":
        """Return the same origin, which asks for other URLs in another way."""
        return Origin(self._source, fresh_url)

    @asynccontextmanager
    async def open(self, url: str, offset: int = 0) -> AsyncIterator[Download]:
        """Download a result; if its link is dead, ask the provider once for another one.

        Args:
            url: Its URL.
            offset: How many bytes to leave out, if the server can.

        Raises:
            StatusError: The server answered with an error; with 403, 404 or 410, the provider has
                no other link.
            CopyError: It cannot be downloaded now.
        """
        async with AsyncExitStack() as stack:
            try:
                download = await stack.enter_async_context(self._source.open(url, offset))
            except StatusError as error:
                if error.status not in DEAD_LINK_STATUSES:
                    raise
                fresh = await self._fresh_url(url)
                if isinstance(fresh, Unavailable):
                    log.warning("no fresh link of a result", reason=fresh.detail)
                    words = f"{error}, and the provider cannot be asked for another link now"
                    raise CopyError(words) from None
                if fresh is None:
                    raise
                download = await stack.enter_async_context(self._source.open(fresh, offset))
            yield download
