"""Server reflection, by which tools such as grpcurl learn the methods: v1, and v1alpha.

The library serves only v1alpha, which newer tools no longer ask for. The messages of v1 are the
same under another name. And the library does not find methods, fields and values of enums by their
names, although the protocol asks for every symbol.
"""

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.reflection import aio

V1ALPHA = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].full_name
V1 = V1ALPHA.replace("v1alpha", "v1")
METHOD = "ServerReflectionInfo"


def add_reflection(server: grpc.aio.Server, names: Iterable[str]) -> None:
    """Serve both versions of reflection.

    Args:
        server: A server that is not started yet.
        names: The full names of its other services.
    """
    _declare_v1()
    reflection = _Reflection((*names, V1, V1ALPHA))
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflection, server)
    handler = grpc.stream_stream_rpc_method_handler(
        reflection.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(V1, {METHOD: handler}),))


class _Reflection(aio.ReflectionServicer):  # type: ignore[misc] # the library has no types
    """Finds every symbol, not only messages, enums and services."""

    def _file_containing_symbol(self, request: Any, fully_qualified_name: str) -> Any:
        answer = super()._file_containing_symbol(request, fully_qualified_name)
        if not answer.HasField("error_response"):
            return answer
        parent, _, name = fully_qualified_name.rpartition(".")
        if name not in self._members(parent):
            return answer
        return super()._file_containing_symbol(request, parent)

    def _members(self, name: str) -> set[str]:
        """Return the names of what a service, a message or an enum contains."""
        find = (
            (self._pool.FindServiceByName, ("methods_by_name",)),
            (
                self._pool.FindMessageTypeByName,
                ("fields_by_name", "oneofs_by_name", "enum_values_by_name"),
            ),
            (self._pool.FindEnumTypeByName, ("values_by_name",)),
        )
        for by_name, members in find:
            try:
                found = by_name(name)
            except KeyError:
                continue
            return {member for each in members for member in getattr(found, each)}
        return set()


def _declare_v1() -> None:
    """Add the proto of v1 to the known ones, so that reflection can describe itself."""
    alpha = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(alpha)
    renamed = json_format.MessageToJson(alpha).replace("v1alpha", "v1")
    v1 = json_format.Parse(renamed, descriptor_pb2.FileDescriptorProto())
    v1.name = "grpc/reflection/v1/reflection.proto"
    v1.options.ClearField("deprecated")
    descriptor_pool.Default().AddSerializedFile(v1.SerializeToString())
