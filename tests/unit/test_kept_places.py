"""Places for results: their URLs, their words, and how they are reached."""

from datetime import timedelta

import pytest

from service.results.bucket import client_options
from service.results.errors import store_words
from service.results.places import Place, place_of

PLACES = {
    "s3://bucket": Place("s3", "bucket", ""),
    "s3://bucket/": Place("s3", "bucket", ""),
    "s3://bucket/a/b/": Place("s3", "bucket", "a/b"),
    "gs://bucket/a": Place("gs", "bucket", "a"),
    "az://container/a": Place("az", "container", "a"),
    "file:///folder/sub": Place("file", "", "/folder/sub"),
    "file:///a%C3%A4/b": Place("file", "", "/aä/b"),
}


@pytest.mark.parametrize(("url", "place"), PLACES.items())
def test_a_url_names_a_place(url: str, place: Place) -> None:
    assert place_of(url) == place


@pytest.mark.parametrize("url", PLACES)
def test_the_key_of_an_object_is_found_in_its_uri(url: str) -> None:
    place = place_of(url)
    assert place.key_of(place.uri_of("2026/11/26/t/0.mp4")) == "2026/11/26/t/0.mp4"
    assert place.key_of("s3://other/2026/0.mp4") is None
    assert place.uri_of("k") == f"{url.rstrip('/')}/k"


def test_a_key_of_another_prefix_is_not_ours() -> None:
    assert place_of("s3://bucket/a").key_of("s3://bucket/ab/0.mp4") is None


REFUSAL = (
    "Generic S3 error: Error performing PUT https://b.example/k?X-Amz-Signature=abcd in 2 ms - "
    "Server returned non-2xx status code: 403 Forbidden: <?xml version='1.0'?><Error>"
    "<Code>SignatureDoesNotMatch</Code><Message>It does not match</Message>"
    "<AWSAccessKeyId>AKIASECRET1</AWSAccessKeyId><StringToSign>AWS4 secret-of-mine</StringToSign>"
    "</Error>\n\nDebug source:\nGeneric { secret }"
)


def test_the_words_of_a_store_contain_its_code_and_no_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-mine")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "b.example")
    words = store_words(Exception(REFUSAL))
    assert words.endswith("403 Forbidden: SignatureDoesNotMatch: It does not match")
    assert "Amz" not in words
    assert "AKIASECRET1" not in words
    assert "secret" not in words
    assert "https://(hidden)/k" in words
    assert len(store_words(Exception("x" * 9_999))) <= 600


@pytest.mark.parametrize(
    "user", ["user:pass-word", "pass-word", "us%40er:pass-word", "u:pass-word@x"]
)
def test_the_words_of_a_store_contain_no_password_of_an_endpoint(user: str) -> None:
    words = store_words(Exception(f"Error performing PUT http://{user}@127.0.0.1:9/x/k in 2 ms"))
    assert words == "Error performing PUT http://(hidden)@127.0.0.1:9/x/k in 2 ms"


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy"])
def test_a_store_is_reached_through_the_proxy_of_the_environment(variable: str) -> None:
    options = client_options("s3", {variable: "http://proxy.example:3128", "NO_PROXY": ".corp"})
    assert options["proxy_url"] == "http://proxy.example:3128"
    assert options["proxy_excludes"].endswith(",.corp")
    assert "127.0.0.0/8" in options["proxy_excludes"]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"HTTP_PROXY": "http://proxy.example:3128"},
        {"HTTPS_PROXY": "http://proxy.example:3128", "NO_PROXY": "amazonaws.com"},
        {"HTTP_PROXY": "http://p.example", "AWS_ENDPOINT_URL": "http://127.0.0.1:9000"},
    ],
)
def test_without_a_proxy_for_it_a_store_is_reached_directly(environment: dict[str, str]) -> None:
    options = client_options("s3", environment)
    assert options["proxy_excludes"] == "*,0.0.0.0/0,::/0"
    assert options.get("allow_http", False) == ("AWS_ENDPOINT_URL" in environment)
    assert options["timeout"] == timedelta(seconds=60)
