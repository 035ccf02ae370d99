"""What counts as a URL, wherever one is read."""

import pytest

from providers.urls import split_http_url


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com",
        "https://example.com:8443/a/b?c=d#e",
        "HTTPS://EXAMPLE.COM",
        "http://[::1]:80/",
        "https://example.com/übung",
    ],
)
def test_an_absolute_http_url_is_one(url: str) -> None:
    assert split_http_url(url)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "example.com",
        "/a/b",
        "//example.com/a",
        "http:///a",
        "http://",
        "http://:80",
        "ftp://example.com",
        "javascript:alert(1)",
        "http://example.com:0/",
        "http://example.com:99999/",
        "http://example.com:x/",
        "http://[::1/",
        "http://exam ple.com/",
        "http://example.com/a\n",
        " http://example.com",
        "http://example.com/\u202e",
        "http://example.com/\u2028",
    ],
)
def test_anything_else_is_not(text: str) -> None:
    assert split_http_url(text) is None
