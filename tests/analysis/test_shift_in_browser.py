"""The report of a comparison in a browser."""

import re
from pathlib import Path

import pytest

from tests.analysis.browser import BUSY_SECONDS, HOSTILE, IN_BROWSER, Open, focused, seconds_until_shown, texts, token
from tests.analysis.shift_tables import large, made_up
from tests.analysis.test_page_in_browser_looks import CONTRASTS
from tokencredit.analysis.page import Page, write
from tokencredit.analysis.shift import ShiftResult
from tokencredit.analysis.shift_pack import PackedView
from tokencredit.analysis.shift_page import COLUMNS
from tokencredit.analysis.shift_table import column

pytestmark = IN_BROWSER

WORDS = [" the", " a", " quick", " fox", ".", "\n", " jumps", " over", " dog", " lazy", " it", " was", " is", " on"]


@pytest.fixture(scope="module")
def found() -> ShiftResult:
    return made_up([30, 30, 30, 30], WORDS)


@pytest.fixture(scope="module")
def shift_report(found: ShiftResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return found.to_html(tmp_path_factory.mktemp("shift") / "report.html")


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def test_headline_tokens_and_both_lists(found: ShiftResult, shift_report: Path, visit: Open) -> None:
    page = visit(shift_report)
    assert texts(page, "h1") == ["after against before"]
    assert "tuned differs from its base (JS > 0.1) at" in page.inner_text("header .muted")
    shown = page.query_selector(".list").text_content()
    assert shown == "".join(found.table["token"].to_pylist()[:30])
    js, changed = column(found.table, "js"), column(found.table, "tuned_top1_base_rank") > 1
    for place in (0, 7, 29):
        token(page, 0, place).hover()
        tip = page.query_selector_all("#tip table")
        values = {
            row.query_selector("th").text_content(): row.query_selector("td").text_content()
            for row in tip[0].query_selector_all("tr")
        }
        # Twelve bits on a logarithmic scale: half a step is 0.15 %, and three digits are shown.
        assert number(values["js"]) == pytest.approx(js[place], rel=8e-3)
        assert number(values["delta_logp"]) == pytest.approx(column(found.table, "delta_logp")[place], rel=8e-3)
        lines = [
            [cell.text_content() for cell in row.query_selector_all("td")] for row in tip[1].query_selector_all("tr")
        ][1:]
        assert len(lines) in (3, 10)
        for at, line in enumerate(lines):
            for start, model in ((0, "base"), (2, "tuned")):
                token_id = column(found.table, f"{model}_top_ids")[place, at]
                assert line[start] == WORDS[token_id].replace(" ", "·").replace("\n", "⏎")
                p = 2.718281828 ** column(found.table, f"{model}_top_logps")[place, at]
                assert number(line[start + 1]) == pytest.approx(p, rel=0.15, abs=0.012)
        assert ("changed" in token(page, 0, place).get_attribute("class")) == changed[place]
    longest = column(found.table, "js")[:30].argmax()
    token(page, 0, int(longest)).hover()
    assert len(page.query_selector_all("#tip .tops tr")) == 11, "ten where the divergence is in the highest tenth"


def test_measures_slider_keys_and_filter(found: ShiftResult, shift_report: Path, visit: Open) -> None:
    page = visit(shift_report)
    names = texts(page, ".metrics button")
    assert names[:2] == ["js", "delta_logp"]
    assert page.inner_text("#legend").split() == ["0", "0.6931"], "capped at ln 2"
    page.click(".metrics button:nth-child(2)")
    assert page.get_attribute(".metrics button:nth-child(2)", "aria-pressed") == "true"
    assert page.get_attribute(".metrics button:nth-child(1)", "aria-pressed") == "false"
    low, high = (number(text) for text in page.inner_text("#legend").split() if text not in "≤≥")
    assert low == -high, "diverging"
    page.keyboard.press("1")
    js = column(found.table, "js")
    page.evaluate("(s) => { s.value = 75; s.dispatchEvent(new Event('input')); }", page.query_selector("#threshold"))
    threshold = 0.6931 * 10 ** (-4 * 0.25)
    assert page.inner_text("#above").split(" · ")[1].split()[0] == str(int((js > threshold).sum()))
    painted = [place for place in range(30) if "amount" in token(page, 0, place).get_attribute("class")]
    assert painted == [place for place in range(30) if js[place] >= threshold]
    above = [(at // 30, at % 30) for at in range(120) if js[at] > threshold]
    page.keyboard.press("j")
    assert focused(page) == (f"response {above[0][0]} tuned-led", str(above[0][1]))
    page.keyboard.press("j")
    assert focused(page) == (f"response {above[1][0]} tuned-led", str(above[1][1]))
    page.keyboard.press("k")
    assert focused(page) == (f"response {above[0][0]} tuned-led", str(above[0][1]))
    page.select_option("#prompt", label="prompt·1")
    assert page.inner_text("#count") == "2 of 4 responses"


def test_tables_sort_and_plots_are_saved(shift_report: Path, visit: Open) -> None:
    page = visit(shift_report)
    assert len(page.query_selector_all(".panel:not([hidden]) .chart")) == 5
    for kind in ("SVG", "PNG"):
        for box in (1, 5):
            with page.expect_download() as saved:
                page.click(f".chart:nth-child({box}) .save button:text-is('{kind}')")
            content = Path(saved.value.path()).read_bytes()
            assert content.startswith(b"<svg" if kind == "SVG" else b"\x89PNG")
    page.click("[role=tab]:has-text('Tokens')")
    page.eval_on_selector(".sortable tbody tr:first-child td:nth-child(2)", "cell => cell.textContent = '−1.2e−05'")
    for head, at in (("mass moved", 1), ("written", 2), ("mean JS", 5)):
        page.click(f".sortable th:has-text('{head}') button")
        values = [number(text) for text in texts(page, f".sortable tbody td:nth-child({at + 1})")]
        assert values == sorted(values, reverse=True)
    page.click(".sortable th:has-text('mean JS') button")
    values = [number(text) for text in texts(page, ".sortable tbody td:nth-child(6)")]
    assert values == sorted(values)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_on_every_colour(scheme: str, shift_report: Path, visit: Open) -> None:
    # Without transitions the colours are there at once.
    page = visit(shift_report, color_scheme=scheme, reduced_motion="reduce")
    for key in "12345":
        page.keyboard.press(key)
        assert page.evaluate(CONTRASTS) >= 4.5, key


def test_hostile_and_odd_texts_are_shown_and_never_run(visit: Open, tmp_path: Path) -> None:
    odd = [*HOSTILE, "<0xE2>", "\ufffd", "عربي", "👍🏽"]
    found = made_up([len(odd), 0, 40, 0, 10_000], odd)
    hostile = ShiftResult(found.table, ["".join(HOSTILE)] * 3, found.texts, {"tuned": HOSTILE[0], "base": HOSTILE[1]})
    page = visit(hostile.to_html(tmp_path / "page.html"))
    script = "[...document.querySelector('.list').children].map((t) => [...t.textContent].map((c) => c.codePointAt(0)))"
    shown = ["".join(map(chr, points)) for points in page.evaluate(script)]
    assert shown == found.table["token"].to_pylist()[: len(odd)]
    for place in range(len(odd)):
        token(page, 0, place).focus()
        assert page.is_visible("#tip")
    for tab in page.query_selector_all("[role=tab]"):
        tab.click()
    page.keyboard.press("j")
    assert page.evaluate("window.hacked") is None
    assert {name: len(page.query_selector_all(name)) for name in ("img", "iframe")} == {"img": 0, "iframe": 0}
    assert re.search(r"(?<!\\)<(img|script)", hostile.to_markdown()) is None, "markup stays text in Markdown too"


def test_half_a_million_tokens_open(visit: Open, tmp_path: Path) -> None:
    found = large(500, 1000, 50_000)
    path = tmp_path / "page.html"
    write(Page("large", view=PackedView(found.table, COLUMNS, found.prompts, found.texts)), path)
    assert path.stat().st_size < 15e6
    page = visit(path)
    assert seconds_until_shown(page) < BUSY_SECONDS
    assert page.inner_text("#count") == "500 of 500 responses"
    token(page, 0, 3).hover()
    assert page.is_visible("#tip .tops")
