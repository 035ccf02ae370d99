"""A simulator in which no task ends by itself, with a client; and a receiver of callbacks."""

from collections.abc import AsyncIterator

import pytest

from tests.support.kie_client import Kie, running
from tests.support.receiver import Receiver, receiving


@pytest.fixture
async def kie() -> AsyncIterator[Kie]:
    async with running() as started:
        yield started


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as started:
        yield started
