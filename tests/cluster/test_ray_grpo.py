"""TokenGRPO in two workers of Ray with ZeRO-3 is TokenGRPO in two processes of PyTorch's launcher."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.curves import SHARD_EVERYTHING
from tests.cluster.ray_nodes import SETTINGS
from tests.conftest import Cli
from tokencredit.trainers.callbacks import ENVIRONMENT, read_metrics

MODULE = """
def letters(completions, **columns):
    return [sum(map(ord, text)) % 101 / 101 for text in completions]
"""
KEYS: dict[str, Any] = {
    "trainer": "token_grpo",
    "reward_funcs": "mine:letters",
    "reward_pool": {"workers": 1},
    "credit": ["reinforce_pp_baseline", "high_entropy_mask"],
    "token_weight": "divergence_weighted",
    "max_steps": 4,
    "num_generations": 4,
    "num_iterations": 2,
    "max_completion_length": 8,
    "per_device_train_batch_size": 4,
    "save_strategy": "no",
    "share_prefixes": "on",
    "launch": {"strategy": "zero3", "num_processes": 2},
}
SAME = ("loss", "grad_norm", "entropy", "live_tokens", "shared_prefix/token_ratio")


@pytest.mark.distributed
def test_the_same_run_under_ray(
    recipe_text: dict[str, Any], tmp_path: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampled answers too: workers have the ranks' seeds. 1e-6: the order of sums between processes."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_text | KEYS))
    words = ["train", "recipe.yaml", SHARD_EVERYTHING]
    run_cli(tmp_path, *words, "output_dir=plain")
    run_cli(tmp_path, *words, "launch.ray=local", "output_dir=ray")
    plain, ray = ([line for line in read_metrics(tmp_path / name) if "loss" in line] for name in ("plain", "ray"))
    assert len(plain) == len(ray) == 4
    for one, other in zip(plain, ray, strict=True):
        found = {name: other[name] for name in SAME if name in one}
        assert found == pytest.approx({name: one[name] for name in SAME if name in one}, rel=1e-5, abs=1e-6)
    assert ray[0]["reward"] == pytest.approx(plain[0]["reward"], abs=1e-6)
    assert plain[1]["grad_norm"] > 1e-3
    environment = json.loads((tmp_path / "ray" / ENVIRONMENT).read_text())
    assert environment["world_size"] == 2
    assert environment["zero_stage"] == 3
    assert environment["parameters_partitioned"] == environment["parameters"] > 0
