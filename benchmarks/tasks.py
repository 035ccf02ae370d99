"""The tasks of the benchmarks, and the requests that create and query them."""

import random
from collections.abc import Iterator
from hashlib import blake2b

from generated.generation.v1 import generation_pb2 as pb

PROMPT = "a lighthouse at dawn, seen from the water, in the manner of an old postcard, no people "
RECENT_TASKS = 1_000  # eight minutes at the account's limit of two creates per second
PROMPT_CHARACTERS = 200  # a snapshot with one result has about 600 bytes


def task_id(number: int) -> str:
    """Return the id of an inserted task, in the form of a UUID without hyphens; 0 is the newest."""
    return blake2b(b"task %d" % number, digest_size=16).hexdigest()


def provider_id(number: int) -> str:
    """Return the provider's id of the same task."""
    return blake2b(b"provider's task %d" % number, digest_size=16).hexdigest()


def prompt(characters: int = PROMPT_CHARACTERS) -> str:
    """Return a prompt of this length."""
    return (PROMPT * (characters // len(PROMPT) + 1))[:characters]


def params(characters: int = PROMPT_CHARACTERS) -> pb.ProviderParams:
    """Return the parameters of an image."""
    imagen4 = pb.Imagen4Params(prompt=prompt(characters), aspect_ratio="16:9")
    return pb.ProviderParams(kie=pb.KieParams(imagen4=imagen4))


def market_params() -> pb.ProviderParams:
    """Return the parameters of an image of the catalogue, with all ten fields of its model."""
    params = pb.ProviderParams()
    params.kie.market.model = "qwen/text-to-image"
    params.kie.market.input.update(
        {
            "prompt": prompt(),
            "negative_prompt": "people",
            "image_size": "square_hd",
            "num_inference_steps": 30,
            "guidance_scale": 2.5,
            "seed": 7,
            "output_format": "png",
            "acceleration": "none",
            "enable_safety_checker": True,
            "nsfw_checker": False,
        }
    )
    return params


def queries(pattern: str, first: int, count: int) -> Iterator[bytes]:
    """Yield an endless series of requests for tasks `first` to `first + count`.

    Args:
        pattern: `uniform`, or `recent` for callers that query new tasks: on average, RECENT_TASKS
            are newer than the queried task.
        first: The number of the newest task.
        count: The number of tasks.
    """
    assert pattern in {"uniform", "recent"}, pattern
    while True:
        if pattern == "uniform":
            rank = random.randrange(count)
        else:
            rank = int(random.expovariate(1 / RECENT_TASKS)) % count
        yield pb.QueryTaskRequest(task_id=task_id(first + rank)).SerializeToString()


def creates(characters: int = PROMPT_CHARACTERS, *, of_market: bool = False) -> Iterator[bytes]:
    """Yield an endless series of requests for new tasks, each with a new request_id."""
    provider_params = market_params() if of_market else params(characters)
    while True:
        request_id = f"{random.getrandbits(128):032x}"
        yield pb.CreateTaskRequest(
            prompt_id="prompt-1", provider_params=provider_params, request_id=request_id
        ).SerializeToString()
