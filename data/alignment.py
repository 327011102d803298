"""Which tokens two responses do not share."""

from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher


def differing_tokens(a_ids: Sequence[int], b_ids: Sequence[int]) -> tuple[list[bool], list[bool]]:
    """Align two token sequences and mark what stands outside the alignment.

    Aligned, not compared by position: one inserted token does not make everything after it differ. What both begin
    and end with is aligned first, the rest by `difflib.SequenceMatcher`.

    Args:
        a_ids: Token ids `[T_a]`.
        b_ids: Token ids `[T_b]`.

    Returns:
        Two masks, `[T_a]` and `[T_b]`, True where the token has no partner; as many tokens are False in the one as
        in the other.
    """
    # SequenceMatcher starts from the longest common block, which in repetitive text may be a shifted copy.
    head = _common(zip(a_ids, b_ids, strict=False))
    a_rest, b_rest = a_ids[head:], b_ids[head:]
    tail = _common(zip(reversed(a_rest), reversed(b_rest), strict=False))
    a_differs = [False] * head + [True] * (len(a_rest) - tail) + [False] * tail
    b_differs = [False] * head + [True] * (len(b_rest) - tail) + [False] * tail
    a_middle, b_middle = a_rest[: len(a_rest) - tail], b_rest[: len(b_rest) - tail]
    # autojunk would ignore frequent tokens, which in JSON are most of the text.
    for a_start, b_start, size in SequenceMatcher(None, a_middle, b_middle, autojunk=False).get_matching_blocks():
        a_differs[head + a_start : head + a_start + size] = [False] * size
        b_differs[head + b_start : head + b_start + size] = [False] * size
    return a_differs, b_differs


def _common(pairs: Iterable[tuple[int, int]]) -> int:
    """How many pairs are equal before the first unequal one."""
    count = 0
    for a, b in pairs:
        if a != b:
            break
        count += 1
    return count
