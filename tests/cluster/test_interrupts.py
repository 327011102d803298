"""Signals, and two commands that want one run folder."""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.ray_nodes import processes_with, wait_until
from tests.conftest import COMMAND
from tokencredit.trainers.callbacks import read_metrics

SPREADS = {
    "one": [],
    "ddp": ["launch=ddp", "num_processes=2", "per_device_train_batch_size=4"],
    "ray": ["launch=ddp", "num_processes=2", "per_device_train_batch_size=4", "launch.ray=local"],
}


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    command = [*COMMAND, "train", *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True, preexec_fn=_hear_interrupts)


def _hear_interrupts() -> None:
    """A shell that runs the tests in the background has them ignore interrupts, and their children too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def endless(recipe_text: dict[str, Any], tmp_path: Path) -> Path:
    keys = recipe_text | {"max_steps": 100_000, "resume_from_checkpoint": True, "env": {"RUN": str(tmp_path)}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(keys))
    return tmp_path


@pytest.mark.parametrize(
    ("spread", "number"),
    [
        pytest.param("one", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("one", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("ddp", signal.SIGTERM, marks=pytest.mark.distributed),
        pytest.param("ray", signal.SIGTERM, marks=pytest.mark.distributed),
    ],
)
def test_signal_ends_the_run_in_one_line(spread: str, number: signal.Signals, endless: Path) -> None:
    process = start(endless, "recipe.yaml", *SPREADS[spread])
    wait_for(lambda: read_metrics(endless / "run"), process)
    if spread == "one":
        second = subprocess.run(
            [*COMMAND, "train", "recipe.yaml"], cwd=endless, capture_output=True, text=True, timeout=120
        )
        assert second.returncode == 2
        assert "another run is writing to" in second.stderr
        assert process.poll() is None, "the first run goes on"
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in stderr
    assert processes_with(str(endless)) == []


@pytest.mark.slow
def test_killed_accelerate_launch_leaves_no_worker(endless: Path) -> None:
    config = {"distributed_type": "NO", "num_processes": 1, "num_machines": 1, "machine_rank": 0, "use_cpu": True}
    (endless / "accelerate.yaml").write_text(yaml.safe_dump(config | {"mixed_precision": "no"}))
    process = start(endless, "recipe.yaml", "launch=./accelerate.yaml")
    wait_for(lambda: read_metrics(endless / "run"), process)
    assert processes_with(str(endless)) != []
    process.kill()
    process.wait()
    process.communicate()
    wait_until(lambda: processes_with(str(endless)) == [], seconds=20)
