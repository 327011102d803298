"""SPAE in two workers of Ray is SPAE in two processes of PyTorch's launcher."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.ray_nodes import SETTINGS
from tests.conftest import Cli
from tests.trainers.spae_runs import PIECES, write_model
from tokencredit.trainers.callbacks import read_metrics

MODULE = """
def letters(completions, **columns):
    return [sum(map(ord, text)) % 101 / 101 for text in completions]
"""
KEYS: dict[str, Any] = {
    "trainer": "spae",
    "dataset_name": "worked_sums",
    "dataset_train_split": "train[:64]",
    "reward_funcs": "mine:letters",
    "reward_pool": {"workers": 1},
    "probe_template": "</think>\\boxed{",
    "max_steps": 2,
    "num_generations": 4,
    "max_completion_length": 48,
    "per_device_train_batch_size": 16,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "launch": {"strategy": "ddp", "num_processes": 2},
}
SAME = ("loss", "grad_norm", "reward", "spae/potential", "spae/steps", "spae/shaping", "completions/mean_length")


@pytest.mark.distributed
def test_the_same_run_under_ray(tmp_path: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampled answers too: workers have the ranks' seeds. 1e-6: the order of sums between processes."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    write_model(tmp_path / "model")
    assert ".\n\n" in PIECES
    (tmp_path / "mine.py").write_text(MODULE)
    recipe = KEYS | {"model_name_or_path": str(tmp_path / "model"), "output_dir": "plain"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run_cli(tmp_path, "train", "recipe.yaml")
    run_cli(tmp_path, "train", "recipe.yaml", "launch.ray=local", "output_dir=ray")
    plain, ray = ([line for line in read_metrics(tmp_path / name) if "loss" in line] for name in ("plain", "ray"))
    assert len(plain) == len(ray) == 2
    for one, other in zip(plain, ray, strict=True):
        assert one["spae/steps"] > 0
        assert {name: other[name] for name in SAME} == pytest.approx({name: one[name] for name in SAME}, abs=1e-6)
