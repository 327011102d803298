"""Parts of TokenGRPO that know no algorithm: order of rows, time, samples, and steps that are not finite."""

import json
import resource
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tokencredit.data.responses import prompt_text
from tokencredit.errors import InputError
from tokencredit.trainers.callbacks import write_whole
from tokencredit.trainers.diagnostics import SAMPLES
from tokencredit.trainers.rollouts import Rollouts

NON_FINITE = "non_finite"


def regroup(batches: Sequence[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Put the rows of each group next to each other again, groups in the order in which they first appear.

    Micro-batches then hold whole groups where sizes allow it, and members of a group share their prompt.

    Args:
        batches: Of equal size; values are tensors with one row per sequence, scalars or None.
        key: The entry that names the group of each row.
    """
    groups = torch.cat([batch[key] for batch in batches])
    _, inverse = torch.unique(groups, return_inverse=True)
    place = torch.arange(len(groups), device=groups.device)
    start = torch.full_like(place, len(groups)).scatter_reduce(0, inverse, place, "amin")
    order = torch.argsort(start[inverse], stable=True)
    size = len(batches[0][key])
    found: list[dict[str, Any]] = [{} for _ in batches]
    for name, value in batches[0].items():
        whole = isinstance(value, Tensor) and value.ndim > 0
        joined = torch.cat([batch[name] for batch in batches])[order] if whole else value
        for number, batch in enumerate(found):
            batch[name] = joined[number * size : (number + 1) * size] if whole else joined
    return found


class Stopwatch:
    """Seconds spent on the parts of a step, and the tokens it handled."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.tokens = 0

    @contextmanager
    def measure(self, part: str, leaving_out: Sequence[str] = ()) -> Iterator[None]:
        """Add the time inside to a part, without what went to other parts meanwhile."""
        begun, before = time.perf_counter(), sum(self.seconds[name] for name in leaving_out)
        try:
            yield
        finally:
            others = sum(self.seconds[name] for name in leaving_out) - before
            self.seconds[part] += time.perf_counter() - begun - others  # type: ignore[assignment]

    def drain(self, accelerator: Any) -> dict[str, float]:
        """The metrics of the step that has ended: means over processes, the tokens of all of them."""
        parts = ("generate", "reward", "score", "train")
        local = [*(float(self.seconds[part]) for part in parts), float(self.tokens)]
        everywhere = accelerator.gather(torch.tensor([local], device=accelerator.device))
        *seconds, _ = everywhere.mean(0).tolist()
        found = {f"time/{part}": value for part, value in zip(parts, seconds, strict=True)}
        found["tokens_per_second"] = everywhere[:, -1].sum().item() / max(sum(seconds), 1e-9)
        found["peak_memory_gb"] = _peak_memory() / 2**30
        self.forget()
        return found

    def forget(self) -> None:
        """Begin anew."""
        self.seconds, self.tokens = Counter(), 0


def _peak_memory() -> int:
    """Bytes: of the accelerator if there is one, else of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class NonFinite(TrainerCallback):
    """Skips steps of which a loss or an advantage is not finite, on every rank, and stops after too many.

    The optimiser that really steps, inside what Accelerate and DeepSpeed put around it, is not called: neither momentum
    nor weight decay moves anything, and whatever holds gradients clears them as after any step.

    Args:
        trainer: Its processes and run folder are used.
        limit: So many are skipped; one more ends the run.
    """

    def __init__(self, trainer: Any, limit: int) -> None:
        self.trainer, self.limit = trainer, limit
        self.skipped, self.marked = 0, False

    def mark(self) -> None:
        """Let the optimiser step that this micro-batch belongs to be skipped; every rank must do so."""
        self.marked = True

    def save(self, inputs: dict[str, Any], reason: str) -> None:
        """Write this process's tensors of a batch to the run folder, and what was not finite in them."""
        folder = Path(str(self.trainer.args.output_dir)) / NON_FINITE
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.contiguous().clone() for name, value in inputs.items() if isinstance(value, Tensor)}
        name = f"step-{self.trainer.state.global_step:08d}-rank-{self.trainer.accelerator.process_index}.safetensors"
        save_file(tensors, folder / name, metadata={"not_finite": reason})

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called once the optimiser is made."""
        optimizer = kwargs["optimizer"]
        while hasattr(optimizer, "optimizer"):
            optimizer = optimizer.optimizer
        step = optimizer.step

        @wraps(step)
        def unless_marked(*args: Any, **kwargs: Any) -> Any:
            return None if self.marked else step(*args, **kwargs)

        optimizer.step = unless_marked

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called after the optimiser's turn; DeepSpeed's comes before, within the backward pass."""
        if not self.marked:
            return
        self.marked = False
        self.skipped += 1
        self.trainer._metrics["train"]["skipped_steps"].append(float(self.skipped))
        if self.skipped > self.limit:
            place = Path(str(args.output_dir)) / NON_FINITE
            problem = f"{self.skipped} steps had a loss or an advantage that is not finite"
            raise InputError("max_skipped_steps", problem, f"see the batches in {place}")


def write_rollouts(run: Path, step: int, rollouts: Rollouts, advantages: Tensor, tokenizer: Any, count: int) -> None:
    """Write `token_samples/step-<n>.jsonl`: a line per response, readable without the model.

    Each line has `step`, `prompt` (text), `reward` (None where there is none), and lists over the sampled tokens:
    `tokens` (text), `ids`, `advantages`, `rewards` where a function gave any, and `logps` where they are known.
    """
    columns = {"advantages": advantages}
    if rollouts.token_rewards.any():
        columns["rewards"] = rollouts.token_rewards
    if rollouts.given_logps is not None:
        columns["logps"] = rollouts.given_logps
    rewards = rollouts.mine(rollouts.scalars.rewards).tolist()
    lines = []
    for row in range(min(count, len(rollouts.ids))):
        ids = rollouts.ids[row][: rollouts.lengths[row]].tolist()
        line: dict[str, Any] = {"step": step, "prompt": prompt_text(rollouts.prompts[row])}
        line["reward"] = None if rewards[row] != rewards[row] else rewards[row]
        line |= {"tokens": [tokenizer.decode([token]) for token in ids], "ids": ids}
        line |= {name: values[row][: len(ids)].tolist() for name, values in columns.items()}
        lines.append(json.dumps(line, ensure_ascii=False))
    folder = run / SAMPLES
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"step-{step:08d}.jsonl", "".join(line + "\n" for line in lines))
