"""Recipes as jobs of a cluster: what is sent, what is refused, and the curve and exit code that come back."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.curves import TOLERANCE, Line, losses
from tests.cluster.ray_nodes import Nodes, free_port
from tests.conftest import Cli, write_jsonl
from tokencredit.cluster.ray_submit import _pack, left_out, submit
from tokencredit.errors import InputError
from tokencredit.recipes.files import read_recipe
from tokencredit.recipes.schema import Recipe, parse_recipe

OWN = "my_weights:weigh"
DDP = ["launch=ddp", "launch.num_processes=2", "per_device_train_batch_size=4"]
WEIGHTS = """
import torch
from my_numbers import ONE

def weigh(example, text, offsets):
    return [ONE for _ in offsets]
"""


def recipe(**keys: Any) -> Recipe:
    return parse_recipe({"trainer": "sft", "output_dir": "/runs/a", "token_weights": {"function": OWN}} | keys)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the module of a function, another one that it imports, and much besides."""
    (tmp_path / "my_weights.py").write_text(WEIGHTS)
    (tmp_path / "my_numbers.py").write_text("ONE = 1.0\n")
    (tmp_path / "unrelated.py").write_text("")
    (tmp_path / "torch").mkdir()
    (tmp_path / "data.bin").write_bytes(bytes(30 * 2**20))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def packed(made: Recipe, folder: Path) -> set[str]:
    target = folder / "packed"
    target.mkdir()
    _pack(made, target)
    return {path.relative_to(target).as_posix() for path in target.rglob("*")}


def test_recipe_and_modules_are_sent(folder: Path) -> None:
    assert packed(recipe(), folder) == {"recipe.yaml", "my_weights.py", "my_numbers.py"}


def test_packages_are_sent_without_what_is_hidden(folder: Path) -> None:
    (folder / "mine" / ".git").mkdir(parents=True)
    for name in ("__init__.py", "weights.py", ".git/config"):
        (folder / "mine" / name).write_text("import unrelated\n" if name == "weights.py" else "")
    made = recipe(token_weights={"function": "mine.weights:weigh"})
    assert packed(made, folder) == {"recipe.yaml", "mine", "mine/__init__.py", "mine/weights.py", "unrelated.py"}


def test_job_runs_on_the_cluster_it_is_sent_to(folder: Path) -> None:
    ray = {"address": "local", "max_failures": 3}
    packed(recipe(launch={"strategy": "zero2", "num_processes": 2, "ray": ray}), folder)
    sent = parse_recipe(yaml.safe_load((folder / "packed" / "recipe.yaml").read_text()))
    assert sent.own.launch.ray is not None
    assert (sent.own.launch.ray.address, sent.own.launch.ray.max_failures) == ("auto", 3)
    assert (sent.own.launch.strategy, sent.own.launch.num_processes) == ("zero2", 2)


def test_credentials_are_not_sent(folder: Path) -> None:
    made = recipe(env={"WANDB_API_KEY": "hidden", "PLAIN": "shown"}, hub_token="hidden")
    packed(made, folder)
    text = (folder / "packed" / "recipe.yaml").read_text()
    assert "hidden" not in text
    assert "shown" in text
    assert left_out(made) == ["env.WANDB_API_KEY", "hub_token"]


def test_too_much_to_send(folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "data.bin").rename(folder / "mine" / "data.bin")
    with pytest.raises(InputError, match=r"submit: the modules that the recipe names, .* have 30 MiB"):
        packed(recipe(token_weights={"function": "mine:weigh"}), folder)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"address": "head:8265"}, "--address: 'head:8265' is no job server; give the address of the cluster's"),
        ({"address": f"http://127.0.0.1:{free_port()}"}, "--address: no job server that can be used at"),
        ({"variables": ["NOT_SET_HERE"]}, "--env: 'NOT_SET_HERE' is not set here; set it, or write NAME=VALUE"),
        ({"runtime_env": "working_dir: /x"}, "--runtime-env: has a working_dir, which is made of the recipe; remove"),
    ],
)
def test_wrong_input(given: dict[str, Any], says: str, folder: Path) -> None:
    if "runtime_env" in given:
        (folder / "env.yaml").write_text(given["runtime_env"])
        given = {"runtime_env": folder / "env.yaml"}
    with pytest.raises(InputError, match=f"^{re.escape(says)}"):
        submit(recipe(), **({"address": "http://127.0.0.1:1", "variables": [], "runtime_env": None} | given))


@pytest.mark.distributed
def test_same_curve(
    nodes: Nodes,
    short_recipes: dict[str, dict[str, Any]],
    curves: dict[str, list[Line]],
    folder: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """TAB-PO with a function of the user's own; the other methods run on the same cluster in `test_ray_train`."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump(short_recipes["tab_po"] | {"output_dir": "run"}))
    made = parse_recipe(read_recipe("recipe.yaml", [*DDP, f"token_weights.function={OWN}"]))
    job = submit(made, address=nodes.job_server, variables=[], runtime_env=None)
    assert job.follow() == 0
    expected = [line["loss"] for line in curves["tab_po"]]
    assert losses(folder / "run") == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)
    steps = [line.split()[1] for line in capfd.readouterr().out.splitlines() if line.startswith("step")]
    assert steps == ["1/4", "2/4", "3/4", "4/4"]


@pytest.mark.distributed
def test_exit_code_of_the_job(
    nodes: Nodes, short_recipes: dict[str, dict[str, Any]], tmp_path: Path, run_cli: Cli
) -> None:
    data = write_jsonl(tmp_path / "train.jsonl", [{"question": "?"}])
    changed = short_recipes["sft"] | {"output_dir": "run", "dataset_name": str(data)}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(changed))
    done = run_cli(tmp_path, "submit", "recipe.yaml", *DDP, "--address", nodes.job_server, check=False)
    assert done.returncode == 2
    assert [line for line in done.stdout.splitlines() if line.startswith("error: ")] != []
    assert not (tmp_path / "run").exists()
