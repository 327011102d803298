"""The tokens on the page: their values, colours and signs, and how many fit."""

import itertools
import random
from pathlib import Path

from tests.analysis.browser import (
    BUSY_SECONDS,
    IN_BROWSER,
    Open,
    background,
    details,
    seconds_until_shown,
    texts,
    token,
)
from tests.analysis.sample_runs import metrics, sample, write_run
from tokencredit.analysis.page import Page, write
from tokencredit.analysis.report import read_runs, write_report
from tokencredit.analysis.token_view import Response, TokenView

pytestmark = IN_BROWSER


def test_tokens_and_charts_are_shown(report: Path, visit: Open) -> None:
    page = visit(report)
    assert texts(page, "h1") == ["run"]
    assert page.inner_text("#count") == "4 of 8 responses", "the last step is what one comes to see"
    shown = page.query_selector_all(".response:not([hidden])")
    assert [node.query_selector("h3").inner_text().split("\n")[:2] for node in shown[:2]] == [
        ["pair 0", "chosen"],
        ["pair 0", "rejected"],
    ]
    assert shown[0].query_selector(".list").text_content() == "The quick\nbrown fox chosen sits"
    assert shown[0].bounding_box()["y"] == shown[1].bounding_box()["y"], "side by side"
    charts = page.query_selector_all(".panel:not([hidden]) .chart")
    assert [chart.query_selector("b").text_content() for chart in charts] == ["loss"]
    assert charts[0].query_selector_all("path")[0].get_attribute("d").count("L") == 19
    assert charts[0].query_selector_all("image, foreignObject") == []
    assert "loss: train" in charts[0].query_selector("svg[role=img]").get_attribute("aria-label")


def test_hover_shows_every_value_of_the_token(report: Path, visit: Open) -> None:
    page = visit(report)
    token(page, 0, 1).hover()
    assert details(page) == {
        "token": "·quick",
        "place": "2 / 7",
        "logps_change": "−0.5",
        "weights": "1.1",
        "gated": "1",
        "logps": "−1.5",
        "ref_logps": "−1",
        "classes": "span",
        "ids": "100001",
    }
    assert texts(page, "#tip .chosen th") == ["logps_change"]
    token(page, 1, 0).hover()
    assert details(page)["gated"] == "–"
    page.hover("h1")
    assert page.is_hidden("#tip")


def test_column_recolours_and_says_what_it_means(report: Path, visit: Open) -> None:
    page = visit(report)
    above, below = token(page, 0, 0), token(page, 0, 6)
    seen = [(background(above), background(below))]
    legends = [page.inner_text("#legend")]
    assert len(set(seen[0])) == 2, "0.5 and −5.5 differ"
    page.select_option("#column", label="2 weights")
    page.wait_for_timeout(250)
    seen.append((background(above), background(below)))
    legends.append(page.inner_text("#legend"))
    assert page.inner_text("#meaning") == "raw token weight"
    page.keyboard.press("3")
    assert "no gated" in texts(page, ".response:not([hidden]) .mean")[1]
    page.select_option("#column", label="6 classes")
    page.wait_for_timeout(250)
    seen.append((background(above), background(below)))
    assert page.inner_text("#legend").split() == ["scaffold", "span"]
    assert len(set(seen)) == 3
    assert [text.split() for text in legends] == [["−5.5", "5.5"], ["1", "1.6"]]
    assert "mean 1.3" in page.evaluate("(view.choose(1), document.querySelector('.mean').textContent)")


def test_white_space_can_be_seen_or_not(visit: Open, tmp_path: Path) -> None:
    write(Page("spaces", view=TokenView([Response("r", [" a", "\tb", "\u00a0c", "d\n"])])), tmp_path / "page.html")
    page = visit(tmp_path / "page.html")
    script = "[...document.querySelectorAll('.list .space')].map((node) => getComputedStyle(node, '::before').content)"
    assert page.evaluate(script) == ['"·"', '"→"', '"⍽"', '"⏎"']
    page.keyboard.press("w")
    assert page.evaluate(script) == ["none"] * 4
    assert page.query_selector(".list").text_content() == " a\tb\u00a0cd\n"
    token(page, 0, 2).hover()
    assert details(page)["token"] == "⍽c"


def test_values_that_are_not_finite_stand_out(visit: Open, tmp_path: Path) -> None:
    values = {"w": [float("nan"), float("inf"), 1.0, 2.0, None]}
    write(Page("odd", view=TokenView([Response("r", list("abcde"), values)])), tmp_path / "page.html")
    page = visit(tmp_path / "page.html")
    nodes = page.query_selector_all(".t[role=option]")
    assert [node.get_attribute("class").split()[1:] for node in nodes] == [
        ["odd"],
        ["odd"],
        ["amount"],
        ["amount"],
        ["none"],
    ]
    shown = []
    for node in nodes:
        node.hover()
        shown.append(details(page)["w"])
    assert shown == ["NaN", "∞", "1", "2", "–"]
    assert page.inner_text(".mean") == "mean 1.5"


def test_tokens_without_values_and_pages_without_tokens(visit: Open, tmp_path: Path) -> None:
    write(Page("bare", view=TokenView([Response("r", ["a", "b"]), Response("empty", [])])), tmp_path / "bare.html")
    page = visit(tmp_path / "bare.html")
    page.keyboard.press("n")
    page.keyboard.press("1")
    page.keyboard.press("ArrowRight")
    assert details(page) == {"token": "b", "place": "2 / 2"}
    assert page.is_hidden("#column")
    write(Page("nothing", notes=["no samples"]), tmp_path / "nothing.html")
    assert "no samples" in visit(tmp_path / "nothing.html").inner_text("main")


def test_three_hundred_pairs_open(tmp_path: Path, visit: Open) -> None:
    generator = random.Random(0)
    words = [" " + "".join(generator.choices("abcdefghijklmnop", k=5)) for _ in range(5000)]

    def noise() -> list[float]:
        return [generator.gauss(0, 1) for _ in range(250)]

    lines = []
    for pair, side in itertools.product(range(300), ("chosen", "rejected")):
        extra = {"gated": noise(), "barrier_gradient": noise(), "preference_gradient": noise()}
        columns = {"logps": noise(), "ref_logps": noise(), "gradient": noise(), "weights": noise()}
        columns |= extra if side == "chosen" else {}
        lines.append(sample(generator.choices(words, k=250), side, pair=pair, classes=["a", "b"] * 125, **columns))
    path = write_report(read_runs([write_run(tmp_path / "run", lines, metrics())]))
    assert path.stat().st_size < 15e6
    page = visit(path)
    assert seconds_until_shown(page) < BUSY_SECONDS
    assert page.inner_text("#count") == "600 of 600 responses"
    drawn = "document.querySelectorAll('.t[role=option]').length"
    assert 0 < page.evaluate(drawn) < 10_000, "only responses near the viewport"
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    page.wait_for_selector(".group:last-child .t")
    page.wait_for_timeout(200)
    assert page.query_selector(".group:first-child .t") is None, "what is far away is let go"
    assert page.evaluate(drawn) < 10_000
