"""The parameters of a model as the service takes them."""

from google.protobuf.message import Message

from kie_generation.generated.generation.v1.generation_pb2 import KieParams, ProviderParams


def provider_params(params: Message) -> ProviderParams:
    """Wrap a model's message into the member of KieParams that has its type.

    Raises:
        TypeError: There is no such member.
    """
    wrapped = ProviderParams()
    for member in KieParams.DESCRIPTOR.oneofs_by_name["model"].fields:
        if member.message_type is params.DESCRIPTOR:
            model = getattr(wrapped.kie, member.name)
            model.SetInParent()  # even if no field is set
            model.CopyFrom(params)
            return wrapped
    raise TypeError(f"{params.DESCRIPTOR.full_name} is not a model's parameters message")
