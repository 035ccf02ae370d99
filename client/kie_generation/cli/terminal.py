"""Untrusted text made safe for a terminal."""


def printable(text: str) -> str:
    """Return the text without control characters, which could manipulate the terminal."""
    return "".join(
        each if each.isprintable() or each == "\n" else "\N{REPLACEMENT CHARACTER}" for each in text
    )


def one_line(text: str) -> str:
    """Return printable text without line breaks, so that it cannot imitate our lines."""
    return printable(text.replace("\n", " "))
