"""Rewards for the shape of an answer: its format and its length."""

import re
from collections.abc import Sequence
from typing import Any

from tokencredit.errors import InputError
from tokencredit.rewards.contract import Completion, text_of

TAGS = ("think", "answer")


def format(
    completions: list[Completion], *, tags: Sequence[str] = TAGS, pattern: str | None = None, **columns: Any
) -> list[float]:
    """1 for an answer that has the asked-for form, else 0.

    Args:
        completions: The answers.
        tags: Each must open and close exactly once, in this order, with nothing but white space between them.
        pattern: A regular expression that the whole text must match instead; `.` matches line breaks too.
        **columns: Are not used.
    """
    if pattern is not None:
        wanted = re.compile(pattern, re.DOTALL)
        return [float(wanted.fullmatch(text_of(completion)) is not None) for completion in completions]
    return [float(_is_tagged(text_of(completion), tags)) for completion in completions]


def _is_tagged(text: str, tags: Sequence[str]) -> bool:
    # Split at tags and not matched as a whole: time grows with the text alone, and possessive quantifiers, which would
    # have no way back either, are broken in Python before 3.11.5.
    names = "|".join(map(re.escape, tags))
    pieces = re.split(rf"(</?(?:{names})>)", text)
    return (
        pieces[1::2] == [mark for tag in tags for mark in (f"<{tag}>", f"</{tag}>")]
        and not "".join(pieces[::4]).strip()
    )


def length(
    completion_ids: list[list[int]],
    *,
    target: int | None = None,
    max_length: int | None = None,
    buffer: int | None = None,
    **columns: Any,
) -> list[float]:
    """How far an answer's length in tokens is from what is wanted; never above 0.

    With `target` −min(1, |T − target| / target) [O]. With `max_length` and `buffer` DAPO's soft overlong penalty
    (arXiv 2503.14476, equation 13) [P]: 0 up to max_length − buffer, then falling linearly to −1 at max_length, and −1
    beyond.

    Args:
        completion_ids: The sampled ids.
        target: The wanted length.
        max_length: The longest length.
        buffer: Over how many tokens before it the penalty grows.
        **columns: Are not used.
    """
    if target is not None:
        return [-min(1.0, abs(len(ids) - target) / target) for ids in completion_ids]
    assert max_length is not None
    assert buffer is not None
    return [-min(1.0, max(0.0, (len(ids) - (max_length - buffer)) / buffer)) for ids in completion_ids]


def check_format(where: str, arguments: dict[str, Any]) -> None:
    """Refuse settings that cannot work.

    Raises:
        InputError: Naming them.
    """
    if len(arguments) > 1:
        raise InputError(f"{where}.arguments", "tags and pattern", "give one of them")
    tags = arguments.get("tags", TAGS)
    if isinstance(tags, str) or not tags or not all(isinstance(tag, str) and tag for tag in tags):
        raise InputError(f"{where}.arguments.tags", f"{tags!r} is no list of names", "write e.g. [think, answer]")
    try:
        re.compile(arguments.get("pattern") or "")
    except (re.error, TypeError) as error:
        problem = f"{arguments['pattern']!r} is no regular expression ({error})"
        raise InputError(f"{where}.arguments.pattern", problem, "correct it") from None


def check_length(where: str, arguments: dict[str, Any]) -> None:
    """Refuse settings that cannot work.

    Raises:
        InputError: Naming them.
    """
    if set(arguments) not in ({"target"}, {"max_length", "buffer"}):
        given = ", ".join(arguments) or "nothing"
        raise InputError(f"{where}.arguments", f"{given} is given", "give target, or max_length and buffer")
    for name, value in arguments.items():
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{where}.arguments.{name}", f"{value!r} is no number of tokens", "give 1 or more")
    if "buffer" in arguments and arguments["buffer"] > arguments["max_length"]:
        raise InputError(f"{where}.arguments.buffer", "it is longer than max_length", "give a shorter one")
