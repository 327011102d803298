"""Start a recipe: check it, write the run folder, and run it in this process or in several."""

import contextlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from tokencredit.cluster.plan import Plan, cpu_count, resolve
from tokencredit.cluster.preflight import LOCK, Preflight, check, is_unused
from tokencredit.cluster.processes import die_with_parent
from tokencredit.cluster.quiet import quieten
from tokencredit.cluster.resume import complete, make_ready
from tokencredit.errors import InputError
from tokencredit.recipes.files import RECIPE_FILE
from tokencredit.recipes.init_model import INITIAL_MODEL, write_initial_model
from tokencredit.recipes.schema import Recipe
from tokencredit.trainers.callbacks import write_whole

WORKER = "tokencredit.cluster.worker"


def prepare(recipe: Recipe, *, dry_run: bool = False) -> tuple[Recipe, Plan, Preflight]:
    """Resolve and check a recipe, here and on the nodes of its cluster, without writing anything that stays.

    Args:
        recipe: A checked recipe.
        dry_run: Note what is not on this machine instead of refusing it, and ask no other one.

    Raises:
        InputError: When the recipe cannot run here.
    """
    found = Preflight(dry_run=dry_run)
    recipe, plan = _resolve(recipe, found)
    with _nodes_asked(recipe, plan, found, patient=True):
        check(recipe, plan, found)
    for problem in found.problems():
        raise problem
    if _is_joined(recipe, found):
        from tokencredit.cluster.ray_check import check_free

        try:
            check_free(recipe, plan)
        except InputError as error:
            found.notes.append(f"{error.problem}: they will wait")
    return recipe, plan, found


def examine(recipe: Recipe) -> Preflight:
    """Check everything about a recipe and the place where it would run, and whether there is room now."""
    found, begun = Preflight(), time.monotonic()
    try:
        recipe, plan = _resolve(recipe, found)
    except InputError as error:
        found.add("launch", "", [error], begun)
        return found
    ray = recipe.own.launch.ray
    where = f", Ray: {ray.address}" if ray else ""
    found.add("launch", f"{plan.num_processes} ({plan.strategy}{where})", [], begun)
    with _nodes_asked(recipe, plan, found, patient=False):
        check(recipe, plan, found, every=True)
    if _is_joined(recipe, found):
        from tokencredit.cluster.ray_check import check_free

        found.take("free now", lambda: check_free(recipe, plan))
    return found


def _resolve(recipe: Recipe, found: Preflight) -> tuple[Recipe, Plan]:
    quieten()
    import_from_working_directory()
    if recipe.own.launch.ray is None:
        recipe, plan, notes = resolve(recipe, dry_run=found.dry_run)
        found.notes += notes
        return recipe, plan
    from tokencredit.cluster.ray_cluster import check_address, find_cluster
    from tokencredit.cluster.ray_plan import resolve_on_ray

    cluster = None
    check_address(recipe.own.launch.ray.address)
    try:
        cluster = find_cluster(recipe.own.launch.ray.address)
    except InputError as error:
        if not found.dry_run:
            raise
        found.notes.append(f"planned without its cluster: {error}")
    recipe, plan, notes = resolve_on_ray(recipe, cluster)
    found.notes += notes
    return recipe, plan


def _is_joined(recipe: Recipe, found: Preflight) -> bool:
    """Whether the run is to be on a cluster of several nodes."""
    ray = recipe.own.launch.ray
    return ray is not None and ray.address != "local" and not found.dry_run


def _nodes_asked(
    recipe: Recipe, plan: Plan, found: Preflight, *, patient: bool
) -> contextlib.AbstractContextManager[None]:
    if not _is_joined(recipe, found):
        return contextlib.nullcontext()
    from tokencredit.cluster.ray_check import asking_nodes

    return asking_nodes(recipe, plan, found, patient=patient)


def launch(recipe: Recipe, plan: Plan, found: Preflight) -> int:
    """Run a prepared recipe.

    Returns:
        The exit code: 0, 2 for wrong input that showed only in a worker, 128 + n after signal n, anything
        else for a failure whose traceback the worker has printed.

    Raises:
        InputError: When another run is writing into the same folder.
    """
    run = Path(recipe.output_dir)
    if found.start.finished:
        complete(recipe, found.start)
        return 0
    new = not run.exists()
    run.mkdir(parents=True, exist_ok=True)
    with _clean_up(run, new), _alone_in(run):
        _write_run_folder(recipe, found)
        if recipe.own.launch.ray is not None:
            from tokencredit.cluster.ray_train import run_on_ray

            return run_on_ray(recipe, plan, found.start.resume_from)
        if plan.strategy == "none":
            return _run_here(recipe, found)
        return _run_in_workers(recipe, plan, found)


@contextlib.contextmanager
def _clean_up(run: Path, new: bool) -> Iterator[None]:
    """Leave no run folder behind when the run ended before its first step."""
    try:
        yield
    finally:
        if new and run.exists() and is_unused(run):
            shutil.rmtree(run)


@contextlib.contextmanager
def _alone_in(run: Path) -> Iterator[None]:
    lock = FileLock(run / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError("output_dir", f"another run is writing to {str(run)!r}", "name another folder") from None
    try:
        yield
    finally:
        lock.release()


def _write_run_folder(recipe: Recipe, found: Preflight) -> None:
    run = Path(recipe.output_dir)
    make_ready(run, found.start.resume_from)
    text = yaml.safe_dump(recipe.flat(), sort_keys=False, allow_unicode=True, width=120)
    write_whole(run / RECIPE_FILE, text)
    if recipe.own.init is not None:
        _write_initial_model(recipe, found)


def _write_initial_model(recipe: Recipe, found: Preflight) -> None:
    folder = Path(recipe.output_dir) / INITIAL_MODEL
    if folder.is_dir():
        if found.start.resume_from is not None:
            return
        shutil.rmtree(folder)  # of an attempt that never took a step, perhaps with other settings
    assert recipe.own.init is not None
    assert found.data is not None
    write_initial_model(recipe.own.init, found.data.train, folder, int(recipe.training.get("seed", 42)))


def _run_here(recipe: Recipe, found: Preflight) -> int:
    from tokencredit.cluster.worker import run

    assert found.data is not None
    run(recipe, found.data, found.start.resume_from)
    return 0


def _run_in_workers(recipe: Recipe, plan: Plan, found: Preflight) -> int:
    command = [str(Path(recipe.output_dir) / RECIPE_FILE)]
    if found.start.resume_from:
        command += ["--resume", found.start.resume_from]
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cpu_count() // plan.num_processes)))
    os.environ["PYTHONSAFEPATH"] = "1"  # a folder of the user's named like a library must not replace it
    if recipe.training.get("hub_token"):
        os.environ["HF_TOKEN"] = str(recipe.training["hub_token"])  # not in the file that the workers read
    if plan.accelerate_file is not None:
        return _run_accelerate(plan, command)
    return _run_processes(plan.num_processes, ["-m", WORKER, *command])


def _run_processes(count: int, command: list[str]) -> int:
    """Start the workers under PyTorch's own launcher, which ends all of them when one fails."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # What went wrong is printed by the worker; the launcher would add a page about it.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as logs:
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
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            elastic_launch(config, sys.executable)(*command)
        except ChildFailedError as error:
            codes = {failure.exitcode for failure in error.failures.values()}
            return 2 if 2 in codes else 1
        except SignalException as error:
            return 128 + int(error.sigval)
    return 0


def _run_accelerate(plan: Plan, command: list[str]) -> int:
    options = ["--config_file", str(plan.accelerate_file), "--num_processes", str(plan.num_processes)]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *options, "-m", WORKER, *command]
    with subprocess.Popen(launcher, preexec_fn=die_with_parent) as process:
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise


def import_from_working_directory() -> None:
    """Functions named in a recipe may live in the working directory; installed packages come first."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
