"""The nodes of a Ray cluster before a run: asked by tasks that reserve nothing, so no accelerator is held."""

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokencredit.cluster.memory import check_fits
from tokencredit.cluster.node_probe import MARKER, Answer, Question, answer, listing, python_version
from tokencredit.cluster.plan import Plan
from tokencredit.cluster.preflight import Preflight
from tokencredit.cluster.ray_cluster import growth
from tokencredit.cluster.ray_plan import Cluster, storage_folder, worker_resources
from tokencredit.data.loading import BUILTIN
from tokencredit.errors import InputError
from tokencredit.recipes.files import local_paths, named_functions
from tokencredit.recipes.schema import RayLaunch, Recipe, is_secret
from tokencredit.recipes.versions import versions

LIMIT_S = 10.0
"""How long nodes have to answer."""

_STORAGE = "launch.ray.storage_path"
_SEEN_WITHIN_S = 3.0  # network file systems show a new file a little later
_CHECKS = ("versions", "storage", "files", "functions")

Asked = dict[Any, tuple[str, str]]
"""The tasks that have been started, each with the id and the name of its node."""


@contextlib.contextmanager
def asking_nodes(recipe: Recipe, plan: Plan, found: Preflight, *, patient: bool) -> Iterator[None]:
    """Ask all nodes that may hold workers while the body does something else; then add what they say to `found`.

    Args:
        recipe: A resolved recipe with `launch.ray`, whose cluster has been joined.
        plan: From the same.
        found: What the nodes say is added here.
        patient: Note a node that does not answer in time, instead of refusing it.
    """
    spec = recipe.own.launch.ray
    assert spec is not None
    with _markers(recipe, spec) as (markers, unwritable):
        begun = time.monotonic()
        asked = _ask(_question(recipe, spec, markers), recipe, spec)
        yield
        # None is cancelled: Ray aborts this process when a task ends at that moment. They hold nothing and end with
        # the command.
        answers, broken, late = _answers(asked, begun + LIMIT_S)
        if patient:
            found.notes += [f"{slow.problem}: it is not checked" for slow in late]
        found.add("nodes", _counted(answers), broken + ([] if patient else late), begun)
        for name in _CHECKS if answers else ():
            problems = _merged(answers, name)
            problems += unwritable + _unseen(answers) if name == "storage" else []
            found.add(name, "" if problems else "as here on all of them", problems, begun)
    if found.memory is not None and answers:
        _check_memory(found, plan, answers, on_cpu=bool(recipe.training.get("use_cpu")))


def _counted(answers: list[Answer]) -> str:
    return f"{len(answers)} have answered" if answers else "none is up that could be asked"


def check_free(recipe: Recipe, plan: Plan) -> str:
    """Whether all workers would find a place at this moment.

    Raises:
        InputError: They would have to wait.
    """
    from ray._private.state import state

    spec = recipe.own.launch.ray
    assert spec is not None
    # Public Ray only knows the sum over all nodes.
    cluster = Cluster([dict(node) for node in state.available_resources_per_node().values()])
    room = cluster.room(worker_resources(spec, bool(recipe.training.get("use_cpu"))), spec.placement)
    if room < plan.num_processes and growth():
        return f"room for {room}, for {plan.num_processes} once the cluster has grown"
    if room < plan.num_processes:
        problem = f"{plan.num_processes} workers are wanted, and the cluster has room for {room} now"
        raise InputError("launch.num_processes", problem, "wait until other jobs have ended, or ask for fewer")
    return f"room for {room}"


@contextlib.contextmanager
def _markers(recipe: Recipe, spec: RayLaunch) -> Iterator[tuple[dict[str, str], list[InputError]]]:
    """A file in each folder that nodes have to share, by recipe key; gone afterwards, with what nodes put beside it."""
    folders, made, unwritable = {"output_dir": recipe.output_dir}, {}, []
    storage = storage_folder(spec)
    if storage is not None:
        folders[_STORAGE] = str(storage)
    name = f"{MARKER}{secrets.token_hex(8)}"
    try:
        for key, folder in folders.items():
            existing = next(path for path in (Path(folder), *Path(folder).parents) if path.is_dir())
            try:
                (existing / name).write_bytes(b"")
                made[key] = str(existing / name)
            except OSError as error:
                if key == _STORAGE:  # of `output_dir` the checks of this machine say it
                    problem = f"cannot write to {str(existing)!r} ({error.strerror})"
                    unwritable.append(InputError(key, problem, "name a folder that all nodes can write to"))
        yield made, unwritable
    finally:
        for marker in map(Path, made.values()):
            for path in marker.parent.glob(f"{marker.name}*"):
                with contextlib.suppress(OSError):  # on a network file system that has gone
                    path.unlink(missing_ok=True)


def _question(recipe: Recipe, spec: RayLaunch, markers: dict[str, str]) -> Question:
    layer = recipe.flat()
    token = recipe.training.get("hub_token")
    environment = {name: str(value) for name, value in recipe.own.env.items()} | ({"HF_TOKEN": token} if token else {})
    files = tuple((key, str(path), listing(path) or {}) for key, path in local_paths(layer) if path.exists())
    uri = spec.storage_path if spec.storage_path and storage_folder(spec) is None else None
    return Question(
        folder=os.getcwd(),
        environment=environment,
        versions=versions() | {"python": python_version()},
        files=files,
        hub=tuple(_hub_names(recipe, {key for key, _, _ in files})),
        functions=tuple(named_functions(layer)),
        storage=markers,
        uris={_STORAGE: uri} if uri else {},
    )


def _hub_names(recipe: Recipe, local: set[str]) -> Iterator[tuple[str, str, str, str | None]]:
    """What nodes have to fetch, as in `Question.hub`."""
    for key, kind, section, part in (
        ("model_name_or_path", "model", recipe.model, "model_revision"),
        ("dataset_name", "dataset", recipe.data, "dataset_config"),
    ):
        name = section.get(key)
        if not isinstance(name, str) or key in local or name in BUILTIN:
            continue
        if not Path(name).is_absolute() and "://" not in name:
            yield key, kind, name, section.get(part)


def _ask(question: Question, recipe: Recipe, spec: RayLaunch) -> Asked:
    """Start a task on every node that has room for a worker when it is idle."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    worker = worker_resources(spec, bool(recipe.training.get("use_cpu")))
    shown = {name: str(value) for name, value in recipe.own.env.items() if not is_secret(name)}
    # `max_calls`: a process of its own, in which nothing has been imported yet.
    task = ray.remote(num_cpus=0, max_calls=1, max_retries=0)(answer)
    asked = {}
    for node in ray.nodes():
        if node["Alive"] and Cluster([node["Resources"]]).room(worker, "PACK"):
            name, address = node["NodeID"], node["NodeManagerAddress"]
            there = NodeAffinitySchedulingStrategy(name, soft=False)
            options = {"scheduling_strategy": there, "runtime_env": {"env_vars": shown}}
            asked[task.options(**options).remote(question, name)] = (name, address)
    return asked


def _answers(asked: Asked, deadline: float) -> tuple[list[Answer], list[InputError], list[InputError]]:
    """What nodes say, which of them cannot be asked, and which have not answered in time."""
    import ray

    left = max(0.0, deadline - time.monotonic())
    done, waiting = ray.wait(list(asked), num_returns=len(asked), timeout=left) if asked else ([], [])
    answers, broken = [], []
    for task in done:
        try:
            answers.append(ray.get(task))
        except Exception as error:  # what a node's installation makes the task raise
            reason = " ".join(str(getattr(error, "cause", None) or error).split())[-200:]
            problem = f"the node at {asked[task][1]} cannot be asked ({reason})"
            broken.append(InputError("launch.ray", problem, "install tokencredit there as here"))
    late = [
        InputError(
            "launch.ray",
            f"the node at {asked[task][1]} has not answered within {LIMIT_S:g} s",
            "look at its load, or take it out of the cluster",
        )
        for task in waiting
    ]
    return answers, broken, late


def _merged(answers: list[Answer], name: str) -> list[InputError]:
    """What a check has found, one line for all nodes on which it is the same."""
    hosts: dict[tuple[str, str, str], list[str]] = {}
    for given in answers:
        for problem in given.problems[name]:
            hosts.setdefault((problem.where, problem.problem, problem.remedy), []).append(given.host)
    return [
        InputError(where, problem.replace("{host}", _named(on)), remedy)
        for (where, problem, remedy), on in hosts.items()
    ]


def _named(hosts: list[str]) -> str:
    first, *others = sorted(set(hosts))
    return f"{first} and {len(others)} more" if len(others) > 1 else " and ".join([first, *others])


def _unseen(answers: list[Answer]) -> list[InputError]:
    """What nodes have written and this one does not see."""
    waiting = [(given.host, key, Path(path)) for given in answers for key, path in given.written.items()]
    deadline = time.monotonic() + _SEEN_WITHIN_S
    while waiting:
        waiting = [(host, key, path) for host, key, path in waiting if not path.exists()]
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    remedy = "name a folder on storage that all nodes share"
    return [
        InputError(key, f"what {host} writes to {str(path.parent)!r} is not seen here", remedy)
        for host, key, path in waiting
    ]


def _check_memory(found: Preflight, plan: Plan, answers: list[Answer], *, on_cpu: bool) -> None:
    needed, what = found.memory, "machine" if on_cpu else "accelerator"
    assert needed is not None
    accelerators = [size for given in answers for size in given.accelerators]
    places = [given.memory for given in answers] if on_cpu else accelerators
    if growth():
        found.add("memory there", "unknown: the cluster can grow", [], time.monotonic())
    elif places:
        found.take("memory there", lambda: check_fits(needed, plan, places, what))
