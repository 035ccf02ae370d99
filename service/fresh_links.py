"""Fresh links of results, at the pace of each caller.

Asking the provider for a link is a request of the account, which the provider limits. Callers that
download results whose links are dead must not use up that limit.
"""

import asyncio
from collections import defaultdict

from providers.base import Unavailable
from service.callers import current_caller
from service.results.origin import FreshUrl

PAUSE_SECONDS = 1.0
PATIENCE_SECONDS = 10.0


class FreshLinks:
    """Asks for fresh links: for each caller one at a time, with a pause before its next one."""

    def __init__(
        self,
        ask: FreshUrl,
        *,
        pause_seconds: float = PAUSE_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        """Keep what is needed.

        Args:
            ask: Asks the provider for another URL of a result.
            pause_seconds: From an answer to the next question of the same caller.
            patience_seconds: How long a caller waits for its turn.
        """
        self._ask = ask
        self._pause_seconds = pause_seconds
        self._patience_seconds = patience_seconds
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def of(self, url: str) -> str | Unavailable | None:
        """Return another URL of a result; None if the provider has none."""
        turn = self._turns[current_caller.get()]
        try:
            async with asyncio.timeout(self._patience_seconds):
                await turn.acquire()
        except TimeoutError:
            return Unavailable("the caller waits for too many other links")
        try:
            return await self._ask(url)
        finally:
            asyncio.get_running_loop().call_later(self._pause_seconds, turn.release)
