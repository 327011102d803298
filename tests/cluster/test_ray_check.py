"""Broken set-ups of a Ray cluster and what `tokencredit check` says of them, on real nodes.

`pytest tests/cluster/test_ray_check.py --durations=0` shows how long each takes.
"""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.cluster.ray_nodes import Nodes, descendants, free_port
from tests.conftest import SHORT_RUN
from tokencredit.cluster import ray_check
from tokencredit.cluster.launch import examine, prepare
from tokencredit.cluster.preflight import Preflight
from tokencredit.errors import InputError
from tokencredit.recipes.files import merge, normalise
from tokencredit.recipes.schema import parse_recipe

pytestmark = pytest.mark.distributed

APART = {"strategy": "ddp", "num_processes": 1, "ray": {"resources_per_worker": {"CPU": 0, "apart": 1}}}
"""A worker on the node that stands apart."""


@dataclass
class Place:
    """The cluster, and a folder that one of its nodes does not see."""

    nodes: Nodes
    apart: subprocess.Popen[bytes]
    hidden: Path
    shared: Path


@pytest.fixture(scope="module")
def place(nodes: Nodes, tiny_model: Path, sft_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A third node: with an older TRL, and another folder where the others have models and data."""
    hidden, shared, older = (tmp_path_factory.mktemp(name) for name in ("hidden", "shared", "older"))
    (older / "trl-1.15.0.dist-info").mkdir()
    (older / "trl-1.15.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: trl\nVersion: 1.15.0\n")
    apart = nodes.add({"apart": 1}, {"PYTHONPATH": str(older)}, hides=hidden)
    shutil.copytree(tiny_model, hidden / "model")
    shutil.copytree(sft_data, hidden / "data")
    (hidden / "my_metric.py").write_text("def score(predictions, references):\n    return {'same': 1.0}\n")
    yield Place(nodes, apart, hidden, shared)
    nodes.lose(apart)


@pytest.fixture
def look(
    place: Place, tiny_model: Path, sft_data: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[dict[str, Any]], Preflight]]:
    """Examine a recipe on the cluster; a dictionary changes what is as it should be."""

    def check(changes: dict[str, Any]) -> Preflight:
        base = SHORT_RUN | {
            "trainer": "sft",
            "output_dir": str(place.shared / "run"),
            "model_name_or_path": str(tiny_model),
            "dataset_name": str(sft_data),
            "launch": {"strategy": "ddp", "num_processes": 2, "ray": {"address": place.nodes.address}},
        }
        return examine(parse_recipe(merge(base, normalise(changes))))

    yield check
    ray.shutdown()
    assert list(place.shared.rglob("*")) == [], "nothing that was written stays"
    assert [path.name for path in place.hidden.iterdir() if path.name.startswith(".")] == []


@pytest.fixture
def busy(place: Place) -> None:
    """One of the two CPUs is somebody else's."""
    ray.init(address=place.nodes.address, log_to_driver=False, logging_level="ERROR")
    assert ray.util.placement_group([{"CPU": 1}]).wait(timeout_seconds=20)


def test_all_is_well(look: Callable[[dict[str, Any]], Preflight]) -> None:
    found = look({"launch": {"ray": {"storage_path": "file:///tmp"}}})
    assert found.problems() == []
    assert [finding.name for finding in found.findings] == [
        *("launch", "run folder", "settings", "model", "memory", "data"),
        *("nodes", "versions", "storage", "files", "functions", "memory there", "free now"),
    ]
    assert found.findings[6].detail == "2 have answered"
    assert found.findings[-1].detail == "room for 2"


@dataclass
class Case:
    """A set-up that cannot work.

    Args:
        says: Parts of one of the lines that are printed.
        changes: What is wrong in the recipe; `{hidden}` and `{shared}` stand for folders.
        only: Whether nothing else is wrong.
    """

    says: list[str]
    changes: dict[str, Any] = field(default_factory=dict)
    only: bool = True


CASES = {
    "more workers than CPUs": Case(["launch.num_processes", "room for 2"], {"launch": {"num_processes": 3}}),
    "more nodes than there are": Case(
        ["launch.num_processes", "under STRICT_SPREAD; room for 3"],
        {
            "launch": {
                "num_processes": 4,
                "ray": {"placement": "STRICT_SPREAD", "resources_per_worker": {"CPU": 0, "memory": 1}},
            }
        },
    ),
    "no accelerator": Case(
        ["launch.num_processes", "1 GPU"], {"launch": {"ray": {"resources_per_worker": {"GPU": 1}}}}
    ),
    "nobody at the address": Case(
        ["launch.ray.address", "nothing answers"], {"launch": {"ray": {"address": "{nobody}"}}}
    ),
    "run folder not shared": Case(
        ["output_dir", "is another folder on", "storage that all nodes share"],
        {"launch": APART, "output_dir": "{hidden}/run"},
        only=False,
    ),
    "storage path not shared": Case(
        ["launch.ray.storage_path", "is another folder on"],
        {"launch": merge(APART, {"ray": {"storage_path": "{hidden}"}})},
        only=False,
    ),
    "storage path not writable": Case(
        ["launch.ray.storage_path", "cannot write to '/proc'"],
        {"launch": {"ray": {"storage_path": "file:///proc/nowhere"}}},
    ),
    "bucket not writable": Case(
        ["launch.ray.storage_path", "cannot write to 's3://bucket/x'", "its credentials there"],
        {"launch": {"ray": {"storage_path": "s3://k:s@bucket/x?endpoint_override={nobody}&scheme=http&region=x"}}},
        only=False,  # each node gives its own reason
    ),
    "other versions": Case(["launch.ray", "has trl 1.15.0, the node of the command 1.16"], {"launch": APART}),
    "data not on a node": Case(
        ["dataset_name", "/data' is not on", "storage that all nodes share"],
        {"launch": APART, "dataset_name": "{hidden}/data"},
        only=False,
    ),
    "model not on a node": Case(
        ["model_name_or_path", "/model' is not on"],
        {"launch": APART, "model_name_or_path": "{hidden}/model"},
        only=False,
    ),
    "function not on a node": Case(
        ["task_metric", "my_metric", "cannot be imported", "tokencredit submit"],
        {"launch": APART, "task_metric": "my_metric:score", "eval_strategy": "steps", "eval_steps": 2},
        only=False,
    ),
    "data that is not there": Case(["dataset_name", "nowhere.jsonl"], {"dataset_name": "{shared}/nowhere.jsonl"}),
}


@pytest.mark.parametrize("name", CASES)
def test_broken_set_up(
    name: str, look: Callable[[dict[str, Any]], Preflight], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    monkeypatch.chdir(place.hidden)
    monkeypatch.syspath_prepend(str(place.hidden))
    names = {"hidden": place.hidden, "shared": place.shared, "nobody": f"127.0.0.1:{free_port()}"}
    lines = [str(problem) for problem in look(filled(case.changes, names)).problems()]
    assert any(all(part in line for part in case.says) for line in lines), lines
    assert len(lines) == 1 or not case.only, lines


def filled(value: Any, names: dict[str, Any]) -> Any:
    """A nested value with the names in its texts replaced."""
    if isinstance(value, dict):
        return {key: filled(part, names) for key, part in value.items()}
    return re.sub(r"\{(\w+)\}", lambda match: str(names[match[1]]), value) if isinstance(value, str) else value


def test_a_run_folder_that_exists(place: Place, look: Callable[[dict[str, Any]], Preflight]) -> None:
    """The file by which nodes know the folder is not taken for one of a run."""
    (place.shared / "run").mkdir()
    lines = [str(problem) for problem in look({}).problems()]
    (place.shared / "run").rmdir()
    assert lines == []


def test_a_cluster_that_can_grow(
    place: Place, look: Callable[[dict[str, Any]], Preflight], busy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory is unknown, and workers for which there is no room now are no fault."""
    monkeypatch.setattr(ray_check, "growth", lambda: {"CPU": 8.0})
    found = look({})
    assert found.problems() == []
    details = {finding.name: finding.detail for finding in found.findings}
    assert details["memory there"] == "unknown: the cluster can grow"
    assert details["free now"] == "room for 1, for 2 once the cluster has grown"


def test_nobody_to_ask(look: Callable[[dict[str, Any]], Preflight], monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first node is up nothing is said of any."""
    monkeypatch.setattr(ray_check, "growth", lambda: {"CPU": 8.0})
    monkeypatch.setattr(ray_check, "_ask", lambda *given: {})
    found = look({})
    assert found.findings[6].detail == "none is up that could be asked"
    assert not {"versions", "storage", "files", "functions"} & {finding.name for finding in found.findings}


def test_another_file_of_the_same_name(place: Place, look: Callable[[dict[str, Any]], Preflight]) -> None:
    own = f"/proc/{place.apart.pid}/root{place.hidden}"
    (Path(own) / "data").mkdir(exist_ok=True)
    (Path(own) / "data" / "train.jsonl").write_text("{}\n")
    lines = [str(problem) for problem in look({"launch": APART, "dataset_name": f"{place.hidden}/data"}).problems()]
    shutil.rmtree(Path(own) / "data")
    assert any("/data' is another file on" in line for line in lines), lines


def test_node_that_does_not_answer(
    place: Place,
    recipe_text: dict[str, Any],
    look: Callable[[dict[str, Any]], Preflight],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is a fault for `check`, and a note before a launch, which can wait."""
    monkeypatch.setattr(ray_check, "LIMIT_S", 0.5)
    stopped = descendants(place.apart.pid)
    for process in stopped:
        os.kill(process, signal.SIGSTOP)
    try:
        lines = [str(problem) for problem in look({"launch": APART}).problems()]
        ray.shutdown()
        apart = merge(APART, {"ray": {"address": place.nodes.address}})
        notes = prepare(parse_recipe(recipe_text | {"launch": apart}))[2].notes
    finally:
        for process in stopped:
            os.kill(process, signal.SIGCONT)
    assert any("has not answered within 0.5 s" in line for line in lines), lines
    assert any("has not answered within 0.5 s: it is not checked" in note for note in notes), notes


def test_busy_cluster(look: Callable[[dict[str, Any]], Preflight], busy: None) -> None:
    lines = [str(problem) for problem in look({}).problems()]
    says = "launch.num_processes: 2 workers are wanted, and the cluster has room for 1 now; wait until other jobs"
    assert len(lines) == 1
    assert lines[0].startswith(says)


def test_model_too_large(look: Callable[[dict[str, Any]], Preflight], monkeypatch: pytest.MonkeyPatch) -> None:
    answers = ray_check._answers

    def scarce(*given: Any) -> Any:
        found, broken, late = answers(*given)
        return [replace(answer, memory=1000.0) for answer in found], broken, late

    monkeypatch.setattr(ray_check, "_answers", scarce)
    (line,) = [str(problem) for problem in look({}).problems()]
    assert line.startswith("launch: 2 under ddp need ")
    assert "room for 0; launch=zero3 on more processes" in line


def test_train_refuses_and_waits(
    place: Place, recipe_text: dict[str, Any], look: Callable[[dict[str, Any]], Preflight], busy: None
) -> None:
    """The same checks stand before a launch, where a busy cluster is only noted."""
    launch = {"strategy": "ddp", "num_processes": 2, "ray": {"address": place.nodes.address}}
    notes = prepare(parse_recipe(recipe_text | {"launch": launch}))[2].notes
    assert "2 workers are wanted, and the cluster has room for 1 now: they will wait" in notes
    apart = merge(APART, {"ray": {"address": place.nodes.address}})
    with pytest.raises(InputError, match=r"launch.ray: .* has trl 1.15.0"):
        prepare(parse_recipe(recipe_text | {"launch": apart}))
    assert not Path(recipe_text["output_dir"]).exists()
