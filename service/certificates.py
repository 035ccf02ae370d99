"""Certificates in files, checked before they are used.

A message completes the sentence "NAME: ...", and contains nothing from a file but dates.
"""

import base64
import re
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

PEM = re.compile(
    rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----\s(.+?)-----END ",
    re.DOTALL,
)
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
    contents = (cert.read_bytes(), key.read_bytes())
    try:
        # Without a password argument, OpenSSL would ask for one on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: b"")
        expiry_time = _expiry_times(contents[0])[0]  # certificates of its authorities follow
    except (OSError, ValueError, LookupError):  # ssl's errors are of two kinds
        words = "must be a certificate and its key, in PEM and without a passphrase"
        raise CertificateError(words) from None
    return Certificates(contents, _unless_expired(expiry_time, now))


def read_authorities(file: Path, now: float) -> Certificates:
    """Return the content of a file with the certificates of authorities.

    Raises:
        CertificateError: It contains no certificates, or all of them have expired.
        OSError: The file cannot be read.
    """
    content = file.read_bytes()
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(file)
        expiry_time = max(_expiry_times(content))
    except (OSError, ValueError, LookupError):
        raise CertificateError("must contain certificates in PEM") from None
    return Certificates((content,), _unless_expired(expiry_time, now))


def _unless_expired(expiry_time: float, now: float) -> float:
    if expiry_time <= now:
        raise CertificateError(f"has expired at {format_time(expiry_time)}")
    return expiry_time


def format_time(time: float) -> str:
    """Return a Unix time in words."""
    return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M:%S} UTC"


# --- the dates of a certificate, which Python's ssl shows only for those of peers ---


def _expiry_times(pem: bytes) -> list[float]:
    """Return when each certificate in a file expires."""
    return [_expiry_time(base64.b64decode(found[1])) for found in PEM.finditer(pem)]


def _expiry_time(der: bytes) -> float:
    _, certificate = _elements(der)[0]
    _, to_be_signed = _elements(certificate)[0]
    fields = _elements(to_be_signed)
    # The version, which may be missing, the serial number, an algorithm and the issuer come first.
    _, validity = fields[4 if fields[0][0] == VERSION_TAG else 3]
    _, (tag, text) = _elements(validity)
    return _unix_time(tag, text.decode())


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
