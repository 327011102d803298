"""Answers in mathematics, compared by Math-Verify."""

import logging
from functools import lru_cache
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

from tokencredit.rewards.contract import Completion, text_of

# It warns that nothing bounds it, which the pool does.
logging.getLogger("math_verify").setLevel(logging.ERROR)


def math(completions: list[Completion], answer: list[Any], **columns: Any) -> list[float | None]:
    r"""1 if the last answer in the text equals the gold one as mathematics, else 0; None if the gold one is unreadable.

    Math-Verify (Apache-2.0) reads `\boxed{…}` first, then LaTeX, then plain expressions, and compares symbolically and
    numerically. Its own time-outs are off: they work by a signal, in the main thread, in whole seconds; the pool's
    deadline ends what takes too long.

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
        given = parse(text_of(completion), _EXTRACT, parsing_timeout=None)
        scores.append(float(verify(wanted, given, timeout_seconds=None)))
    return scores


_EXTRACT = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]


@lru_cache(maxsize=4096)
def _gold(answer: str) -> Any:
    """The parsed gold answer; bare LaTeX is read only between dollars."""
    bare = "$" not in answer and "\\boxed" not in answer
    return parse(f"${answer}$" if bare else answer, _EXTRACT, parsing_timeout=None) or parse(
        answer, _EXTRACT, parsing_timeout=None
    )
