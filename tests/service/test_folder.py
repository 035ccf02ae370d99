"""A folder that changes while results are kept in it."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.results.content import Content
from service.results.errors import CopyError, StoreError
from service.results.folder import INCOMING, Folder
from service.results.objects import Objects, open_objects
from service.results.places import place_of
from tests.support.kept_places import FolderPlace

HOURS_AGO = 7_200
DEFAULT_THREADS_MAX = 32  # of an event loop


@pytest.fixture
def place(tmp_path: Path) -> FolderPlace:
    return FolderPlace(tmp_path / "results")


async def one_piece() -> AsyncIterator[bytes]:
    yield b"content"


async def test_a_failed_copy_says_why_even_if_what_arrived_of_it_cannot_be_removed(
    place: FolderPlace,
) -> None:
    objects = await open_objects(place_of(place.url))

    async def pieces() -> AsyncIterator[bytes]:
        yield b"content"
        place.disappear()
        place.folder.touch()
        raise CopyError("the source was cut")

    with pytest.raises(CopyError, match="the source was cut"):
        await objects.put("a.txt", pieces(), Content("text/plain"))


async def test_a_file_system_that_hangs_is_an_error_and_holds_up_nothing_else(
    place: FolderPlace,
) -> None:
    """Opening a pipe that nobody writes to hangs, as a file on a server that does not answer."""
    objects = await open_objects(place_of(place.url))
    hasty = Folder(place_of(place.url), stall_seconds=0.2)
    await objects.put("a.txt", one_piece(), Content("text/plain"))
    os.mkfifo(place.folder / "b.txt")

    async def read(key: str, of: Objects) -> bytes:
        return b"".join([piece async for piece in of.read(key, 0, len(b"content"))])

    hanging = [asyncio.ensure_future(read("b.txt", hasty)) for _ in range(DEFAULT_THREADS_MAX)]
    assert await asyncio.to_thread(bool, 1), "the threads of others are free"
    for each in hanging:
        with pytest.raises(StoreError, match="does not answer"):
            await each
    with (place.folder / "b.txt").open("wb"):  # so that the threads end
        assert await read("a.txt", objects) == b"content"


async def test_nothing_is_deleted_while_the_folder_is_gone(place: FolderPlace) -> None:
    objects = await open_objects(place_of(place.url))
    await objects.put("a/b.txt", one_piece(), Content("text/plain"))
    place.disappear()
    with pytest.raises(StoreError, match="missing"):  # so the task of the copy is kept
        await objects.delete(["a/b.txt"])
    place.reappear()
    await objects.delete(["a/b.txt", "a/c.txt"])
    assert place.names() == set()


async def test_what_cannot_be_swept_is_left_and_the_rest_is_swept(place: FolderPlace) -> None:
    incoming = place.folder / INCOMING
    (incoming / "a folder").mkdir(parents=True)
    for name in ("1", "2"):
        (incoming / name).touch()
    for path in incoming.iterdir():
        now = path.stat().st_mtime
        os.utime(path, (now - HOURS_AGO, now - HOURS_AGO))
    await asyncio.to_thread((incoming / "new").touch)
    assert isinstance(await open_objects(place_of(place.url)), Folder)
    assert sorted(place.temporary()) == ["a folder", "new"]
