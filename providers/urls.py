"""What counts as a URL: the one rule for settings, parameters and the provider's responses."""

from urllib.parse import SplitResult, urlsplit


def is_visible(text: str) -> bool:
    """Return whether a text contains neither white space nor control and formatting characters."""
    return text.isprintable() and not any(map(str.isspace, text))


def split_http_url(text: str) -> SplitResult | None:
    """Return the parts of an absolute http or https URL; None if the text is not one."""
    try:
        parts = urlsplit(text)
        is_absolute = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:  # an invalid port or IPv6 address
        return None
    return parts if is_absolute and is_visible(text) else None


def without_userinfo(url: str) -> str:
    """Return a URL without the user name and password that it may contain."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
