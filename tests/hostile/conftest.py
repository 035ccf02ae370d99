"""How hard the tests attack."""

from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Scale:
    """The form of an attack: how long it lasts, and how much larger than the short form it is.

    Attributes:
        p99_seconds_max: How long the other caller may wait. A short attack leaves it some 200
            calls, so that one pause of the machine, or the burst with which an attack opens, is
            more than a hundredth of them. And it shares the machine with the other tests.
    """

    seconds: float
    factor: int
    p99_seconds_max: float


@pytest.fixture(
    params=[
        pytest.param(Scale(1.5, 1, 0.4), id="short"),
        pytest.param(Scale(10, 5, 0.1), id="torture", marks=pytest.mark.torture),
    ]
)
def scale(request: pytest.FixtureRequest) -> Scale:
    """The short form with the other tests, the long one with `make torture`."""
    form: Scale = request.param
    return form
