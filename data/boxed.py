r"""Answers in `\boxed{…}`."""

from collections.abc import Sequence


def last_boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{…}` of a text, without outer white space; None if none is closed."""
    end = len(text)
    while (start := text.rfind(OPEN, 0, end)) >= 0:
        depth, begin = 1, start + len(OPEN)
        for place in range(begin, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if not depth:
                return text[begin:place].strip()
        end = start
    return None


def boxed(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    r"""How many answers are right: the text in the last `\boxed{…}` is that of the reference.

    Args:
        predictions: Answers.
        references: Right answers, boxed or bare.

    Returns:
        `accuracy`, and `boxed`, the share of predictions with a box that closes; both in [0, 1].
    """
    given = [last_boxed(text) for text in predictions]
    wanted = [text.strip() if (found := last_boxed(text)) is None else found for text in references]
    total = max(1, len(given))
    return {
        "accuracy": sum(a == b for a, b in zip(given, wanted, strict=True)) / total,
        "boxed": sum(answer is not None for answer in given) / total,
    }


OPEN = "\\boxed{"
