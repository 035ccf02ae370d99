"""The page of metrics."""

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tests.support.harness import Service

ADMIN: dict[str, Any] = {"admin_address": "127.0.0.1:0"}
WAIT_SECONDS = 10


class Page:
    """A page of metrics, read as a scraper reads it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = list(text_string_to_metric_families(text))

    def value(self, name: str, **labels: str) -> float | None:
        """Return the value of the one series with these labels; None if there is none."""
        found = [
            sample.value
            for family in self.families
            for sample in family.samples
            if (sample.name, sample.labels) == (name, labels)
        ]
        assert len(found) <= 1
        return found[0] if found else None

    def series(self, name: str) -> list[dict[str, str]]:
        """Return the labels of all series of a name."""
        return [s.labels for family in self.families for s in family.samples if s.name == name]

    def calls(self, method: str, code: str) -> float | None:
        return self.value("generation_call_seconds_count", method=method, code=code)

    def provider_calls(self, endpoint: str, code: str) -> float | None:
        name = "generation_provider_call_seconds_count"
        return self.value(name, endpoint=endpoint, code=code)


async def scrape(service: Service) -> Page:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{service.admin_address}/metrics") as response,
    ):
        assert response.status == 200
        return Page(await response.text())


async def page_when(service: Service, condition: Callable[[Page], Any]) -> Page:
    """Scrape until a condition holds."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition(page := await scrape(service)):  # noqa: ASYNC110 - a page is expensive
            await asyncio.sleep(0.1)
    return page
