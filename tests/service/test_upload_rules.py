"""Uploads that are refused: by the rules of their metadata, as incomplete, or as too large."""

import asyncio
from collections.abc import AsyncIterator
from hashlib import sha256
from typing import Any

import grpc
import pytest

from generated.generation.v1 import generation_pb2 as pb
from tests.support.harness import SERVICE, Serve, Service, upload_messages
from tests.support.refusals import refusal, refused
from tests.support.uploading import MIB, STREAM, at_the_end_no_file, chunk, metadata, send, upload

INVALID = grpc.StatusCode.INVALID_ARGUMENT

BROKEN_RULES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no name": ({"file_name": ""}, ["file_name"]),
    "a blank name": ({"file_name": " \u3000"}, ["file_name"]),
    "a name of 256 characters": ({"file_name": "x" * 256}, ["file_name"]),
    "a name of 256 bytes": ({"file_name": "猫" * 84 + ".png"}, ["file_name"]),
    "a name with a right-to-left override": ({"file_name": "a\u202egnp.exe"}, ["file_name"]),
    "a name with an isolate": ({"file_name": "a\u2066b\u2069.png"}, ["file_name"]),
    "a name with a left-to-right mark": ({"file_name": "a\u200e.png"}, ["file_name"]),
    "a name with a soft hyphen": ({"file_name": "a\u00adb.png"}, ["file_name"]),
    "a name with a byte order mark": ({"file_name": "\ufeffa.png"}, ["file_name"]),
    "a name with a line separator": ({"file_name": "a\u2028b.png"}, ["file_name"]),
    "a name with a tag character": ({"file_name": "a\U000e0041.png"}, ["file_name"]),
    "a path of 256 bytes": ({"upload_path": "é" * 128}, ["upload_path"]),
    "a path with an override": ({"upload_path": "a\u202eb"}, ["upload_path"]),
    "a name with a slash": ({"file_name": "a/b.png"}, ["file_name"]),
    "a name with a backslash": ({"file_name": "a\\b.png"}, ["file_name"]),
    "a name that is the folder": ({"file_name": "."}, ["file_name"]),
    "a name that climbs": ({"file_name": ".."}, ["file_name"]),
    "a name that climbs far": ({"file_name": "../../etc/passwd"}, ["file_name"]),
    "a name with NUL": ({"file_name": "a\0.png"}, ["file_name"]),
    "a name with CR LF": ({"file_name": 'a"\r\nX-Evil: 1\r\n\r\n.png'}, ["file_name"]),
    "a name with LF": ({"file_name": "a.png\n"}, ["file_name"]),
    "a name with DEL": ({"file_name": "a\x7f.png"}, ["file_name"]),
    "a name with a C1 control": ({"file_name": "a\x85.png"}, ["file_name"]),
    "a path of 256 characters": ({"upload_path": "x" * 256}, ["upload_path"]),
    "a path that climbs": ({"upload_path": ".."}, ["upload_path"]),
    "a path that climbs later": ({"upload_path": "a/../../b"}, ["upload_path"]),
    "a path that ends in climbing": ({"upload_path": "a/.."}, ["upload_path"]),
    "an absolute path": ({"upload_path": "/etc"}, ["upload_path"]),
    "a path that is the root": ({"upload_path": "/"}, ["upload_path"]),
    "a path with a backslash": ({"upload_path": "a\\..\\b"}, ["upload_path"]),
    "an absolute path of Windows": ({"upload_path": "\\\\host\\share"}, ["upload_path"]),
    "a path with CR LF": ({"upload_path": "a\r\nX: 1"}, ["upload_path"]),
    "a path with a tab": ({"upload_path": "a\tb"}, ["upload_path"]),
    "a type that is none": ({"content_type": "image"}, ["content_type"]),
    "a type of nothing": ({"content_type": "/"}, ["content_type"]),
    "a blank type": ({"content_type": " "}, ["content_type"]),
    "a type with a space": ({"content_type": "image/p ng"}, ["content_type"]),
    "a type with two slashes": ({"content_type": "a/b/c"}, ["content_type"]),
    "a type with CR LF": ({"content_type": "image/png\r\nX-Evil: 1"}, ["content_type"]),
    "a type with LF at its end": ({"content_type": "image/png\n"}, ["content_type"]),
    "a parameter with CR LF": ({"content_type": "image/png;a=b\r\nX: 1"}, ["content_type"]),
    "a type with quotes": ({"content_type": 'image/"png"'}, ["content_type"]),
    "a type with other letters": ({"content_type": "bild/größe"}, ["content_type"]),
    "a type without an end": ({"content_type": "a/" + "b" * 10_000}, ["content_type"]),
    "a negative size": ({"size_bytes": -1}, ["size_bytes"]),
    "a short digest": ({"sha256": b"x" * 31}, ["sha256"]),
    "a digest in hex": ({"sha256": b"0" * 64}, ["sha256"]),
    "everything": (
        {
            "file_name": "",
            "content_type": "x",
            "upload_path": "..",
            "size_bytes": -(2**63),
            "sha256": b"x",
        },
        ["file_name", "content_type", "upload_path", "size_bytes", "sha256"],
    ),
}


@pytest.mark.parametrize(("fields", "broken"), BROKEN_RULES.values(), ids=BROKEN_RULES.keys())
async def test_broken_rules_are_named_by_their_fields_before_any_call(
    service: Service, fields: dict[str, Any], broken: list[str]
) -> None:
    error = await refused(send(service, upload_messages(b"x", **fields)))
    assert (error.code, error.reason) == (INVALID, "INVALID_PARAMS")
    assert error.fields == [f"metadata.{field}" for field in broken]
    assert STREAM not in service.kie.stats["requests"]


GOOD = sha256(b"abc").digest()
MISMATCHES: dict[str, list[pb.UploadFileRequest]] = {
    "nothing at all": [],
    "no metadata first": [chunk(b"abc"), metadata()],
    "an empty message first": [pb.UploadFileRequest(), metadata(), chunk(b"abc")],
    "metadata twice": [metadata(), metadata(), chunk(b"abc")],
    "metadata again at the end": [metadata(), chunk(b"abc"), metadata()],
    "an empty message in the middle": [
        metadata(),
        chunk(b"a"),
        pb.UploadFileRequest(),
        chunk(b"b"),
    ],
    "no chunk": [metadata()],
    "only empty chunks": [metadata(), chunk(b""), chunk(b"")],
    "no chunk, of a declared size": [metadata(size_bytes=3)],
    "a size of nothing, and nothing": [metadata(size_bytes=0)],
    "a size of nothing, and something": [metadata(size_bytes=0), chunk(b"abc")],
    "shorter than declared": [metadata(size_bytes=4), chunk(b"abc")],
    "longer than declared": [metadata(size_bytes=2), chunk(b"abc")],
    "longer than declared by a chunk": [metadata(size_bytes=3), chunk(b"abc"), chunk(b"d")],
    "much shorter than declared": [metadata(size_bytes=3 * MIB), chunk(b"x" * MIB)],
    "much longer than declared": [metadata(size_bytes=3), *[chunk(b"x" * MIB)] * 3],
    "another digest": [metadata(sha256=GOOD), chunk(b"abd")],
    "another digest, right size": [metadata(sha256=GOOD, size_bytes=3), chunk(b"abd")],
    "a digest, and nothing": [metadata(sha256=sha256(b"").digest())],
    "metadata after a large file": [metadata(), *[chunk(b"x" * MIB)] * 3, metadata()],
}


@pytest.mark.parametrize("messages", MISMATCHES.values(), ids=MISMATCHES.keys())
async def test_an_incomplete_file_is_a_mismatch_and_the_provider_never_gets_it(
    service: Service, messages: list[pb.UploadFileRequest]
) -> None:
    error = await refused(send(service, messages))
    assert (error.code, error.reason) == (INVALID, "UPLOAD_MISMATCH")
    assert error.retry_seconds is None
    await at_the_end_no_file(service)


async def test_a_mismatch_names_both_sizes(service: Service) -> None:
    error = await refused(send(service, [metadata(size_bytes=4), chunk(b"abc")]))
    assert error.message == "the file has 3 bytes, not the declared size_bytes (4)"


async def test_a_wrong_upload_is_aborted_as_soon_as_it_is_certain(service: Service) -> None:
    async def more_chunks() -> AsyncIterator[pb.UploadFileRequest]:
        yield metadata(size_bytes=3)
        yield chunk(b"abcd")
        await asyncio.Event().wait()

    assert (await refused(send(service, more_chunks()))).reason == "UPLOAD_MISMATCH"
    await at_the_end_no_file(service)


async def test_an_unparsable_message_in_the_middle_leaves_no_file(service: Service) -> None:
    call: Any = service.channel.stream_unary(f"{SERVICE}UploadFile")
    good = [m.SerializeToString() for m in (metadata(), chunk(b"abc"))]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(iter([*good, b"\x12\xff"]))
    assert refusal(caught.value).reason == "INVALID_PARAMS"
    await at_the_end_no_file(service)


async def test_a_file_declared_too_large_is_refused_before_any_call(serve: Serve) -> None:
    async with serve(upload_max_bytes=1_000) as service:
        error = await refused(send(service, [metadata(size_bytes=123_456), chunk(b"x")]))
    assert (error.code, error.reason) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "UPLOAD_TOO_LARGE",
    )
    assert "123456" in error.message
    assert "1000" in error.message
    assert STREAM not in service.kie.stats["requests"]


@pytest.mark.parametrize("fields", [{}, {"size_bytes": 1_000}])
async def test_a_file_that_turns_out_too_large_is_aborted(
    serve: Serve, fields: dict[str, Any]
) -> None:
    async with serve(upload_max_bytes=1_000) as service:
        error = await refused(send(service, upload_messages(b"x" * 2_000, 300, **fields)))
        await at_the_end_no_file(service)
    assert error.reason == "UPLOAD_TOO_LARGE"
    assert "1200" in error.message
    assert "1000" in error.message


@pytest.mark.parametrize("fields", [{}, {"size_bytes": 1_000}])
async def test_a_file_of_exactly_the_limit_is_accepted(
    serve: Serve, fields: dict[str, Any]
) -> None:
    async with serve(upload_max_bytes=1_000) as service:
        assert (await upload(service, b"x" * 1_000, **fields)).size_bytes == 1_000
