"""Times as the service takes them."""

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp


def timestamp(time: datetime | None) -> Timestamp | None:
    """Return the message of a time.

    Raises:
        ValueError: It has no time zone, so what it means depends on the machine.
    """
    if time is None:
        return None
    if time.tzinfo is None:
        raise ValueError("a time needs a time zone, as in datetime.now(UTC)")
    message = Timestamp()
    message.FromDatetime(time)
    return message
