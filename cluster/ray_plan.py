"""How many workers of which kind a recipe becomes on Ray, and whether the cluster has room for them."""

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from tokencredit.cluster.plan import (
    STRATEGIES,
    Plan,
    accelerator_count,
    check_strategy,
    complete,
    cpu_count,
    device_defaults,
)
from tokencredit.errors import InputError
from tokencredit.recipes.schema import Launch, RayLaunch, Recipe, without_secrets

Resources = dict[str, float]


@dataclass(frozen=True)
class Cluster:
    """What there is to run on.

    Args:
        nodes: The resources of each node that is up.
        limits: The most that an autoscaler may bring up in all, empty without one.
    """

    nodes: list[Resources]
    limits: Resources = field(default_factory=dict)

    def has(self, resource: str) -> bool:
        """Whether there is any of a resource, now or once the cluster has grown."""
        return any(known.get(resource, 0) > 0 for known in (*self.nodes, self.limits))

    def room(self, worker: Resources, placement: str) -> int:
        """How many workers of these resources find a place."""
        if self.limits:
            return _fits(self.limits, worker)
        counts = [_fits(node, worker) for node in self.nodes]
        if placement == "STRICT_PACK":
            return max(counts, default=0)
        return sum(min(count, 1) for count in counts) if placement == "STRICT_SPREAD" else sum(counts)


def _fits(there: Resources, worker: Resources) -> int:
    # Shares of a core are floats: three times 0.1 fits into 0.3.
    return min((int(there.get(name, 0) / amount + 1e-9) for name, amount in worker.items() if amount), default=0)


def this_machine() -> Cluster:
    """This machine as a cluster of one node."""
    return Cluster([{"CPU": cpu_count(), "GPU": accelerator_count()}])


def worker_resources(spec: RayLaunch, on_cpu: bool) -> Resources:
    """What each worker reserves."""
    return {"CPU": 1.0} | ({} if on_cpu else {"GPU": 1.0}) | spec.resources_per_worker


def resolve_on_ray(recipe: Recipe, cluster: Cluster | None) -> tuple[Recipe, Plan, list[str]]:
    """Fill in what depends on the cluster and refuse what cannot run on it.

    Args:
        recipe: A checked recipe with `launch.ray`.
        cluster: What there is, or None when it could not be asked (dry run only).

    Returns:
        As `tokencredit.cluster.plan.resolve`.

    Raises:
        InputError: When the strategy is unknown or cannot run under Ray, or the workers find no room.
    """
    launch = recipe.own.launch
    spec = launch.ray
    assert spec is not None
    _check_storage(spec)
    on_cpu = bool(recipe.training.get("use_cpu")) or spec.resources_per_worker.get("GPU") == 0
    on_cpu = on_cpu or (cluster is not None and not cluster.has("GPU"))
    if launch.strategy.endswith((".yaml", ".yml", ".json")):
        known = ", ".join(STRATEGIES)
        raise InputError(
            "launch.strategy", "an Accelerate file starts its own processes, as Ray does", f"one of {known}"
        )
    check_strategy(launch, on_cpu)
    recipe, notes = device_defaults(recipe, on_cpu)
    if on_cpu:
        recipe = recipe.with_training(use_cpu=True)  # whatever the recipe leaves to a machine that might have some
    plan = Plan(launch.strategy, _count(launch, spec, cluster, worker_resources(spec, on_cpu)))
    return complete(recipe, plan), plan, notes


def _count(launch: Launch, spec: RayLaunch, cluster: Cluster | None, worker: Resources) -> int:
    asked = 1 if launch.strategy == "none" else launch.num_processes
    if cluster is None:
        return asked or 1
    room = cluster.room(worker, spec.placement)
    if room < (asked or 1):
        each = ", ".join(f"{amount:g} {name}" for name, amount in worker.items())
        there = "this machine" if spec.address == "local" else "the cluster"
        strict = f" under {spec.placement}" if spec.placement.startswith("STRICT") else ""
        wanted = f"{asked or 1} worker{'' if asked in (None, 1) else 's'} with {each} each"
        raise InputError(
            "launch.num_processes",
            f"{wanted} is more than {there} has{strict}",
            f"room for {room}; see launch.ray.resources_per_worker too",
        )
    return asked or room


def storage_folder(spec: RayLaunch) -> Path | None:
    """`launch.ray.storage_path` where it is a folder, not a bucket."""
    value = spec.storage_path
    if value is None or ("://" in value and not value.startswith("file://")):
        return None
    return Path(url2pathname(urlsplit(value).path)) if "://" in value else Path(value)


def _check_storage(spec: RayLaunch) -> None:
    where, value = "launch.ray.storage_path", spec.storage_path
    if value is None:
        return
    folder = storage_folder(spec)
    if folder is None:
        from pyarrow.fs import FileSystem

        try:
            FileSystem.from_uri(value)
        except Exception as error:  # the file systems raise what they like
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                where, f"{without_secrets(value)!r} is no place to store ({reason})", "name a folder or a bucket"
            ) from None
        return
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise InputError(where, f"{str(existing)!r} is a file", "name a folder")
