"""Starts the HTTP servers: for operators, and for the provider's callbacks."""

import math
from collections.abc import Iterator
from contextlib import AsyncExitStack

from providers.kie.callbacks import KieCallbacks
from service.account_hold import AccountHold
from service.admin import Admin
from service.callback_polls import CallbackPolls
from service.callbacks import Callbacks
from service.http import HttpServer
from service.listen import start_http
from service.metrics import Queue
from service.parts import Parts
from service.setting_types import webhook_key_in
from service.vitals import Vitals
from service.watched_secret import current_secret
from storage.store import Store
from storage.task import Lane


async def start_admin(
    parts: Parts, vitals: Vitals, account: AccountHold, stack: AsyncExitStack
) -> str:
    """Serve probes and metrics, and return the bound address; "" if ADMIN_ADDRESS is empty.

    Raises:
        StartError: The address cannot be used.
    """
    address = parts.settings.admin_address
    if not address:
        return ""
    admin = Admin(
        vitals,
        parts.metrics,
        lambda: _queues(parts.store),
        lambda: _notes(parts, account),
        queues_seconds=parts.bounds.database.queues_seconds,
    )
    return await start_http(
        HttpServer(admin.answer, parts.bounds.http), "ADMIN_ADDRESS", address, stack
    )


def _notes(parts: Parts, account: AccountHold) -> Iterator[str]:
    """Yield what an operator should know of a service that is ready."""
    if parts.settings.simulated:
        yield "simulated: results are samples"
    if account.note:
        yield account.note
    if parts.store.misses_hints:
        yield "no hints between replicas: changes by others are pushed up to a second late"


async def _queues(store: Store) -> list[Queue]:
    now = store.now()
    waiting = await store.queues()
    storing_since = await store.storing_since() if waiting[Lane.STORE][0] else math.inf
    return [
        Queue(
            lane,
            count,
            max(0.0, now - first),
            max(0.0, now - storing_since) if lane is Lane.STORE else 0.0,
        )
        for lane, (count, first) in waiting.items()
    ]


async def start_callbacks(parts: Parts, polls: CallbackPolls, stack: AsyncExitStack) -> str:
    """Serve the provider's callbacks, and return the bound address; "" without callbacks.

    Raises:
        StartError: The address cannot be used.
    """
    if parts.callback_urls is None:
        return ""
    callbacks = Callbacks(
        parts.callback_urls, _callback_reader(parts), polls, parts.metrics, parts.store.now
    )
    server = HttpServer(callbacks.answer, parts.bounds.http)
    return await start_http(server, "HTTP_ADDRESS", parts.settings.http_address, stack)


def _callback_reader(parts: Parts) -> KieCallbacks:
    key, file = parts.settings.kie_webhook_key, parts.settings.kie_webhook_key_file
    if key is None:
        return KieCallbacks(None)
    name = "kie_webhook_key"
    return KieCallbacks(current_secret(name, key, file, webhook_key_in, parts.metrics))
