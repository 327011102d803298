"""How a worker ends."""

import subprocess
import sys

PROGRAM = """
import atexit, os, sys, threading, time
from tokencredit.cluster.processes import leave

class AbortsInTeardown:  # as Gloo's threads do, by chance
    def __del__(self, abort=os.abort):
        abort()

sys.kept = AbortsInTeardown()
threading.Thread(target=lambda: (time.sleep(0.2), print("thread done"))).start()
atexit.register(lambda: print("handlers ran"))
{end}
"""


def run(end: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM.format(end=end)], capture_output=True, text=True)


def test_leaving_finishes_threads_and_handlers_but_not_the_interpreter() -> None:
    done = run("leave(3)")
    assert (done.returncode, done.stdout.split("\n")) == (3, ["thread done", "handlers ran", ""]), done.stderr


def test_an_ordinary_end_would_abort() -> None:
    assert run("sys.exit(3)").returncode < 0
