"""docs/settings.md says what the settings class says."""

from service.settings import Settings
from tests.support.settings_page import PAGE, TABLES, descriptions, replaced


def test_the_page_of_settings_is_up_to_date() -> None:
    page = PAGE.read_text()
    assert page == replaced(page), "run `make settings-page`"


def test_every_setting_has_a_description() -> None:
    assert descriptions().keys() == Settings.model_fields.keys()


def test_every_table_begins_at_a_setting() -> None:
    assert TABLES.keys() <= Settings.model_fields.keys()
