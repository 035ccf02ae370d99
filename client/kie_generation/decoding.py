"""Expanding results that their server has compressed, although it was asked not to.

A response may be complete and its compressed content cut: then the server got only a part of it.
aiohttp would take that part for the result.
"""

import zlib
from collections.abc import Iterable, Iterator

import aiohttp

PIECE_BYTES = 1024 * 1024  # at a time, so that a small response cannot take much memory
GZIP_OR_ZLIB = zlib.MAX_WBITS | 32
READABLE = frozenset({"gzip", "x-gzip", "deflate"})
UNREADABLE = frozenset({"br", "zstd", "compress", "x-compress", "dcb", "dcz"})


class Decoder:
    """Expands gzip, which may consist of several members, or deflate."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(GZIP_OR_ZLIB)

    def pieces(self, compressed: bytes) -> Iterator[bytes]:
        """Yield what the next compressed bytes expand to.

        Raises:
            aiohttp.ClientPayloadError: They are damaged.
        """
        has_more = False
        while compressed or has_more:
            if self._member.eof:
                self._member = zlib.decompressobj(GZIP_OR_ZLIB)
            try:
                piece = self._member.decompress(compressed, PIECE_BYTES)
            except zlib.error:
                raise aiohttp.ClientPayloadError("the compressed content is damaged") from None
            has_more = len(piece) == PIECE_BYTES and not self._member.eof
            compressed = self._member.unconsumed_tail or self._member.unused_data
            if piece:
                yield piece

    def check_end(self) -> None:
        """Raise aiohttp.ClientPayloadError if the end of the content is missing."""
        if not self._member.eof:
            raise aiohttp.ClientPayloadError("the compressed content is cut off")


def decoder_of(headers: Iterable[str]) -> Decoder | None:
    """Return what expands a response; None if it is not compressed.

    Args:
        headers: The values of its Content-Encoding headers; words that name no compression are
            ignored.

    Raises:
        aiohttp.ClientPayloadError: It cannot be expanded here.
    """
    codings = [coding.strip().lower() for header in headers for coding in header.split(",")]
    compressions = [coding for coding in codings if coding in READABLE | UNREADABLE]
    if len(compressions) > 1 or not UNREADABLE.isdisjoint(compressions):
        raise aiohttp.ClientPayloadError(f"compressed with {', '.join(compressions)}")
    return Decoder() if compressions else None
