"""Kie's catalogue API: the list of models, and the schema of each one.

Kie allows one request a second for an account, so the caller paces the requests.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

from providers.base import CallObserver
from providers.kie.catalogue.disputes import without_disputes
from providers.kie.catalogue.facts import is_model_id
from providers.kie.catalogue.keywords import shown
from providers.kie.catalogue.openapi import ModelSchema, reduced
from providers.kie.envelope import OK, Envelope, parse_envelope
from providers.kie.http import (
    BROKEN,
    CONNECT_SECONDS,
    Exchange,
    Timeouts,
    authorization,
    describe,
    read_body,
)
from providers.kie.reasons import OVER_LIMIT_CODES, reason_of
from providers.kie.values import as_object, unwrapped

MODELS_PATH = "/api/v1/models"
SCHEMA_ENDPOINT = f"{MODELS_PATH}/schema"  # for the observer: one name for all models
ANSWER_MAX_BYTES = 1 << 20
MODELS_MAX = 5_000
TASK_TYPES_MAX = 20
NOT_FOUND = 404


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model of Kie's list. All texts are printable, and have at most 200 characters."""

    id: str
    title: str
    provider: str
    task_types: tuple[str, ...]
    price_text: str


@dataclass(frozen=True, slots=True)
class Listing:
    """Kie's list of models.

    Attributes:
        models: The usable ones, each id once. It may be empty.
        ignored: How many entries had no usable id.
    """

    models: tuple[ListedModel, ...]
    ignored: int


@dataclass(frozen=True, slots=True)
class NotListed:
    """Kie does not know the model."""

    detail: str


@dataclass(frozen=True, slots=True)
class NotAnswered:
    """Kie did not answer, or not with a catalogue: keep what is known, and ask again later.

    Attributes:
        detail: Why, for the log. It contains no secret.
        limited: Whether the rate limit was reached.
    """

    detail: str
    limited: bool = False


class CatalogueClient:
    """Reads the catalogue. Each method makes one request, and never raises for what Kie sent."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        api_url: str,
        current_key: Callable[[], str],
        observe: CallObserver,
        timeouts: Timeouts,
    ) -> None:
        """Use a connection pool.

        Args:
            session: The pool.
            api_url: The base URL of the API.
            current_key: Returns the key.
            observe: Is called after each request.
            timeouts: How long requests may take.
        """
        self._session = session
        self._api_url = api_url.rstrip("/")
        self._current_key = current_key
        self._observe = observe
        self._timeouts = timeouts

    async def list_models(self) -> Listing | NotAnswered:
        """Fetch the list of all models."""
        envelope = await self._get(MODELS_PATH, MODELS_PATH)
        if isinstance(envelope, NotAnswered):
            return envelope
        if envelope.code != OK:
            return _refusal(envelope)
        return await asyncio.to_thread(_listing, envelope)

    async def model_schema(self, model: str) -> ModelSchema | NotListed | NotAnswered:
        """Fetch the schema of a model; it does not enforce what sources dispute."""
        envelope = await self._get(f"{MODELS_PATH}/{model}/schema", SCHEMA_ENDPOINT)
        if isinstance(envelope, NotAnswered):
            return envelope
        if envelope.code != OK:
            unknown = reason_of(envelope.code, envelope.message) == "MODEL_UNAVAILABLE"
            if not envelope.bare and (unknown or envelope.code == NOT_FOUND):
                return NotListed(f"code {envelope.code}: {envelope.message}")
            return _refusal(envelope)
        return await asyncio.to_thread(_schema, envelope, model)

    async def _get(self, path: str, endpoint: str) -> Envelope | NotAnswered:
        key = self._current_key()
        try:
            with Exchange(endpoint, self._observe) as exchange:
                async with self._session.get(
                    self._api_url + path,
                    headers=authorization(key),
                    timeout=aiohttp.ClientTimeout(
                        total=self._timeouts.poll_seconds, connect=CONNECT_SECONDS
                    ),
                    allow_redirects=False,
                ) as response:
                    body = await read_body(
                        response,
                        secrets=(key,),
                        rest_seconds=self._timeouts.rest_seconds,
                        max_bytes=ANSWER_MAX_BYTES,
                    )
                    # In a thread: a large response would hold up the event loop.
                    envelope = await asyncio.to_thread(parse_envelope, response.status, body)
                    exchange.answered(envelope.code)
                    return envelope
        except BROKEN as error:
            return NotAnswered(describe(error))


def _refusal(envelope: Envelope) -> NotAnswered:
    return NotAnswered(
        f"code {envelope.code}: {envelope.message}", limited=envelope.code in OVER_LIMIT_CODES
    )


# --- untrusted responses, read in a thread ---


def _listing(envelope: Envelope) -> Listing | NotAnswered:
    entries = unwrapped(as_object(envelope.data).get("models"))
    if not isinstance(entries, list):
        return NotAnswered("code 200 without a list of models")
    read = [_listed(as_object(entry)) for entry in entries[:MODELS_MAX]]
    models = {model.id: model for model in reversed(read) if model}
    ignored = len(entries) - sum(model is not None for model in read)
    return Listing(tuple(reversed(models.values())), ignored)


def _listed(entry: dict[str, Any]) -> ListedModel | None:
    name = entry.get("model")
    if not isinstance(name, str) or not is_model_id(name):
        return None
    kinds = unwrapped(entry.get("taskType"))
    kinds = kinds.split(",") if isinstance(kinds, str) else kinds
    task_types = map(shown, kinds[:TASK_TYPES_MAX] if isinstance(kinds, list) else ())
    return ListedModel(
        id=name,
        title=shown(entry.get("title")) or name,
        provider=shown(entry.get("provider")),
        task_types=tuple(dict.fromkeys(filter(None, task_types))),
        price_text=shown(entry.get("pricingDesc")),
    )


def _schema(envelope: Envelope, model: str) -> ModelSchema | NotAnswered:
    data = as_object(envelope.data)
    if not data:
        return NotAnswered("code 200 without data")
    named = data.get("model")
    if isinstance(named, str) and named != model:
        return NotAnswered(f"the schema of another model, {shown(named)}")
    found = reduced(unwrapped(data.get("openapi")))
    if found.input_schema is None:
        return found
    return ModelSchema(found.path, without_disputes(found.input_schema, model))
