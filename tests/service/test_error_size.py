"""The size of an error is limited however much there is to report, and clients can read it."""

import base64
import re
from typing import Any
from urllib.parse import quote

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from providers.base import Violation
from service.errors import ServiceError, invalid, invalid_params, not_found
from tests.support.harness import Service, create_request
from tests.support.paths import ROOT
from tests.support.refusals import refusal

CAT = "\U0001f408"  # four bytes, twelve when percent-encoded
DETAILS = "grpc-status-details-bin"
PATH = "provider_params.kie.midjourney"
NGINX_BUFFER_BYTES = 4_096
OTHER_HEADERS_BYTES = 300  # names and values of :status, content-type, grpc-status, and the framing

ERRORS = {
    "one rule": invalid("prompt_id", "is required"),
    "a hundred rules": invalid_params(
        [Violation(f"{PATH}.file_urls[{n}]", "x") for n in range(100)]
    ),
    "a million rules": invalid_params([Violation(PATH, "must be set")] * 1_000_000),
    "long rules": invalid_params([Violation(f"{PATH}." + "x" * 5_000, "x" * 5_000)] * 100),
    "rules in four bytes": invalid_params([Violation(PATH + CAT * 999, CAT * 999)] * 100),
    "rules of percent signs": invalid_params([Violation("%" * 999, "%" * 999)] * 100),
    "rules of line feeds": invalid_params([Violation("\n" * 999, "\n" * 999)] * 100),
    "a long id": not_found(CAT * 255),
    "a long message": ServiceError("RATE_LIMITED", "x" * 1_000_000),
    "a long message in four bytes": ServiceError("RATE_LIMITED", CAT * 1_000_000),
    "a mixed message": ServiceError("RATE_LIMITED", ("x" + CAT) * 1_000),
    "half a character": ServiceError("PROVIDER_REJECTED", "\ud800" * 999),
    "long metadata": ServiceError(
        "RATE_LIMITED", CAT * 999, metadata=dict.fromkeys(("limit", "max", "scope"), CAT * 999)
    ),
    "everything": ServiceError(
        "RATE_LIMITED",
        CAT * 999,
        metadata=dict.fromkeys(("limit", "max", "scope"), CAT * 999),
        violations=[Violation(PATH + CAT * 999, CAT * 999)] * 100,
    ),
}


def encoded_bytes(error: ServiceError) -> int:
    """Return the size of the message and the details as nginx receives them."""
    status = error.status()
    ((key, details),) = status.trailing_metadata
    assert isinstance(details, bytes)
    message = quote(status.details, safe="".join(map(chr, range(0x20, 0x7F))).replace("%", ""))
    return len("grpc-message") + len(message) + len(key) + len(base64.b64encode(details))


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS.keys())
def test_an_error_fits_the_buffer_of_a_proxy_with_room_to_spare(error: ServiceError) -> None:
    assert encoded_bytes(error) < 3_072
    assert encoded_bytes(error) + OTHER_HEADERS_BYTES < NGINX_BUFFER_BYTES


def test_the_nginx_configuration_accepts_larger_errors_than_any() -> None:
    configuration = (ROOT / "deploy" / "nginx.conf").read_text()
    (kib,) = re.findall(r"^ *grpc_buffer_size (\d+)k;", configuration, re.MULTILINE)
    assert int(kib) * 1_024 > NGINX_BUFFER_BYTES
    assert "max_fails=1 " not in configuration


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS.keys())
def test_what_is_logged_of_an_error_is_as_short_as_what_is_sent(error: ServiceError) -> None:
    assert len(error.message.encode()) <= 600
    assert str(error) == error.message == error.status().details
    assert sum(len(value) for value in error.metadata.values()) < 1_000
    assert len(error.violations) <= 100


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS.keys())
async def test_a_client_reads_the_reason_and_the_first_violation(error: ServiceError) -> None:
    async def abort(_: Any, context: Any) -> None:
        await context.abort_with_status(error.status())

    server = grpc.aio.server()
    handler: Any = grpc.unary_unary_rpc_method_handler(abort)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t", {"m": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.unary_unary("/t/m")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"")
    await server.stop(None)
    read = refusal(caught.value)
    assert (read.reason, read.code, read.message) == (error.reason, error.code, error.message)
    assert set(read.metadata) == set(error.metadata)
    assert bool(read.fields) == bool(error.violations)
    if error.violations:
        assert error.violations[0].field.startswith(read.fields[0])


def test_the_message_names_the_first_rules_and_counts_the_others() -> None:
    error = invalid_params([Violation(f"field_{number}", "must be set") for number in range(60)])
    assert error.message.startswith("field_0 must be set; field_1 must be set; ")
    assert error.message.endswith(
        f"must be set; and {60 - error.message.count('must be set')} more"
    )


def test_as_many_rules_are_named_as_fit() -> None:
    error = invalid_params([Violation(f"{PATH}.file_urls[{n}]", "is bad") for n in range(60)])
    status = status_pb2.Status.FromString(dict(error.status().trailing_metadata)[DETAILS])
    bad_request = error_details_pb2.BadRequest()
    assert status.details[-1].Unpack(bad_request)
    assert 20 < len(bad_request.field_violations) < 60
    assert encoded_bytes(error) > 2_900


async def test_a_request_with_sixty_bad_urls_is_refused_in_less_than_3_kib(
    service: Service,
) -> None:
    request = create_request(
        {"midjourney": {"task_type": 99, "prompt": " ", "file_urls": [f"x{CAT * 99}"] * 60}}
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.stub.CreateTask(request)
    trailers = dict(caught.value.trailing_metadata() or ())
    assert len(base64.b64encode(trailers[DETAILS])) < 3_072
    assert refusal(caught.value).fields
