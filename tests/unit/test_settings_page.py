"""docs/settings.md and the schema of the chart say what the settings class says."""

from service.settings import Settings
from tests.support import chart_schema
from tests.support.settings_page import PAGE, TABLES, descriptions, replaced


def test_the_page_of_settings_is_up_to_date() -> None:
    page = PAGE.read_text()
    assert page == replaced(page), "run `make settings-page`"


def test_the_schema_of_the_chart_is_up_to_date() -> None:
    schema = chart_schema.SCHEMA.read_text()
    assert schema == chart_schema.replaced(schema), "run `make settings-page`"


def test_every_setting_has_a_description() -> None:
    assert descriptions().keys() == Settings.model_fields.keys()


def test_every_table_begins_at_a_setting() -> None:
    assert TABLES.keys() <= Settings.model_fields.keys()
