"""The tasks of the bench: their ids, what asks for them, and which of them are asked for."""

import random
from collections.abc import Iterator
from hashlib import blake2b

from generated.generation.v1 import generation_pb2 as pb

PROMPT = "a lighthouse at dawn, seen from the water, in the manner of an old postcard, no people "
RECENT_TASKS = 1_000  # eight minutes at the account's own limit of two creates a second
PROMPT_CHARACTERS = 200  # a snapshot with its one result then has about 600 bytes


def task_id(number: int) -> str:
    """Return the id of the seeded task of that number; 0 is the newest. Like a UUID's digits."""
    return blake2b(b"task %d" % number, digest_size=16).hexdigest()


def provider_id(number: int) -> str:
    """Return the provider's id of the same task."""
    return blake2b(b"provider's task %d" % number, digest_size=16).hexdigest()


def prompt(characters: int = PROMPT_CHARACTERS) -> str:
    """Return a prompt of that length."""
    return (PROMPT * (characters // len(PROMPT) + 1))[:characters]


def params(characters: int = PROMPT_CHARACTERS) -> pb.ProviderParams:
    """Return what an image is ordered with."""
    imagen4 = pb.Imagen4Params(prompt=prompt(characters), aspect_ratio="16:9")
    return pb.ProviderParams(kie=pb.KieParams(imagen4=imagen4))


def queries(pattern: str, first: int, count: int) -> Iterator[bytes]:
    """Yield requests for tasks `first` to `first + count`, without end.

    Args:
        pattern: `uniform`, or `recent`: callers ask for what they wait for, so that the tasks newer
            than the one that is asked for are RECENT_TASKS on average.
        first: The number of the newest.
        count: How many there are.
    """
    assert pattern in {"uniform", "recent"}, pattern
    while True:
        if pattern == "uniform":
            rank = random.randrange(count)
        else:
            rank = int(random.expovariate(1 / RECENT_TASKS)) % count
        yield pb.QueryTaskRequest(task_id=task_id(first + rank)).SerializeToString()


def creates(characters: int = PROMPT_CHARACTERS) -> Iterator[bytes]:
    """Yield requests for new tasks, each with a request_id of its own, without end."""
    ordered = params(characters)
    while True:
        request_id = f"{random.getrandbits(128):032x}"
        yield pb.CreateTaskRequest(
            prompt_id="prompt-1", provider_params=ordered, request_id=request_id
        ).SerializeToString()
