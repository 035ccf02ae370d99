"""How hard the tests attack."""

import pytest

from tests.hostile.drill import Scale


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
