"""The Python client of the generation service.

    async with GenerationClient("127.0.0.1:50051") as client:
        task = await client.create(Imagen4Params(prompt="a lighthouse"), prompt_id="p-1")
        async for task in client.watch(task.id):
            print(task.status, task.stage)
        await save_artifacts(task, "results")

`client.errors` draws the tree of what can be raised. The command line is `python -m client --help`.
"""

from client.client import GenerationClient, Tls
from client.download import DownloadError, MinimumRate, save_artifacts
from client.errors import (
    GenerationError,
    InvalidRequestError,
    RefusedError,
    TaskNotFoundError,
    UnauthenticatedError,
    UnavailableError,
    Violation,
)
from client.retry import Retry
from client.watch import ended

__all__ = [
    "DownloadError",
    "GenerationClient",
    "GenerationError",
    "InvalidRequestError",
    "MinimumRate",
    "RefusedError",
    "Retry",
    "TaskNotFoundError",
    "Tls",
    "UnauthenticatedError",
    "UnavailableError",
    "Violation",
    "ended",
    "save_artifacts",
]
