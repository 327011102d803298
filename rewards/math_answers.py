"""Answers in mathematics, compared by Math-Verify."""

import logging
import re
from functools import lru_cache
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

from tokencredit.rewards.contract import Completion, text_of

# It warns that nothing bounds it, which the pool does.
logging.getLogger("math_verify").setLevel(logging.ERROR)


def math(completions: list[Completion], answer: list[Any], **columns: Any) -> list[float | None]:
    r"""1 if the last answer in the text equals the gold one as mathematics, else 0; None if the gold one is unreadable.

    Math-Verify (Apache-2.0) reads the last `\boxed{…}`, else LaTeX, else plain expressions, and compares symbolically
    and numerically. Boxes with nothing but a comma, `and` or `or` between them are one. Its own time-outs are off: they
    work by a signal, in the main thread, in whole seconds; the pool's deadline ends what takes too long. An answer in
    which it finds nothing is worth 0; what it raises is raised: a failure of its own is no wrong answer.

    Args:
        completions: The answers.
        answer: The gold answers, LaTeX with or without `$…$`, or numbers.
        **columns: Are not used.
    """
    scores: list[float | None] = []
    for completion, gold in zip(completions, answer, strict=True):
        wanted = _gold(str(gold))
        if not wanted:
            scores.append(None)
            continue
        given = _parsed(_last_boxes(_without_dollars(text_of(completion))))
        scores.append(float(verify(wanted, given, timeout_seconds=None, raise_on_error=True)))
    return scores


_EXTRACT = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]


@lru_cache(maxsize=4096)
def _gold(answer: str) -> Any:
    """The parsed gold answer; bare LaTeX is read only between dollars."""
    answer = _without_dollars(answer)
    bare = "$" not in answer and "\\boxed" not in answer
    return _parsed(f"${answer}$" if bare else answer) or _parsed(answer)


def _parsed(text: str) -> Any:
    return parse(text, _EXTRACT, parsing_timeout=None, raise_on_error=True)


def _without_dollars(text: str) -> str:
    r"""Without `\$`, amounts of money, which Math-Verify would take for the ends of formulas."""
    return re.sub(r"(?<!\\)\\\$", "", text)


def _last_boxes(text: str) -> str:
    """The last box of a text and those that it is listed with; the text itself if it has none that closes."""
    last: list[str] = []
    after = None
    for start, end in reversed(_boxes(text)):
        if after is not None and not _LISTED.fullmatch(text, end, after):
            break
        last.insert(0, f"${text[start:end]}$")
        after = start
    return " and ".join(last) or text


_BRACE = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
_LISTED = re.compile(r"[\s$]*(?:,|,?\s*(?:and|or)\b)[\s$]*")


def _boxes(text: str) -> list[tuple[int, int]]:
    """Where each box that is in no other begins and ends."""
    opened: list[int] = []
    found: list[tuple[int, int]] = []
    for match in _BRACE.finditer(text):
        if match[0].endswith("{") and match[0] != r"\{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            start = opened.pop()
            if text[start] == "\\":
                while found and found[-1][0] > start:
                    found.pop()
                found.append((start, match.end()))
    return found
