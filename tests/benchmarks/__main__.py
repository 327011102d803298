"""Run every benchmark, or those named on the command line, and print a line per comparison."""

import os
import platform
import sys

# Two threads on two busy cores vary more than what is measured.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks import (
    branches,
    cross,
    first_step,
    grpo,
    preference,
    prefix_groups,
    probe,
    recipe_overhead,
    rewards,
    shared_prefix,
    shift,
    startup,
)
from tokencredit.cluster.quiet import quieten

quieten()
torch.set_num_threads(1)
known = (
    startup,
    rewards,
    first_step,
    recipe_overhead,
    preference,
    shared_prefix,
    prefix_groups,
    grpo,
    branches,
    probe,
    shift,
    cross,
)
chosen = [module for module in known if not sys.argv[1:] or module.__name__.rpartition(".")[2] in sys.argv[1:]]
console = Console()
table = Table("comparison", "baseline", "ours", "unit", "ratio", "pairs: min to max", box=None)
for benchmark in chosen:
    console.print(f"running {benchmark.__name__}", style="dim")
    for item in benchmark.run():
        console.print(f"{item.name}: {item.ratio:.2f}", style="dim", highlight=False)
        low, high = item.spread
        spread = f"{item.repeats}: {low:.2f} to {high:.2f}"
        table.add_row(item.name, f"{item.baseline:.3f}", f"{item.ours:.3f}", item.unit, f"{item.ratio:.2f}", spread)
console.print(f"{platform.processor() or platform.machine()}, one thread, python {platform.python_version()}")
console.print(table)
