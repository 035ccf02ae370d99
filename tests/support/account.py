"""A Kie that refuses the account, and bounds under which tasks are held briefly."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from service.holds import HoldTimes
from service.limits import LimitBounds
from service.verdicts import VerdictBounds
from tests.support.databases import rows
from tests.support.harness import Service, poller_bounds
from tests.support.kie_socket import Raw, Request, SocketKie, envelope
from tests.support.waiting import eventually

NO_CREDITS = envelope(402, None, "Credits insufficient")
SHORT_HOLDS = poller_bounds(
    limits=LimitBounds(holds=HoldTimes(first_seconds=0.05, max_seconds=0.1, follow_seconds=0)),
    verdicts=VerdictBounds(postpone_seconds=0.05, postpone_max_seconds=0.1),
)


class Account:
    """A Kie that answers each create with `answer`, or accepts it while that is None."""

    def __init__(self, answer: Raw | None, seconds: float = 0.005) -> None:
        self.answer = answer
        self.seconds = seconds
        self.in_flight: list[int] = []  # how many creates were in progress at each one
        self.kie: Any = _Counting(self)

    @property
    def creates(self) -> int:
        count: int = self.kie.count("create")
        return count

    def __call__(self, request: Request) -> Raw:
        if request.endpoint == "record":
            return envelope(200, {"state": "success", "response": ["https://x.example/a.png"]})
        return self.answer or envelope(200, {"taskId": f"k-{self.creates}"})


class _Counting(SocketKie):
    def __init__(self, account: Account) -> None:
        super().__init__(account)
        self.account, self.open = account, 0

    async def _answered(self, request: Request) -> Raw:
        if request.endpoint != "create":
            return self.answer(request)
        self.open += 1
        self.account.in_flight.append(self.open)
        await asyncio.sleep(self.account.seconds)
        self.open -= 1
        return self.answer(request)


@asynccontextmanager
async def listening(account: Account) -> AsyncIterator[Account]:
    async with account.kie:
        yield account


async def until_probed(account: Account, times: int = 3) -> None:
    """Wait until waiting tasks have been tried several times more."""
    before = account.creates
    await eventually(lambda: account.creates >= before + times)


async def until_held(service: Service) -> None:
    """Wait until the create that opens the hold has failed, and the hold is stored."""
    url, failed = service.database_url, "SELECT id FROM tasks WHERE status = 'FAILED'"
    await eventually(lambda: bool(rows(url, failed) and rows(url, "SELECT since FROM holds")))
