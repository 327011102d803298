"""What breaks under Ray, and that the run ends as if nothing had: the losses of an undisturbed one, to 1e-6."""

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.cluster.curves import TOLERANCE, losses, train
from tests.cluster.ray_nodes import Nodes, wait_until
from tests.conftest import COMMAND
from tokencredit.errors import InputError
from tokencredit.trainers.checkpoints import checkpoints

ROOT = Path(__file__).parents[2]
STEPS = 10


@pytest.fixture(scope="module")
def recipe(short_recipes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return short_recipes["dpo"] | {
        "trainer": "preference",
        "loss": "tests.cluster.faulty:loss",
        "max_steps": STEPS,
        "lr_scheduler_type": "cosine",
        "per_device_train_batch_size": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "resume_from_checkpoint": True,
        "launch": {"strategy": "ddp", "num_processes": 2},
    }


@pytest.fixture(scope="module")
def undisturbed(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"output_dir": "run"}))
    assert train(folder / "recipe.yaml") == 0
    return losses(folder / "run")


@pytest.fixture
def written(recipe: dict[str, Any], nodes: Nodes, tmp_path: Path) -> Iterator[Path]:
    """The recipe with `launch.ray`, in a folder of its own."""
    ray = {"address": nodes.address, "max_failures": 1, "storage_path": "state"}
    environment = {"FAULT_RUN": str(tmp_path / "run")}
    changed = recipe | {"output_dir": "run", "launch": recipe["launch"] | {"ray": ray}, "env": environment}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(changed))
    yield tmp_path / "recipe.yaml"
    assert worker_ids(tmp_path) != [], "the fault took place"


def worker_ids(folder: Path) -> list[int]:
    """The processes in which the fault took place."""
    return [int(path.read_text()) for path in folder.glob("happened-*")]


def check_whole(path: Path, undisturbed: list[float]) -> None:
    assert losses(path.parent / "run") == pytest.approx(undisturbed, rel=TOLERANCE, abs=TOLERANCE)
    assert len(undisturbed) == STEPS
    assert checkpoints(path.parent / "run")[0].name == f"checkpoint-{STEPS}"
    assert (path.parent / "run" / "model.safetensors").is_file()


@pytest.mark.distributed
def test_killed_worker(written: Path, undisturbed: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert train(written, "launch=zero2", "env.FAULT=kill") == 0
    shown = capsys.readouterr()
    assert "note: a worker failed: attempt 2 of the workers\nnote: resuming from checkpoint-6\n" in shown.err
    assert [line.split()[1] for line in shown.out.splitlines() if line.startswith("step")] == [
        f"{step}/{STEPS}" for step in (*range(1, 7), *range(7, STEPS + 1))
    ]
    check_whole(written, undisturbed)
    assert any((written.parent / "state").iterdir()), "Ray Train keeps its own state where it is told to"


@pytest.mark.distributed
def test_truncated_checkpoint(written: Path, undisturbed: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert train(written, "env.FAULT=truncate") == 0
    shown = capsys.readouterr().err
    assert "note: checkpoint-6 is incomplete (the run was ended while it was saved): skipped\n" in shown
    assert "note: resuming from checkpoint-4\n" in shown
    check_whole(written, undisturbed)


@pytest.mark.distributed
def test_lost_and_replaced_node(
    written: Path, undisturbed: list[float], nodes: Nodes, capsys: pytest.CaptureFixture[str]
) -> None:
    def replace() -> None:
        wait_until(lambda: len(worker_ids(written.parent)) == 2)
        nodes.lose(nodes.nodes[-1])
        nodes.add()

    replacing = threading.Thread(target=replace)
    replacing.start()
    assert train(written, "env.FAULT=hang") == 0
    replacing.join()
    assert "note: resuming from checkpoint-6\n" in capsys.readouterr().err
    check_whole(written, undisturbed)


@pytest.mark.distributed
def test_killed_driver(written: Path, undisturbed: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    driver = subprocess.Popen(
        [*COMMAND, "train", str(written), "env.FAULT=hang"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    wait_until(lambda: len(worker_ids(written.parent)) == 2)
    driver.kill()
    driver.communicate()
    wait_until(lambda: not any(psutil.pid_exists(worker) for worker in worker_ids(written.parent)), seconds=20)
    assert train(written, "env.FAULT=hang") == 0
    check_whole(written, undisturbed)


@pytest.mark.distributed
def test_wrong_input_in_one_worker_ends_the_run_at_once(written: Path) -> None:
    with pytest.raises(InputError, match="loss: the seventh batch is bad; mend it"):
        train(written, "env.FAULT=refuse")
    assert not any(thread.name == "ray-train" for thread in threading.enumerate())
    wait_until(lambda: not any(psutil.pid_exists(worker) for worker in worker_ids(written.parent)), seconds=20)
