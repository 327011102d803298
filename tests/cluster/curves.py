"""Runs of one recipe, and what they are compared by."""

import os
import signal
from pathlib import Path

from tokencredit.cluster.launch import launch, prepare
from tokencredit.recipes.files import read_recipe
from tokencredit.recipes.schema import parse_recipe
from tokencredit.trainers.callbacks import read_metrics

TOLERANCE = 1e-6
SHARD_EVERYTHING = "deepspeed.zero_optimization.stage3_param_persistence_threshold=0"

Line = dict[str, float]

_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_CLOCK = ("runtime", "_per_second", "total_flos")
_BATCH = "shared_prefix/"


def curve(run: Path) -> list[Line]:
    """What is logged of every step, without what depends on the clock, or on which sequences meet in a batch."""
    lines = [line for line in read_metrics(run) if "loss" in line]
    return [
        {name: value for name, value in line.items() if not name.endswith(_CLOCK) and not name.startswith(_BATCH)}
        for line in lines
    ]


def losses(run: Path) -> list[float]:
    """The loss of every step."""
    return [line["loss"] for line in curve(run)]


def train(path: Path | str, *words: str) -> int:
    """What the command does, in this process, which has the libraries loaded; returns the exit code."""
    environment, handlers = dict(os.environ), {number: signal.getsignal(number) for number in _HANDLED}
    try:
        return launch(*prepare(parse_recipe(read_recipe(str(path), list(words)))))
    finally:
        # A command ends with its process; PyTorch's launcher leaves its handlers behind.
        os.environ.clear()
        os.environ.update(environment)
        for number, handler in handlers.items():
            signal.signal(number, handler)
