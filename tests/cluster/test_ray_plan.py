"""From a recipe and a cluster to workers, and what is refused before anything starts."""

import re
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.ray_nodes import free_port
from tokencredit.cluster import ray_cluster
from tokencredit.cluster.launch import prepare
from tokencredit.cluster.plan import Plan
from tokencredit.cluster.ray_cluster import check_address, find_cluster
from tokencredit.cluster.ray_plan import Cluster, resolve_on_ray, worker_resources
from tokencredit.errors import InputError
from tokencredit.recipes.schema import RayLaunch, Recipe, parse_recipe

CPUS = Cluster([{"CPU": 4.0, "memory": 1e9}, {"CPU": 2.0}])
GPUS = Cluster([{"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 4.0}, {"CPU": 2.0}])


def recipe(strategy: str, processes: int | None = None, **ray: Any) -> Recipe:
    launch = {"strategy": strategy, "num_processes": processes, "ray": {"address": "auto"} | ray}
    return parse_recipe({"trainer": "sft", "output_dir": "/runs/a", "launch": launch})


def test_workers_on_cpus() -> None:
    resolved, plan, notes = resolve_on_ray(recipe("zero2", 6), CPUS)
    assert plan == Plan("zero2", 6)
    assert resolved.training["use_cpu"] is True
    assert resolved.training["deepspeed"]["zero_optimization"]["stage"] == 2
    assert notes == ["no accelerator here: training on CPU in float32"]


def test_no_worker_waits_for_an_accelerator_that_is_not_there() -> None:
    asked = recipe("ddp", 2).with_training(use_cpu=False)
    assert resolve_on_ray(asked, CPUS)[0].training["use_cpu"] is True


def test_a_worker_per_accelerator_of_the_cluster_wherever_the_command_runs() -> None:
    resolved, plan, notes = resolve_on_ray(recipe("zero3"), GPUS)
    assert plan == Plan("zero3", 8)
    assert not {"use_cpu", "bf16"} & set(resolved.training)
    assert notes == []
    assert resolve_on_ray(recipe("ddp", 2, resources_per_worker={"GPU": 0}), GPUS)[0].training["use_cpu"] is True


def test_one_worker_without_a_strategy() -> None:
    assert resolve_on_ray(recipe("none"), GPUS)[1] == Plan("none", 1)


@pytest.mark.parametrize(
    ("worker", "placement", "room"),
    [
        ({"CPU": 1.0}, "PACK", 6),
        ({"CPU": 3.0}, "SPREAD", 1),
        ({"CPU": 0.5}, "PACK", 12),
        ({"CPU": 1.0}, "STRICT_PACK", 4),
        ({"CPU": 1.0}, "STRICT_SPREAD", 2),
        ({"CPU": 1.0, "GPU": 1.0}, "PACK", 0),
        ({"CPU": 1.0, "GPU": 0.0}, "PACK", 6),
    ],
)
def test_room(worker: dict[str, float], placement: str, room: int) -> None:
    assert CPUS.room(worker, placement) == room


def test_room_of_a_cluster_that_grows() -> None:
    growing = Cluster([{"CPU": 1.0}], limits={"CPU": 64.0, "GPU": 8.0})
    assert growing.room({"CPU": 2.0, "GPU": 1.0}, "PACK") == 8
    assert "use_cpu" not in resolve_on_ray(recipe("ddp", 8), growing)[0].training


def test_resources_of_a_worker() -> None:
    spec = RayLaunch(address="auto", resources_per_worker={"CPU": 4, "disk": 1})
    assert worker_resources(spec, on_cpu=True) == {"CPU": 4, "disk": 1}
    assert worker_resources(spec, on_cpu=False) == {"CPU": 4, "GPU": 1, "disk": 1}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("ddp", 7, {}), "launch.num_processes: 7 workers with 1 CPU each is more than the cluster has; room for 6"),
        (("ddp", 3, {"placement": "STRICT_SPREAD"}), "is more than the cluster has under STRICT_SPREAD; room for 2"),
        (("ddp", 1, {"resources_per_worker": {"TPU": 1}}), "1 worker with 1 CPU, 1 TPU each is more than the cluster"),
        (("ddp", None, {}), "launch.num_processes: is missing for ddp on CPU"),
        (("none", 2, {}), "launch.num_processes: 2 processes with strategy none"),
        (("fsdp", 2, {}), "launch.strategy: fsdp does not shard on CPU"),
        (("my.yaml", 2, {}), "launch.strategy: an Accelerate file starts its own processes, as Ray does"),
        (("ddp", 2, {"storage_path": __file__}), f"launch.ray.storage_path: '{__file__}' is a file; name a folder"),
        (("ddp", 2, {"storage_path": "nowhere://x"}), "launch.ray.storage_path: 'nowhere://x' is no place to store"),
    ],
)
def test_what_cannot_run(given: tuple[str, int | None, dict[str, Any]], says: str) -> None:
    strategy, processes, ray = given
    with pytest.raises(InputError, match=re.escape(says)):
        resolve_on_ray(recipe(strategy, processes, **ray), CPUS)


@pytest.mark.parametrize(
    ("ray", "says"),
    [
        ({"placement": "pack"}, "launch.ray.placement: 'pack' is wrong; Input should be 'PACK', 'SPREAD'"),
        ({"max_failures": -2}, "launch.ray.max_failures: -2 is wrong"),
        ({"resources_per_worker": {"CPU": -1}}, "launch.ray.resources_per_worker: -1 is wrong"),
        ({"max_failure": 1}, "launch.ray.max_failure: unknown key; did you mean 'max_failures'?"),
        ({"address": None}, "launch.ray.address: None is wrong"),
    ],
)
def test_values_that_are_wrong(ray: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        recipe("ddp", 2, **ray)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("here", "launch.ray.address: unknown address 'here'; give local, auto or host:port"),
        (
            "http://head:8265",
            "'http://head:8265' is a job server; tokencredit submit RECIPE --address http://head:8265",
        ),
        ("ray://head:10001", "'ray://head:10001' is no address of a cluster's head"),
    ],
)
def test_addresses_that_are_none(address: str, says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        check_address(address)


def test_nobody_at_the_address(recipe_text: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", *ray_cluster._SETTINGS):
        monkeypatch.setenv(name, "disabled" if name == "RAY_AUTH_MODE" else "0")
    address = f"127.0.0.1:{free_port()}"
    made = parse_recipe(recipe_text | {"launch": {"strategy": "ddp", "num_processes": 2, "ray": {"address": address}}})
    with pytest.raises(InputError, match=f"launch.ray.address: nothing answers at '{address}'"):
        prepare(made)
    _, plan, found = prepare(made, dry_run=True)
    assert plan == Plan("ddp", 2)
    assert found.notes[0].startswith(f"planned without its cluster: launch.ray.address: nothing answers at '{address}'")


def test_ray_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str) -> ModuleSpec | None:
        return None

    monkeypatch.setattr(ray_cluster, "find_spec", found)
    with pytest.raises(InputError, match=r"launch.ray: needs Ray; pip install 'tokencredit\[ray\]'"):
        find_cluster("local")


def test_left_over_folders_of_killed_commands_are_removed(tmp_path: Path) -> None:
    ended, running = tmp_path / "tokencredit-ray-999999999-a", tmp_path / "tokencredit-ray-1-a"
    other = tmp_path / "tokencredit-ray-notes-x"
    for folder in (ended, running, other):
        folder.mkdir()
    ray_cluster._remove_left_over(tmp_path)
    assert sorted(tmp_path.iterdir()) == [running, other]
