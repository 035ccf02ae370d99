"""Which proxy the environment names for a URL: the same for the service and for the client."""

import pytest

from providers.proxies import Proxies, ProxyError
from tests.support.paths import ROOT

PROXY = "http://user:pass-word@proxy.example:3128"
KIE = "https://api.kie.ai/x"


def test_the_client_decides_as_the_service_does() -> None:
    """The client imports nothing of the service, so it has a copy."""
    copies = (ROOT / "providers/proxies.py", ROOT / "client/kie_generation/proxies.py")
    assert len({copy.read_text() for copy in copies}) == 1


@pytest.mark.parametrize(
    ("environment", "url", "proxy"),
    [
        ({}, KIE, None),
        ({"HTTPS_PROXY": PROXY}, KIE, PROXY),
        ({"https_proxy": PROXY}, KIE, PROXY),
        ({"https_proxy": "http://a:1", "HTTPS_PROXY": "http://b:1"}, KIE, "http://a:1"),
        ({"https_proxy": "", "HTTPS_PROXY": PROXY}, KIE, None),
        ({"HTTPS_PROXY": " http://a:1 "}, KIE, "http://a:1"),
        ({"HTTPS_PROXY": "proxy.example:3128"}, KIE, "http://proxy.example:3128"),
        ({"HTTPS_PROXY": "http://[2001:db8::1]:3128"}, KIE, "http://[2001:db8::1]:3128"),
        ({"HTTPS_PROXY": PROXY}, "http://10.0.0.1/", None),
        ({"HTTP_PROXY": PROXY}, "http://10.0.0.1/", PROXY),
        ({"HTTP_PROXY": PROXY}, KIE, None),
        ({"HTTP_PROXY": PROXY}, "HTTP://files.example/", PROXY),
        ({"HTTPS_PROXY": PROXY}, "https://[::1", None),
    ],
)
def test_the_variable_of_the_scheme_names_the_proxy(
    environment: dict[str, str], url: str, proxy: str | None
) -> None:
    assert Proxies(environment).for_url(url) == proxy


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LocalHost", "localhost.", "kie.localhost", "127.0.0.1", "127.9.9.9"),
        *("[::1]", "[::ffff:127.0.0.1]", "[0:0:0:0:0:0:0:1]", "127.1", "2130706433", "0x7f.1"),
        *("0.0.0.0", "[::]"),  # noqa: S104 - not an address to listen on
    ],
)
def test_loopback_is_always_reached_directly(host: str) -> None:
    proxies = Proxies({"HTTP_PROXY": PROXY, "HTTPS_PROXY": PROXY, "NO_PROXY": "nothing.example"})
    assert proxies.for_url(f"http://{host}:8099/x") is None
    assert proxies.for_url(f"https://user@{host}/x") is None


@pytest.mark.parametrize("host", ["localhost.example", "notlocalhost", "10.0.0.1", "[fd00::1]"])
def test_other_hosts_are_not_loopback(host: str) -> None:
    assert Proxies({"HTTP_PROXY": PROXY}).for_url(f"http://{host}/") == PROXY


@pytest.mark.parametrize(
    ("no_proxy", "url", "direct"),
    [
        ("*", KIE, True),
        ("kie.ai", KIE, True),
        ("KIE.AI", KIE, True),
        (".kie.ai", KIE, True),
        ("*.kie.ai", KIE, True),
        ("api.kie.ai", KIE, True),
        ("other.example, api.kie.ai", KIE, True),
        ("other.example api.kie.ai,", KIE, True),
        ("api.kie.ai:443", KIE, True),
        ("api.kie.ai:8443", KIE, False),
        ("api.kie.ai:8443", "https://api.kie.ai:8443/", True),
        ("ie.ai", KIE, False),
        ("ai.", KIE, True),
        ("", KIE, False),
        (",", KIE, False),
        ("10.0.0.0/8", "https://10.1.2.3/", True),
        ("10.0.0.0/8", "https://11.1.2.3/", False),
        ("10.1.2.3/8", "https://10.9.9.9/", True),
        ("10.1.2.3", "https://10.1.2.3/", True),
        ("10.1.2.3:443", "https://10.1.2.3/", True),
        ("fd00::/8", "https://[fd00::2]:8443/", True),
        ("fd00::2", "https://[fd00:0::2]/", True),
        ("[fd00::2]", "https://[fd00::2]/", True),
        ("[fd00::2]:443", "https://[fd00::2]/", True),
        ("[fd00::2]:8443", "https://[fd00::2]/", False),
        ("10.0.0.0/8", "https://[fd00::2]/", False),
        ("api.kie.ai", "https://api.kie.ai./x", True),
    ],
)
def test_no_proxy_lists_names_domains_addresses_and_networks(
    no_proxy: str, url: str, direct: bool
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        proxies = Proxies({"HTTPS_PROXY": PROXY, name: no_proxy})
        assert proxies.for_url(url) == (None if direct else PROXY)


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"])
@pytest.mark.parametrize(
    "value",
    [
        *("socks5://secret@proxy:1080", "https://secret@proxy:443", "http://", "http://secret:x"),
        *("http://a b", "http://[secret", "http://proxy:0", "://secret"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named_without_its_value(name: str, value: str) -> None:
    proxies = Proxies({name: value})
    scheme = name.partition("_")[0].lower()
    assert proxies.for_url(f"{scheme}://localhost/") is None
    with pytest.raises(ProxyError) as caught:
        proxies.for_url(f"{scheme}://api.kie.ai/")
    assert str(caught.value).startswith(f"{name}: must be an http URL")
    assert "secret" not in str(caught.value)
