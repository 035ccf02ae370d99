"""Resume tokens: what they carry, and that nobody can make one that is an error of the service."""

import base64
import random

import pytest

from service.errors import ServiceError
from service.resume_token import HEAD, ChangeFilter, ResumePoint, _check, read_token, write_token
from storage.changes import Position

EPOCH = b"an epoch"
BINDING = ChangeFilter("c").binding()
MAX = (1 << 63) - 1


def encoded(body: bytes) -> str:
    return base64.urlsafe_b64encode(body + _check(body)).decode()


@pytest.mark.parametrize(
    "position", [Position(0), Position(7, "0123456789abcdef" * 2), Position(MAX, "x" * 300)]
)
def test_a_token_carries_its_position_and_epoch(position: Position) -> None:
    point = ResumePoint(EPOCH, 5, position)
    assert read_token(write_token(point, BINDING), BINDING) == point


@pytest.mark.parametrize(
    "which",
    [ChangeFilter("d"), ChangeFilter("c", "p"), ChangeFilter("c", ended_only=True)],
)
def test_a_token_is_bound_to_its_caller_and_filter(which: ChangeFilter) -> None:
    token = write_token(ResumePoint(EPOCH, 1, Position(1)), which.binding())
    with pytest.raises(ServiceError, match="same caller and filter") as caught:
        read_token(token, BINDING)
    assert caught.value.reason == "INVALID_PARAMS"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x01",
        HEAD.pack(1, EPOCH, BINDING, 1, MAX + 1),
        HEAD.pack(1, EPOCH, BINDING, MAX + 1, 1),
        HEAD.pack(1, EPOCH, BINDING, 1, (1 << 64) - 1) + b"task",
        HEAD.pack(1, EPOCH, BINDING, 1, 1) + b"\xff\xfe",
        HEAD.pack(1, EPOCH, BINDING, 1, 1) + b"a\0b",
    ],
)
def test_a_token_that_somebody_made_up_is_invalid(body: bytes) -> None:
    with pytest.raises(ServiceError) as caught:
        read_token(encoded(body), BINDING)
    assert caught.value.reason == "INVALID_PARAMS"


def test_a_token_of_another_version_has_no_point() -> None:
    assert read_token(encoded(HEAD.pack(2, EPOCH, BINDING, 1, 1)), BINDING) is None


def test_random_text_is_never_an_error_of_the_service() -> None:
    chance = random.Random(3)
    for _ in range(5_000):
        text = "".join(chr(chance.randrange(32, 0x2FF)) for _ in range(chance.randrange(1, 90)))
        with pytest.raises(ServiceError) as caught:
            read_token(text, BINDING)
        assert caught.value.reason == "INVALID_PARAMS"
