"""Which checkpoint is whole: a manifest written last, and the search for the newest one that agrees with it.

A run killed while it saves leaves a `checkpoint-N` folder with some of its files. Each checkpoint therefore
gets a `manifest.json` after its last byte, listing every file with its size. A checkpoint without one, or
whose files differ from it, is not resumed from.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints

from tokencredit.trainers.task_metric import reached

MANIFEST = "manifest.json"
SAVED_LAST = "training_args.bin"
"""Transformers writes it after the model and the tokenizer; a run folder that has it has its final model."""
_FOLDER = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Manifest:
    """What a complete checkpoint holds.

    Args:
        step: Optimiser steps taken.
        world_size: Processes that wrote it.
        zero_stage: DeepSpeed's ZeRO stage, 0 without DeepSpeed.
        files: Relative path to size in bytes, of every file but the manifest.
    """

    step: int
    world_size: int
    zero_stage: int
    files: dict[str, int]

    def write(self, folder: Path) -> None:
        """Write the manifest in one step, so that it is either whole or absent."""
        temporary = folder / f"{MANIFEST}.tmp"
        temporary.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        os.replace(temporary, folder / MANIFEST)


def file_sizes(folder: Path) -> dict[str, int]:
    """Relative path to size of every file below `folder`, the manifest left out."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    return {name: size for name, size in sizes.items() if name not in (MANIFEST, f"{MANIFEST}.tmp")}


def read_manifest(folder: Path) -> Manifest | None:
    """The checkpoint's manifest when it is complete, None when it is not."""
    try:
        manifest = Manifest(**json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    sizes = file_sizes(folder)
    whole = all(sizes.get(name) == size for name, size in manifest.files.items())
    return manifest if whole else None


def checkpoints(run: Path) -> list[Path]:
    """The `checkpoint-N` folders of a run, newest first."""
    numbered = [(int(match[1]), path) for path in run.glob("checkpoint-*") if (match := _FOLDER.fullmatch(path.name))]
    return [path for _, path in sorted(numbered, reverse=True)]


def latest_complete(run: Path) -> tuple[Path | None, list[Path]]:
    """The newest complete checkpoint of a run, and the newer ones that were skipped as incomplete."""
    skipped: list[Path] = []
    for folder in checkpoints(run):
        if read_manifest(folder) is not None:
            return folder, skipped
        skipped.append(folder)
    return None, skipped


def forget_later(run: Path, step: int) -> None:
    """Take the manifests off the checkpoints after `step`: training is about to write them again.

    Otherwise a kill half-way through rewriting one could leave old and new files under a manifest that
    still fits.
    """
    for folder in checkpoints(run):
        if int(folder.name.removeprefix("checkpoint-")) > step:
            (folder / MANIFEST).unlink(missing_ok=True)


@dataclass(frozen=True)
class End:
    """What ends a run.

    Args:
        max_steps: When positive it decides instead of the epochs, as in the trainer.
        num_train_epochs: Passes over the data.
        stop_at: Figures of the task metric that end it earlier.
    """

    max_steps: int
    num_train_epochs: float
    stop_at: Mapping[str, float] = field(default_factory=dict)

    def is_at(self, step: int, epoch: float, lines: Iterable[Mapping[str, Any]]) -> bool:
        """Whether a run is over.

        Args:
            step: Optimiser steps taken.
            epoch: Passes over the data made.
            lines: What was logged, each line with its `step`.
        """
        if step >= self.max_steps if self.max_steps > 0 else epoch >= self.num_train_epochs:
            return True
        return any(line.get("step") == step and reached(self.stop_at, line) for line in lines)


def is_finished(checkpoint: Path, end: End) -> bool:
    """Whether a complete checkpoint lies at the end of its run.

    The trainer must not be asked to resume from such a one: it would take another step.
    """
    state = read_state(checkpoint)
    return end.is_at(state.global_step, state.epoch or 0, state.log_history)


def read_state(checkpoint: Path) -> TrainerState:
    """The trainer's state in a checkpoint."""
    state: TrainerState = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    return state


def best_checkpoint(run: Path) -> Path | None:
    """The checkpoint that the newest one of a run names as the best, wherever the run folder is now."""
    newest = next(iter(checkpoints(run)), None)
    named = read_state(newest).best_model_checkpoint if newest is not None else None
    return run / Path(named).name if named else None


def finish(checkpoint: Path, run: Path, *, best: bool) -> None:
    """Put the model of a finished run in its run folder, when the run was killed before it did so itself.

    Args:
        checkpoint: The last checkpoint.
        run: The run folder.
        best: Take the best checkpoint instead (`load_best_model_at_end`).
    """
    if (run / SAVED_LAST).is_file():
        return
    source = (best_checkpoint(run) if best else None) or checkpoint
    training_state = (
        "optimizer",
        "scheduler",
        "rng_state",
        "trainer_state",
        "latest",
        "zero_to_",
        MANIFEST,
        SAVED_LAST,
    )
    for path in sorted(source.iterdir()):
        if path.is_file() and not path.name.startswith(training_state):
            shutil.copy2(path, run / path.name)
    shutil.copy2(source / SAVED_LAST, run / SAVED_LAST)


class CheckpointManifest(TrainerCallback):
    """Write the manifest after every process has saved its part, and only then delete old checkpoints.

    The trainer itself deletes them before the new one is known to be complete; a kill in between would leave
    none. So it is given no limit, and this callback keeps `save_total_limit` checkpoints (and the best one).
    """

    def __init__(self, trainer: Trainer, save_total_limit: int | None) -> None:
        self.trainer = trainer
        self.save_total_limit = save_total_limit

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Called by the trainer after a checkpoint."""
        self.trainer.accelerator.wait_for_everyone()
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            plugin = args.deepspeed_plugin
            stage = int(plugin.zero_stage) if plugin is not None else 0
            Manifest(state.global_step, args.world_size, stage, file_sizes(folder)).write(folder)
            rotate_checkpoints(
                output_dir=str(args.output_dir),
                save_total_limit=self.save_total_limit,
                best_model_checkpoint=state.best_model_checkpoint,
                use_mtime=True,  # a left-over with a higher number is not the newest
            )
