"""Callbacks that every run has: metrics as JSON lines, one progress bar, a record of the environment."""

import atexit
import json
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

METRICS = "metrics.jsonl"
ENVIRONMENT = "environment.json"


def write_whole(path: Path, text: str) -> None:
    """Write a file in one step: a reader sees the old content or the new, never half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The metric lines of a run; a last line cut off by a kill is left out."""
    path = run / METRICS
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    complete = lines[:-1]  # what follows the last newline was never finished
    return [json.loads(line) for line in complete if line]


class JsonlMetrics(TrainerCallback):
    """Append what the trainer logs to `metrics.jsonl`: one object a line, with `step` and `epoch`.

    A resumed run first drops the lines after the step it resumes from, so that the file is the curve of one
    uninterrupted run.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Called before the first step."""
        if state.is_world_process_zero:
            run = Path(str(args.output_dir))
            kept = [line for line in read_metrics(run) if line["step"] <= state.global_step]
            # The closing line of a run that had already ended is not part of the curve.
            kept = [line for line in kept if "train_runtime" not in line]
            write_whole(run / METRICS, "".join(json.dumps(line) + "\n" for line in kept))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Called with every set of metrics."""
        if state.is_world_process_zero and logs:
            line = {"step": state.global_step, "epoch": state.epoch} | logs
            with (Path(str(args.output_dir)) / METRICS).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")


class ProgressLines(TrainerCallback):
    """A progress bar on a terminal, and one line of the main figures per log everywhere."""

    _SHOWN = ("loss", "learning_rate", "reward", "rewards/accuracies", "rewards/margins", "mean_token_accuracy")

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self.progress: Progress | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Called before the first step."""
        if state.is_world_process_zero and self.console.is_terminal and not args.disable_tqdm:
            columns = (
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self.progress = Progress(*columns, console=self.console)
            self.task = self.progress.add_task("train", total=state.max_steps, completed=state.global_step)
            self.progress.start()
            atexit.register(self.progress.stop)  # an interrupt must not leave the terminal without a cursor

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Called after every optimiser step."""
        if self.progress is not None:
            self.progress.update(self.task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Called with every set of metrics."""
        if not state.is_world_process_zero or not logs:
            return
        shown = {name: logs[name] for name in self._SHOWN if name in logs}
        shown |= {name: value for name, value in logs.items() if name.startswith("eval_") and is_result(name)}
        if shown:
            figures = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
            self.console.print(f"step {state.global_step}/{state.max_steps}  {figures}", markup=False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Called after the last step."""
        if self.progress is not None:
            self.progress.stop()


def is_result(name: str) -> bool:
    """Whether a figure of an evaluation is worth a place in the line (all of them are in `metrics.jsonl`)."""
    bookkeeping = ("_runtime", "_per_second", "_num_tokens", "_entropy", "_precision", "_recall")
    beginnings = ("eval_logits", "eval_logps", "eval_completions/", "eval_time/", "eval_clip_ratio/")
    return not name.endswith(bookkeeping) and not name.startswith(beginnings)


class RunEnvironment(TrainerCallback):
    """Write `environment.json`: versions, processes, and how the model lies across them."""

    def __init__(self, versions: dict[str, str]) -> None:
        self.versions = versions

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called once the model is on its devices."""
        if not state.is_world_process_zero:
            return
        parameters = list(kwargs["model"].parameters())
        plugin = args.deepspeed_plugin
        record = {
            "versions": self.versions,
            "device": str(args.device),
            "world_size": args.world_size,
            "distributed_type": str(args.distributed_state.distributed_type.value),
            "zero_stage": int(plugin.zero_stage) if plugin is not None else 0,
            "parameters": sum(p.ds_numel if hasattr(p, "ds_numel") else p.numel() for p in parameters),
            # ZeRO-3 keeps small parameters whole (`stage3_param_persistence_threshold`).
            "parameters_partitioned": sum(p.ds_numel for p in parameters if hasattr(p, "ds_numel") and p.numel() == 0),
        }
        write_whole(Path(str(args.output_dir)) / ENVIRONMENT, json.dumps(record, indent=1) + "\n")
