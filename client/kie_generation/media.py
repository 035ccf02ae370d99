"""The media types of results: their file extensions and their first bytes."""

HEAD_BYTES = 512
UNKNOWN_EXTENSION = ".bin"

_EXTENSIONS = {
    "image/avif": ".avif",
    "image/gif": ".gif",
    "image/jpeg": ".jpg",
    "image/png": ".png",
    "image/webp": ".webp",
    "video/mp4": ".mp4",
    "video/quicktime": ".mov",
    "video/webm": ".webm",
}
_DOCUMENT_TYPES = ("text/", "application/json", "application/xml", "application/problem+json")


def essence(media_type: str) -> str:
    """Return a media type in lower case and without its parameters."""
    return media_type.partition(";")[0].strip().lower()


def extension(media_type: str) -> str:
    """Return the file extension of a known media type, `.bin` for any other."""
    return _EXTENSIONS.get(essence(media_type), UNKNOWN_EXTENSION)


def sniffed(head: bytes) -> str:
    """Return the media type that the first bytes of a file indicate; "" if it is unknown."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "image/webp"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "video/webm"
    if head[4:8] == b"ftyp":
        return {b"avif": "image/avif", b"avis": "image/avif", b"qt  ": "video/quicktime"}.get(
            head[8:12], "video/mp4"
        )
    return ""


def problem(head: bytes, announced: str, served: str) -> str:
    """Return what is wrong with a downloaded file, "" if nothing is.

    Args:
        head: The first HEAD_BYTES of the file.
        announced: The media type that the task declares.
        served: The Content-Type of the response.
    """
    if not head:
        return "the response is empty"
    announced, found = essence(announced), sniffed(head)
    if announced in _EXTENSIONS:
        # The service derives the type from the URL: a JPEG named .png is a valid result.
        if found.partition("/")[0] == announced.partition("/")[0]:
            return ""
        return f"expected {announced}, got {found or _described(head, served)}"
    if not found and (_is_document(head) or essence(served).startswith(_DOCUMENT_TYPES)):
        return f"expected an image or a video, got {_described(head, served)}"
    return ""


def _is_document(head: bytes) -> bool:
    """Return whether the bytes look like HTML, XML or JSON, in which servers report errors."""
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith((b"<", b"{", b"["))


def _described(head: bytes, served: str) -> str:
    if _is_document(head) or essence(served).startswith(_DOCUMENT_TYPES):
        return f"a document ({essence(served) or 'no Content-Type'}), perhaps an error message"
    return "data of an unknown type"
