"""The charts on the page: what they follow, and that no name and no number of theirs is cut."""

import math
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.browser import IN_BROWSER, Open, texts
from tests.analysis.sample_runs import write_run
from tokencredit.analysis.report import read_runs, write_report

pytestmark = IN_BROWSER

METHODS = ("tab_po_weighted", "tab_po_sum", "dpo_sigmoid_norm_weighted")
NAMES = [f"runs/quickstart/{seed}/{method}" for seed in (0, 1) for method in METHODS] + ["runs/" + "x" * 90]

CUT = """(tolerance) => {
  const found = [];
  const inside = (a, b) => a.left >= b.left - tolerance && a.right <= b.right + tolerance
    && a.top >= b.top - tolerance && a.bottom <= b.bottom + tolerance;
  const apart = (a, b) => a.right <= b.left + tolerance || b.right <= a.left + tolerance
    || a.bottom <= b.top + tolerance || b.bottom <= a.top + tolerance;
  const clashes = (what, list) => list.forEach((a, n) => list.slice(n + 1).forEach((b) => {
    if (!apart(a.box, b.box)) found.push(`${what}: ${a.text} lies on ${b.text}`);
  }));
  for (const chart of document.querySelectorAll('.panel:not([hidden]) .chart')) {
    const title = chart.querySelector('b').textContent;
    const canvas = chart.querySelector('svg[role=img]');
    const numbers = [...canvas.querySelectorAll('text')].map((node) => ({
      text: node.textContent, box: node.getBoundingClientRect(),
    }));
    for (const { text, box } of numbers) {
      if (!inside(box, canvas.getBoundingClientRect())) found.push(`${title}: the number ${text} is cut`);
    }
    clashes(title, numbers);
    const words = [];
    const walker = document.createTreeWalker(chart.querySelector('.keys'), NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const range = document.createRange();
      range.selectNodeContents(walker.currentNode);
      const text = walker.currentNode.textContent;
      const holders = [];
      for (let at = walker.currentNode.parentElement; at !== chart; at = at.parentElement) holders.push(at);
      for (const box of range.getClientRects()) {
        if (![...holders, chart].every((holder) => inside(box, holder.getBoundingClientRect()))) {
          found.push(`${title}: the name ${text} is cut`);
        }
        words.push({ text, box });
      }
    }
    clashes(title, words);
  }
  return found;
}"""
"""What of the numbers at the axes and of the words in the legend sticks out of what holds it, or lies on another."""


def figures(level: float) -> list[dict[str, Any]]:
    """Lines to step 100 with all that charts can hold: classes, scores, both splits, wide and odd numbers."""
    lines: list[dict[str, Any]] = []
    for step in range(5, 101, 5):
        values = {"loss": level / step, "rewards/chosen": 0.1 * step, "rewards/rejected": -0.0123 * level * step}
        values |= {"logps_change": -0.1, "logps_change/differing": 0.25, "logps_change/a_class_of_a_long_name": 1e-7}
        lines.append({"step": step} | values | {"drift": -1.25e-7 * level * step, "num_tokens": 12_345_678 * step})
        if step % 25 == 0:
            scores = {"record_f1": 0.5, "record_precision": 0.25, "record_recall": 0.75}
            lines.append({f"eval_{name}": value for name, value in (values | scores).items()} | {"step": step})
    return [*lines, {"step": 100, "grad_norm": math.nan, "loss": math.inf}]


def page_of(names: list[str], folder: Path) -> Path:
    runs = [write_run(folder / name, None, figures(1 + number), output_dir=name) for number, name in enumerate(names)]
    return write_report(read_runs(runs), folder / "page.html")


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


@pytest.mark.parametrize("width", [1280, 380])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_no_name_and_no_number_is_cut(count: int, width: int, tmp_path: Path, visit: Open) -> None:
    page = visit(page_of(NAMES[-1:-2:-1] + NAMES[: count - 1], tmp_path), width)
    for tab in page.query_selector_all("[role=tab]"):
        tab.click()
        page.wait_for_timeout(100)
        # Half a pixel: boxes of text are rounded to 1/64.
        assert page.evaluate(CUT, 0.5) == []
        assert page.evaluate("document.documentElement.scrollWidth") == width
    assert texts(page, ".chart svg text").count("100") >= 6, "the last step has its number"


def test_legends_show_where_names_differ(tmp_path: Path, visit: Open) -> None:
    page = visit(page_of(NAMES[:2], tmp_path), 380)
    first = page.query_selector(".chart .keys")
    assert [node.text_content() for node in first.query_selector_all(".name")] == ["train", "eval", "weighted", "sum"]
    page = visit(page_of([NAMES[0], NAMES[3]], tmp_path), 380)
    assert texts(page, ".chart .name")[:4] == ["train", "eval", "0", "1"]


def test_lines_of_a_chart_look_different(tmp_path: Path, visit: Open) -> None:
    page = visit(page_of(NAMES, tmp_path))
    script = """() => [...document.querySelectorAll('.chart')].map((chart) => {
      const looks = [...chart.querySelectorAll('path')].map((path) => path.getAttribute('class'));
      return [looks.length, new Set(looks).size];
    })"""
    for tab in page.query_selector_all("[role=tab]"):
        tab.click()
    page.wait_for_timeout(100)
    drawn = [counts for counts in page.evaluate(script) if counts[0]]
    assert len(drawn) >= 7
    assert all(lines == different for lines, different in drawn)
