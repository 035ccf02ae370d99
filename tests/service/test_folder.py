"""A folder that changes while results are kept in it."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.results.content import Content
from service.results.errors import CopyError, StoreError
from service.results.folder import INCOMING, Folder
from service.results.objects import open_objects
from service.results.places import place_of
from tests.support.kept_places import FolderPlace

HOURS_AGO = 7_200


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
