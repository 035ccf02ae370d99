"""Poolers: what they refuse or drop is noticed when the service starts, before it does harm."""

import pytest

from storage.errors import StorageConfigError
from storage.opening import open_store
from storage.pages import ListFilter
from storage.postgresql.migrate import migrate
from storage.store import Store
from tests.support.databases import rows
from tests.support.poolers import pooler
from tests.support.postgres import Cluster
from tests.support.storing import NOW, new, stored


def test_a_pooler_that_ignores_the_schema_of_the_url_is_refused_before_anything_is_created(
    postgresql_url: str,
) -> None:
    tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
    before = rows(postgresql_url, tables)
    with (
        pooler(postgresql_url) as url,
        pytest.raises(
            StorageConfigError, match=r"asks for the search_path \w+, but .*schema public"
        ),
    ):
        migrate(url)
    assert rows(postgresql_url, tables) == before


def test_a_pooler_that_ignores_the_schema_of_the_environment_is_refused(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _, options = postgresql_url.partition("?options=")
    monkeypatch.setenv("PGOPTIONS", options.replace("%3D", "="))
    with pooler(plain) as url, pytest.raises(StorageConfigError, match="asks for the search_path"):
        migrate(url)


async def test_the_schema_of_the_environment_is_used_by_every_connection(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _, options = postgresql_url.partition("?options=")
    monkeypatch.setenv("PGOPTIONS", options.replace("%3D", "="))
    store = open_store(plain)
    await store.ping()
    assert await store.get("t") is None
    await store.close()
    assert rows(postgresql_url, "SELECT count(*) FROM tasks") == [(0,)]


@pytest.mark.parametrize(
    "options",
    [
        "-csearch_path%3D{}",
        "-c%20search_path%3D{}",
        "--search_path%3D{}",
        "-csearch_path%3D{},public",
        "-csearch_path%3D{},%5C%20public",
        "-cwork_mem%3D1MB%20-c%20search_path%3D{}",
    ],
)
def test_the_schema_of_the_url_is_used_however_it_is_written(
    postgresql_url: str, options: str
) -> None:
    url, _, schema = postgresql_url.rpartition("-csearch_path%3D")
    migrate(url + options.format(schema))
    assert rows(postgresql_url, "SELECT count(*) FROM tasks") == [(0,)]


@pytest.mark.parametrize("refuses", [True, False], ids=["refuses", "drops"])
async def test_the_error_behind_a_pooler_names_the_setting_and_with_it_the_service_starts(
    cluster: Cluster, refuses: bool
) -> None:
    with pooler(cluster.url, refuses=refuses) as url:
        with pytest.raises(StorageConfigError, match="DATABASE_HINTS=false"):
            open_store(url)
        store: Store = open_store(url, hints=False)
        await store.ping()
        await store.close()


LOSSY = "-cextra_float_digits%3D0%20-carray_nulls%3Doff"


async def test_nothing_is_lost_if_the_database_prints_fewer_digits_or_knows_no_nulls(
    postgresql_url: str,
) -> None:
    store = open_store(f"{postgresql_url}%20{LOSSY}")
    task = new("t", create_time=NOW + 0.123456789)
    await stored(store, task)
    await store.close()
    store = open_store(f"{postgresql_url}%20{LOSSY}")
    assert await store.get("t") == task
    assert await store.page(ListFilter("c"), None, 10) == [task]
    await store.close()


@pytest.mark.parametrize("option", LOSSY.split("%20"))
def test_without_options_of_its_own_the_service_refuses_such_a_database(
    postgresql_url: str, option: str
) -> None:
    with pytest.raises(StorageConfigError, match="the role needs array_nulls = on, extra_float_d"):
        open_store(f"{postgresql_url}%20{option}", hints=False)


def test_options_of_the_url_that_a_pooler_refuses_are_named(postgresql_url: str) -> None:
    with (
        pooler(postgresql_url, refuses=True) as url,
        pytest.raises(StorageConfigError, match=r"options of DATABASE_URL: .*ALTER ROLE"),
    ):
        migrate(url)
