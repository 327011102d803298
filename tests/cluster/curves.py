"""What runs of one recipe are compared by."""

from pathlib import Path

from tokencredit.trainers.callbacks import read_metrics

TOLERANCE = 1e-6
SHARD_EVERYTHING = "deepspeed.zero_optimization.stage3_param_persistence_threshold=0"

Line = dict[str, float]

_CLOCK = ("runtime", "_per_second", "total_flos")


def curve(run: Path) -> list[Line]:
    """What is logged of every step, without what depends on the clock."""
    lines = [line for line in read_metrics(run) if "loss" in line]
    return [{name: value for name, value in line.items() if not name.endswith(_CLOCK)} for line in lines]


def losses(run: Path) -> list[float]:
    """The loss of every step."""
    return [line["loss"] for line in curve(run)]
