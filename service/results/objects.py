"""What is needed of a storage, and how one is opened."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Protocol

from service.results.content import Content
from service.results.errors import ResultsConfigError, StoreError
from service.results.folder import Folder
from service.results.places import FILE, Place

PROBE_KEY = ".probe"  # always the same, so that starts that are killed leave one object at most


class Objects(Protocol):
    """A storage of objects by key. Safe to call concurrently from one event loop.

    Every method but `place` raises StoreError; `read` raises MissingError if the object is missing.
    """

    @property
    def place(self) -> Place:
        """Where the objects are."""

    async def put(self, key: str, pieces: AsyncIterator[bytes], content: Content) -> None:
        """Store an object, or replace it, with flat memory.

        It appears as a whole after the last piece. An exception of `pieces` is raised here
        unchanged, and no object appears.
        """

    def read(self, key: str, start: int, size: int) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of an object of `size` bytes from `start` on, READ_BYTES at a time."""

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; those that do not exist are ignored."""

    async def sign(self, key: str, seconds: int) -> str | None:
        """Return a link to an object; None if the storage cannot make any."""

    async def tidy(self) -> None:
        """Delete what interrupted copies have left behind."""


async def open_objects(place: Place) -> Objects:
    """Open a storage, and check that objects can be written and deleted.

    Raises:
        ResultsConfigError: They cannot.
    """
    try:
        objects = _objects(place)
        await objects.put(PROBE_KEY, _probe(), Content("text/plain"))
        await objects.delete([PROBE_KEY])
        await objects.tidy()
    except StoreError as error:
        raise ResultsConfigError(f"RESULTS_URL: {error}") from None
    return objects


def _objects(place: Place) -> Objects:
    if place.scheme == FILE:
        return Folder(place)
    # Imported only where it is used: it takes 20 MB of memory.
    from service.results.bucket import Bucket  # noqa: PLC0415

    return Bucket(place)


async def _probe() -> AsyncIterator[bytes]:
    yield b"written and deleted at the start of the service"
