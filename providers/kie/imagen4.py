"""Imagen 4 through Kie's jobs API: its rules, requests and records."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, field_serializer

from providers.kie.adapter import Adapter
from providers.kie.jobs import input_body, read_job
from providers.kie.params import PROMPT, TEXT, Given, Params, choice

API_MODELS = {
    "FAST": "google/imagen4-fast",
    "STANDARD": "google/imagen4",
    "ULTRA": "google/imagen4-ultra",
}


class Imagen4(Params):
    """The rules of Imagen4Params, and the `input` of its jobs."""

    message_path = "provider_params.kie.imagen4"

    api_model: Annotated[
        Literal["FAST", "STANDARD", "ULTRA"],
        Field(serialization_alias="model"),
        choice(API_MODELS),
    ] = "FAST"
    prompt: Annotated[str, Field(max_length=5_000), PROMPT]
    negative_prompt: Annotated[str, Field(max_length=5_000), TEXT] | None = None
    aspect_ratio: Literal["1:1", "16:9", "9:16", "3:4", "4:3", "auto"] = "1:1"
    num_images: Annotated[int | None, Field(ge=1, le=4)] = None
    seed: Annotated[int | None, Field(ge=0, le=2**31 - 1)] = None

    @classmethod
    def cross_rules(cls, given: Given) -> Iterator[tuple[str, str]]:
        """ULTRA generates one image per task."""
        if given.get("api_model") == "ULTRA" and given.get("num_images", 1) > 1:
            yield "num_images", "must be 1 with API_MODEL_ULTRA"

    @field_serializer("num_images")
    def _num_images(self, count: int | None) -> str | None:
        return str(count) if count and count > 1 else None  # one is the provider's default

    @field_serializer("seed")
    def _seed(self, seed: int | None) -> int | str | None:
        return seed if seed is None or self.api_model == "FAST" else str(seed)


ADAPTER = Adapter(
    name="imagen4",
    params=Imagen4,
    create_path="/api/v1/jobs/createTask",
    record_path="/api/v1/jobs/recordInfo",
    body=input_body,
    read=read_job,
    typical_max_seconds=112,
)
