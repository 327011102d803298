"""A recipe under Ray Train: `TorchTrainer` starts the workers, and starts them again when one is lost."""

import contextlib
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokencredit.cluster.plan import Plan, cpu_count
from tokencredit.cluster.ray_cluster import cluster, temporary_folder
from tokencredit.cluster.ray_plan import worker_resources
from tokencredit.cluster.ray_worker import Desk, News, Order, end_when_refused, work
from tokencredit.recipes.schema import RayLaunch, Recipe, is_secret

_POLL_S = 0.2
_PATIENCE_S = 60.0
"""How long workers may take to begin before the user is told what is missing."""


def run_on_ray(recipe: Recipe, plan: Plan, resume_from: str | None) -> int:
    """Run a prepared recipe in the workers of its `launch.ray`.

    Args:
        recipe: The resolved recipe; its run folder is written.
        plan: The plan.
        resume_from: The checkpoint to continue from, or None.

    Returns:
        The exit code: 0, or 1 for a failure that has been printed.

    Raises:
        InputError: For wrong input that showed only in a worker.
    """
    spec = recipe.own.launch.ray
    assert spec is not None
    with cluster(spec.address), _storage(spec) as storage:
        desk = _start_desk()
        order = Order(recipe.flat(), resume_from, _secrets(recipe), os.getcwd(), desk)
        trainer = _trainer(recipe, spec, plan, storage, order)
        return _follow(trainer.fit, desk, plan.num_processes)


def _trainer(recipe: Recipe, spec: RayLaunch, plan: Plan, storage: str, order: Order) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def train() -> None:
        work(order)

    on_cpu = bool(recipe.training.get("use_cpu"))
    return TorchTrainer(
        train,
        scaling_config=ScalingConfig(
            num_workers=plan.num_processes,
            use_gpu=not on_cpu,
            resources_per_worker=worker_resources(spec, on_cpu),
            placement_strategy=spec.placement,
        ),
        run_config=RunConfig(
            name=f"{Path(recipe.output_dir).name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            storage_path=storage,
            failure_config=FailureConfig(max_failures=spec.max_failures),
            callbacks=[end_when_refused(order.desk)],
            worker_runtime_env={"env_vars": _environment(recipe, spec, plan)},
        ),
    )


def _environment(recipe: Recipe, spec: RayLaunch, plan: Plan) -> dict[str, str]:
    """What workers have in their environment before they import anything."""
    variables = {"TQDM_DISABLE": "1"}  # nobody watches a bar there
    if spec.address == "local":
        # As without Ray. Elsewhere Ray allows a worker as many threads as it has CPUs.
        threads = str(max(1, cpu_count() // plan.num_processes))
        variables["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", threads)
    return variables | {name: str(value) for name, value in recipe.own.env.items() if not is_secret(name)}


def _secrets(recipe: Recipe) -> dict[str, str]:
    """Credentials of the recipe. Ray would show them to everyone if they were part of the environment it sets up."""
    found = {name: str(value) for name, value in recipe.own.env.items() if is_secret(name)}
    token = recipe.training.get("hub_token")
    return found | ({"HF_TOKEN": str(token)} if token else {})


@contextlib.contextmanager
def _storage(spec: RayLaunch) -> Iterator[str]:
    """The place for Ray Train's own state: none of it is needed later, unless the recipe names a place."""
    if spec.storage_path is not None:
        yield spec.storage_path
        return
    with temporary_folder() as folder:
        yield str(folder)


def _start_desk() -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # On the node of the command: the loss of another one must not end it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Desk).remote()


def _follow(fit: Callable[[], Any], desk: Any, workers: int) -> int:
    """Run `fit` beside this thread, which says what the workers say and hears signals.

    (In this thread `fit` would put its own handler in place of that for an interrupt.)
    """
    import ray

    failure: list[BaseException] = []

    def target() -> None:
        try:
            fit()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=target, name="ray-train", daemon=True)
    thread.start()
    waiting = _Waiting(workers)
    news = News()
    while thread.is_alive():
        thread.join(_POLL_S)
        try:
            news = ray.get(desk.take.remote())
        except ray.exceptions.RayError as error:
            print(f"error: the cluster is lost: {_first_sentence(error)}", file=sys.stderr)
            return 1
        _say(news)
        if news.refusal is not None:
            # A thread that stands in Ray while the command leaves the cluster can end the process with a signal.
            thread.join(_PATIENCE_S)
            raise news.refusal
        waiting.look(news)
    if not failure:
        return 0
    for line in _reasons(failure[0], told=news.failed):
        print(f"error: {line}", file=sys.stderr)
    return 1


def _say(news: News) -> None:
    for stream, text in news.lines:
        print(text, end="", file=sys.stdout if stream == "stdout" else sys.stderr, flush=True)


def _reasons(error: BaseException, *, told: bool) -> list[str]:
    """What ended a run, a line for each worker that could not say it itself.

    Args:
        error: From `fit`.
        told: Whether the traceback of a worker has been shown.
    """
    from ray.exceptions import RayActorError
    from ray.train import WorkerGroupError

    if not isinstance(error, WorkerGroupError):
        return ["".join(traceback.format_exception(error))]
    failures = sorted(error.worker_failures.items())
    lost = [(rank, reason) for rank, reason in failures if isinstance(reason, RayActorError)]
    shown = lost or ([] if told else failures)
    return [f"worker {rank} was lost: {_first_sentence(reason)}" for rank, reason in shown]


def _first_sentence(error: BaseException) -> str:
    lines = [line.strip() for line in re.sub(r"\x1b\[\d+m", "", str(error)).splitlines() if line.strip()]
    return lines[0] if lines else repr(error)


class _Waiting:
    """Says once for every wait that the workers are long in coming, and what the cluster has left for them."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.attempts, self.since, self.said = 0, time.monotonic(), False

    def look(self, news: News) -> None:
        """Called with all news."""
        if news.attempts > self.attempts:
            self.attempts, self.said = news.attempts, False
        running = self.attempts > 0 and not news.failed
        if running:
            self.since = time.monotonic()
        elif not self.said and time.monotonic() - self.since > _PATIENCE_S:
            import ray

            free = ", ".join(f"{amount:g} {name}" for name, amount in _plain(ray.available_resources()).items())
            print(
                f"note: {self.workers} workers have yet to begin; free in the cluster: {free or 'nothing'}",
                file=sys.stderr,
            )
            self.said = True


def _plain(resources: dict[str, float]) -> dict[str, float]:
    """Resources that a recipe asks for: not memory, a node's own, nor what is set aside for a group of workers."""
    other = re.compile("memory|node:|bundle_group|_group_")
    return {name: amount for name, amount in sorted(resources.items()) if not other.search(name)}
