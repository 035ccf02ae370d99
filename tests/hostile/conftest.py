"""How hard the tests attack."""

from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Scale:
    """The form of an attack: how long it goes on, and how much more than in the short form."""

    seconds: float
    factor: int


@pytest.fixture(
    params=[
        pytest.param(Scale(1.5, 1), id="short"),
        pytest.param(Scale(10, 5), id="torture", marks=pytest.mark.torture),
    ]
)
def scale(request: pytest.FixtureRequest) -> Scale:
    """The short form with the other tests, the long one with `make torture`."""
    form: Scale = request.param
    return form
