"""The reasons of errors in the code are those of the contract."""

import ast
from collections.abc import Iterator

from generated.generation.v1 import generation_pb2 as pb
from providers.kie.reasons import REASONS_BY_CODE, SENTENCES, TRY_LATER
from service.errors import CODES, REFUSALS, RETRY_SECONDS
from service.metric_groups import TASK_FAILURES
from tests.support.paths import ROOT

NAMES = pb.DESCRIPTOR.enum_types_by_name["ErrorReason"].values_by_name
CONTRACT = {name.removeprefix("ERROR_REASON_") for name in NAMES} - {"UNSPECIFIED"}
# Their first argument is a reason.
TAKE_A_REASON = {"ServiceError", "UploadError", "Refused", "Failure"}
OF_ANSWERS = ({*REASONS_BY_CODE.values()} | {reason for reason, _ in SENTENCES}) - {TRY_LATER}


def written_reasons() -> Iterator[str]:
    """Yield each reason that the code passes as a literal."""
    for folder in ("providers", "service", "storage"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and _name(node.func) in TAKE_A_REASON and node.args:
                    yield from _strings(node.args[0])


def _name(function: ast.expr) -> str:
    return getattr(function, "id", getattr(function, "attr", ""))


def _strings(argument: ast.expr) -> Iterator[str]:
    match argument:
        case ast.Constant(value=str(reason)):
            yield reason
        case ast.IfExp(body=body, orelse=orelse):
            yield from _strings(body)
            yield from _strings(orelse)
        case _:
            pass


def test_every_reason_in_the_code_is_in_the_contract() -> None:
    assert {*written_reasons()} <= CONTRACT
    assert OF_ANSWERS <= CONTRACT
    assert {*CODES} <= CONTRACT


def test_every_reason_in_the_contract_is_an_error_of_a_call_or_of_a_task() -> None:
    assert {*CODES} | {*TASK_FAILURES} == CONTRACT


def test_every_error_of_a_call_has_a_status_code() -> None:
    assert {*RETRY_SECONDS} <= {*CODES}
    assert {*CODES} >= REFUSALS
    assert {*CODES} >= OF_ANSWERS
