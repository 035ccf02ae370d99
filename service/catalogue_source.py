"""The provider's catalogue, asked within the rate limit that all processes share."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol, TypeVar

from providers.kie.catalogue.client import Listing, NotAnswered, NotListed
from providers.kie.catalogue.openapi import ModelSchema
from storage.claims import Quota
from storage.store import Store

Answer = TypeVar("Answer")


class CatalogueSource(Protocol):
    """The provider's catalogue; each method makes one request."""

    async def list_models(self) -> Listing | NotAnswered: ...

    async def model_schema(self, model: str) -> ModelSchema | NotListed | NotAnswered: ...


class LimitedSource:
    """A source whose requests wait for their turn, and are repeated while they get no answer."""

    def __init__(
        self,
        source: CatalogueSource,
        store: Store,
        *,
        request_seconds: float,
        limited_seconds: float,
        attempts: int,
    ) -> None:
        """Keep what is needed.

        Args:
            source: The provider's catalogue.
            store: Where all processes take the slots of their requests.
            request_seconds: Between two requests.
            limited_seconds: The pause after a response that the rate limit was reached.
            attempts: How often a request is made until it is answered.
        """
        self._source = source
        self._store = store
        self._requests = Quota("catalogue", 1, request_seconds)
        self._limited_seconds = limited_seconds
        self._attempts = attempts

    async def start(self) -> None:
        """Create the slot that all processes share."""
        await self._store.add_slots(self._requests)

    async def list_models(self) -> Listing | NotAnswered:
        """Ask for the list of all models."""
        return await self._ask(self._source.list_models)

    async def model_schema(self, model: str) -> ModelSchema | NotListed | NotAnswered:
        """Ask for the schema of a model."""
        asked = partial(self._source.model_schema, model)
        answer: ModelSchema | NotListed | NotAnswered = await self._ask(asked)
        return answer

    async def _ask(
        self, request: Callable[[], Awaitable[Answer | NotAnswered]]
    ) -> Answer | NotAnswered:
        """Make a request within the rate limit; repeat it while it is not answered."""
        answer: Answer | NotAnswered = NotAnswered("not asked")
        for _ in range(self._attempts):
            await self._take_slot()
            answer = await request()
            if not isinstance(answer, NotAnswered):
                break
            if answer.limited:
                await asyncio.sleep(self._limited_seconds)
        return answer

    async def _take_slot(self) -> None:
        now = self._store.now()
        while free_time := await self._store.take_slot(self._requests, now):
            await asyncio.sleep(max(0.0, free_time - now))
            now = self._store.now()
