"""The step of TokenGRPO on fixed rollouts: `python -m tests.trainers.grpo_spread model out rows_per_process`.

Started in one process or, through PyTorch's launcher, in several. Answers are a function of the prompt and the row, so
that they do not depend on which process samples them.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file

from tests.trainers.grpo_runs import settings, shape_of, trusted
from tokencredit.trainers import TokenGRPOConfig, TokenGRPOTrainer

CREDIT: list[Any] = ["reinforce_pp_baseline", "entropy_advantage", "high_entropy_mask"]


class Fixed(TokenGRPOTrainer):
    """Answers that do not come from the model, of different lengths; keeps the gradient of the step."""

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        first = self.accelerator.process_index * len(prompt_ids)
        answers = []
        for row in range(first, first + len(prompt_ids)):
            generator = torch.Generator().manual_seed(row)
            length = 2 + row % 7
            answers.append(torch.randint(5, 40, (length,), generator=generator).tolist())
        return answers, None


def main() -> None:
    model, out, rows = sys.argv[1:]
    changes = {"per_device_train_batch_size": int(rows), "credit": CREDIT, "max_grad_norm": 0.0, "num_generations": 8}
    args = TokenGRPOConfig(**settings(Path(out), **changes, optim="sgd", learning_rate=1.0))
    data = Dataset.from_list([{"prompt": f"Ada asks {i}: "} for i in range(8)])
    trainer = Fixed(model=model, reward_funcs=[trusted(shape_of)], args=args, train_dataset=data)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    if trainer.is_world_process_zero():
        moved = {
            name.removeprefix("module."): (before[name] - p.detach()).contiguous()
            for name, p in trainer.accelerator.unwrap_model(trainer.model).named_parameters()
        }
        save_file(moved, Path(out) / "step.safetensors")


if __name__ == "__main__":
    main()
