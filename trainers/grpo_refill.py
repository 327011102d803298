"""Dead groups of TokenGRPO filled anew: other prompts, drawn by a second sampler, in the same rows."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tokencredit.errors import InputError
from tokencredit.rewards import RewardBatch

_FILE = "refill.json"
_LISTS = 5
"""So many of the first parts of what TRL generates are lists with an entry per row, or None."""


class SecondSampler:
    """Numbers of rows in an endless random order, each row once before any comes again; its state is one number.

    Args:
        size: Rows of the data.
        seed: Of the order.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.taken = size, seed, 0

    def draw(self, count: int) -> list[int]:
        """The next numbers."""
        places = range(self.taken, self.taken + count)
        self.taken += count
        orders = {turn: self._order(turn) for turn in {place // self.size for place in places}}
        return [orders[place // self.size][place % self.size] for place in places]

    def _order(self, turn: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + turn + 1)
        return torch.randperm(self.size, generator=generator).tolist()


class Refill:
    """Replaces groups that say nothing by groups of other prompts, so many times.

    The batch keeps its size. Every process draws the same prompts for all dead groups, and generates as many rows as
    the one that has most to replace; what is too many is thrown away.

    Args:
        trainer: A `TokenGRPOTrainer`.
        rounds: How often a generation batch is looked through.

    Raises:
        InputError: The trainer gets its answers in a way that cannot be repeated for some rows.
    """

    def __init__(self, trainer: Any, rounds: int) -> None:
        self.trainer, self.rounds = trainer, rounds
        reason = _reason(trainer)
        if reason is not None:
            raise InputError("refill_dead_groups", f"groups cannot be generated again: {reason}", "set it to 0")
        args = trainer.args
        seed = args.seed if args.data_seed is None else args.data_seed
        self.sampler = SecondSampler(len(trainer.train_dataset), seed)

    def __call__(self, prompts: list[Any], parts: list[Any], batch: RewardBatch, generate: Any) -> RewardBatch:
        """Replace rows of `prompts`, of the trainer's inputs and of `parts` in place.

        Args:
            prompts: Of this process `[B]`.
            parts: What TRL's `_generate` returned for them.
            batch: Their rewards.
            generate: TRL's `_generate`.

        Returns:
            The rewards of what stands there now.
        """
        groups = replaced = 0
        for _ in range(self.rounds):
            scalars = self.trainer._scalars(self.trainer._gathered(batch))
            live = scalars.live_groups()
            groups, dead = len(live), (~live).nonzero().flatten().tolist()
            if not dead:
                break
            replaced += len(dead)
            batch = self._round(
                dict(zip(dead, self.sampler.draw(len(dead)), strict=True)), prompts, parts, batch, generate
            )
        self.trainer._metrics["train"]["refilled_groups"].append(replaced / max(1, groups))
        return batch

    def _round(
        self, drawn: dict[int, int], prompts: list[Any], parts: list[Any], batch: RewardBatch, generate: Any
    ) -> RewardBatch:
        trainer, inputs = self.trainer, self.trainer._inputs
        first = trainer.accelerator.process_index * len(prompts)
        group_of = [(first + row) // trainer.num_generations for row in range(len(prompts))]
        rows = [row for row, group in enumerate(group_of) if group in drawn]
        for row in rows:
            found = trainer.train_dataset[drawn[group_of[row]]]
            inputs[row] = {name: found[name] for name in inputs[row] if name in found}
            prompts[row] = inputs[row]["prompt"]
        most = int(trainer._all_reduce(torch.tensor(len(rows), device=trainer.accelerator.device), "max"))
        metrics = trainer._metrics["train"]
        logged = {name: len(values) for name, values in metrics.items() if name.startswith("completions/")}
        again = generate([prompts[row] for row in [*rows, *[0] * most][:most]])
        for name, count in logged.items():
            del metrics[name][count:]  # of a few rows, which would weigh as much as the batch
        for part, new in zip(parts[:_LISTS], again[:_LISTS], strict=True):
            for place, row in enumerate(rows):
                if part is not None:
                    part[row] = new[place]
        if not rows:
            return batch
        of_rows = ([values[row] for row in rows] for values in (inputs, prompts, parts[3], parts[1]))
        scored = trainer._score_rewards(*of_rows, log_extra=self._log_extra(rows, len(prompts)))
        return batch.replaced(rows, scored)

    def _log_extra(self, rows: list[int], size: int) -> Callable[[str, list[Any]], None]:
        def keep(column: str, values: list[Any]) -> None:
            pending = self.trainer._pending_extra_logs[column]
            pending.extend([None] * (size - len(pending)))
            for row, value in zip(rows, values, strict=True):
                pending[row] = value

        return keep

    def save(self, checkpoint: Path) -> None:
        """Write the sampler's state into a checkpoint."""
        (checkpoint / _FILE).write_text(json.dumps({"taken": self.sampler.taken}) + "\n", encoding="utf-8")

    def load(self, checkpoint: Path) -> None:
        """Go on where the checkpoint was; one without a state begins the order anew, and says so."""
        path = checkpoint / _FILE
        if path.is_file():
            self.sampler.taken = int(json.loads(path.read_text(encoding="utf-8"))["taken"])
        elif self.trainer.is_world_process_zero():
            text = "refill_dead_groups: %s has no %s: prompts are drawn from the beginning"
            logging.getLogger("tokencredit").warning(text, checkpoint.name, _FILE)


def _reason(trainer: Any) -> str | None:
    if not hasattr(trainer.train_dataset, "__len__"):
        return "the data is a stream"
    if {"image", "images"} & set(trainer.train_dataset.column_names):
        return "the data has images"
    if trainer.tools or trainer.environment_factories or trainer.rollout_func:
        return "tools, environments and rollout functions have a state of their own"
    if trainer.use_vllm and trainer.args.vllm_mode == "server":
        return "a vLLM server takes whole groups from every process; use vllm_mode: colocate"
    return None
