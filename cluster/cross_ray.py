"""Two models that write together in workers of a Ray cluster, each of which holds both."""

from collections.abc import Iterator, Sequence
from typing import Any

from tokencredit.analysis.cross_models import Names, Opened, open_here
from tokencredit.analysis.cross_samples import Job
from tokencredit.analysis.model_pair import shared_tokenizer
from tokencredit.cluster.ray_cluster import same_place, worker_failures
from tokencredit.errors import InputError
from tokencredit.scoring.cross_decode import Trace


class Writer:
    """Both models in one worker of a cluster."""

    def __init__(self, names: Names, batch_size: int, dtype: str) -> None:
        opened = open_here(names, shared_tokenizer(*names), batch_size, dtype)
        self.decode, self.about = opened.decode, (opened.fingerprint, opened.stop_ids)

    def describe(self) -> tuple[str, tuple[int, ...]]:
        """Fingerprint of the weights, and the tokens that end an answer."""
        return self.about

    def run(self, place: int, job: Job) -> tuple[int, list[Trace]]:
        """Write the answers of one part; its place comes back with them."""
        ((_, traces),) = self.decode([job])
        return place, traces


def open_on_ray(names: Names, batch_size: int, parts: int, dtype: str = "auto") -> Opened:
    """Load both models into workers of the Ray cluster that this process has joined: one per GPU, else one per CPU.

    The folders have to be there on every node. A worker that is lost is started again, and its part with it; where it
    is lost once more, running the jobs raises an `InputError`.

    Args:
        names: Folders or hub names.
        batch_size: Answers at a time.
        parts: More workers than this are not started.
        dtype: Precision; by default that which they were saved in.

    Raises:
        InputError: The cluster has nothing to run them on, the workers have different weights, or loading fails.
    """
    import ray
    from ray.util import ActorPool

    have = ray.cluster_resources()
    kind = "GPU" if have.get("GPU") else "CPU"
    count = min(int(have.get(kind, 0)), max(1, parts))
    if count < 1:
        raise InputError("--ray", "the cluster has neither a GPU nor a CPU to run on", "give its nodes some")
    options: dict[str, Any] = {"num_cpus": 1, "num_gpus": int(kind == "GPU"), "max_restarts": 1, "max_task_retries": 1}
    places = tuple(map(same_place, names))
    remote = ray.remote(**options)(Writer)
    workers = [remote.remote(places, batch_size, dtype) for _ in range(count)]
    with worker_failures():
        told = ray.get([worker.describe.remote() for worker in workers])
    if len(set(told)) > 1:
        raise InputError("--ray", "the nodes have different models under these names", "use a folder that they share")
    pool = ActorPool(workers)

    def run(jobs: Sequence[Job]) -> Iterator[tuple[int, list[Trace]]]:
        with worker_failures():
            yield from pool.map_unordered(lambda worker, item: worker.run.remote(*item), list(enumerate(jobs)))

    return Opened(run, *told[0])
