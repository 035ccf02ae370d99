"""The Python client of the generation service.

    async with GenerationClient("127.0.0.1:50051") as client:
        task = await client.create(Imagen4Params(prompt="a lighthouse"), prompt_id="p-1")
        async for task in client.watch(task.id):
            print(state(task))
        await save_artifacts(task, "results")

`kie_generation.sync` has the same client with blocking methods. `kie_generation.errors` lists the
exceptions. The command line is `kie-generation`, with the extra `cli`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kie_generation.changes import TaskChange
    from kie_generation.client import GenerationClient
    from kie_generation.download import DownloadError, MinimumRate
    from kie_generation.errors import (
        ArtifactNotFoundError,
        GenerationError,
        InvalidRequestError,
        RefusedError,
        TaskNotFoundError,
        TokenError,
        UnauthenticatedError,
        UnavailableError,
        Violation,
    )
    from kie_generation.generated.generation.v1.generation_pb2 import (
        Artifact,
        ArtifactInfo,
        Bookmark,
        ErrorReason,
        GenerationTask,
        Imagen4Params,
        KieParams,
        MarketParams,
        MeasuredModel,
        MidjourneyParams,
        Model,
        ProviderParams,
        SignArtifactResponse,
        Sora2Params,
        TaskFailure,
        TaskStage,
        TaskStatus,
        UploadedFile,
        Veo3Params,
    )
    from kie_generation.retry import Retry
    from kie_generation.saving import save_artifacts
    from kie_generation.state_file import StateFileError
    from kie_generation.states import state
    from kie_generation.tls import Tls
    from kie_generation.watch import ended

__version__ = "0.1.0"

__all__ = [
    "Artifact",
    "ArtifactInfo",
    "ArtifactNotFoundError",
    "Bookmark",
    "DownloadError",
    "ErrorReason",
    "GenerationClient",
    "GenerationError",
    "GenerationTask",
    "Imagen4Params",
    "InvalidRequestError",
    "KieParams",
    "MarketParams",
    "MeasuredModel",
    "MidjourneyParams",
    "MinimumRate",
    "Model",
    "ProviderParams",
    "RefusedError",
    "Retry",
    "SignArtifactResponse",
    "Sora2Params",
    "StateFileError",
    "TaskChange",
    "TaskFailure",
    "TaskNotFoundError",
    "TaskStage",
    "TaskStatus",
    "Tls",
    "TokenError",
    "UnauthenticatedError",
    "UnavailableError",
    "UploadedFile",
    "Veo3Params",
    "Violation",
    "ended",
    "save_artifacts",
    "state",
]

_MESSAGES = "generated.generation.v1.generation_pb2"
_MODULES = {
    "Artifact": _MESSAGES,
    "ArtifactInfo": _MESSAGES,
    "Bookmark": _MESSAGES,
    "DownloadError": "download",
    "ErrorReason": _MESSAGES,
    "GenerationClient": "client",
    "GenerationTask": _MESSAGES,
    "Imagen4Params": _MESSAGES,
    "KieParams": _MESSAGES,
    "MarketParams": _MESSAGES,
    "MeasuredModel": _MESSAGES,
    "MidjourneyParams": _MESSAGES,
    "MinimumRate": "download",
    "Model": _MESSAGES,
    "ProviderParams": _MESSAGES,
    "Retry": "retry",
    "SignArtifactResponse": _MESSAGES,
    "Sora2Params": _MESSAGES,
    "StateFileError": "state_file",
    "TaskChange": "changes",
    "TaskFailure": _MESSAGES,
    "TaskStage": _MESSAGES,
    "TaskStatus": _MESSAGES,
    "Tls": "tls",
    "UploadedFile": _MESSAGES,
    "Veo3Params": _MESSAGES,
    "ended": "watch",
    "save_artifacts": "saving",
    "state": "states",
}


def __getattr__(name: str) -> object:
    """Import a name on first use: the command line sets gRPC's environment before the import."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
