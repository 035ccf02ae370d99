"""Records with a successFlag: those of Veo 3 and Midjourney, and new ones of the jobs API."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from providers.base import Poll, Progress, Succeeded, UnknownState, Unreadable
from providers.kie.envelope import OK, Envelope, read_other_code
from providers.kie.kept import kept_record, kept_text
from providers.kie.results import FailureFields, credits_consumed, failed, succeeded
from providers.kie.values import as_int, clean

FAILURE_FIELDS = FailureFields(
    messages=("errorMessage", "failMsg"), codes=("errorCode", "failCode")
)


def read_flagged(envelope: Envelope, result_field: str) -> Poll:
    """Read a record-info response whose results are in `result_field`."""
    if envelope.code != OK:
        return read_other_code(envelope, rejects=True)
    record = envelope.record
    if record is None:
        return Unreadable("code 200 without a record", kept_text(envelope.text))
    return flagged(record, partial(succeeded, own_field=result_field))


def flagged(record: Mapping[str, Any], succeed: Callable[[Mapping[str, Any]], Succeeded]) -> Poll:
    """Read a record by its successFlag.

    Args:
        record: The record.
        succeed: Returns the outcome of a successful one.
    """
    flag = record.get("successFlag")
    match as_int(flag):
        case 0:
            return Progress(
                generating=True,
                credits_consumed=credits_consumed(record),
                record=kept_record(record),
            )
        case 1:
            return succeed(record)
        case 2 | 3:  # 3: created, but generation failed upstream
            return failed(record, FAILURE_FIELDS)
        case _ if not record or flag is None:
            return Unreadable("a record without a state", record=kept_record(record))
        case _:
            return UnknownState(clean(flag, 50), kept_record(record))
