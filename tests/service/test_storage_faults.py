"""Object stores that fail in the middle of a copy, or that are gone for a while."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from aiohttp import web

from tests.support.copying import DAY, copying
from tests.support.kept_places import PLACES, S3Place, environment
from tests.support.media_host import MIB, MediaHost, media, media_host
from tests.support.s3_proxy import S3Proxy, is_part, s3_proxy

CONTENT = media(17 * MIB)
NAMES = {f"{DAY}/task/0.mp4"}


@pytest.fixture
async def host() -> AsyncIterator[MediaHost]:
    async with media_host() as host:
        host.add("a.mp4", CONTENT)
        yield host


@pytest.fixture(params=["moto", "versitygw"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[S3Place]:
    async with PLACES[request.param](tmp_path) as place:
        assert isinstance(place, S3Place)
        yield place


@pytest.fixture
async def proxy(place: S3Place) -> AsyncIterator[S3Proxy]:
    """A proxy in front of the place, through which the service uses it."""
    async with s3_proxy(place.endpoint) as proxy:
        place.variables["AWS_ENDPOINT_URL"] = proxy.endpoint
        with environment(place):
            yield proxy


class Times:
    """Fails a part a number of times."""

    def __init__(self, part: int, times: int) -> None:
        self.part, self.left = part, times

    def __call__(self, request: web.Request) -> bool:
        if self.left and is_part(request, self.part):
            self.left -= 1
            return True
        return False


@pytest.mark.parametrize("part", [1, 2, 4])
async def test_a_store_that_is_busy_for_a_moment_in_the_middle_of_an_upload_is_asked_again(
    host: MediaHost, place: S3Place, proxy: S3Proxy, stack: AsyncExitStack, part: int
) -> None:
    copies = await copying(host, place, stack)
    proxy.fails = Times(part, 2)
    [artifact] = await copies.copy(host.url("a.mp4"))
    copies.check(artifact, CONTENT)
    assert len(proxy.refused) == 2
    assert copies.outcomes() == {"copied": 1}


async def test_a_store_that_stays_busy_in_the_middle_of_an_upload_gets_no_object(
    host: MediaHost, place: S3Place, proxy: S3Proxy, stack: AsyncExitStack
) -> None:
    copies = await copying(host, place, stack)
    proxy.fails = Times(2, 1_000)
    [artifact] = await copies.copy(host.url("a.mp4"))
    assert artifact.copy is None
    assert artifact.storage_error == "the storage did not take the copy"
    assert await asyncio.to_thread(place.names) == set()
    proxy.fails = lambda _: False
    [artifact] = await copies.copy(host.url("a.mp4"))
    copies.check(artifact, CONTENT)
    assert await asyncio.to_thread(place.names) == NAMES
    assert copies.outcomes() == {"storage": 1, "copied": 1}


async def test_a_store_that_fails_to_complete_an_upload_gets_no_object(
    host: MediaHost, place: S3Place, proxy: S3Proxy, stack: AsyncExitStack
) -> None:
    copies = await copying(host, place, stack)
    proxy.fails = lambda request: request.method == "POST" and "uploadId" in request.query
    [artifact] = await copies.copy(host.url("a.mp4"))
    assert artifact.copy is None
    assert await asyncio.to_thread(place.names) == set()


async def test_a_bucket_that_disappears_for_a_while_gets_the_copy_afterwards(
    host: MediaHost, place: S3Place, proxy: S3Proxy, stack: AsyncExitStack
) -> None:
    del proxy
    copies = await copying(host, place, stack)
    await asyncio.to_thread(place.disappear)
    for _ in range(3):
        [artifact] = await copies.copy(host.url("a.mp4"))
        assert artifact.copy is None
    await asyncio.to_thread(place.reappear)
    [artifact] = await copies.copy(host.url("a.mp4"))
    copies.check(artifact, CONTENT)
    assert copies.outcomes() == {"storage": 3, "copied": 1}
