"""What the tests of the page in a browser share: their marks, and what they read of it."""

import shutil
from collections.abc import Callable
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

IN_BROWSER = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: install the package `chromium`"),
]
"""The marks of a module that needs the browser."""

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
"""Texts that would do harm as markup, or cannot be seen."""

Open = Callable[..., Any]
"""`visit` of the fixtures: the page of a file."""


BUSY_SECONDS = 15
"""No page may take as long to show its tokens, whatever else the machine does; docs say what they take."""


def seconds_until_shown(page: Any) -> float:
    """From the opening of a page to the second frame after its first responses are there."""
    entry = "performance.getEntriesByName('tokens-shown')[0]"
    page.wait_for_function(f"{entry} !== undefined", timeout=1000 * BUSY_SECONDS)
    return float(page.evaluate(f"{entry}.startTime")) / 1000


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
