"""The media type of a result, by the extension of its URL."""

from pathlib import PurePosixPath
from urllib.parse import urlsplit

UNKNOWN = "application/octet-stream"
MIME_TYPES = {
    # images
    ".avif": "image/avif",
    ".bmp": "image/bmp",
    ".gif": "image/gif",
    ".heic": "image/heic",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".psd": "image/vnd.adobe.photoshop",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".webp": "image/webp",
    # vector images and pages
    ".ai": "application/postscript",
    ".eps": "application/postscript",
    ".pdf": "application/pdf",
    ".svg": "image/svg+xml",
    # videos
    ".avi": "video/x-msvideo",
    ".m4v": "video/mp4",
    ".mkv": "video/matroska",
    ".mov": "video/quicktime",
    ".mp4": "video/mp4",
    ".mpeg": "video/mpeg",
    ".mpg": "video/mpeg",
    ".webm": "video/webm",
    # audio
    ".aac": "audio/aac",
    ".aif": "audio/aiff",
    ".aiff": "audio/aiff",
    ".flac": "audio/flac",
    ".m4a": "audio/mp4",
    ".mid": "audio/midi",
    ".midi": "audio/midi",
    ".mp3": "audio/mpeg",
    ".oga": "audio/ogg",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".wav": "audio/wav",
    ".weba": "audio/webm",
    # subtitles and text
    ".ass": "text/x-ssa",
    ".csv": "text/csv",
    ".json": "application/json",
    ".lrc": "text/plain",
    ".md": "text/markdown",
    ".srt": "application/x-subrip",
    ".ssa": "text/x-ssa",
    ".ttml": "application/ttml+xml",
    ".txt": "text/plain",
    ".vtt": "text/vtt",
    ".xml": "application/xml",
    # 3D
    ".3mf": "model/3mf",
    ".fbx": "model/fbx",
    ".glb": "model/gltf-binary",
    ".gltf": "model/gltf+json",
    ".obj": "model/obj",
    ".ply": "model/ply",
    ".stl": "model/stl",
    ".usdz": "model/vnd.usdz+zip",
    # archives
    ".7z": "application/x-7z-compressed",
    ".gz": "application/gzip",
    ".rar": "application/vnd.rar",
    ".tar": "application/x-tar",
    ".tgz": "application/gzip",
    ".zip": "application/zip",
}


def mime_type(url: str) -> str:
    """Return the media type of a result by its URL's extension."""
    try:
        extension = PurePosixPath(urlsplit(url).path).suffix.lower()
    except ValueError:
        extension = ""
    return MIME_TYPES.get(extension, UNKNOWN)
