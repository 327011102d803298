"""A run killed at a random step and started again by the same command ends as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.curves import train
from tests.cluster.ray_nodes import processes_with, wait_until
from tests.conftest import COMMAND
from tokencredit.trainers.callbacks import read_metrics
from tokencredit.trainers.checkpoints import checkpoints, latest_complete

STEPS = 60


@pytest.fixture
def recipe(recipe_text: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    keys = {
        "max_steps": STEPS,
        "save_strategy": "steps",
        "save_steps": 4,
        "save_total_limit": 2,
        "resume_from_checkpoint": True,
        # 64 rows in batches of 8: the kill falls in the middle of an epoch, seven times out of eight.
        "lr_scheduler_type": "cosine",
        # Dropout makes every step depend on the state of the random generators.
        "model_init_kwargs": {"attention_dropout": 0.2},
    }
    changed = recipe_text | keys
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(changed))
    return changed


def curve(run: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["loss"], line["learning_rate"]) for line in read_metrics(run) if "loss" in line]


def kill_after(step: int, folder: Path, run: Path, arguments: list[str]) -> None:
    """Start the command in its own process group and SIGKILL all of it once that step is logged."""
    process = subprocess.Popen(
        [*COMMAND, "train", *arguments],
        cwd=folder,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 240
    while not any(line["step"] >= step for line in read_metrics(run)):
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(recipe: dict[str, Any], tmp_path: Path, run_cli: Any) -> None:
    run_cli(tmp_path, "train", "recipe.yaml", "output_dir=whole")
    whole = curve(tmp_path / "whole")
    assert [step for step, _, _ in whole] == list(range(1, STEPS + 1))

    step = random.randint(6, STEPS - 10)
    print(f"killed after step {step}")
    kill_after(step, tmp_path, tmp_path / "run", ["recipe.yaml"])
    resumed_from, _ = latest_complete(tmp_path / "run")
    assert resumed_from is not None
    # A kill while the next checkpoint is being written leaves part of one.
    partial = tmp_path / "run" / f"checkpoint-{STEPS + 40}"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"part")

    done = run_cli(tmp_path, "train", "recipe.yaml")
    assert f"{partial.name} is incomplete" in done.stderr
    assert f"resuming from {resumed_from.name}" in done.stderr
    assert curve(tmp_path / "run") == whole
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "run")]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_first_attempt_with_another_model_leaves_nothing_behind(
    recipe: dict[str, Any], tmp_path: Path, run_cli: Any
) -> None:
    """A run that never reached a checkpoint is begun anew: model, settings and all."""
    scratch = {"init": {"model_type": "llama", "config": {"hidden_size": 32, "num_hidden_layers": 1}}}
    fresh = {key: value for key, value in recipe.items() if key != "model_name_or_path"} | scratch
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(fresh | {"max_steps": 2, "save_strategy": "no"}))
    run_cli(tmp_path, "train", "recipe.yaml", "init.config.num_attention_heads=2")
    (tmp_path / "run" / "training_args.bin").unlink()  # as if killed before the model was saved
    run_cli(tmp_path, "train", "recipe.yaml", "init.config.num_attention_heads=4")
    for name in ("init", "."):
        assert json.loads((tmp_path / "run" / name / "config.json").read_text())["num_attention_heads"] == 4
    done = run_cli(tmp_path, "train", "recipe.yaml", "init.config.num_attention_heads=4")
    assert "the run is complete" in done.stderr, "also without any checkpoint"


@pytest.mark.distributed
def test_killed_launcher_leaves_no_worker_and_resumes(recipe: dict[str, Any], tmp_path: Path) -> None:
    """Only the launcher is killed; its two workers must end with it, or they would write into the resumed run."""
    spread = {"per_device_train_batch_size": 4, "max_steps": 12, "launch": {"strategy": "ddp", "num_processes": 2}}
    path, run, whole = tmp_path / "recipe.yaml", tmp_path / "run", tmp_path / "whole"
    path.write_text(yaml.safe_dump(recipe | spread))
    assert train(path, f"output_dir={whole}") == 0
    process = subprocess.Popen([*COMMAND, "train", path.name], cwd=tmp_path, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not any(line["step"] >= 6 for line in read_metrics(run)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    wait_until(lambda: processes_with(str(run / "recipe.yaml")) == [], seconds=20)
    assert train(path, f"output_dir={run}") == 0
    assert curve(run) == curve(whole)


@pytest.mark.slow
def test_finished_run_started_again_stays_as_it_is(recipe: dict[str, Any], tmp_path: Path, run_cli: Any) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"max_steps": 4}))
    run = tmp_path / "run"
    run_cli(tmp_path, "train", "recipe.yaml")
    before = curve(run)
    weights = (run / "model.safetensors").read_bytes()
    for name in ("model.safetensors", "training_args.bin"):
        (run / name).unlink()  # as if killed before the model was saved in the run folder
    for says in ("the run is complete at checkpoint-4", "the run is complete\n"):
        done = run_cli(tmp_path, "train", "recipe.yaml")
        assert says in done.stderr
        assert curve(run) == before
        assert (run / "model.safetensors").read_bytes() == weights
    longer = run_cli(tmp_path, "train", "recipe.yaml", "max_steps=6")
    assert "differs from the recipe the run began with: max_steps" in longer.stderr
    assert [step for step, _, _ in curve(run)] == [1, 2, 3, 4, 5, 6]
    assert [path.name for path in checkpoints(run)] == ["checkpoint-6", "checkpoint-4"]
    assert (run / "model.safetensors").read_bytes() != weights
