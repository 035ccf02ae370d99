"""Records with a successFlag, shared by Veo 3 and Midjourney (kie-api.md 3.2, 4.2)."""

from collections.abc import Mapping
from typing import Any

from providers.base import Failed, Poll, Progress, Weather
from providers.kie.envelope import (
    OK,
    Envelope,
    as_int,
    as_object,
    as_time,
    clean,
    read_other_code,
)
from providers.kie.results import credits_consumed, succeeded


def read_flagged(envelope: Envelope, result_field: str) -> Poll:
    """Read a record-info whose results stand in `result_field`."""
    if envelope.code != OK:
        return read_other_code(envelope, rejects=True)
    record = envelope.record
    if record is None:
        return Weather("code 200 without a record", answered=True)
    match as_int(record.get("successFlag")):
        case 0:
            return Progress(generating=True)
        case 1:
            return succeeded(record, as_object(record.get(result_field)))
        case 2 | 3:  # 3: it was created, but generating failed upstream. Both are final
            return _failed(record)
        case _:
            flag = clean(record.get("successFlag"), 50)
            return Weather(f"unknown successFlag {flag!r}", answered=True)


def _failed(record: Mapping[str, Any]) -> Failed:
    return Failed(
        message=clean(record.get("errorMessage")) or "the provider gave no reason",
        provider_code=clean(record.get("errorCode"), 50),
        credits_consumed=credits_consumed(record),
        complete_time=as_time(record.get("completeTime")),
    )
