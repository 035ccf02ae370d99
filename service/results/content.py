"""What a result is, by its first bytes: a page of a proxy must not pass for a picture."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from service.results.errors import NotMediaError
from service.results.recognition import HTML, JSON, SVG, XHTML, XML, recognised

HEAD_BYTES = 4_096  # enough to recognise every type below
UNKNOWN = "application/octet-stream"
MEDIA = ("image/", "video/", "audio/")
ATTACHMENTS = frozenset({HTML, XHTML, XML, SVG})
EXTENSION = re.compile(r"\.[a-z0-9]{1,8}")

# The extensions of each type. The first one replaces an extension that is not of the type.
EXTENSIONS: dict[str, tuple[str, ...]] = {
    "image/png": (".png", ".apng"),
    "image/jpeg": (".jpg", ".jpeg", ".jfif"),
    "image/gif": (".gif",),
    "image/webp": (".webp",),
    "image/avif": (".avif",),
    "image/heic": (".heic", ".heif"),
    "image/jxl": (".jxl",),
    "image/bmp": (".bmp",),
    "image/tiff": (".tiff", ".tif"),
    "image/vnd.adobe.photoshop": (".psd",),
    "image/x-icon": (".ico",),
    "video/mp4": (".mp4", ".m4v"),
    "video/quicktime": (".mov",),
    "video/webm": (".webm",),
    "video/x-matroska": (".mkv",),
    "video/x-msvideo": (".avi",),
    "video/mp2t": (".ts",),
    "video/mpeg": (".mpg", ".mpeg"),
    "video/x-flv": (".flv",),
    "audio/mpeg": (".mp3",),
    "audio/wav": (".wav",),
    "audio/mp4": (".m4a",),
    "audio/aac": (".aac",),
    "audio/ogg": (".ogg", ".oga", ".opus"),
    "audio/flac": (".flac",),
    "audio/aiff": (".aiff", ".aif"),
    "audio/midi": (".mid", ".midi"),
    "application/pdf": (".pdf",),
    "application/zip": (".zip",),
    "model/gltf-binary": (".glb",),
    "text/plain": (".txt", ".log", ".lrc", ".srt", ".ass", ".obj", ".mtl"),
    "text/vtt": (".vtt",),
    "text/csv": (".csv",),
    "text/markdown": (".md",),
    HTML: (".html", ".htm"),
    XHTML: (".xhtml",),
    JSON: (".json", ".jsonl", ".ndjson"),
    "model/gltf+json": (".gltf",),
    XML: (".xml", ".musicxml"),
    SVG: (".svg",),
}
TYPES = {extension: kind for kind, names in EXTENSIONS.items() for extension in names}
TEXTS = frozenset({JSON, "model/gltf+json", XHTML, XML, SVG})
JSON_TYPES = frozenset({JSON, "model/gltf+json"})
PAGES = frozenset({HTML, XHTML})
# Containers in which the extension says more than the first bytes.
CONTAINERS = {
    "video/mp4": {"audio/mp4", "video/quicktime"},
    "audio/mp4": {"video/mp4"},
    "audio/mpeg": {"audio/aac"},
}


@dataclass(frozen=True, slots=True)
class Content:
    """What a result was found to be.

    Attributes:
        mime_type: Its media type.
        extension: The extension of its key, with its dot; or "".
    """

    mime_type: str
    extension: str = ""

    @property
    def is_attachment(self) -> bool:
        """Whether browsers should save it instead of showing it: it may contain scripts."""
        return self.mime_type in ATTACHMENTS


def verified(head: bytes, url: str) -> Content:
    """Return what a result is.

    Args:
        head: Its first HEAD_BYTES bytes, or all of it.
        url: Its URL, whose extension announces the type.

    Raises:
        NotMediaError: It is something else than the URL announces.
    """
    extension = _extension(url)
    announced = TYPES.get(extension, UNKNOWN)
    found = recognised(head)
    kind = _agreed(announced, found)
    if kind is None:
        what = found or "not recognised"
        raise NotMediaError(f"the content is {what}, but should be {announced}")
    if TYPES.get(extension, UNKNOWN) != kind:
        extension = EXTENSIONS[kind][0]
    return Content(kind, extension)


def extension_of(mime_type: str) -> str:
    """Return the usual extension of a media type, with its dot; `.bin` if it has none."""
    return EXTENSIONS.get(mime_type.partition(";")[0].strip().lower(), (".bin",))[0]


def _extension(url: str) -> str:
    """Return the extension of a URL's path in lower case, or "" if it is none."""
    try:
        suffix = PurePosixPath(urlsplit(url).path).suffix.lower()
    except ValueError:
        return ""
    return suffix if EXTENSION.fullmatch(suffix) else ""


def _agreed(announced: str, found: str) -> str | None:
    """Return the type of content that was announced as one type and found to be another."""
    if announced.startswith("text/") or announced in TEXTS:
        if found in PAGES and announced not in PAGES:
            return None
        if found == JSON and announced not in JSON_TYPES:
            return None
        return announced
    if found in PAGES or found == JSON:
        return None
    if announced == UNKNOWN:
        return found or UNKNOWN
    if found == announced or announced in CONTAINERS.get(found, ()):
        return announced
    return found if _same_medium(announced, found) else None


def _same_medium(announced: str, found: str) -> bool:
    """Return whether both are images, or both are videos or sounds, which share containers."""
    one, other = announced.partition("/")[0], found.partition("/")[0]
    if found == SVG or not announced.startswith(MEDIA):
        return False
    return one == other or {one, other} == {"video", "audio"}
