"""TokenGRPO's steps in two processes are those in one, with DDP and with ZeRO; and a bad step is skipped by all.

Tolerance 1e-6 absolute: float32 sums are taken in another order.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.trainers.side_by_side import run_processes

SPREADS = {"ddp": 0, "zero2": 2, "zero3": 3}


def steps(model: Path, out: Path, processes: int, rows: int, stage: int = 0) -> dict[str, torch.Tensor]:
    out.mkdir()
    arguments = (str(model), str(out), str(rows), str(stage))
    run_processes("tests.trainers.grpo_spread", *arguments, processes=processes)
    return load_file(out / "found.safetensors")


@pytest.fixture(scope="module")
def one(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Three groups of eight in one process."""
    return steps(tiny_model, tmp_path_factory.mktemp("spread") / "one", 1, 24)


def step_of(found: dict[str, torch.Tensor], case: str, step: int) -> dict[str, torch.Tensor]:
    prefix = f"{case}/{step}/"
    return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}


def check_skipped(found: dict[str, torch.Tensor]) -> None:
    """The second step changed nothing, the others did."""
    first, second, third = (step_of(found, "skipped", step) for step in (1, 2, 3))
    assert found["skipped/skipped"] == 1
    assert first.keys() == second.keys() != {}.keys()
    for name, value in first.items():
        assert value.isfinite().all()
        assert torch.equal(second[name], value)
    assert not all(torch.equal(third[name], value) for name, value in first.items())


@pytest.mark.distributed
@pytest.mark.parametrize("spread", SPREADS)
def test_two_processes(spread: str, one: dict[str, torch.Tensor], tiny_model: Path, tmp_path: Path) -> None:
    """Two processes of twelve rows: the second group lies on both, and is dead on one side of the other two."""
    two = steps(tiny_model, tmp_path / "two", 2, 12, SPREADS[spread])
    if spread == "zero3":
        assert two["steps/sharded"].all(), "every parameter must be sharded, or this is ZeRO-2"
    assert two["refilled/taken"] == one["refilled/taken"] > 0
    for case, last in (("steps", 2), ("refilled", 1)):
        for step in range(1, last + 1):
            before, after = step_of(one, case, step - 1), step_of(one, case, step)
            assert max((after[name] - before[name]).abs().max() for name in after) > 1e-3
            for name, value in after.items():
                found = step_of(two, case, step)[name]
                torch.testing.assert_close(
                    found, value, rtol=0, atol=1e-6, msg=lambda text, at=f"{case} {step} {name}": f"{at}: {text}"
                )
    check_skipped(two)
    saved = sorted(path.name for path in (tmp_path / "two" / "skipped" / "non_finite").iterdir())
    assert saved == [f"step-00000001-rank-{rank}.safetensors" for rank in (0, 1)]


@pytest.mark.distributed
def test_one_process_skips_too(one: dict[str, torch.Tensor]) -> None:
    check_skipped(one)
