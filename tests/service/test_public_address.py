"""Which hosts are public, and that only public ones may be named as inputs of a public provider."""

import ipaddress
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from providers.base import ParamsError
from providers.kie.client import KieProvider
from providers.kie.simulator import Simulator
from providers.public_address import is_public_host, is_public_ip, is_public_url
from tests.support.harness import INSTANT, Service, create_request, serving
from tests.support.refusals import refusal

PUBLIC = [
    *("files.example", "FILES.EXAMPLE", "files.example.", "a_b.files.example", "a-1.b2.c3"),
    *("bücher.example", "猫.example", "x.xn--p1ai", "api.kie.ai", "kieai.redpandaai.co"),
    *("localhost.example", "local.example", "internal.example.com", "mylocal.example"),
    *("10.0.0.1.example.com", "10.example", "0x7f.example"),
    *("8.8.8.8", "1.1.1.1", "100.63.255.255", "100.128.0.1", "172.15.0.1", "172.32.0.1"),
    *("2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"),
]
INTERNAL_NAMES = [
    *("localhost", "LOCALHOST", "localhost.", "a.localhost", "a.b.localhost."),
    *("printer.local", "PRINTER.LOCAL.", "svc.cluster.local", "metadata.google.internal"),
    *("host.docker.internal", "router.lan", "router.home.arpa", "wiki.corp", "wiki.intranet"),
    *("localhost.localdomain", "nas.home", "a.private", "kie", "router", "a..example", ".example"),
]
IPV4 = [
    *("127.0.0.1", "127.255.255.255", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255"),  # noqa: S104
    *("192.168.1.1", "169.254.169.254", "100.64.0.1", "100.127.255.255", "224.0.0.1"),
    *("239.255.255.255", "255.255.255.255", "240.0.0.1", "198.18.0.1", "127.0.0.1."),
]
IPV6 = [
    *("::", "::1", "0:0:0:0:0:0:0:1", "fe80::1", "fe80::1%25eth0", "febf::1", "fc00::1"),
    *("fd12:3456::1", "fec0::1", "ff02::1", "ff0e::1", "100::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:7f00:1", "::127.0.0.1", "::a00:1"),
    *("::ffff:0:127.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::a00:1", "64:ff9b::a9fe:a9fe"),
    *("64:ff9b:1::808:808", "2002:7f00:1::", "2002:a00:1::1"),
]
ODD_SPELLINGS = [
    *("2130706433", "0x7f000001", "0x7f.1", "0x7f.0.0.1", "127.1", "127.0.1", "0177.0.0.1"),
    *("017700000001", "127.0.0.01", "127.0.0.1.5", "0", "0x0", "134744072", "08.8.8.8"),
    *("１２７.0.0.1", "127。0。0。1", "127．0．0．1", "127｡0｡0｡1", "①②⑦.0.0.1"),  # noqa: RUF001
    *("ⓛocalhost", "ｌｏｃａｌｈｏｓｔ", "%6cocalhost", "localhost%2e", "%31%32%37.0.0.1"),  # noqa: RUF001
    *("127.0.0.1\\.example.com", "127.0.0.1%5c.example.com", "localhost%2f.example.com"),
]
NOT_PUBLIC = [*INTERNAL_NAMES, *IPV4, *IPV6, *ODD_SPELLINGS]


def url_of(host: str) -> str:
    return f"https://[{host}]:8443/a.png" if ":" in host else f"https://{host}:8443/a.png"


@pytest.mark.parametrize("host", PUBLIC)
def test_a_host_that_anybody_can_reach_is_public(host: str) -> None:
    assert is_public_host(host)
    assert is_public_url(url_of(host))


@pytest.mark.parametrize("host", [*NOT_PUBLIC, "", ".", "x" * 300 + ".example"])
def test_a_host_that_only_some_can_reach_is_not_public(host: str) -> None:
    assert not is_public_host(host)
    assert not is_public_url(url_of(host))


def test_an_address_that_a_name_resolves_to_is_judged_like_a_literal() -> None:
    for host in (*IPV4, *IPV6):
        text = host.removesuffix(".").removesuffix("%25eth0")
        assert not is_public_ip(ipaddress.ip_address(text)), host


@pytest.mark.parametrize("url", ["", "https://", "https://[::1", "files.example", "https:///a"])
def test_a_url_without_a_host_is_not_public(url: str) -> None:
    assert not is_public_url(url)


# --- inputs of tasks ---

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "midjourney": ("file_urls", {"task_type": "TASK_TYPE_IMG2IMG"}),
    "veo3": ("image_urls", {}),
    "sora2": ("image_urls", {"api_model": "API_MODEL_IMAGE_TO_VIDEO"}),
}


LOCAL = create_request(
    {"veo3": {"prompt": "p", "image_urls": ["http://localhost/a.png"]}}
).provider_params


def params_with(model: str, url: str) -> dict[str, Any]:
    field, fields = MODELS[model]
    return {model: {"prompt": "p", field: [url], **fields}}


@pytest.fixture(scope="module")
async def public(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """A service whose provider has a public name, which does not answer."""
    folder = tmp_path_factory.mktemp("public")
    url = "https://kie.invalid"
    async with (
        Simulator(INSTANT) as kie,
        serving(
            folder, kie, kie_api_url=url, kie_upload_url=url, create_wait_seconds=0
        ) as running_service,
    ):
        yield running_service


@pytest.mark.parametrize("model", MODELS)
async def test_an_input_that_is_not_public_is_refused_by_its_field_with_the_reason(
    public: Service, model: str
) -> None:
    path = f"provider_params.kie.{model}.{MODELS[model][0]}[0]"
    for host in NOT_PUBLIC:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await public.create(params_with(model, url_of(host)))
        error = refusal(caught.value)
        assert (error.reason, error.fields) == ("INVALID_PARAMS", [path]), host
        assert error.message.startswith(f"{path} must be reachable from the internet: "), host


@pytest.mark.parametrize("model", MODELS)
async def test_an_input_with_user_info_is_refused_by_its_field(public: Service, model: str) -> None:
    for user in ("user@", "user:word@", ":word@", "@", "8.8.8.8@"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await public.create(params_with(model, f"https://{user}files.example/a.png"))
        error = refusal(caught.value)
        assert error.message.endswith("[0] must not contain a user name or password"), user
        assert "word" not in error.message.removesuffix("a user name or password")


@pytest.mark.parametrize("model", MODELS)
async def test_a_public_input_is_accepted(public: Service, model: str) -> None:
    for host in PUBLIC:
        assert (await public.create(params_with(model, url_of(host)))).id, host


async def test_a_provider_inside_our_network_takes_inputs_from_there(service: Service) -> None:
    for host in ("localhost", "127.0.0.1", "10.0.0.1", "[::1]", "printer.local", "user@kie"):
        created = await service.create(params_with("veo3", f"http://{host}/a.png"))
        assert created.provider_task_id, host


@pytest.mark.parametrize(
    "api_url",
    [
        "http://127.0.0.1:8099",
        "http://localhost:8099",
        "http://[::1]:8099",
        "http://192.168.1.2",
        "http://simulator:8099",
        "http://host.docker.internal:8099",
    ],
)
async def test_a_provider_is_inside_our_network_by_its_own_address(api_url: str) -> None:
    provider = KieProvider(api_url, "https://files.example", "key")
    provider.check(LOCAL)
    await provider.close()


@pytest.mark.parametrize(
    "api_url", ["https://api.kie.ai", "https://API.KIE.AI./", "http://8.8.8.8:80"]
)
async def test_a_provider_elsewhere_takes_public_inputs_only(api_url: str) -> None:
    provider = KieProvider(api_url, "http://localhost", "key")
    with pytest.raises(ParamsError):
        provider.check(LOCAL)
    await provider.close()
