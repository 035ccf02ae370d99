"""Reflection: both versions, every kind of symbol, and the tools that use it."""

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2

from tests.support.harness import Service
from tests.support.tools import run_tool

SERVICE = "generation.v1.GenerationService"
V1 = "grpc.reflection.v1.ServerReflection"
V1ALPHA = "grpc.reflection.v1alpha.ServerReflection"
VERSIONS = [V1, V1ALPHA]
SYMBOLS = {
    "a service": SERVICE,
    "a method": f"{SERVICE}.CreateTask",
    "a streaming method": f"{SERVICE}.WatchTask",
    "a message": "generation.v1.GenerationTask",
    "a nested enum": "generation.v1.Imagen4Params.ApiModel",
    "a field": "generation.v1.GenerationTask.prompt_id",
    "a member of a oneof": "generation.v1.KieParams.veo3",
    "a oneof": "generation.v1.KieParams.model",
    "an enum": "generation.v1.TaskStatus",
    "a value by its enum": "generation.v1.TaskStatus.TASK_STATUS_SUCCESS",
    "a value by its scope": "generation.v1.TASK_STATUS_SUCCESS",
    "a value of a nested enum": "generation.v1.Imagen4Params.API_MODEL_FAST",
    "a method of the health service": "grpc.health.v1.Health.Check",
    "reflection itself": V1,
    "a method of reflection": f"{V1}.ServerReflectionInfo",
    "a message of reflection": "grpc.reflection.v1.ServerReflectionRequest",
    "the older reflection": V1ALPHA,
}
UNKNOWN = [
    "generation.v1.GenerationService.NoSuchMethod",
    "generation.v1.NoSuchService.CreateTask",
    "generation.v1.GenerationTask.no_such_field",
    "generation.v1.TaskStatus.NO_SUCH_VALUE",
    "generation.v2.GenerationService",
    "generation.v1",
    "CreateTask",
    "",
    ".",
]


async def ask(service: Service, version: str, **fields: Any) -> Any:
    """Ask one thing on a stream of its own."""
    reflect: Any = service.channel.stream_stream(
        f"/{version}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    request = reflection_pb2.ServerReflectionRequest(**fields)
    [answer] = [answer async for answer in reflect(iter([request]), timeout=10)]
    return answer


@pytest.mark.parametrize("version", VERSIONS)
async def test_both_versions_list_all_services(service: Service, version: str) -> None:
    answer = await ask(service, version, list_services="")
    listed = [each.name for each in answer.list_services_response.service]
    assert sorted(listed) == sorted({SERVICE, "grpc.health.v1.Health", V1, V1ALPHA})


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("symbol", SYMBOLS.values(), ids=SYMBOLS.keys())
async def test_every_kind_of_symbol_is_found(service: Service, version: str, symbol: str) -> None:
    answer = await ask(service, version, file_containing_symbol=symbol)
    assert not answer.HasField("error_response")
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(file)
        for file in answer.file_descriptor_response.file_descriptor_proto
    ]
    assert any(symbol.startswith(file.package) for file in files)
    found = {file.name for file in files}
    assert all(found.issuperset(file.dependency) for file in files)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("symbol", UNKNOWN)
async def test_an_unknown_symbol_is_not_found(service: Service, version: str, symbol: str) -> None:
    answer = await ask(service, version, file_containing_symbol=symbol)
    assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    assert answer.original_request.file_containing_symbol == symbol


async def test_v1_describes_itself_without_a_trace_of_v1alpha(service: Service) -> None:
    answer = await ask(service, V1, file_by_filename="grpc/reflection/v1/reflection.proto")
    [content] = answer.file_descriptor_response.file_descriptor_proto
    file = descriptor_pb2.FileDescriptorProto.FromString(content)
    assert (file.package, [each.name for each in file.service]) == (
        "grpc.reflection.v1",
        ["ServerReflection"],
    )
    assert b"v1alpha" not in content


@pytest.mark.parametrize(
    ("symbol", "words"),
    [
        (f"{SERVICE}.CreateTask", "rpc CreateTask ("),
        (f"{SERVICE}.WatchTask", "returns ( stream .generation.v1.WatchTaskResponse )"),
        (SERVICE, "service GenerationService {"),
        ("generation.v1.GenerationTask", "message GenerationTask {"),
        (V1, "service ServerReflection {"),
    ],
)
async def test_grpcurl_describes_services_methods_and_messages(
    service: Service, symbol: str, words: str
) -> None:
    assert words in await grpcurl(service, "describe", symbol)


async def test_grpcurl_lists_and_calls(service: Service) -> None:
    assert f"{SERVICE}.CreateTask" in await grpcurl(service, "list", SERVICE)
    assert await grpcurl(service, f"{SERVICE}/ListTasks") == "{}\n"


async def grpcurl(service: Service, *arguments: str) -> str:
    """Run grpcurl, or skip the test if it is not built."""
    return await asyncio.to_thread(run_tool, "grpcurl", "-plaintext", service.address, *arguments)
