"""A step of SPAE in two processes is the step in one, with DDP and with ZeRO-3."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.trainers.side_by_side import run_processes
from tests.trainers.spae_runs import write_model
from tests.trainers.spae_spread import step


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("spread") / "model")


@pytest.fixture(scope="module")
def one(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """Six groups of four, by the mode of the probe."""
    found = {mode: step(model, tmp_path_factory.mktemp(mode), 24, mode=mode) for mode in ("forced", "sampled")}
    assert any(not torch.equal(found["forced"][name], value) for name, value in found["sampled"].items())
    return found


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("stage", "mode"),
    [(0, "forced"), (3, "forced"), (0, "sampled"), (3, "sampled")],
    ids=["ddp", "zero3", "ddp, sampled", "zero3, sampled"],
)
def test_two_processes_take_the_step_of_one(
    stage: int, mode: str, one: dict[str, dict[str, torch.Tensor]], model: Path, tmp_path: Path
) -> None:
    """Twelve rows each, whose responses need different numbers of forwards. 1e-6: sums in another order."""
    run_processes("tests.trainers.spae_spread", str(model), str(tmp_path), "12", str(stage), mode)
    two = load_file(tmp_path / "step.safetensors")
    if stage == 3:
        assert two.pop("sharded").all(), "every parameter must be sharded, or this is ZeRO-2"
    assert max(value.abs().max() for value in one[mode].values()) > 1e-3
    for name, value in one[mode].items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
