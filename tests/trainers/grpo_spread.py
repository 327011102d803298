"""Steps of TokenGRPO on fixed rollouts, in one process or in several.

Answers are a function of the prompt and the row, so that they do not depend on which process samples them.
"""

from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import TrainerCallback

from tests.trainers.grpo_runs import settings, shape_of, trusted
from tests.trainers.test_parity import zero
from tokencredit.trainers import TokenGRPOConfig, TokenGRPOTrainer

CREDIT: list[Any] = ["reinforce_pp_baseline", "entropy_advantage", "high_entropy_mask"]
# Gradient descent: Adam divides by the gradient's size and would turn a last-bit difference into a whole step.
COMMON: dict[str, Any] = {"num_generations": 8, "optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0}
CASES: dict[str, dict[str, Any]] = {
    # Two updates of the same rollouts, against a reference, over trees.
    "steps": {"credit": CREDIT, "num_iterations": 2, "max_steps": 2, "beta": 0.1, "share_prefixes": "on"}
    | {"token_weight": {"function": "divergence_weighted", "arguments": {"scale": 0.5, "sharpness": 50.0}}},
    "refilled": {"refill_dead_groups": 2},
    # One process gives a loss that is not finite at the second of three steps.
    "skipped": {"max_steps": 3, "token_weight": "tests.trainers.grpo_spread:endless_on_one"}
    | {"optim": "adamw_torch", "weight_decay": 0.1, "learning_rate": 1e-2, "gradient_accumulation_steps": 2},
}


def endless_on_one(log_ratio: Any, entropies: Any, mask: torch.Tensor, step: int) -> torch.Tensor:
    last = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 1
    return torch.full_like(mask, torch.inf if step == 1 and last else 1.0, dtype=torch.float32)


def half_dead(completions: list[str], number: list[int], **columns: Any) -> list[float]:
    return [0.5 if n % 2 else value for n, value in zip(number, shape_of(completions), strict=True)]


class Fixed(TokenGRPOTrainer):
    """Answers that do not come from the model, of different lengths."""

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        first = self.accelerator.process_index * len(prompt_ids)
        answers, met = [], Counter[tuple[int, ...]]()
        for row, ids in enumerate(prompt_ids):
            # A refill takes some rows only: there the place among answers to the same prompt decides. Half of a group
            # is what a process may have of it.
            seed = sum(ids) + met[tuple(ids)] % 4 if self._refill else first + row
            met[tuple(ids)] += 1
            generator = torch.Generator().manual_seed(seed)
            answers.append(torch.randint(5, 40, (2 + seed % 7,), generator=generator).tolist())
        return answers, None


class Weights(TrainerCallback):
    """The whole parameters before the first step and after every one, `<step>/<name>`."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, *given: Any, model: Any = None, **kwargs: Any) -> None:
        self._take(state.global_step, model)

    def on_step_end(self, args: Any, state: Any, *given: Any, model: Any = None, **kwargs: Any) -> None:
        self._take(state.global_step, model)

    def _take(self, step: int, model: Any) -> None:
        sharded = [parameter for parameter in model.parameters() if hasattr(parameter, "ds_numel")]
        if sharded:
            import deepspeed

            whole: Any = deepspeed.zero.GatheredParameters(sharded)
        else:
            whole = nullcontext()
        with whole:
            for name, parameter in model.named_parameters():
                plain = f"{step}/{name.replace('module.', '')}"
                self.found[plain] = parameter.detach().clone().contiguous()


def run(case: str, model: str, folder: Path, rows: int, stage: int) -> dict[str, torch.Tensor]:
    """Weights after every step, and of the last micro-batch what does not depend on the number of processes."""
    spread = {"deepspeed": zero(stage)} if stage else {}
    accumulated = CASES[case].get("gradient_accumulation_steps", 1)
    size = {"per_device_train_batch_size": rows // accumulated}
    args = TokenGRPOConfig(**settings(folder / case, **(COMMON | CASES[case] | size | spread)))
    data = Dataset.from_list([{"prompt": f"Ada asks {i}: ", "number": i} for i in range(8)])
    reward = trusted(half_dead if case == "refilled" else shape_of)
    trainer = Fixed(model=model, reward_funcs=[reward], args=args, train_dataset=data)
    weights = Weights()
    trainer.add_callback(weights)
    trainer.train()
    if trainer._refill is not None:
        weights.found["taken"] = torch.tensor(trainer._refill.sampler.taken)
    weights.found["skipped"] = torch.tensor(trainer._non_finite.skipped)
    if stage == 3:
        parts = [(p.ds_tensor.numel(), p.ds_numel) for p in trainer.model.parameters()]
        weights.found["sharded"] = torch.tensor([part <= (whole + 1) // 2 for part, whole in parts])
    return weights.found


def main(model: str, out: str, rows_per_process: str, deepspeed_stage: str) -> None:
    """Run all cases, and write what was found."""
    folder, rows, stage = Path(out), int(rows_per_process), int(deepspeed_stage)
    if stage:
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo")
    found = {f"{case}/{key}": v for case in CASES for key, v in run(case, model, folder, rows, stage).items()}
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        save_file(found, folder / "found.safetensors")
