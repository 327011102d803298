"""Where a run begins: at step 0, at a checkpoint, or not at all because it is complete."""

from dataclasses import dataclass, field
from pathlib import Path

from tokencredit.errors import InputError
from tokencredit.recipes.files import RECIPE_FILE, load_yaml
from tokencredit.recipes.schema import Recipe
from tokencredit.trainers.callbacks import read_metrics
from tokencredit.trainers.checkpoints import (
    MANIFEST,
    SAVED_LAST,
    End,
    finish,
    forget_later,
    is_finished,
    latest_complete,
    read_manifest,
    read_state,
)

# A run goes on only with what it began with.
_FIXED = ("trainer", "model_name_or_path", "init", "peft", "use_peft")


@dataclass
class Start:
    """Where a run begins.

    Args:
        resume_from: The checkpoint to continue from, or None.
        finished: Whether the run is complete: at that checkpoint, or, when there is none, as a whole.
        notes: Lines for the user.
    """

    resume_from: str | None = None
    finished: bool = False
    notes: list[str] = field(default_factory=list)


def find_start(recipe: Recipe, num_processes: int) -> Start:
    """Find the beginning that `resume_from_checkpoint` asks for.

    Raises:
        InputError: When the run cannot go on from there.
    """
    start, run = Start(), Path(recipe.output_dir)
    asked = recipe.training.get("resume_from_checkpoint")
    if not asked:
        return start
    if asked is True and _has_ended(run, _end(recipe)):
        return Start(finished=True, notes=[*_changed_keys(run / RECIPE_FILE, recipe), "the run is complete"])
    if isinstance(asked, str):
        folder: Path | None = Path(asked)
        start.notes += _check_named(Path(asked))
    else:
        folder = _newest(run, start)
    if folder is None:
        start.notes.append("no checkpoint to resume from: starting at step 0")
        return start
    start.notes += _changed_keys(run / RECIPE_FILE, recipe)
    start.notes += _check_processes(folder, num_processes)
    return _at(folder, recipe, start)


def restart(recipe: Recipe, began_at: str | None) -> Start:
    """Find where the processes of a run begin again after a failure, and make its folder ready for that.

    Args:
        recipe: The recipe of the run.
        began_at: The checkpoint the run itself was told to begin at, perhaps one of another run.
    """
    start, run = Start(), Path(recipe.output_dir)
    if _has_ended(run, _end(recipe)):
        return Start(finished=True, notes=["the run is complete"])
    folder = _newest(run, start)
    if began_at is not None and (folder is None or _step(folder) < _step(Path(began_at))):
        folder = Path(began_at)
    if folder is None:
        start.notes.append("no checkpoint yet: starting at step 0")
    else:
        _at(folder, recipe, start)
    if start.finished:
        complete(recipe, start)
    else:
        make_ready(run, start.resume_from)
    return start


def complete(recipe: Recipe, start: Start) -> None:
    """Put the model of a run that is complete at a checkpoint in its run folder."""
    if start.resume_from:
        best = bool(recipe.training.get("load_best_model_at_end"))
        finish(Path(start.resume_from), Path(recipe.output_dir), best=best)


def make_ready(run: Path, resume_from: str | None) -> None:
    """Take from a run folder what will no longer be true once the run goes on."""
    (run / SAVED_LAST).unlink(missing_ok=True)  # the model in the folder is no longer that of the run
    forget_later(run, _step(Path(resume_from)) if resume_from else 0)


def _step(checkpoint: Path) -> int:
    return int(read_state(checkpoint).global_step)


def _end(recipe: Recipe) -> End:
    metric = recipe.own.task_metric
    return End(
        recipe.training.get("max_steps", -1),
        recipe.training.get("num_train_epochs", 3.0),
        metric.stop_at if metric else {},
    )


def _newest(run: Path, start: Start) -> Path | None:
    folder, skipped = latest_complete(run)
    start.notes += [f"{path.name} is incomplete (the run was ended while it was saved): skipped" for path in skipped]
    return folder


def _at(folder: Path, recipe: Recipe, start: Start) -> Start:
    start.resume_from = str(folder)
    start.finished = is_finished(folder, _end(recipe))
    start.notes.append(f"the run is complete at {folder.name}" if start.finished else f"resuming from {folder.name}")
    return start


def _check_processes(folder: Path, num_processes: int) -> list[str]:
    manifest = read_manifest(folder)
    if manifest is None or manifest.world_size == num_processes:
        return []
    if manifest.zero_stage:
        raise InputError(
            "launch.num_processes",
            f"{folder.name} was written by {manifest.world_size} ZeRO processes, this run has {num_processes}",
            f"set launch.num_processes={manifest.world_size}",
        )
    other = f"{folder.name} was written by {manifest.world_size} processes, this run has {num_processes}"
    return [f"{other}: the order of the data and the random state differ from an uninterrupted run"]


def _changed_keys(saved: Path, recipe: Recipe) -> list[str]:
    if not saved.is_file():
        return []
    before, now = load_yaml(saved), recipe.flat()
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    for key in changed:
        if key in _FIXED:
            raise InputError(
                key, f"{now.get(key)!r} is not what the run began with, {before.get(key)!r}", "name another output_dir"
            )
    return [f"differs from the recipe the run began with: {', '.join(changed)}"] if changed else []


def _has_ended(run: Path, end: End) -> bool:
    """Whether the run took its last step and saved its model, as its metrics say."""
    if not (run / SAVED_LAST).is_file():
        return False
    lines = read_metrics(run)
    last = next((line for line in reversed(lines) if "train_runtime" in line), None)
    return last is not None and end.is_at(last["step"], last["epoch"], lines)


def _check_named(folder: Path) -> list[str]:
    """A checkpoint that the recipe names: whole as far as its manifest says."""
    where, remedy = "resume_from_checkpoint", "name a checkpoint-N folder, or true"
    if not (folder / "trainer_state.json").is_file():
        raise InputError(where, f"{str(folder)!r} is no checkpoint", remedy)
    if not (folder / MANIFEST).is_file():
        return [f"{folder.name} has no manifest: taken as complete"]
    if read_manifest(folder) is None:
        raise InputError(where, f"{str(folder)!r} is incomplete: its files are not those of its manifest", remedy)
    return []
