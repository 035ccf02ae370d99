"""The types of files that can be recognised by their first bytes."""

import re

HTML, XHTML, JSON, XML, SVG = (
    *("text/html", "application/xhtml+xml", "application/json", "application/xml"),
    "image/svg+xml",
)

# The first pattern that matches wins.
PATTERNS = {
    "image/png": rb"\x89PNG\r\n\x1a\n",
    "image/jpeg": rb"\xff\xd8\xff",
    "image/gif": rb"GIF8[79]a",
    "image/webp": rb"RIFF....WEBP",
    "audio/wav": rb"RIFF....WAVE",
    "video/x-msvideo": rb"RIFF....AVI ",
    "image/avif": rb"....ftypavi[fs]",
    "image/heic": rb"....ftyp(?:hei[cxms]|hevc|mif1|msf1)",
    "audio/mp4": rb"....ftypM4[ABP] ",
    "video/quicktime": rb"....(?:ftypqt  |moov|mdat|wide|free|skip)",
    "video/mp4": rb"....ftyp",
    "video/webm": rb"\x1aE\xdf\xa3.{0,60}webm",
    "video/x-matroska": rb"\x1aE\xdf\xa3",
    "image/jxl": rb"\xff\x0a|\x00\x00\x00\x0cJXL ",
    "image/bmp": rb"BM",
    "image/tiff": rb"II\*\x00|MM\x00\*",
    "image/vnd.adobe.photoshop": rb"8BPS",
    "image/x-icon": rb"\x00\x00\x01\x00",
    "video/mpeg": rb"\x00\x00\x01[\xb3\xba]",
    "video/x-flv": rb"FLV\x01",
    "video/mp2t": rb"G.{187}G",  # packets of 188 bytes
    "audio/ogg": rb"OggS",
    "audio/flac": rb"fLaC",
    "audio/aiff": rb"FORM....AIF[FC]",
    "audio/midi": rb"MThd",
    "audio/aac": rb"\xff[\xf0\xf1\xf8\xf9]",
    # A tag, or a frame: eleven bits of synchronisation, and a layer that is not reserved.
    "audio/mpeg": rb"ID3|\xff[\xe2-\xe7\xea-\xef\xf2-\xf7\xfa-\xff]",
    "application/pdf": rb"%PDF-",
    "application/zip": rb"PK(?:\x03\x04|\x05\x06)",
    "model/gltf-binary": rb"glTF",
}
MAGIC = {kind: re.compile(pattern, re.DOTALL) for kind, pattern in PATTERNS.items()}

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# What may come before the first element of a page.
PROLOGUE = re.compile(
    rb"\s*(?:(?:<!--.*?-->|<\?.*?\?>|<!doctype (?!html)[^>]*>)\s*)*", re.DOTALL | re.IGNORECASE
)
# How browsers recognise a page.
HTML_START = re.compile(
    rb"<(?:!doctype html|html|head|body|script|iframe|h1|div|font|table|a|style|title|b|br|p|meta)"
    rb"[\s>]|<!--",
    re.IGNORECASE,
)
SVG_START = re.compile(rb"<svg[\s>]", re.IGNORECASE)
# Lyrics and song texts may begin with a bracket, too: [00:12.00], [Verse 1].
JSON_START = re.compile(rb'\{\s*["}]|\[\s*[\[{"]|\[\s*\]\s*$')


def recognised(head: bytes) -> str:
    """Return the type of content by its first bytes, or "" if they are not recognised."""
    for kind, pattern in MAGIC.items():
        if pattern.match(head):
            return kind
    return _text_type(head)


def _text_type(head: bytes) -> str:
    text = head.removeprefix(BYTE_ORDER_MARK).lstrip()
    is_xml = text.startswith(b"<?xml")
    prologue = PROLOGUE.match(text)
    inside = text[prologue.end() :] if prologue else text
    if SVG_START.match(inside):
        return SVG
    if HTML_START.match(inside) or (inside != text and not is_xml):
        return XHTML if is_xml else HTML
    if is_xml:
        return XML
    return JSON if JSON_START.match(text) else ""
