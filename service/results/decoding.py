"""Expands results that their server has compressed, although it was asked not to.

The end of the response does not show that compressed content is complete: a server that compresses
what it gets from somewhere else may have got only a part of it. Only the end of the compressed
content itself shows that.
"""

import zlib
from collections.abc import Iterable, Iterator

from service.results.errors import CopyError

PIECE_BYTES = 64 << 10  # at a time, so that a small response cannot take much memory
GZIP_OR_ZLIB = zlib.MAX_WBITS | 32
READABLE = frozenset({"gzip", "x-gzip", "deflate"})
UNREADABLE = frozenset({"br", "zstd", "compress", "x-compress", "dcb", "dcz"})


class Decoder:
    """Expands gzip, which may consist of several members, or deflate."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(GZIP_OR_ZLIB)

    @property
    def is_complete(self) -> bool:
        """Whether the content has ended."""
        return self._member.eof

    def pieces(self, compressed: bytes) -> Iterator[bytes]:
        """Yield what the next compressed bytes expand to, piece by piece.

        Raises:
            CopyError: They are damaged.
        """
        has_more = False
        while compressed or has_more:
            if self._member.eof:
                self._member = zlib.decompressobj(GZIP_OR_ZLIB)
            try:
                piece = self._member.decompress(compressed, PIECE_BYTES)
            except zlib.error:
                raise CopyError("the compressed content of the result is damaged") from None
            has_more = len(piece) == PIECE_BYTES and not self._member.eof
            compressed = self._member.unconsumed_tail or self._member.unused_data
            if piece:
                yield piece


def decoder_of(headers: Iterable[str]) -> Decoder | None:
    """Return what expands a response; None if it is not compressed.

    Args:
        headers: The values of its Content-Encoding headers. Words that name no compression are
            ignored: some stores repeat there what they were given at the upload.

    Raises:
        CopyError: It cannot be expanded here.
    """
    codings = [coding.strip().lower() for header in headers for coding in header.split(",")]
    compressions = [coding for coding in codings if coding in READABLE | UNREADABLE]
    if len(compressions) > 1 or not UNREADABLE.isdisjoint(compressions):
        raise CopyError(f"the result is compressed with {', '.join(compressions)}")
    return Decoder() if compressions else None
