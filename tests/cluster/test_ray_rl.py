"""TokenGRPO and SPAE in two workers of Ray are what they are in two processes of PyTorch's launcher."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.curves import SHARD_EVERYTHING, Line, train
from tests.cluster.ray_nodes import Nodes
from tests.trainers.spae_runs import write_model
from tokencredit.trainers.callbacks import ENVIRONMENT, read_metrics

MODULE = """
def letters(completions, **columns):
    return [sum(map(ord, text)) % 101 / 101 for text in completions]
"""
COMMON: dict[str, Any] = {
    "reward_funcs": "mine:letters",
    "reward_pool": {"workers": 1},
    "num_generations": 4,
    "save_strategy": "no",
    "max_steps": 2,
}
TOKEN_GRPO = COMMON | {
    "trainer": "token_grpo",
    "credit": ["reinforce_pp_baseline", "high_entropy_mask"],
    "token_weight": "divergence_weighted",
    "num_iterations": 2,
    "max_completion_length": 8,
    "per_device_train_batch_size": 4,
    "share_prefixes": "on",
    "launch": {"strategy": "zero3", "num_processes": 2},
}
SPAE = COMMON | {
    "trainer": "spae",
    "dataset_name": "worked_sums",
    "dataset_train_split": "train[:64]",
    "probe_template": "</think>\\boxed{",
    "max_completion_length": 48,
    "per_device_train_batch_size": 16,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "launch": {"strategy": "ddp", "num_processes": 2},
}
OF_BOTH = ("loss", "grad_norm", "reward")
OF_TOKEN_GRPO = ("entropy", "live_tokens", "shared_prefix/token_ratio")
OF_SPAE = ("spae/potential", "spae/steps", "spae/shaping", "completions/mean_length")


def both_ways(
    recipe: dict[str, Any], nodes: Nodes, folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str
) -> list[tuple[Line, Line]]:
    """What is logged of each step without Ray and with it."""
    monkeypatch.chdir(folder)
    (folder / "mine.py").write_text(MODULE)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert train("recipe.yaml", *words, "output_dir=plain") == 0
    assert train("recipe.yaml", *words, "output_dir=ray", f"launch.ray={nodes.address}") == 0
    plain, ray = ([line for line in read_metrics(folder / name) if "loss" in line] for name in ("plain", "ray"))
    assert len(plain) == recipe["max_steps"]
    return list(zip(plain, ray, strict=True))


@pytest.mark.distributed
def test_token_grpo(recipe_text: dict[str, Any], nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampled answers too: workers have the ranks' seeds. 1e-6: the order of sums between processes."""
    lines = both_ways(recipe_text | TOKEN_GRPO, nodes, tmp_path, monkeypatch, SHARD_EVERYTHING)
    for plain, ray in lines:
        names = [name for name in OF_BOTH + OF_TOKEN_GRPO if name in plain]
        assert [ray[name] for name in names] == pytest.approx([plain[name] for name in names], rel=1e-5, abs=1e-6)
    assert {"loss", "reward", "live_tokens"} <= lines[0][0].keys()
    assert lines[1][0]["grad_norm"] > 1e-3, "the second update of the answers"
    environment = json.loads((tmp_path / "ray" / ENVIRONMENT).read_text())
    assert environment["world_size"] == 2
    assert environment["zero_stage"] == 3
    assert environment["parameters_partitioned"] == environment["parameters"] > 0


@pytest.mark.distributed
def test_spae(nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above: 1e-6."""
    write_model(tmp_path / "model")
    recipe = SPAE | {"model_name_or_path": str(tmp_path / "model")}
    for plain, ray in both_ways(recipe, nodes, tmp_path, monkeypatch):
        assert plain["spae/steps"] > 0
        names = OF_BOTH + OF_SPAE
        assert [ray[name] for name in names] == pytest.approx([plain[name] for name in names], abs=1e-6)
