"""A step of SPAE in two processes is the step in one, with DDP and with ZeRO-3."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.trainers.spae_runs import write_model
from tests.trainers.spae_spread import step

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("spread") / "model")


@pytest.fixture(scope="module")
def one(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Six groups of four."""
    return step(model, tmp_path_factory.mktemp("one"), 24)


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [0, 3], ids=["ddp", "zero3"])
def test_two_processes_take_the_step_of_one(
    stage: int, one: dict[str, torch.Tensor], model: Path, tmp_path: Path
) -> None:
    """Twelve rows each, whose responses need different numbers of forwards. 1e-6: sums in another order."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*start, "-m", "tests.trainers.spae_spread", str(model), str(tmp_path), "12", str(stage)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    two = load_file(tmp_path / "step.safetensors")
    if stage == 3:
        assert two.pop("sharded").all(), "every parameter must be sharded, or this is ZeRO-2"
    assert max(value.abs().max() for value in one.values()) > 1e-3
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
