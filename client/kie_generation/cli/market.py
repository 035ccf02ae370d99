"""`create market`: the input of any model, from `name=value`, JSON and files."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import typer

from kie_generation.generated.generation.v1.generation_pb2 import MarketParams

INTEGER_MAX = 2**53  # greater integers would be rounded on their way


def market_params(model: str, inputs: Iterable[str]) -> MarketParams:
    """Return the message for a model and the inputs that were given.

    Args:
        model: The id of the model.
        inputs: Each is `name=value`, a JSON object, or `@FILE` with a JSON object; `@-` is stdin. A
            value is JSON if it parses, and text otherwise.

    Raises:
        typer.BadParameter: An input has none of these forms, or a name is given twice.
    """
    fields: dict[str, Any] = {}
    for given in inputs:
        for name, value in _fields(given).items():
            if name in fields:
                raise typer.BadParameter(f"--input: '{name}' is given twice")
            fields[name] = value
    params = MarketParams(model=model)
    params.input.update(fields)
    return params


def _fields(given: str) -> dict[str, Any]:
    if given.startswith("@"):
        text = sys.stdin.read() if given == "@-" else Path(given[1:]).read_text(encoding="utf-8")
        return _object(text, given)
    if given.lstrip().startswith("{"):
        return _object(given, given)
    name, separator, value = given.partition("=")
    if not separator or not name:
        raise typer.BadParameter(f"--input: '{given}' must be name=value, @FILE or a JSON object")
    try:
        return {name: _json(value)}
    except ValueError:
        return {name: value}


def _object(text: str, source: str) -> dict[str, Any]:
    try:
        value = _json(text)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"--input: {source} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise typer.BadParameter(f"--input: {source} must be a JSON object")
    return value


def _json(text: str) -> Any:
    return json.loads(text, parse_int=_integer, parse_constant=_refuse_constant)


def _integer(digits: str) -> int:
    number = int(digits)
    if abs(number) > INTEGER_MAX:
        raise typer.BadParameter(
            f"--input: {digits} is too large for a number; quote it if the model wants text"
        )
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
