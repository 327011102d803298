"""Where each value of a JSON text stands, in characters of that text."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

from tokencredit.errors import InputError

_SPACE = re.compile(r"[ \t\n\r]*")
_PATTERN = re.compile(r"(?:[^.\[\]]+|\[[0-9]*\])(?:\.[^.\[\]]+|\[[0-9]*\])*")
_STEP = re.compile(r"\[([0-9]*)\]|([^.\[\]]+)")


@dataclass(frozen=True)
class JsonValue:
    """One value of a parsed JSON text.

    Args:
        path: Keys and indices that lead to the value from the top; `()` is the document itself.
        value: The value as `json.loads` gives it.
        start: First character. For a string the first one between the quotes.
        end: One past the last character. For a string the closing quote; escapes count as they are written.
    """

    path: tuple[str | int, ...]
    value: Any
    start: int
    end: int


def json_values(text: str) -> list[JsonValue]:
    """Parse strict JSON and say where every value stands.

    Of a key that occurs twice in one object only the last value is kept, as in `json.loads`.

    Args:
        text: The whole JSON document.

    Returns:
        All values in order of appearance, containers before their members; the first is the document.

    Raises:
        ValueError: The text is not JSON, holds NaN or an infinity literal, or is nested deeper than the
            interpreter's recursion limit allows. All but the last are `json.JSONDecodeError`s, whose `pos` is where the
            text stops being JSON: its end, if it is cut off.
    """
    try:
        values, end = _scan(text, _skip(text, 0), ())
    except RecursionError:
        raise ValueError("JSON text is nested too deeply") from None
    end = _skip(text, end)
    if end != len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    return values


def select(values: Iterable[JsonValue], pattern: str) -> list[JsonValue]:
    """Keep the values whose path fits a pattern.

    Args:
        values: What `json_values` returned.
        pattern: Keys joined by dots, with `[2]` for one index and `[]` for any:
            `"results[].code"`, `"[].span"`, `"a[0].b"`.

    Returns:
        The matching values, in the order given.

    Raises:
        InputError: The pattern does not follow this form.
    """
    if not _PATTERN.fullmatch(pattern):
        remedy = "join keys with dots and write indices as [2] or [] (any), e.g. results[].code"
        raise InputError("path pattern", f"{pattern!r} cannot be read", remedy)
    steps: list[str | int | None] = [
        match[2] if match[2] else int(match[1]) if match[1] else None for match in _STEP.finditer(pattern)
    ]
    return [value for value in values if _fits(value.path, steps)]


def _fits(path: tuple[str | int, ...], steps: list[str | int | None]) -> bool:
    return len(path) == len(steps) and all(
        isinstance(key, int) if step is None else key == step for key, step in zip(path, steps, strict=True)
    )


# Strings, numbers and literals are read by the standard library, so they cannot be read differently here.
_DECODER = json.JSONDecoder()
_NO_JSON = ("NaN", "Infinity", "-Infinity")
_LITERALS = ("true", "false", "null")


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None  # the pattern matches the empty string
    return match.end()


def _scan(text: str, at: int, path: tuple[str | int, ...]) -> tuple[list[JsonValue], int]:
    """Read the value that starts at `at`: itself and everything inside it, and where it ends."""
    opening = text[at : at + 1]
    if opening == "{":
        return _scan_object(text, at, path)
    if opening == "[":
        return _scan_array(text, at, path)
    value, end = _scalar(text, at)
    quotes = int(opening == '"')
    return [JsonValue(path, value, at + quotes, end - quotes)], end


def _scalar(text: str, at: int) -> tuple[Any, int]:
    for literal in _NO_JSON:
        if text.startswith(literal, at):
            raise json.JSONDecodeError(f"{literal} is not JSON", text, at)
    try:
        return _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        # Of a string without an end the standard library names the beginning.
        cut = text.startswith('"', at) or any(literal.startswith(text[at:]) for literal in _LITERALS)
        raise json.JSONDecodeError(error.msg, text, len(text) if cut and error.pos == at else error.pos) from None


def _scan_array(text: str, start: int, path: tuple[str | int, ...]) -> tuple[list[JsonValue], int]:
    items: list[list[JsonValue]] = []
    at = _skip(text, start + 1)
    more = not text.startswith("]", at)
    while more:
        item, at = _scan(text, _skip(text, at), (*path, len(items)))
        items.append(item)
        at, more = _comma(text, at, "]")
    value = [item[0].value for item in items]
    return [JsonValue(path, value, start, at + 1), *chain.from_iterable(items)], at + 1


def _scan_object(text: str, start: int, path: tuple[str | int, ...]) -> tuple[list[JsonValue], int]:
    members: dict[str, list[JsonValue]] = {}
    at = _skip(text, start + 1)
    more = not text.startswith("}", at)
    while more:
        key, at = _scan_key(text, _skip(text, at))
        member, at = _scan(text, _skip(text, at), (*path, key))
        members[key] = member
        at, more = _comma(text, at, "}")
    value = {key: member[0].value for key, member in members.items()}
    inside = sorted(members.values(), key=lambda member: member[0].start)
    return [JsonValue(path, value, start, at + 1), *chain.from_iterable(inside)], at + 1


def _scan_key(text: str, at: int) -> tuple[str, int]:
    """Read `"key":` and return the key and the position after the colon."""
    if not text.startswith('"', at):
        raise json.JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
    key, end = _scalar(text, at)
    end = _skip(text, end)
    if not text.startswith(":", end):
        raise json.JSONDecodeError("Expecting ':' delimiter", text, end)
    return key, end + 1


def _comma(text: str, at: int, closing: str) -> tuple[int, bool]:
    """After a member: the position past the comma and True, or that of the closing bracket and False."""
    at = _skip(text, at)
    if text.startswith(",", at):
        return at + 1, True
    if text.startswith(closing, at):
        return at, False
    raise json.JSONDecodeError(f"Expecting ',' or '{closing}'", text, at)
