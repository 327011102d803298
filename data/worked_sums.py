"""Signed sums worked step by step: problems whose answer is checked exactly, and solutions that check too much."""

import random
import zlib
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from tokencredit.data.boxed import OPEN
from tokencredit.data.steps import DELIMITER, THINK_END

CHECK = "check "
"""Begins a step that only repeats an earlier one."""

SPLITS = {"train": 20_000, "validation": 1_000, "test": 1_000}
"""Rows of each split."""

_TERMS = (3, 5)
_MOST_CHECKS = 4


def worked_sums(split: str) -> list[dict[str, Any]]:
    r"""Sums of three to five one-digit terms with a worked solution each; no problem stands in two splits.

    `prompt` is `3-7+9=` and a line break. `completion` works it from the left, a step for each further term
    (`3-7=-4.⏎⏎-4+9=5.⏎⏎`), repeats none to four of these steps at random (`check 3-7=-4.⏎⏎`), and ends in
    `</think>\boxed{5}`. `answer` is `5`. `checks` is how many steps are repeated.

    Args:
        split: One of `SPLITS`; it is the seed as well, so that everybody has the same rows.

    Returns:
        The rows.

    Raises:
        ValueError: There is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}. Should be one of {list(SPLITS)}.")
    rng = random.Random(split)
    rows: list[dict[str, Any]] = []
    while len(rows) < SPLITS[split]:
        terms = [rng.randint(1, 9) for _ in range(rng.randint(*_TERMS))]
        terms[1:] = [term * rng.choice((1, -1)) for term in terms[1:]]
        row = _row(terms, rng)
        if _split_of(row["prompt"]) == split:
            rows.append(row)
    return rows


def _row(terms: Sequence[int], rng: random.Random) -> dict[str, Any]:
    sums = list(accumulate(terms))
    changes = zip(sums, terms[1:], sums[1:], strict=False)
    steps = [f"{before}{term:+d}={after}{DELIMITER}" for before, term, after in changes]
    checks = [CHECK + rng.choice(steps) for _ in range(rng.randint(0, _MOST_CHECKS))]
    answer = str(sums[-1])
    return {
        "prompt": f"{terms[0]}{''.join(f'{term:+d}' for term in terms[1:])}=\n",
        "completion": "".join([*steps, *checks, THINK_END, OPEN, answer, "}"]),
        "answer": answer,
        "checks": len(checks),
    }


def _split_of(prompt: str) -> str:
    """A problem belongs to one split by its own text, however often and wherever it is drawn."""
    return ("validation", "test", *["train"] * 6)[zlib.crc32(prompt.encode()) % 8]
