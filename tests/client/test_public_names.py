"""What can be imported from the package: it is what type checkers see, and what methods return."""

import ast
import re
from pathlib import Path

import kie_generation
from kie_generation.generated.generation.v1 import generation_pb2 as pb


def test_type_checkers_see_every_exported_name() -> None:
    tree = ast.parse(Path(kie_generation.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    seen = {alias.name for node in imports for alias in node.names}
    assert set(kie_generation.__all__) <= seen


def test_every_exported_name_can_be_imported() -> None:
    assert all(hasattr(kie_generation, name) for name in kie_generation.__all__)


def test_every_message_that_a_method_takes_or_returns_is_exported() -> None:
    client = kie_generation.GenerationClient
    methods = [getattr(client, name) for name in dir(client) if not name.startswith("_")]
    annotations = [str(each) for method in methods for each in method.__annotations__.values()]
    named = set(re.findall(r"generation_pb2\.(\w+)", " ".join(annotations)))
    messages = named.intersection(pb.DESCRIPTOR.message_types_by_name)
    assert {"GenerationTask", "SignArtifactResponse"} <= messages
    assert messages <= set(kie_generation.__all__)
