"""`python -m service refresh-catalogue`: read the provider's catalogue now."""

from collections.abc import Callable
from contextlib import AsyncExitStack

from providers.kie.client import KieProvider
from service.bounds import BOUNDS
from service.catalogue import Catalogue
from service.catalogue_changes import Change
from service.catalogue_refresh import TIMES, CatalogueRefresh, RefreshTimes
from service.metrics import Metrics
from service.parts import start_provider
from service.settings import Settings
from storage.opening import open_store


async def refresh_catalogue(
    settings: Settings, say: Callable[[str], None], times: RefreshTimes = TIMES
) -> bool:
    """Make a round through the catalogue, and say what changed.

    Args:
        settings: Where the database and the provider are.
        say: Called with a line for each change, when it is saved.
        times: How the catalogue is read.

    Returns:
        Whether the provider answered with a plausible catalogue; the log says why not.

    Raises:
        StorageError: The database cannot be opened, or failed.
    """
    changes = 0

    def on_change(change: Change) -> None:
        nonlocal changes
        changes += 1
        say(f"{change.kind}: {change.model.id}" + (f" ({change.detail})" if change.detail else ""))

    async with AsyncExitStack() as stack:
        catalogue, metrics = Catalogue(settings.disabled_models), Metrics(())
        store = open_store(
            settings.database_url.get_secret_value(), hints=False, needs=KieProvider.models
        )
        stack.push_async_callback(store.close)
        provider = await start_provider(settings, BOUNDS.kie, metrics, catalogue, stack)
        refresh = CatalogueRefresh(
            store,
            provider.catalogue,
            catalogue,
            metrics,
            refresh_seconds=0,
            times=times,
            on_change=on_change,
        )
        await refresh.start()
        succeeded = await refresh.round()
    if succeeded and not changes:
        say("nothing changed")
    return succeeded
