"""The same recipe under Ray: the curve of one process, on a cluster of two nodes with a worker on each.

Tolerances as in `test_equivalence`. TAB-PO with DDP is submitted as a job (`test_ray_submit`).
"""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.curves import SHARD_EVERYTHING, TOLERANCE, Line, curve, train
from tests.cluster.ray_nodes import SETTINGS, Nodes, processes_with
from tests.conftest import Cli
from tokencredit.trainers.callbacks import ENVIRONMENT

TWO = ["per_device_train_batch_size=4", "launch.num_processes=2"]
SPREADS = {"ddp": ["launch=ddp"], "zero2": ["launch=zero2"], "zero3": ["launch=zero3", SHARD_EVERYTHING]}


def write(folder: Path, recipe: dict[str, Any]) -> None:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"output_dir": "run"}))


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("method", "spread"),
    [("sft", "ddp"), ("dpo", "ddp"), *product(["sft", "dpo", "tab_po"], ["zero2", "zero3"]), ("t_reg", "zero3")],
)
def test_same_curve(
    method: str,
    spread: str,
    nodes: Nodes,
    short_recipes: dict[str, dict[str, Any]],
    curves: dict[str, list[Line]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path, short_recipes[method])
    assert train(tmp_path / "recipe.yaml", *TWO, *SPREADS[spread], f"launch.ray={nodes.address}") == 0
    found = curve(tmp_path / "run")
    expected = [line["loss"] for line in curves[method]]
    assert [line["loss"] for line in found] == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)
    for line, reference in zip(found, curves[method], strict=True):
        # Sums of hundreds of log-probabilities: eight digits of float32 leave six of them.
        assert line == pytest.approx(reference, rel=1e-5, abs=1e-5)
    steps = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert steps == ["1/4", "2/4", "3/4", "4/4"], "each line once, as without Ray"
    environment = json.loads((tmp_path / "run" / ENVIRONMENT).read_text())
    assert environment["world_size"] == 2
    assert environment["zero_stage"] == {"zero2": 2, "zero3": 3}.get(spread, 0)
    if spread == "zero3":
        assert environment["parameters_partitioned"] == environment["parameters"] > 0


@pytest.mark.distributed
def test_cluster_of_its_own_on_this_machine(
    short_recipes: dict[str, dict[str, Any]],
    curves: dict[str, list[Line]],
    tmp_path: Path,
    run_cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same folder and the same words as without Ray, and nothing left behind."""
    for name in SETTINGS:
        monkeypatch.delenv(name)
    write(tmp_path, short_recipes["sft"] | {"env": {"RUN": str(tmp_path)}})
    words = ["launch=ddp", *TWO]
    names = ("plain", "ray")
    plain, ray = (
        run_cli(tmp_path, "train", "recipe.yaml", *words, *more, f"output_dir={name}")
        for name, more in zip(names, ([], ["launch.ray=local"]), strict=True)
    )
    assert ray.stdout == plain.stdout.replace("plain", "ray")
    # Torch's own notices do not pass through Python.
    assert ray.stderr.splitlines() == [line for line in plain.stderr.splitlines() if not line.startswith("[rank")]
    files = [sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*")) for name in names]
    assert files[0] == files[1]
    found = [line["loss"] for line in curve(tmp_path / "ray")]
    assert found == pytest.approx([line["loss"] for line in curves["sft"]], rel=TOLERANCE, abs=TOLERANCE)
    resolved = [yaml.safe_load((tmp_path / name / "recipe.yaml").read_text()) for name in names]
    assert resolved[1].pop("launch") == resolved[0].pop("launch") | {"ray": {"address": "local"}}
    for recipe in resolved:
        recipe.pop("output_dir")
    assert resolved[0] == resolved[1]
    assert processes_with(str(tmp_path)) == []


def test_without_ray_nothing_of_it_is_imported(recipe_text: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_text | {"max_steps": 1}))
    program = """
import sys
from tokencredit.cli import app
app(["train", "recipe.yaml"], standalone_mode=False)
print([name for name in sys.modules if name.split(".")[0] == "ray" or ".ray_" in name])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
