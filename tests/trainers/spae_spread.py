"""The step of SPAE on fixed answers, in one process or in several."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.trainers.spae_runs import spae
from tests.trainers.test_parity import zero
from tokencredit.trainers import spae_tasks

# So cold that answers are the likeliest ones, whatever the random numbers of a process are.
SAMPLED = {"probe_mode": "sampled", "probe_num_samples": 2, "probe_max_tokens": 4, "probe_temperature": 1e-6}


def step(model: Path, out: Path, rows: int, stage: int = 0, mode: str = "forced") -> dict[str, torch.Tensor]:
    """What one step moved; plain descent, so that it is the gradient. `stage` is DeepSpeed's."""
    changes: dict[str, Any] = {"per_device_train_batch_size": rows, "max_grad_norm": 0.0, "optim": "sgd"}
    changes |= SAMPLED if mode == "sampled" else {}
    changes |= {"deepspeed": zero(stage)} if stage else {}
    trainer = spae(model, out, **changes, learning_rate=1.0, saturation=-0.006)
    before = _whole(trainer.model)
    trainer.train()
    after = _whole(trainer.model)
    moved = {name: (before[name] - value).contiguous() for name, value in after.items()}
    if stage == 3:
        parts = [(p.ds_tensor.numel(), p.ds_numel) for p in trainer.model.parameters()]
        moved["sharded"] = torch.tensor([part <= (whole + 1) // 2 for part, whole in parts])
    if trainer.is_world_process_zero():
        save_file(moved, out / "step.safetensors")
    return moved


def _whole(model: Any) -> dict[str, torch.Tensor]:
    sharded = [parameter for parameter in model.parameters() if hasattr(parameter, "ds_numel")]
    gathered: Any = nullcontext()
    if sharded:
        import deepspeed

        gathered = deepspeed.zero.GatheredParameters(sharded)
    with gathered:
        return {name.replace("module.", ""): p.detach().clone() for name, p in model.named_parameters()}


def main(model: str, out: str, rows_per_process: str, stage: str, mode: str) -> None:
    """Take the step; `stage` is DeepSpeed's, 0 for none."""
    # Several calls of `generate`, and not equally many in each process.
    spae_tasks._BATCH_TOKENS = 1024
    if int(stage):
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo")
    step(Path(model), Path(out), int(rows_per_process), int(stage), mode)
