"""The page on a phone, and its contrasts in both schemes."""

from pathlib import Path

import pytest

from tests.analysis.browser import IN_BROWSER, Open, background, token

pytestmark = IN_BROWSER


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
