"""What tests of TokenGRPO share: tiny runs with rewards that differ within groups."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from tokencredit.rewards import RewardFunction
from tokencredit.trainers import TokenGRPOConfig, TokenGRPOTrainer

PROMPTS = ["Ada asks 1: ", "Grace asks 2: ", "Alan very asks 3: ", "Tony asks 4: "]

SETTINGS: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": [],
    "max_steps": 1,
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 8,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_strategy": "no",
    "seed": 0,
    "token_samples_steps": None,
}


def shape_of(completions: list[str], **columns: Any) -> list[float]:
    """Different for nearly all texts."""
    return [sum(map(ord, text)) % 101 / 101 for text in completions]


def alike(completions: list[str], **columns: Any) -> list[float]:
    """The same for all texts."""
    return [0.5] * len(completions)


def trusted(function: Callable[..., Any]) -> RewardFunction:
    """In this process, with the whole batch: tests need no deadline."""
    return RewardFunction(function, trusted=True, batched=True)


def stock_settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """For TRL's own configuration."""
    return {name: value for name, value in settings(folder, **changes).items() if not name.startswith("token_")}


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    return {**SETTINGS, "output_dir": str(folder), **changes}


def token_grpo(model: Path, folder: Path, reward: Callable[..., Any] = shape_of, **changes: Any) -> TokenGRPOTrainer:
    """A trainer that keeps its gradients in `gradients` and its losses' inputs in `seen`."""
    return watched(TokenGRPOTrainer)(
        model=str(model),
        reward_funcs=[trusted(reward)],
        args=TokenGRPOConfig(**settings(folder, **changes)),
        train_dataset=data(),
    )


def data() -> Dataset:
    return Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS * 4])


def watched(trainer_class: Any) -> Any:
    """The class, with what it trains on and the gradient of each optimiser step kept."""

    class Watched(trainer_class):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.gradients: list[torch.Tensor] = []
            self.seen: list[dict[str, Any]] = []
            super().__init__(*args, **kwargs)

        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
            self.seen.append(dict(inputs))
            return super()._compute_loss(model, inputs)

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            grads = [p.grad.flatten() for p in self.model.parameters() if p.grad is not None]
            if grads:  # DeepSpeed keeps them elsewhere
                self.gradients.append(torch.cat(grads).clone())
            return loss

    return Watched
