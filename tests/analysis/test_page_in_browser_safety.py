"""Hostile texts on the page are shown and never run, and its policy stops what is not its own."""

from pathlib import Path
from typing import Any

from tests.analysis.browser import HOSTILE, IN_BROWSER, Open, texts, token
from tokencredit.analysis.page import SCRIPTS

pytestmark = IN_BROWSER


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
    assert counts == {"img": 0, "script": len(SCRIPTS) + 2, "b b": 0, "iframe": 0}
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
