"""The limits on requests, for each key, and how many requests there were."""

from collections.abc import Callable
from typing import Final

from providers.kie.simulator.rules import RefusedError
from providers.kie.simulator.settings import SimulatorSettings
from providers.kie.simulator.windows import Traffic

RECORD_WINDOW_SECONDS: Final = 1.0
CATALOGUE_WINDOW_SECONDS: Final = 1.0
TOO_MANY: Final = 429
TOO_FREQUENT: Final = "Your call frequency is too high. Please try again later."


class RequestLimits:
    """Counts requests, and refuses those of a key that has sent too many."""

    def __init__(self, current_settings: Callable[[], SimulatorSettings]) -> None:
        self._settings = current_settings
        self._creates, self._records, self._catalogue = Traffic(), Traffic(), Traffic()

    def note_create(self) -> None:
        """Count a create request, whatever its outcome."""
        self._creates.note(self._settings().create_window_seconds)

    def note_record(self) -> None:
        """Count a record query, whatever its outcome."""
        self._records.note(RECORD_WINDOW_SECONDS)

    def note_catalogue(self) -> None:
        """Count a request to the catalogue, whatever its outcome."""
        self._catalogue.note(CATALOGUE_WINDOW_SECONDS)

    def admit_create(self, key: str) -> None:
        """Count a create request against the limit of its key.

        Raises:
            RefusedError: 429; the request does not count against the limit, and is not queued.
        """
        settings = self._settings()
        seconds, limit = settings.create_window_seconds, settings.creates_per_window
        if not self._creates.admit(key, seconds, limit):
            raise RefusedError(TOO_MANY, TOO_FREQUENT)

    def admit_record(self, key: str) -> None:
        """Count a record query against the limit of its key.

        Raises:
            RefusedError: 429.
        """
        limit = self._settings().records_per_second
        if not self._records.admit(key, RECORD_WINDOW_SECONDS, limit):
            raise RefusedError(TOO_MANY, TOO_FREQUENT)

    def admit_catalogue(self, key: str) -> None:
        """Count a request to the catalogue against the limit of its key.

        Raises:
            RefusedError: 429.
        """
        limit = self._settings().catalogue_per_second
        if not self._catalogue.admit(key, CATALOGUE_WINDOW_SECONDS, limit):
            raise RefusedError(TOO_MANY, "call frequency is too high")

    def peaks(self) -> dict[str, int]:
        """Return the most requests in any window, by their kind, as JSON values."""
        return {
            "creates_in_a_window": self._creates.peak,
            "records_in_a_second": self._records.peak,
            "catalogue_in_a_second": self._catalogue.peak,
        }
