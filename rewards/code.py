"""Python programs against unit tests, in a sandbox."""

import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tokencredit.errors import InputError
from tokencredit.rewards.contract import Completion, text_of
from tokencredit.rewards.sandbox import Limits, Mode, require, run

Test = str | Mapping[str, str]

_FENCE = re.compile(r"([ \t]*)(`{3,}|~{3,})[ \t]*([^\s`]*)[^`]*")
_PYTHON = {"python", "py", "python3"}


def code(
    completions: list[Completion],
    tests: list[str | Sequence[Test]],
    *,
    sandbox: Mode = "bubblewrap",
    seconds: float = 3.0,
    memory_mb: int = 512,
    disk_mb: int = 16,
    processes: int = 16,
    **columns: Any,
) -> list[float | None]:
    """The share of its tests that a program passes; None for a row without tests.

    The program is the last fenced block of the answer that is marked as Python, else the last that is not marked, else
    the whole text. A program that runs too long, is killed or
    raises fails the tests that it has not passed: that is what it is worth, and no failure of the reward.

    Args:
        completions: The answers.
        tests: Per row a list, also as JSON text. Text is Python run after the program, passed if it does not raise
            (`assert add(1, 2) == 3`); `{"input": …, "output": …}` runs the program with that standard input and
            compares what it prints, ignoring white space at the ends of lines and of the text.
        sandbox: `bubblewrap`, or `rlimits` where that cannot be had.
        seconds: For all tests of an answer together; less than the pool's `timeout`.
        memory_mb: Address space of each process.
        disk_mb: Of a file; with bubblewrap of all files.
        processes: At a time.
        **columns: Are not used.
    """
    limits = Limits(seconds=seconds, memory_mb=memory_mb, disk_mb=disk_mb, processes=processes)
    return [
        _passed(program_of(text_of(completion)), _tests(row), sandbox, limits)
        for completion, row in zip(completions, tests, strict=True)
    ]


def check(where: str, arguments: dict[str, Any]) -> None:
    """Refuse settings that cannot work, and a sandbox that is not there.

    Raises:
        InputError: Naming them.
    """
    for name in ("seconds", "memory_mb", "disk_mb", "processes"):
        if name in arguments and not (isinstance(arguments[name], (int, float)) and arguments[name] > 0):
            raise InputError(f"{where}.arguments.{name}", f"{arguments[name]!r} is not above 0", "give a number")
    require(arguments.get("sandbox", "bubblewrap"), f"{where}.arguments")


def program_of(text: str) -> str:
    """The last fenced block that is marked as Python, else the last that is not marked, else the whole text."""
    blocks = _blocks(text)
    for wanted in (_PYTHON, {""}):
        for tag, block in reversed(blocks):
            if tag in wanted:
                return block
    return text


def _blocks(text: str) -> list[tuple[str, str]]:
    """Mark and content of each fenced block, as in Markdown; one that is cut off goes to the end of the text."""
    found: list[tuple[str, list[str]]] = []
    indent = fence = ""
    for line in text.splitlines(keepends=True):
        if fence:
            closing = line.strip()
            if closing.startswith(fence) and not closing.strip(fence[0]):
                fence = ""
            else:
                found[-1][1].append(line.removeprefix(indent))
        elif match := _FENCE.fullmatch(line):
            indent, fence = match[1], match[2]
            found.append((match[3].lower(), []))
    return [(tag, "".join(lines)) for tag, lines in found]


def _passed(program: str, tests: Sequence[Test], sandbox: Mode, limits: Limits) -> float | None:
    if not tests:
        return None
    asserted = [test for test in tests if isinstance(test, str)]
    end = time.monotonic() + limits.seconds
    passed = _asserts(program, asserted, sandbox, limits) if asserted else 0
    for test in tests:
        left = end - time.monotonic()
        if isinstance(test, Mapping) and left > 0:
            passed += _prints(program, test, sandbox, replace(limits, seconds=left))
    return passed / len(tests)


def _asserts(program: str, tests: Sequence[str], sandbox: Mode, limits: Limits) -> int:
    # Not to be printed by accident, nor by a program that expects the mark of another run.
    mark = secrets.token_hex(16)
    done = run(program, mode=sandbox, limits=limits, tests=tests, mark=mark)
    passed = {f"{mark} {place}" for place in range(len(tests))}
    return len(passed & set(done.output.decode(errors="replace").splitlines()))


def _prints(program: str, test: Mapping[str, str], sandbox: Mode, limits: Limits) -> bool:
    done = run(program, mode=sandbox, limits=limits, given=test["input"])
    return done.end == "exit" and _lines(done.output.decode(errors="replace")) == _lines(test["output"])


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _tests(row: str | Sequence[Test]) -> Sequence[Test]:
    found = json.loads(row) if isinstance(row, str) else row
    for test in found:
        if not isinstance(test, str) and not (isinstance(test, Mapping) and {"input", "output"} <= set(test)):
            problem = f"{str(test)[:80]!r} is no test"
            raise InputError("tests", problem, 'give Python source, or {"input": …, "output": …}')
    return list(found)
