"""The Python client of the generation service.

    async with GenerationClient("127.0.0.1:50051") as client:
        task = await client.create(Imagen4Params(prompt="a lighthouse"), prompt_id="p-1")
        async for task in client.watch(task.id):
            print(state(task))
        await save_artifacts(task, "results")

`client.errors` draws the tree of what can be raised. The command line is `python -m client --help`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from client.client import GenerationClient
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
    from client.states import state
    from client.tls import Tls
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
    "state",
]

_MODULES = {
    "DownloadError": "download",
    "GenerationClient": "client",
    "MinimumRate": "download",
    "Retry": "retry",
    "Tls": "tls",
    "ended": "watch",
    "save_artifacts": "download",
    "state": "states",
}


def __getattr__(name: str) -> object:
    """Imports what is asked for: the command line prepares gRPC before it is imported."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
