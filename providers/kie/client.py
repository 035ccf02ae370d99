"""The provider Kie.ai: the one place where its API is called, and where errors become outcomes."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Any

import aiohttp

from generated.generation.v1.generation_pb2 import ProviderParams
from providers.base import (
    CallObserver,
    ParamsError,
    Poll,
    Postponed,
    Recognition,
    StoredFile,
    Submission,
    Succeeded,
    Unavailable,
    Unknown,
    Unreadable,
    Upload,
)
from providers.kie import market
from providers.kie.adapter import Adapter
from providers.kie.catalogue.client import CatalogueClient
from providers.kie.catalogue.known import BundledModels, KnownModels
from providers.kie.envelope import (
    OK,
    Envelope,
    UnreadableAnswerError,
    read_fresh_url,
    read_submission,
    unreadable_record,
    unreadable_submission,
)
from providers.kie.http import (
    BROKEN,
    CONNECT_SECONDS,
    NOT_CONNECTED,
    TIMEOUTS,
    Exchange,
    Sessions,
    Timeouts,
    authorization,
    describe,
    read_envelope,
)
from providers.kie.kept import kept_text
from providers.kie.model_rules import ModelRules, read_params
from providers.kie.registry import ADAPTERS, adapter_of, model_id_of
from providers.kie.upload import Uploader
from providers.kie.values import clean, same_id
from providers.public_address import is_public_url

FRESH_URL_PATH = "/api/v1/common/download-url"


def _unobserved(endpoint: str, code: str, seconds: float) -> None:
    del endpoint, code, seconds


class KieProvider:
    """The provider Kie.ai, or its simulator.

    Create it inside the event loop that uses it, and close it there.

    Attributes:
        base_urls: The base URLs of the API and of the upload host.
        catalogue: Reads Kie's catalogue of models.
    """

    models = frozenset(ADAPTERS)
    # Kie documents two lifetimes of a result: see docs/kie.md.
    result_seconds = 86_400.0
    delivery_seconds = 14 * 86_400.0

    def __init__(
        self,
        api_url: str,
        upload_url: str,
        api_key: str | Callable[[], str],
        observe: CallObserver = _unobserved,
        timeouts: Timeouts = TIMEOUTS,
        *,
        known: KnownModels | None = None,
    ) -> None:
        """Open the connection pools. They use the proxies of the environment.

        Args:
            api_url: The base URL of the API.
            upload_url: The base URL of the upload host.
            api_key: The key, or a function that returns the current one before each request.
            observe: Is called after each request.
            timeouts: How long requests may take.
            known: What is known of the models; None is the bundled snapshot.
        """
        self._known = known or BundledModels()
        self._current_key = api_key if callable(api_key) else lambda: api_key
        self._observe = observe
        self._timeouts = timeouts
        self._api_url = api_url.rstrip("/")
        self.base_urls = (api_url, upload_url)
        # A provider inside our network, such as the simulator, can also reach other hosts there.
        self._rules = ModelRules(self._known, public_urls=is_public_url(api_url))
        self._sessions = Sessions(api_url, upload_url)
        self.catalogue = CatalogueClient(
            self._sessions.reads, api_url, self._current_key, observe, timeouts
        )
        self._uploader = Uploader(
            self._sessions.uploads, upload_url, self._current_key, observe, timeouts
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._sessions.close()

    # --- parameters ---

    def model_of(self, params: ProviderParams) -> str:
        """Return the member that is set in the oneof; for `market`, the id of the model."""
        model = params.kie.WhichOneof("model")
        assert model is not None, "params were not checked"
        return params.kie.market.model if model == "market" else model

    def model_id(self, params: ProviderParams) -> str:
        """Return Kie's id of the model that valid params ask for."""
        return model_id_of(params)

    def typical_max_seconds(self, model: str) -> float:
        """Return the time within which most tasks of a model end."""
        if model in ADAPTERS:
            return ADAPTERS[model].typical_max_seconds
        return market.typical_max_seconds(self._known.task_types_of(model))

    def check(self, params: ProviderParams) -> None:
        """Raise ParamsError unless every rule that does not depend on the catalogue is met."""
        self._rules.check(params)

    def complete(self, params: ProviderParams) -> ProviderParams:
        """Check the input of a market model by the model's schema, if one is known."""
        return self._rules.complete(params)

    # --- tasks ---

    async def submit(self, params: ProviderParams, callback_url: str | None) -> Submission:
        """Post the paid request once, over its own connection."""
        adapter, model_params = read_params(params)
        body = adapter.body(model_params)
        if callback_url:
            body["callBackUrl"] = callback_url
        loop = asyncio.get_running_loop()
        with Exchange(adapter.create_path, self._observe) as exchange:
            try:
                async with asyncio.timeout(None) as limit:
                    timer = loop.call_later(self._timeouts.create_seconds, self._look_again, limit)
                    try:
                        return await self._post(adapter.create_path, body, exchange)
                    finally:
                        timer.cancel()
            except TimeoutError as error:
                exchange.broke(error)
                return Unknown("no answer in time")

    def _look_again(self, limit: asyncio.Timeout) -> None:
        """Grant a little more time: after a suspend the response may already be in the socket."""
        now = asyncio.get_running_loop().time()
        limit.reschedule(now + self._timeouts.second_look_seconds)

    async def _post(self, path: str, body: Mapping[str, Any], exchange: Exchange) -> Submission:
        key = self._current_key()
        try:
            async with self._sessions.creates.post(
                self._api_url + path,
                json=body,
                headers=authorization(key),
                timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS),
                allow_redirects=False,
            ) as response:
                seal = str(body.get("callBackUrl", "")).rpartition("/")[2]
                envelope = await self._read(response, exchange, key, seal)
                return read_submission(envelope, prompt=_prompt(body))
        except NOT_CONNECTED as error:
            exchange.broke(error)
            return Postponed(f"not connected: {describe(error)}", reached=False)
        except UnreadableAnswerError as error:
            exchange.broke(error)
            return unreadable_submission(error)
        except BROKEN as error:
            exchange.broke(error)
            return Unknown(describe(error))

    async def poll(
        self, model: str, provider_task_id: str, params: ProviderParams | None = None
    ) -> Poll:
        """Ask for the record of a task."""
        adapter = adapter_of(model)
        record = await self._record(adapter, provider_task_id)
        if not isinstance(record, Envelope):
            return record
        outcome = adapter.read(record)
        if params is None or not isinstance(outcome, Succeeded):
            return outcome
        return replace(outcome, differs=self._compare(params, record) is Recognition.DIFFERS)

    async def recognise(self, params: ProviderParams, provider_task_id: str) -> Recognition:
        """Compare a task's record with the request."""
        record = await self._record(adapter_of(self.model_of(params)), provider_task_id)
        if not isinstance(record, Envelope) or record.code != OK or not record.record:
            return Recognition.UNREADABLE
        return self._compare(params, record)

    def _compare(self, params: ProviderParams, envelope: Envelope) -> Recognition:
        try:
            adapter, model_params = read_params(params)
        except ParamsError:
            return Recognition.SILENT  # a newer version made them: they cannot be compared
        return adapter.recognise(adapter.body(model_params), envelope.record or {})

    async def _record(self, adapter: Adapter, provider_task_id: str) -> Envelope | Poll:
        try:
            with Exchange(adapter.record_path, self._observe) as exchange:
                envelope = await self._ask(adapter.record_path, provider_task_id, exchange)
        except UnreadableAnswerError as error:
            return unreadable_record(error)
        except BROKEN as error:
            return Unavailable(describe(error))
        named = (envelope.record or {}).get("taskId")
        if named and isinstance(named, str) and not same_id(named, provider_task_id):
            words = f"the record of another task, {clean(named, 64)!r}"
            return Unreadable(words, kept_text(envelope.text))
        return envelope

    async def _ask(self, path: str, provider_task_id: str, exchange: Exchange) -> Envelope:
        key = self._current_key()
        async with self._sessions.reads.get(
            self._api_url + path,
            params={"taskId": provider_task_id},
            headers=authorization(key),
            timeout=aiohttp.ClientTimeout(
                total=self._timeouts.poll_seconds, connect=CONNECT_SECONDS
            ),
            allow_redirects=False,
        ) as response:
            return await self._read(response, exchange, key)

    async def _read(
        self, response: aiohttp.ClientResponse, exchange: Exchange, *secrets: str
    ) -> Envelope:
        """Read a response, without our key and without the seal of our callback URL."""
        return await read_envelope(
            response,
            exchange,
            secrets=secrets,
            rest_seconds=self._timeouts.rest_seconds,
        )

    # --- results ---

    async def fresh_url(self, url: str) -> str | Unavailable | None:
        """Ask for another URL of a result, which works for 20 minutes."""
        key = self._current_key()
        try:
            with Exchange(FRESH_URL_PATH, self._observe) as exchange:
                async with self._sessions.reads.post(
                    self._api_url + FRESH_URL_PATH,
                    json={"url": url},
                    headers=authorization(key),
                    timeout=aiohttp.ClientTimeout(
                        total=self._timeouts.poll_seconds, connect=CONNECT_SECONDS
                    ),
                    allow_redirects=False,
                ) as response:
                    envelope = await self._read(response, exchange, key)
        except BROKEN as error:
            return Unavailable(describe(error))
        return read_fresh_url(envelope)

    # --- uploads ---

    async def upload(self, upload: Upload, chunks: AsyncIterator[bytes]) -> StoredFile:
        """Stream a file to the upload host."""
        return await self._uploader.upload(upload, chunks)


def _prompt(body: Mapping[str, Any]) -> str:
    """Return the prompt of a paid request, wherever its family puts it; else its longest text."""
    fields = {**body, **body.get("input", {})}
    prompt = fields.get("prompt")
    if isinstance(prompt, str):
        return prompt
    texts = (value for value in body.get("input", {}).values() if isinstance(value, str))
    return max(texts, key=len, default="")
