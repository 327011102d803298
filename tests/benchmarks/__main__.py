"""Run every benchmark and print one line each."""

import os
import platform

# Two threads on two busy cores vary more than what is measured.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

from rich.console import Console
from rich.table import Table

from tests.benchmarks import first_step, preference, recipe_overhead, rewards, startup
from tokencredit.cluster.quiet import quieten

quieten()
console = Console()
table = Table("comparison", "baseline", "ours", "unit", "ratio", "pairs: min to max", box=None)
for benchmark in (startup, rewards, first_step, recipe_overhead, preference):
    console.print(f"running {benchmark.__name__}", style="dim")
    for item in benchmark.run():
        low, high = item.spread
        spread = f"{item.repeats}: {low:.2f} to {high:.2f}"
        table.add_row(item.name, f"{item.baseline:.3f}", f"{item.ours:.3f}", item.unit, f"{item.ratio:.2f}", spread)
console.print(f"{platform.processor() or platform.machine()}, one thread, python {platform.python_version()}")
console.print(table)
