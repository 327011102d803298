"""Reward functions for the tests: good ones, and every way of going wrong. The completion says which."""

import asyncio
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from typing import Any


def count_words(completions: list[str], **columns: Any) -> list[float]:
    return [float(len(completion.split())) for completion in completions]


async def slowly(completions: list[str], **columns: Any) -> list[float]:
    await asyncio.sleep(0.01)
    return [1.0 for _ in completions]


def obey(completions: list[str], **columns: Any) -> list[Any]:
    """Do what the completion says; 1 for one that says nothing special."""
    return [_obey(completion) for completion in completions]


def _obey(completion: str) -> Any:
    if completion == "sleep":
        time.sleep(60)
    if completion == "spin":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        re.match(r"(a+)+$", "a" * 60 + "b")  # in C, with the interpreter's lock
    if completion == "exit":
        os._exit(3)
    if completion.startswith("signal "):
        os.kill(os.getpid(), int(completion.removeprefix("signal ")))
        time.sleep(60)
    if completion == "sys.exit":
        sys.exit(3)
    if completion == "bomb":
        hoard = []
        while True:
            hoard.append(bytearray(2**26))
    if completion == "raise":
        raise ArithmeticError("no such sum")
    if completion == "crash":
        ctypes.string_at(0)
    if completion == "children":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        time.sleep(60)
    if completion == "orphan":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        os._exit(0)
    if completion == "none":
        return None
    if completion == "nan":
        return float("nan")
    if completion == "text":
        return "good"
    return 1.0


def logs(completions: list[str], log_extra: Any = None, log_metric: Any = None, **columns: Any) -> list[float]:
    """Log as TRL's functions may; those of the completion `quiet` do not."""
    if completions != ["quiet"]:
        log_extra("upper", [completion.upper() for completion in completions])
        log_metric("length", sum(map(len, completions)) / len(completions))
    return [1.0 for _ in completions]


def logs_and_obeys(completions: list[str], log_extra: Any, log_metric: Any) -> list[Any]:
    log_extra("seen", list(completions))
    return obey(completions)


TITLE = "\x1b]0;mine\x07\u202e\ud800"


def writes_to_the_terminal(completions: list[str], log_metric: Any, **columns: Any) -> list[float]:
    """Raise and log what would change the title of a terminal, and worse."""
    log_metric(TITLE, 1.0)
    if completions == ["raise"]:
        raise type(TITLE.replace("\ud800", ""), (Exception,), {})(TITLE)
    return [1.0 for _ in completions]


def logs_one_value(completions: list[str], log_extra: Any) -> list[float]:
    """For the first completion only; and of another column one too many."""
    log_extra("few", ["first"])
    log_extra("many", [*completions, "none of them"])
    return [1.0 for _ in completions]


def logs_what_cannot_travel(completions: list[str], log_extra: Any) -> list[float]:
    log_extra("lambda", [lambda: None for _ in completions])
    return [1.0 for _ in completions]


def rank(completions: list[list[float]], **columns: Any) -> list[float]:
    """Needs the whole batch: the share of completions that are shorter."""
    return [sum(len(other) < len(mine) for other in completions) / len(completions) for mine in completions]


def batch_sleeps(completions: list[str], **columns: Any) -> list[float]:
    time.sleep(60)
    return [1.0 for _ in completions]


def too_few(completions: list[str], **columns: Any) -> list[float]:
    return []


def with_answer(completions: list[str], answer: list[str]) -> list[float]:
    return [float(completion == gold) for completion, gold in zip(completions, answer, strict=True)]


def with_state(completions: list[str], trainer_state: Any) -> list[float]:
    return [float(trainer_state["step"]) for _ in completions]


def columns_seen(completions: list[str], log_extra: Any = None, **columns: Any) -> list[float]:
    log_extra("columns", [sorted(columns)])
    return [0.0]


def environment(completions: list[str], log_extra: Any = None, **columns: Any) -> list[float]:
    """Say what this process is: its environment and the modules it holds."""
    log_extra("environment", [dict(os.environ)])
    log_extra("modules", [sorted(sys.modules)])
    return [0.0]


class Panic(BaseException):
    """As a library in Rust raises it: no `Exception`."""


class Stubborn:
    """Fails as soon as it is looked at."""

    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)


class Unreadable:
    """Can be sent to another process, but not made there."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


def evaluate(completions: list[str], **columns: Any) -> list[Any]:
    """Return what the completion says in Python, or raise what is no `Exception`."""
    if completions == ["cancel"]:
        raise asyncio.CancelledError
    if completions == ["panic"]:
        raise Panic("at the disco")
    return [eval(completion) for completion in completions if completion not in ("cancel", "panic")]


def answer_itself(completions: list[str], answer: Any) -> list[float]:
    return [float(value) for value in answer]


def naps(completions: list[str], **columns: Any) -> list[float]:
    """Sleep as long as the completion says."""
    for completion in completions:
        time.sleep(float(completion))
    return [1.0 for _ in completions]


def process_id(completions: list[str], **columns: Any) -> list[float]:
    return [float(os.getpid())]


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, bonus: float = 0.0
) -> Any:
    """In verl's form."""
    return {"score": float(solution_str == ground_truth) + bonus, "source": data_source, "info": extra_info}


def reward_func(queries: list[str], prompts: list[str], labels: list[str]) -> Any:
    """In OpenRLHF's form."""
    import numpy

    right = numpy.array(
        [float(query == prompt + label) for query, prompt, label in zip(queries, prompts, labels, strict=True)]
    )
    return {"rewards": right, "scores": right, "extra_logs": {"right": right}}


def __getattr__(name: str) -> Any:
    """`long_sums`, a dataset of reasoning-gym, imported only where it is asked for."""
    if name == "long_sums":
        import reasoning_gym

        return reasoning_gym.create_dataset("chain_sum", min_terms=5, max_terms=6, size=2, seed=3)
    raise AttributeError(name)
