"""Reads the settings from the environment, and refuses those that cannot be used."""

from typing import Any

from pydantic import ValidationError

from service.setting_types import is_loopback
from service.settings import Settings
from storage.postgresql.connection import is_postgres


class SettingsError(Exception):
    """Settings that cannot be used: one line for each, with its name and without its value."""


def load_settings() -> Settings:
    """Read the environment.

    Raises:
        SettingsError: At least one value is bad; the message names each.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsError("\n".join(map(_line, error.errors(include_input=False)))) from None


def check_serving(settings: Settings) -> None:
    """Refuse what would be served with samples by accident.

    The commands on the database need no key, so the settings themselves do not check this.

    Raises:
        SettingsError: There is no key, and nobody asked for a simulator.
    """
    if settings.kie_api_key is not None or settings.kie_simulator:
        return
    is_trial = (
        settings.kie_simulator is None
        and is_loopback(settings.listen_address)
        and not is_postgres(settings.database_url.get_secret_value())
    )
    if not is_trial:
        raise SettingsError(
            "KIE_API_KEY: must be set; without it, set KIE_SIMULATOR=true to use a simulator,"
            " whose results are samples"
        )


def _line(error: Any) -> str:
    words = error["msg"].removeprefix("Value error, ")
    return f"{str(error['loc'][0]).upper()}: {words}" if error["loc"] else words
