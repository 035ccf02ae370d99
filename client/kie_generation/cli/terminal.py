"""Text from elsewhere, made safe for a terminal."""


def printable(text: str) -> str:
    """Returns the text without what could command a terminal: it may come from far away."""
    return "".join(
        each if each.isprintable() or each == "\n" else "\N{REPLACEMENT CHARACTER}" for each in text
    )


def one_line(text: str) -> str:
    """Returns printable text without line breaks, so that it cannot pass for a line of ours."""
    return printable(text.replace("\n", " "))
