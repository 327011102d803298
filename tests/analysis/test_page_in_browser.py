"""The page in a real browser: what it shows, that it stays quiet and safe, that keys and filters work, and how fast."""

import itertools
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.sample_runs import metrics, sample, write_run
from tokencredit.analysis.page import Page, write
from tokencredit.analysis.report import read_runs, write_report
from tokencredit.analysis.token_view import Response, TokenView

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: install the package `chromium`"),
]

HOSTILE = [
    "</script><script>window.hacked=1</script>",
    "<img src=x onerror='window.hacked=1'>",
    "<!--<script>",
    "a\u2028b\u2029c",
    "\ufeff\u200b",
    "😀👩\u200d👧",
    "שלום",
    "\u202eabc",
    "after",
    "\0",
    "\x1b[31m",
    " \t\u00a0\n",
    "{{ 7 * 7 }}${7*7}&lt;b&gt;\\u003cb",
    "",
    "x" * 400,
]

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="install the package `playwright`")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Open]:
    """Open a file, and see in the end that the page made no request, no error and no message."""
    contexts, said, asked, wanted = [], [], [], []

    def open_page(path: Path, width: int = 1280, height: int = 900, **settings: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append("dialog"))
        page.on("request", lambda request: asked.append(request.url))
        wanted.append(path.as_uri())
        page.goto(path.as_uri())
        if page.query_selector("#groups"):
            page.wait_for_selector(".t[role=option]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert asked == wanted


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs at two steps, and curves."""
    lines = []
    for step, pair, side in itertools.product((10, 20), (0, 1), ("chosen", "rejected")):
        tokens = ["The", " quick", "\n", "brown", " fox", " " + side, " jumps" if pair else " sits"]
        gate = {"gated": [0.0, 1.0] + [0.0] * 5} if side == "chosen" else {}
        classes = ["scaffold", "span"] * 3 + ["scaffold"]
        lines.append(sample(tokens, side, step, pair, classes=classes, **gate))
    run = write_run(tmp_path_factory.mktemp("report") / "run", lines, metrics())
    return write_report(read_runs([run]))


def texts(page: Any, selector: str) -> list[str]:
    return [node.text_content() for node in page.query_selector_all(selector)]


def token(page: Any, response: int, place: int) -> Any:
    return page.query_selector_all(".response:not([hidden])")[response].query_selector_all(".t")[place]


def background(node: Any) -> str:
    return str(node.evaluate("node => getComputedStyle(node).backgroundColor"))


def details(page: Any) -> dict[str, str]:
    """What the tooltip says."""
    rows = page.query_selector_all("#tip tr")
    found = {row.query_selector("th").text_content(): row.query_selector("td").text_content() for row in rows}
    name, place = (span.text_content() for span in page.query_selector_all("#tip p > span"))
    return found | {"token": name, "place": place}


def focused(page: Any) -> tuple[str, str]:
    """Title and place of the token that has the focus."""
    script = """() => {
      const span = document.activeElement.closest('.t');
      const place = [...span.parentElement.children].indexOf(span);
      const heading = [...span.closest('.response').querySelectorAll('h3 > *')].slice(0, 2);
      return [heading.map((part) => part.textContent).join(' '), String(place)];
    }"""
    return tuple(page.evaluate(script))


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


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Everything that comes from files is hostile: tokens, prompts, names, classes, settings, the folder."""
    name = "<img src=x onerror=window.hacked=1>"
    line = sample(HOSTILE, classes=HOSTILE, prompt="".join(HOSTILE), **{HOSTILE[0]: [1.0] * len(HOSTILE)})
    lines = [line, line | {"side": HOSTILE[0], "pair": HOSTILE[1]}]
    figures = [{"step": 1, HOSTILE[0]: 1.0, HOSTILE[1]: 2.0, f"margins/{HOSTILE[0]}": 1.0, "margins/b": 2.0}]
    run = write_run(tmp_path / name, lines, figures, trainer=HOSTILE[0], **{HOSTILE[1]: HOSTILE[0]})
    return write_report(read_runs([run]), tmp_path / "page.html")


def test_hostile_texts_are_shown_and_never_run(hostile: Path, visit: Open) -> None:
    page = visit(hostile)
    script = "[...document.querySelector('.list').children].map((t) => [...t.textContent].map((c) => c.codePointAt(0)))"
    found = ["".join(map(chr, points)) for points in page.evaluate(script)]
    assert found == HOSTILE
    for number in range(1, 7):
        page.keyboard.press(str(number))
    for place in range(len(HOSTILE)):
        token(page, 0, place).focus()
        assert page.is_visible("#tip")
    for tab in page.query_selector_all("[role=tab]"):
        tab.click()
    assert page.evaluate("window.hacked") is None
    counts = {name: len(page.query_selector_all(name)) for name in ("img", "script", "b b", "iframe")}
    assert counts == {"img": 0, "script": 7, "b b": 0, "iframe": 0}
    assert HOSTILE[0] in texts(page, "dd")
    assert "<img src=x onerror=window.hacked=1>" in page.inner_text("h1")
    signs = page.evaluate(
        "[...document.querySelectorAll('.list')[0].querySelectorAll('.code')].map((n) => n.dataset.sign)"
    )
    assert signs == ["U+2028", "U+2029", "U+FEFF", "U+200B", "U+202E", "U+0000", "U+001B", "∅"]


def test_an_override_of_direction_does_not_reach_the_next_letter(hostile: Path, visit: Open) -> None:
    page = visit(hostile)
    script = """(place) => {
      const text = document.querySelectorAll('.list')[0].children[place].lastChild;
      const at = (start) => {
        const range = document.createRange();
        range.setStart(text, start);
        range.setEnd(text, start + 1);
        return range.getBoundingClientRect().left;
      };
      return at(0) < at(1);
    }"""
    assert page.evaluate(script, HOSTILE.index("\u202eabc"))
    assert page.evaluate(script, HOSTILE.index("after"))


def test_the_policy_stops_what_is_not_the_page(report: Path, browser: Any) -> None:
    page = browser.new_page()
    requests: list[str] = []
    page.on("requestfinished", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    blocked = page.evaluate(
        """async () => {
          const found = [];
          document.addEventListener('securitypolicyviolation', (event) => found.push(event.effectiveDirective));
          const script = document.createElement('script');
          script.textContent = 'window.hacked = 1';
          document.body.append(script);
          document.body.insertAdjacentHTML('beforeend',
            '<img src="https://localhost/x.png"><p style="color:red" onclick="window.hacked=1">x</p>');
          document.body.lastChild.click();
          await fetch('https://localhost/').catch(() => 0);
          await new Promise((done) => setTimeout(done, 100));
          return found;
        }"""
    )
    assert {"script-src-elem", "script-src-attr", "style-src-attr", "img-src", "connect-src"} <= set(blocked)
    assert page.evaluate("window.hacked") is None
    assert requests == [report.as_uri()]
    page.close()


def test_a_phone_has_no_sideways_scroll(report: Path, hostile: Path, visit: Open) -> None:
    for path in (report, hostile):
        page = visit(path, 390, 844, has_touch=True)
        for tab in page.query_selector_all("[role=tab]"):
            tab.click()
            assert page.evaluate("document.documentElement.scrollWidth") == 390
        token(page, 0, 1).tap()
        box = page.query_selector("#tip").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    shown = page.query_selector_all(".response:not([hidden])")
    assert shown[0].bounding_box()["y"] < shown[1].bounding_box()["y"], "one below the other"


CONTRASTS = """() => {
  const context = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const luminance = (colour, below) => {
    context.fillStyle = below; context.fillRect(0, 0, 1, 1);
    context.fillStyle = colour; context.fillRect(0, 0, 1, 1);
    const parts = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map((part) => part / 255);
    const [r, g, b] = parts.map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (!/rgba?\\(0, 0, 0, 0\\)/.test(colour)) return colour;
    }
  };
  const all = '.t, .muted, dt, dd, h1, h2, h3, button, label, .legend, .prompt, th, td';
  const nodes = [...document.querySelectorAll(all)];
  return Math.min(...nodes.filter((node) => node.checkVisibility()).map((node) => {
    const below = ground(node);
    const pair = [luminance(getComputedStyle(node).color, below), luminance(below, below)].sort((a, b) => b - a);
    return (pair[0] + 0.05) / (pair[1] + 0.05);
  }));
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_on_every_colour(scheme: str, report: Path, visit: Open) -> None:
    page = visit(report, color_scheme=scheme)
    for number in range(1, 7):
        page.keyboard.press(str(number))
        page.wait_for_timeout(250)
        assert page.evaluate(CONTRASTS) >= 4.5, number
    before = background(page.query_selector("body"))
    page.click("#scheme")
    assert background(page.query_selector("body")) != before, "the button overrides the system's scheme"
    assert page.inner_text("#scheme") == scheme.capitalize()
    page.wait_for_timeout(250)
    assert page.evaluate(CONTRASTS) >= 4.5


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


def test_charts_follow_the_pointer_and_the_keys(report: Path, visit: Open) -> None:
    page = visit(report)
    values = ".panel:not([hidden]) .keys output"
    assert texts(page, values) == ["0.05", "0.5"]  # 1 / 20, 1 / 2
    page.focus(".chart svg[role=img]")
    page.keyboard.press("ArrowLeft")
    assert texts(page, values) == ["0.0526", "0.5"]  # 1 / 19
    box = page.query_selector(".chart svg[role=img]").bounding_box()
    page.mouse.move(box["x"] + 41, box["y"] + 30)
    assert texts(page, values)[0] == "1"
    page.mouse.move(0, 0)
    assert texts(page, values) == ["0.05", "0.5"]


def test_several_runs_can_be_filtered(tmp_path: Path, visit: Open) -> None:
    runs = [write_run(tmp_path / name, [sample(["a"])], metrics()) for name in ("x", "y")]
    page = visit(write_report(read_runs(runs)))
    assert page.inner_text("#count") == "2 of 2 responses"
    page.select_option("#run", "y")
    assert page.inner_text("#count") == "1 of 2 responses"
    assert texts(page, ".keys li > span:first-child")[1:3] == ["x", "y"]


def test_three_hundred_pairs_open_within_two_seconds(tmp_path: Path, visit: Open) -> None:
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
    page.wait_for_timeout(2000)
    # The mark is set in the second frame after the first responses are there.
    assert page.evaluate("performance.getEntriesByName('tokens-shown')[0].startTime") < 2000
    assert page.inner_text("#count") == "600 of 600 responses"
    drawn = "document.querySelectorAll('.t[role=option]').length"
    assert 0 < page.evaluate(drawn) < 10_000, "only responses near the viewport"
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    page.wait_for_selector(".group:last-child .t")
    page.wait_for_timeout(200)
    assert page.query_selector(".group:first-child .t") is None, "what is far away is let go"
    assert page.evaluate(drawn) < 10_000
