"""How long the command takes to show its help, against importing the libraries that draw it."""

import subprocess
import sys
import time

from tests.benchmarks.pairs import Ratio, alternate


def _seconds(*arguments: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def run() -> list[Ratio]:
    """`tokencredit --help` against `import typer, rich`; the goal is at most 2.5."""
    libraries, ours = ("-c", "import typer, rich"), ("-c", "from tokencredit.cli import app; app(['--help'])")
    return [alternate("--help / import typer, rich", lambda: _seconds(*libraries), lambda: _seconds(*ours), repeats=15)]
