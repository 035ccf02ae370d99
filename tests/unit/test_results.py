"""The committed results of the benchmarks."""

from benchmarks.results import PAGE, page, read


def test_the_page_of_results_shows_what_results_json_holds() -> None:
    assert PAGE.read_text() == page(read())


def test_every_missed_target_is_marked_on_the_page() -> None:
    entries = [entry for section in read().values() for entry in section]
    missed = [entry for entry in entries if (entry.get("share") or 0) > 1]
    assert page(read()).count("**MISSED**") == len(missed)
