"""The rules of requests, checked before anything is stored or sent.

The size of a value is checked before any rule that reads all of it, so no request is expensive.
"""

from generated.generation.v1 import generation_pb2 as pb
from providers.base import ParamsError, Provider, Violation
from service.errors import invalid_params
from service.unknown_fields import unknown_fields

PROMPT_ID_MAX_CHARACTERS = 255
REQUEST_ID_MAX_CHARACTERS = 128
# The stored size of a task's parameters. By the rules of the models, only ten of the longest URLs
# in four-byte characters exceed it; everything else is below 50 KB.
PARAMS_MAX_BYTES = 64 << 10


def check_create(request: pb.CreateTaskRequest, provider: Provider) -> None:
    """Raise INVALID_PARAMS with every broken rule of the request."""
    broken: list[Violation] = []
    try:
        provider.check(request.provider_params)
    except ParamsError as error:
        broken = error.violations
        if request.provider_params.kie.HasField("market"):
            # The input may be too large to be searched for unknown fields.
            request.provider_params.kie.market.ClearField("input")
    unknown = unknown_fields(request)
    # A model that seems to be missing may be an unknown field of the same message.
    named = {violation.field for violation in unknown}
    violations = [
        *text_rules("prompt_id", request.prompt_id, PROMPT_ID_MAX_CHARACTERS, required=True),
        *text_rules("request_id", request.request_id, REQUEST_ID_MAX_CHARACTERS),
        *unknown,
        *(violation for violation in broken if violation.field not in named),
    ]
    params = request.provider_params
    if violations and not (broken or unknown):
        violations += _broken_by_input(params, provider)
    # The provider bounds the input of `market` by its size as JSON.
    if not (violations or params.kie.HasField("market")) and params.ByteSize() > PARAMS_MAX_BYTES:
        violations = [Violation("provider_params", f"must have at most {PARAMS_MAX_BYTES} bytes")]
    if violations:
        raise invalid_params(violations)


def _broken_by_input(params: pb.ProviderParams, provider: Provider) -> list[Violation]:
    """Return what the schema of a market model says about an input that is otherwise valid."""
    try:
        provider.complete(params)
    except ParamsError as error:
        return list(error.violations)
    return []


def check_task_id(task_id: str) -> None:
    """Raise INVALID_PARAMS unless it may be the id of a task."""
    if broken := task_id_rules(task_id):
        raise invalid_params(broken)


def task_id_rules(task_id: str) -> list[Violation]:
    """Return the broken rules of what should be the id of a task."""
    return text_rules("task_id", task_id, PROMPT_ID_MAX_CHARACTERS, required=True)


def text_rules(
    field: str, text: str, max_characters: int, *, required: bool = False
) -> list[Violation]:
    """Return the broken rules of a plain text."""
    if required and not text:
        return [Violation(field, "is required")]
    if len(text) > max_characters:
        return [Violation(field, f"must have at most {max_characters} characters")]
    if "\0" in text:
        return [Violation(field, "must not contain NUL")]
    return []
