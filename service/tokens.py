"""Opaque tokens: positions as text. They grant no access: the caller filters everything."""

import base64
import binascii
from hashlib import blake2b

BINDING_BYTES = 8


def binding(which: str) -> bytes:
    """Return what binds a token to a filter, which is given as text."""
    return blake2b(which.encode(), digest_size=BINDING_BYTES).digest()


def encode_token(raw: bytes) -> str:
    """Return a token that contains these bytes."""
    return base64.urlsafe_b64encode(raw).decode()


def decode_token(token: str, max_characters: int) -> bytes | None:
    """Return the bytes that a token contains, or None if it is not a token."""
    if len(token) > max_characters:
        return None
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
