"""`tokencredit cross-sample --ray` on two nodes: the answers are those of one process."""

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pyarrow.parquet as pq
import pytest
import ray
import ray.util
from ray.exceptions import RayTaskError, WorkerCrashedError
from typer.testing import CliRunner

from tests.analysis import markov
from tests.cluster.ray_nodes import Nodes
from tests.conftest import write_jsonl
from tokencredit.cli import app
from tokencredit.cluster.cross_ray import open_on_ray
from tokencredit.errors import InputError


@pytest.mark.slow
@pytest.mark.distributed
def test_answers_of_two_nodes_are_those_of_one_process(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = markov.letters_tokenizer()
    for name, model in zip(("base", "tuned"), markov.pair(tokenizer), strict=True):
        markov.save(model, tokenizer, tmp_path / name)
    # Three parts, so that both workers have something to do.
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": letters} for letters in ("p", "qr", "pqr", "r") * 10])
    settings = ["--prompts", "prompts.jsonl", "--max-new-tokens", "12", "--resamples", "50", "--epsilon", "0.1"]
    tables: dict[str, Any] = {}
    for name, more in {"here": [], "ray": ["--ray", nodes.address]}.items():
        command = ["cross-sample", "base", "tuned", *settings, *more, "--output", name]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.stderr
        tables[name] = pq.read_table(tmp_path / name / "samples.parquet")
    assert tables["ray"].equals(tables["here"])
    # The names of the kept parts hold the fingerprint of the weights.
    kept = [sorted(path.name for path in (tmp_path / name / "parts").iterdir()) for name in tables]
    assert kept[0] == kept[1]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (WorkerCrashedError(), "--ray: a worker failed .*; check that every node has the models"),
        (
            RayTaskError("run", "", InputError("models", "are odd", "mend them")).as_instanceof_cause(),
            "^models: are odd",
        ),
    ],
)
def test_a_worker_that_fails_while_it_writes(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pool:
        def __init__(self, workers: list[Any]) -> None:
            assert len(workers) == 1

        def map_unordered(self, *_: Any) -> Any:
            raise error

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1})
    monkeypatch.setattr(ray, "remote", lambda **_: lambda _: MagicMock())
    monkeypatch.setattr(ray, "get", lambda _: [("", ())])
    monkeypatch.setattr(ray.util, "ActorPool", Pool)
    decode = open_on_ray(("base", "tuned"), 1, 1).decode
    with pytest.raises(InputError, match=message) as raised:
        list(decode([]))
    assert len(str(raised.value).splitlines()) == 1
