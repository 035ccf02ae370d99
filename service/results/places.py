"""Where results are kept: the value of RESULTS_URL."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from providers.urls import is_visible

FILE = "file"
READ_BYTES = 512 << 10  # at a time, so that a slow reader holds no request to the storage open
BUCKETS = {"s3": "bucket", "gs": "bucket", "az": "container"}
FORMS = "must look like s3://bucket/prefix, gs://…, az://container/prefix or file:///folder"


@dataclass(frozen=True, slots=True)
class Place:
    """A place for results.

    Attributes:
        scheme: `s3`, `gs`, `az` or `file`.
        bucket: The bucket or container; "" for a folder.
        path: The prefix of all keys, without slashes around it; for a folder, its absolute path.
    """

    scheme: str
    bucket: str
    path: str

    @property
    def uri(self) -> str:
        """The URI of the place, without a slash at its end."""
        if self.scheme == FILE:
            return Path(self.path).as_uri().rstrip("/")
        return f"{self.scheme}://{self.bucket}/{self.path}".rstrip("/")

    def uri_of(self, key: str) -> str:
        """Return the URI of an object. Our keys contain nothing that has to be quoted."""
        return f"{self.uri}/{key}"

    def key_of(self, uri: str) -> str | None:
        """Return the key of an object; None if it is elsewhere."""
        start = f"{self.uri}/"
        return uri.removeprefix(start) if uri.startswith(start) else None


def place_of(url: str) -> Place:
    """Return the place that a value of RESULTS_URL names.

    Raises:
        ValueError: It names none; the message does not contain the value.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(FORMS) from None
    path = unquote(parts.path) if parts.scheme == FILE else parts.path
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"{FORMS}; credentials and options are other environment variables")
    if not is_visible(url) or not path.isprintable() or ".." in PurePosixPath(path).parts:
        raise ValueError("must not contain `..`, spaces or control characters")
    if parts.scheme == FILE:
        if parts.netloc or not path.startswith("/") or len(path.strip("/")) == 0:
            raise ValueError(FORMS)
        return Place(FILE, "", str(PurePosixPath(path)))
    if parts.scheme not in BUCKETS or not parts.netloc or ":" in parts.netloc:
        raise ValueError(FORMS)
    prefix = path.strip("/")
    if "//" in prefix or "%" in prefix or "." in prefix.split("/"):
        raise ValueError(
            "must not contain percent-encoded parts, empty parts or parts that are `.`"
        )
    return Place(parts.scheme, parts.netloc, prefix)
