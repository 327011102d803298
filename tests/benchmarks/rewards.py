"""Milliseconds a sample of the reward pool, against a plain loop in one process."""

import time
from collections.abc import Callable

from tests.benchmarks.pairs import Ratio, alternate
from tokencredit.rewards import RewardPool

WORKERS = 4
TEXT = "so it is " * 100


def cheap(completions: list[str], **columns: object) -> list[float]:
    """A reward of a few microseconds."""
    return [float("answer" in completion) for completion in completions]


def slow(completions: list[str], **columns: object) -> list[float]:
    """A reward that waits 50 ms, as for a tool or a server."""
    time.sleep(0.05 * len(completions))
    return [0.0 for _ in completions]


def _milliseconds(call: Callable[[], object], samples: int) -> float:
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start) / samples


def run() -> list[Ratio]:
    """Batches of 256 cheap and of 32 slow samples; the goal is under 0.5 ms of overhead a sample."""
    found = []
    for function, samples in ((cheap, 256), (slow, 32)):
        texts = [TEXT] * samples
        with RewardPool([function], workers=WORKERS, batch_timeout=60) as pool:
            pool.score(texts)  # the first worker is there, and with the round that does not count the others
            found.append(
                alternate(
                    f"{function.__name__} reward, {samples} samples: pool of {WORKERS} / loop",
                    lambda function=function, texts=texts: _milliseconds(
                        lambda: [function([text]) for text in texts], len(texts)
                    ),
                    lambda pool=pool, texts=texts: _milliseconds(lambda: pool.score(texts), len(texts)),
                    repeats=7,
                    unit="ms/sample",
                )
            )
    return found
