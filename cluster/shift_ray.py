"""A comparison on a Ray cluster: a Ray Data pipeline whose workers each hold one pair of models."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from tokencredit.analysis.model_pair import ModelPair, shared_tokenizer
from tokencredit.analysis.shift import Scoring, score
from tokencredit.analysis.shift_run import Request, Scorer, Shard
from tokencredit.analysis.token_texts import token_texts
from tokencredit.analysis.trajectories import Trajectory
from tokencredit.cluster.ray_cluster import (
    called_ray,
    check_address,
    cluster,
    require_ray,
    same_place,
    worker_failures,
)
from tokencredit.scoring.shift import sides


def ray_scorer(address: str) -> Scorer:
    """A scorer for `tokencredit.analysis.shift_run.run`: shards go to the cluster's workers, their rows come back.

    Responses are written and kept by the process that asks; the folders of the models have to be there on every node.
    A shard's rows are those that this process would make, if its threads are as many as a worker's (one without
    accelerators).

    Args:
        address: `local`, `auto`, or the address of a cluster's head.

    Raises:
        InputError: Ray is not installed, or the address cannot be one.
    """
    with called_ray():
        require_ray()
        check_address(address)

    def scorer(request: Request, name: str, missing: list[Shard]) -> Iterator[pa.Table]:
        with called_ray(), cluster(address):
            yield from _scored(request, name, missing)

    return scorer


def _scored(request: Request, name: str, missing: list[Shard]) -> Iterator[pa.Table]:
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    DataContext.get_current().enable_progress_bars = False
    there = ray.cluster_resources()
    accelerators = int(there.get("GPU", 0))
    workers = min(len(missing), accelerators or max(1, int(there.get("CPU", 1))))
    items = [
        {"number": number, "first": piece.first, "part": json.dumps([item.as_dict() for item in piece.part])}
        for number, piece in enumerate(missing)
    ]
    rows = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _Worker,
        fn_constructor_kwargs={
            "base": same_place(request.base),
            "tuned": same_place(request.tuned[name]),
            "name": name,
            "dtype": request.dtype,
            "scoring": asdict(request.scoring),
        },
        batch_size=1,
        compute=ActorPoolStrategy(size=workers),
        num_cpus=None if accelerators else 1,
        num_gpus=1 if accelerators else None,
    )
    # They come as they are done; a table is in the order of its responses.
    waiting: dict[int, pa.Table] = {}
    wanted = 0
    with worker_failures():
        for row in rows.iter_rows():
            waiting[row["number"]] = pa.ipc.open_stream(row["rows"]).read_all()
            while wanted in waiting:
                yield waiting.pop(wanted)
                wanted += 1


class _Worker:
    """One pair of models, loaded once."""

    def __init__(self, base: str, tuned: str, name: str, dtype: str, scoring: dict[str, Any]) -> None:
        from tokencredit.cluster.quiet import quieten

        quieten()
        self.name, self.scoring = name, Scoring(**scoring)
        self.texts = token_texts(shared_tokenizer(base, tuned))
        # Left open: the models stay until the worker ends.
        self.models = ModelPair(base, dtype).against(tuned)
        self.both = sides(*self.models.__enter__())

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        (part,) = batch["part"]
        trajectories = [Trajectory(**line) for line in json.loads(part)]
        table = score(self.both, trajectories, int(batch["first"][0]), self.texts, name=self.name, scoring=self.scoring)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        return {"number": batch["number"], "rows": np.array([sink.getvalue().to_pybytes()], dtype=object)}
