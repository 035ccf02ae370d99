"""`create MODEL`: a subcommand for each model, declared by the fields of its message.

A new model needs one more function under `@model`: its parameters are the options, with the names
of the fields. Everything else (idempotency, uploads, watching, saving) is the same for all models,
and is in `_create`.
"""

import asyncio
import functools
import inspect
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.message import Message
from typer.models import OptionInfo

from kie_generation.cli.help import Command, Group
from kie_generation.cli.market import market_params
from kie_generation.cli.options import option_of, value_name
from kie_generation.cli.problems import ExitCode
from kie_generation.cli.session import Session, run
from kie_generation.enums import ProtoEnum, short_names
from kie_generation.generated.generation.v1.generation_pb2 import (
    Imagen4Params,
    MarketParams,
    MidjourneyParams,
    Sora2Params,
    Veo3Params,
)
from kie_generation.watch import ended

app = typer.Typer(
    cls=Group,
    help="Create a task. `create MODEL --help` lists a model's options.",
)


def read_prompt(text: str) -> str:
    """Return the prompt, or the content of stdin for `-`."""
    return sys.stdin.read().rstrip("\n") if text == "-" else text


def choice(enum: ProtoEnum, text: str) -> OptionInfo:
    """Return an option whose values are those of an enum: `veo3-fast` for API_MODEL_VEO3_FAST."""
    names = {value_name(name): number for number, name in short_names(enum).items() if number}

    def parse(name: str) -> int:
        number = names.get(value_name(name))
        if number is None:
            raise typer.BadParameter(f"'{name}' is not one of {', '.join(names)}")
        return number

    option: OptionInfo = typer.Option(
        parser=parse, metavar="NAME", help=f"{text} One of: {', '.join(names)}."
    )
    return option


Prompt = Annotated[
    str,
    typer.Argument(parser=read_prompt, metavar="PROMPT", help="What to generate; '-' reads stdin."),
]
EnableTranslation = Annotated[
    bool | None, typer.Option(help="Have the provider translate the prompt into English.")
]
Watermark = Annotated[str | None, typer.Option(help="A text of at most 100 characters.")]
FileUrls = Annotated[
    list[str] | None,
    typer.Option(
        "--file-url",
        "--file",
        metavar="URL",
        help="An input image: URL, or a file to upload. Repeatable.",
    ),
]
ImageUrls = Annotated[
    list[str] | None,
    typer.Option(
        "--image-url",
        "--file",
        metavar="URL",
        help="An input image: URL, or a file to upload. Repeatable.",
    ),
]

PromptId = Annotated[str, typer.Option(metavar="ID", help="Your own reference, for `list`.")]
RequestId = Annotated[
    str | None,
    typer.Option(
        metavar="ID",
        help="Repeating a create with the same id never pays twice. Default: random.",
    ),
]
ValidateOnly = Annotated[
    bool, typer.Option("--validate-only", help="Only check the request; nothing is paid for.")
]
Watch = Annotated[bool, typer.Option("--watch", help="Show the progress until the task has ended.")]
Save = Annotated[
    Path | None,
    typer.Option(metavar="DIR", file_okay=False, help="Save the results here; implies --watch."),
]


def _create(
    context: typer.Context,
    params: Message,
    *,
    prompt_id: PromptId = "cli",
    request_id: RequestId = None,
    validate_only: ValidateOnly = False,
    watch: Watch = False,
    save: Save = None,
) -> None:
    """Run a create; the parameters are the options that all models share."""
    invocation = context.obj.invocation
    invocation.command = f"create {context.command.name}"
    if isinstance(params, MarketParams):
        invocation.market_model = params.model
    request_id = request_id or uuid.uuid4().hex

    async def validate(session: Session) -> ExitCode:
        task = await session.client.create(
            params,
            prompt_id=prompt_id,
            request_id=request_id,
            validate_only=True,
            timeout=session.timeout,
        )
        session.output.task(task)
        session.output.note("the request is valid; nothing was created")
        return ExitCode.OK

    async def work(session: Session) -> ExitCode:
        if save is not None:  # before anything is paid for, in case the folder cannot be created
            await asyncio.to_thread(save.mkdir, parents=True, exist_ok=True)
        await session.upload_local_files(params)
        session.resume_hint = f"repeat it with --request-id {request_id}: nothing is paid for twice"
        with session.note_after(1, "waiting for the provider to accept the task"):
            task = await session.client.create(
                params, prompt_id=prompt_id, request_id=request_id, timeout=session.timeout
            )
        session.invocation.task_id = task.id
        if watch or save is not None:
            task = await session.follow(task.id, task)
        elif not ended(task):
            session.output.note(f"to see its progress: {session.watch_command(task.id)}")
        return await session.conclude(task, save)

    run(context, validate if validate_only else work)


def _filled(message: type[Message], fields: dict[str, Any]) -> Message:
    filled = message()
    for name, value in fields.items():
        try:
            filled.MergeFrom(message(**{name: value}))
        except ValueError as error:  # a number out of range, or text that is not valid Unicode
            raise typer.BadParameter(f"{option_of(name)}: {error}") from error
    return filled


def model(message: type[Message]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turn a declaration into a subcommand of `create`.

    Its parameters are the options for the message's fields of the same names.
    """
    return _subcommand(lambda fields: _filled(message, fields))


def _subcommand(
    make: Callable[[dict[str, Any]], Message],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turn a declaration into a subcommand; `make` returns the message for its parameters."""

    def decorate(declaration: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(declaration).parameters
        shared = inspect.signature(_create).parameters
        every = {**own, **{name: shared[name] for name in shared if name != "params"}}

        @functools.wraps(declaration)
        def command(**values: Any) -> None:
            fields = {name: values.pop(name) for name in own}
            _create(params=make(fields), **values)

        # typer reads the signature: the options of this model and those that all models share.
        command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in every.values()]
        )
        command.__annotations__ = {name: each.annotation for name, each in every.items()}
        return app.command(cls=Command)(command)

    return decorate


@model(Imagen4Params)
def imagen4(
    *,
    prompt: Prompt,
    api_model: Annotated[int | None, choice(Imagen4Params.ApiModel, "Default: fast.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to avoid.")] = None,
    aspect_ratio: Annotated[
        str | None, typer.Option(metavar="RATIO", help="1:1, 16:9, 9:16, 3:4, 4:3 or auto.")
    ] = None,
    num_images: Annotated[int | None, typer.Option(help="1-4; ultra makes only 1.")] = None,
    seed: Annotated[int | None, typer.Option(help="For reproducible results.")] = None,
) -> None:
    """Images by Google Imagen 4.

    Example:
      kie-generation create imagen4 "a lighthouse" --api-model ultra --save results
    """


@model(MidjourneyParams)
def midjourney(
    *,
    prompt: Prompt,
    task_type: Annotated[int, choice(MidjourneyParams.TaskType, "What to make, and from what.")],
    file_urls: FileUrls = None,
    speed: Annotated[int | None, choice(MidjourneyParams.Speed, "Faster costs more.")] = None,
    aspect_ratio: Annotated[
        str | None,
        typer.Option(
            metavar="RATIO", help="1:2, 9:16, 2:3, 3:4, 5:6, 6:5, 4:3, 3:2, 1:1, 16:9 or 2:1."
        ),
    ] = None,
    version: Annotated[str | None, typer.Option(help="7, 6.1, 6, 5.2, 5.1 or niji6.")] = None,
    variety: Annotated[int | None, typer.Option(help="How much the images differ, 0-100.")] = None,
    stylization: Annotated[int | None, typer.Option(help="Midjourney's style, 0-1000.")] = None,
    weirdness: Annotated[int | None, typer.Option(help="0-3000.")] = None,
    ow: Annotated[
        int | None, typer.Option(help="Weight of the references, 1-1000; omni-reference only.")
    ] = None,
    watermark: Watermark = None,
    enable_translation: EnableTranslation = None,
    video_batch_size: Annotated[int | None, typer.Option(help="1, 2 or 4 videos.")] = None,
    motion: Annotated[
        int | None, choice(MidjourneyParams.Motion, "Of a video. Default: high.")
    ] = None,
) -> None:
    """Images by Midjourney, and videos from an image.

    Examples:
      kie-generation create midjourney "a lighthouse" --task-type txt2img --watch
      kie-generation create midjourney "waves" --task-type video --file sea.png
    """


@model(Veo3Params)
def veo3(
    *,
    prompt: Prompt,
    api_model: Annotated[int | None, choice(Veo3Params.ApiModel, "Default: veo3-fast.")] = None,
    generation_type: Annotated[
        int | None, choice(Veo3Params.GenerationType, "Default: by the number of images.")
    ] = None,
    image_urls: ImageUrls = None,
    aspect_ratio: Annotated[
        str | None, typer.Option(metavar="RATIO", help="16:9, 9:16 or Auto.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="10000-99999.")] = None,
    watermark: Watermark = None,
    enable_translation: EnableTranslation = None,
    resolution: Annotated[str | None, typer.Option(help="720p, 1080p or 4k.")] = None,
    duration_seconds: Annotated[int | None, typer.Option(help="4, 6 or 8.")] = None,
) -> None:
    """Videos by Google Veo 3.

    Example:
      kie-generation create veo3 "a storm" --resolution 1080p --save results
    """


@model(Sora2Params)
def sora2(
    *,
    prompt: Prompt,
    api_model: Annotated[
        int | None, choice(Sora2Params.ApiModel, "Default: text-to-video.")
    ] = None,
    image_urls: ImageUrls = None,
    aspect_ratio: Annotated[
        int | None, choice(Sora2Params.AspectRatio, "Default: landscape.")
    ] = None,
    duration_seconds: Annotated[int | None, typer.Option(help="10 or 15.")] = None,
    size: Annotated[int | None, choice(Sora2Params.Size, "Of a pro model.")] = None,
    remove_watermark: Annotated[bool | None, typer.Option(help="Ask for no watermark.")] = None,
) -> None:
    """Videos by OpenAI Sora 2.

    Example:
      kie-generation create sora2 "a gull" --aspect-ratio portrait --watch
    """


@_subcommand(lambda fields: market_params(fields["model"], fields["input"] or ()))
def market(
    *,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The id of a model; see `models`.")],
    input: Annotated[  # noqa: A002 - the name of the field
        list[str] | None,
        typer.Option(
            "-i",
            "--input",
            metavar="NAME=VALUE",
            help="A field of the input; see `model MODEL`. A value is JSON if it parses, and text"
            " otherwise. Or @FILE with a JSON object; @- reads stdin. Repeatable.",
        ),
    ] = None,
) -> None:
    """Create a task of any model of the catalogue.

    Examples:
      kie-generation create market nano-banana-2 -i prompt="a cat" --save results
      kie-generation create market kling-3.0/video --input @storm.json --watch
    """
