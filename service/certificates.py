"""Certificates in files, checked before they are used.

A message completes the sentence "NAME: ...", and contains nothing from a file but dates.
"""

import base64
import re
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from service.files import read_file

PEM = re.compile(
    rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----\s(.+?)-----END ",
    re.DOTALL,
)
TRUSTED = b"-----BEGIN TRUSTED "
# At the start of a file that was saved on Windows. OpenSSL ignores it, gRPC's library does not.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# The keys of servers that gRPC's library can use, by the object identifiers of the algorithm and of
# the curve. OpenSSL can use more.
RSA = bytes.fromhex("2a864886f70d010101")
EC = bytes.fromhex("2a8648ce3d0201")
ED25519 = bytes.fromhex("2b6570")
P256, P384, P521 = map(bytes.fromhex, ("2a8648ce3d030107", "2b81040022", "2b81040023"))
KEY_TYPES = ((RSA, b""), (EC, P256), (EC, P384), (EC, P521), (ED25519,))
# DER, in which certificates are encoded.
VERSION_TAG = 0xA0
UTC_TIME_TAG = 0x17
LONG_LENGTH = 0x80


class CertificateError(ValueError):
    """Files that cannot be used for TLS; the message says why."""


@dataclass(frozen=True, slots=True)
class Certificates:
    """The content of files that can be used.

    Attributes:
        contents: The content of each file.
        expiry_time: When the certificate expires, or the last one of several authorities.
    """

    contents: tuple[bytes, ...]
    expiry_time: float


def read_pair(cert: Path, key: Path, now: float) -> Certificates:
    """Return the contents of a certificate file and of its key file, in this order.

    Raises:
        CertificateError: They are not a pair, or the certificate has expired.
        OSError: A file cannot be read.
    """
    contents = (_read(cert), _read(key))
    try:
        # Without a password argument, OpenSSL would ask for one on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: b"")
        own = _certificates(contents[0])[0]  # certificates of its authorities follow
        expiry_time, key_type = _expiry_time(own), _key_type(own)
    except (OSError, ValueError, LookupError):  # ssl's errors are of two kinds
        words = "must be a certificate and its key, in PEM and without a passphrase"
        raise CertificateError(words) from None
    if key_type not in KEY_TYPES or TRUSTED in contents[0]:
        raise CertificateError(
            "must have a key of RSA, P-256, P-384, P-521 or Ed25519, in plain PEM"
        )
    return Certificates(contents, _unless_expired(expiry_time, now))


def read_authorities(file: Path, now: float) -> Certificates:
    """Return the content of a file with the certificates of authorities.

    Raises:
        CertificateError: It contains no certificates, or all of them have expired.
        OSError: The file cannot be read.
    """
    content = _read(file)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(file)
        expiry_time = max(map(_expiry_time, _certificates(content)))
    except (OSError, ValueError, LookupError):
        raise CertificateError("must contain certificates in PEM") from None
    return Certificates((content,), _unless_expired(expiry_time, now))


def _read(file: Path) -> bytes:
    return read_file(file).removeprefix(BYTE_ORDER_MARK)


def _unless_expired(expiry_time: float, now: float) -> float:
    if expiry_time <= now:
        raise CertificateError(f"expired at {format_time(expiry_time)}")
    return expiry_time


def format_time(time: float) -> str:
    """Return a Unix time in words."""
    return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M:%S} UTC"


# --- what a certificate says, which Python's ssl shows only for those of peers ---


def _certificates(pem: bytes) -> list[bytes]:
    """Return each certificate in a file, in DER."""
    return [base64.b64decode(found[1]) for found in PEM.finditer(pem)]


def _expiry_time(der: bytes) -> float:
    """Return when a certificate expires."""
    _, (tag, text) = _elements(_fields(der)[0])
    return _unix_time(tag, text.decode())


def _key_type(der: bytes) -> tuple[bytes, ...]:
    """Return the algorithm of a certificate's key and its parameter, such as a curve."""
    (_, algorithm), _ = _elements(_fields(der)[2])
    return tuple(content for _, content in _elements(algorithm))


def _fields(der: bytes) -> list[bytes]:
    """Return the fields of a certificate from its validity on: the subject and the key follow."""
    _, certificate = _elements(der)[0]
    _, to_be_signed = _elements(certificate)[0]
    fields = _elements(to_be_signed)
    # The version, which may be missing, the serial number, an algorithm and the issuer come first.
    first = 4 if fields[0][0] == VERSION_TAG else 3
    return [content for _, content in fields[first:]]


def _elements(der: bytes) -> list[tuple[int, bytes]]:
    """Return the tag and the content of each element."""
    elements = []
    position = 0
    while position < len(der):
        tag, length = der[position : position + 2]
        position += 2
        if length >= LONG_LENGTH:  # then it is the number of bytes of the length
            size = length - LONG_LENGTH
            length = int.from_bytes(der[position : position + size])
            position += size
        elements.append((tag, der[position : position + length]))
        position += length
    return elements


def _unix_time(tag: int, text: str) -> float:
    if tag == UTC_TIME_TAG:  # it has two digits of the year, from 1950 to 2049
        text = f"{'19' if text >= '5' else '20'}{text}"
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
