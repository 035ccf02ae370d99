"""Which hosts a callback names: those of results, not those of our own request."""

import json
from typing import Any

import pytest

from providers.kie.callbacks import KieCallbacks

OURS = "https://files.example/input.png"
RESULT = "https://results.example/a.png"
JOB = {"taskId": "k-1", "model": "acme/edit"}


def hosts(body: Any) -> frozenset[str]:
    text = body if isinstance(body, str) else json.dumps(body)
    return KieCallbacks(None).read({}, text, 0.0).hosts


def request(**fields: Any) -> str:
    """Return how a record repeats a request: as JSON text, whose input is JSON text as well."""
    return json.dumps({"input": json.dumps({"prompt": "a cat", **fields}), "model": "acme/edit"})


@pytest.mark.parametrize(
    "body",
    [
        {"code": 501, "data": {**JOB, "state": "fail", "param": request(image_url=OURS)}},
        {
            "code": 501,
            "data": {**JOB, "param": json.dumps({"callBackUrl": "https://us.example/callbacks"})},
        },
        {"code": 500, "data": {"taskId": "k-1", "promptJson": json.dumps({"fileUrls": [OURS]})}},
        {"code": 501, "data": {**JOB, "paramJson": {"input": {"image_url": OURS}}}},
        {"code": 501, "data": {**JOB, "failMsg": f"the image {OURS} cannot be fetched"}},
        {"code": 501, "data": {**JOB, "failMsg": f"{OURS} cannot be fetched"}},
        {
            "code": 200,
            "data": {
                **JOB,
                "param": request(image_url=OURS),
                "resultJson": json.dumps({"resultObject": {"segments": [{"label": "cat"}]}}),
            },
        },
    ],
    ids=["job", "whole request", "midjourney", "object", "within", "first", "result object"],
)
def test_urls_of_our_own_request_are_not_results(body: dict[str, Any]) -> None:
    assert hosts(body) == frozenset()


@pytest.mark.parametrize(
    "data",
    [
        {
            **JOB,
            "param": request(image_url=OURS),
            "resultJson": json.dumps({"resultUrls": [RESULT]}),
        },
        {"taskId": "k-1", "info": {"resultUrls": f"[{RESULT}]"}},
        {"taskId": "k-1", "promptJson": json.dumps({"fileUrls": [OURS]}), "resultUrls": [RESULT]},
        {"taskId": "k-1", "response": {"data": [{"audio_url": RESULT}]}},
    ],
    ids=["job", "veo", "midjourney", "song"],
)
def test_the_hosts_of_results_are_named(data: dict[str, Any]) -> None:
    assert hosts({"code": 200, "data": data}) == {"results.example"}


@pytest.mark.parametrize("body", ["", "null", "[]", '"https://x.example"', "{", "[" * 50_000])
def test_a_body_that_is_no_object_names_no_host(body: str) -> None:
    assert hosts(body) == frozenset()


def test_the_hosts_of_many_results_are_bounded() -> None:
    urls = [f"https://h{number}.example/a.png" for number in range(2_000)]
    assert len(hosts({"data": {"resultUrls": urls}})) == 20
