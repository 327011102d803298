"""A TokenGRPO step in two processes is the step in one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]


def step(model: Path, out: Path, processes: int, rows: int) -> dict[str, torch.Tensor]:
    out.mkdir()
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *start, "-m", "tests.trainers.grpo_spread", str(model), str(out), str(rows)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    return load_file(out / "step.safetensors")


@pytest.mark.distributed
def test_two_processes_take_the_step_of_one(tiny_model: Path, tmp_path: Path) -> None:
    """Three groups of eight over two processes of twelve rows: the second group lies on both."""
    one, two = step(tiny_model, tmp_path / "one", 1, 24), step(tiny_model, tmp_path / "two", 2, 12)
    assert max(value.abs().max() for value in one.values()) > 1e-3
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
