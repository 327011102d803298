"""A browser, pages opened in it that must stay quiet, and reports to open."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.browser import CHROMIUM, HOSTILE, Open
from tests.analysis.sample_runs import metrics, sample, write_run
from tokencredit.analysis.report import read_runs, write_report


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


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Everything that comes from files is hostile: tokens, prompts, names, classes, settings, the folder."""
    name = "<img src=x onerror=window.hacked=1>"
    line = sample(HOSTILE, classes=HOSTILE, prompt="".join(HOSTILE), **{HOSTILE[0]: [1.0] * len(HOSTILE)})
    lines = [line, line | {"side": HOSTILE[0], "pair": HOSTILE[1]}]
    figures = [{"step": 1, HOSTILE[0]: 1.0, HOSTILE[1]: 2.0, f"margins/{HOSTILE[0]}": 1.0, "margins/b": 2.0}]
    run = write_run(tmp_path / name, lines, figures, trainer=HOSTILE[0], **{HOSTILE[1]: HOSTILE[0]})
    return write_report(read_runs([run]), tmp_path / "page.html")
