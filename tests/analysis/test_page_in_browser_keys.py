"""Moving on the page: keys, the help, and filters."""

from pathlib import Path

from tests.analysis.browser import IN_BROWSER, Open, focused, texts
from tests.analysis.sample_runs import metrics, sample, write_run
from tokencredit.analysis.report import read_runs, write_report

pytestmark = IN_BROWSER


def test_keys_move_between_tokens_and_responses(report: Path, visit: Open) -> None:
    page = visit(report)
    press = page.keyboard.press
    press("n")
    assert focused(page) == ("pair 0 chosen", "0")
    assert page.is_visible("#tip")
    for key, place in [("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 6), ("ArrowRight", 6)]:
        press(key)
        assert focused(page)[1] == str(place), key
    press("ArrowUp")
    assert int(focused(page)[1]) <= 2, "the line before the newline"
    press("ArrowDown")
    assert int(focused(page)[1]) >= 3
    press("Home")
    assert focused(page)[1] == "0"
    for key, title in [("n", "pair 0 rejected"), ("n", "pair 1 chosen"), ("p", "pair 0 rejected")]:
        press(key)
        assert focused(page)[0] == title
    assert page.get_attribute(":focus", "aria-label") == "The, 0.5"
    assert page.get_attribute(":focus", "aria-describedby") == "tip"
    press("2")
    assert page.evaluate("document.getElementById('column').selectedOptions[0].text") == "2 weights"
    assert texts(page, "#tip .chosen th") == ["weights"]
    press("Escape")
    assert page.is_hidden("#tip")


def test_every_response_is_one_stop_of_the_tab_key(report: Path, visit: Open) -> None:
    page = visit(report)
    page.focus("#help-button")
    stops = []
    for _ in range(4):
        page.keyboard.press("Tab")
        stops.append(focused(page))
    assert stops == [(f"pair {pair} {side}", "0") for pair in (0, 1) for side in ("chosen", "rejected")]


def test_help_and_letters(report: Path, visit: Open) -> None:
    page = visit(report)
    page.keyboard.press("?")
    assert page.is_visible("#help")
    page.keyboard.press("n")
    assert page.query_selector(".t:focus") is None, "keys rest while the help is open"
    page.uncheck("#letters")
    page.keyboard.press("Escape")
    assert page.is_hidden("#help")
    page.keyboard.press("2")
    assert page.input_value("#column") == "0", "letters and digits can be switched off"


def test_filters(report: Path, visit: Open) -> None:
    page = visit(report)

    def count() -> str:
        return str(page.inner_text("#count")).split(" of ")[0]

    assert page.is_hidden("#run-filter")
    page.select_option("#step", "")
    assert count() == "8"
    page.select_option("#side", "rejected")
    assert count() == "4"
    page.select_option("#step", "10")
    assert count() == "2"
    page.keyboard.press("/")
    page.keyboard.type("FOX rejected Jumps")
    assert count() == "1"
    assert page.input_value("#column") == "0", "what is typed is text"
    assert page.query_selector_all(".response:not([hidden])")[-1].is_visible()
    page.fill("#find", "prompt 0")
    assert count() == "1"
    page.fill("#find", "nowhere")
    assert count() == "0"
    assert page.is_visible("#nothing")


def test_several_runs_can_be_filtered(tmp_path: Path, visit: Open) -> None:
    runs = [write_run(tmp_path / name, [sample(["a"])], metrics()) for name in ("x", "y")]
    page = visit(write_report(read_runs(runs)))
    assert page.inner_text("#count") == "2 of 2 responses"
    page.select_option("#run", "y")
    assert page.inner_text("#count") == "1 of 2 responses"
    assert texts(page, ".keys li > span:first-child")[1:3] == ["x", "y"]
