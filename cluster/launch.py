"""Start a recipe: check it, write the run folder, and run it in this process or in several."""

import contextlib
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from tokencredit.cluster.plan import Plan, cpu_count, resolve
from tokencredit.cluster.preflight import RECIPE_FILE, Preflight, check, is_unused
from tokencredit.cluster.quiet import quieten
from tokencredit.recipes.init_model import INITIAL_MODEL, write_initial_model
from tokencredit.recipes.schema import Recipe
from tokencredit.trainers.callbacks import write_whole
from tokencredit.trainers.checkpoints import finish, forget_later

WORKER = "tokencredit.cluster.worker"


def prepare(recipe: Recipe, *, dry_run: bool = False) -> tuple[Recipe, Plan, Preflight]:
    """Resolve and check a recipe without writing anything.

    Raises:
        InputError: When the recipe cannot run here.
    """
    quieten()
    _import_from_working_directory()
    recipe, plan, notes = resolve(recipe)
    found = check(recipe, plan, dry_run=dry_run)
    found.notes = notes + found.notes
    return recipe, plan, found


def launch(recipe: Recipe, plan: Plan, found: Preflight) -> int:
    """Run a prepared recipe.

    Returns:
        The exit code: 0, 2 for wrong input that showed only in a worker, anything else for a failure
        whose traceback the worker has printed.
    """
    run = Path(recipe.output_dir)
    if found.finished and found.resume_from:
        finish(Path(found.resume_from), run, best=bool(recipe.training.get("load_best_model_at_end")))
        return 0
    new = not run.exists()
    with _clean_up(run, new):
        _write_run_folder(recipe, found)
        if plan.strategy == "none":
            return _run_here(recipe, found)
        command = ["-P", "-m", WORKER, str(run / RECIPE_FILE)]
        if found.resume_from:
            command += ["--resume", found.resume_from]
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cpu_count() // plan.num_processes)))
        if plan.accelerate_file is not None:
            return _run_accelerate(plan, command[2:])
        return _run_processes(plan.num_processes, command)


@contextlib.contextmanager
def _clean_up(run: Path, new: bool) -> Iterator[None]:
    """Leave no run folder behind when the run ended before its first step."""
    try:
        yield
    finally:
        if new and run.exists() and is_unused(run):
            shutil.rmtree(run)


def _write_run_folder(recipe: Recipe, found: Preflight) -> None:
    run = Path(recipe.output_dir)
    run.mkdir(parents=True, exist_ok=True)
    if found.resume_from and Path(found.resume_from).parent == run:
        forget_later(run, int(found.resume_from.rpartition("-")[2]))
    text = yaml.safe_dump(recipe.flat(), sort_keys=False, allow_unicode=True, width=120)
    write_whole(run / RECIPE_FILE, text)
    if recipe.own.init is not None and not (run / INITIAL_MODEL).is_dir():
        assert found.data is not None
        seed = int(recipe.training.get("seed", 42))
        write_initial_model(recipe.own.init, found.data.train, run / INITIAL_MODEL, seed)


def _run_here(recipe: Recipe, found: Preflight) -> int:
    from tokencredit.cluster.worker import run

    assert found.data is not None
    run(recipe, found.data, found.resume_from)
    return 0


def _run_processes(count: int, command: list[str]) -> int:
    """Start the workers under PyTorch's own launcher, which ends all of them when one fails."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # What went wrong is printed by the worker; the launcher would add a page about it.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id="tokencredit",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        return 2 if 2 in codes else 1
    return 0


def _run_accelerate(plan: Plan, command: list[str]) -> int:
    arguments = ["--config_file", str(plan.accelerate_file), "--num_processes", str(plan.num_processes), "-m"]
    launcher = [sys.executable, "-P", "-m", "accelerate.commands.launch", *arguments, *command]
    return subprocess.run(launcher, check=False).returncode


def _import_from_working_directory() -> None:
    """Functions named in a recipe may live in the working directory; installed packages come first."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
