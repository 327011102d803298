"""One recipe gives one curve, however it is spread over processes and micro-batches.

The reference is one process with a batch of 8. Tolerance 1e-6: the same float32 sums are taken in another order
(float32 resolves 6e-8 of a loss near one, 5e-7 of a loss near eight), and four optimiser steps pass that on.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import SHORT_RUN, preferences, write_jsonl
from tokencredit.trainers.callbacks import ENVIRONMENT, read_metrics

TOLERANCE = 1e-6

SHARD_EVERYTHING = "deepspeed.zero_optimization.stage3_param_persistence_threshold=0"
SPREADS = {
    "accumulation": ["per_device_train_batch_size=1"],
    "ddp": ["per_device_train_batch_size=4", "launch=ddp", "launch.num_processes=2"],
    "zero2": ["per_device_train_batch_size=4", "launch=zero2", "launch.num_processes=2"],
    "zero3": ["per_device_train_batch_size=4", "launch=zero3", "launch.num_processes=2", SHARD_EVERYTHING],
}


Line = dict[str, float]

CLOCK = ("runtime", "_per_second", "total_flos")


def curve(run: Path) -> list[Line]:
    """What is logged of every step, without what depends on the clock."""
    lines = [line for line in read_metrics(run) if "loss" in line]
    return [{name: value for name, value in line.items() if not name.endswith(CLOCK)} for line in lines]


@pytest.fixture(scope="module")
def recipes(
    tiny_model: Path, sft_data: Path, dpo_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    # Labelled spans, so that figures per token class are compared too.
    labelled = {f"{side}_spans": [{"start": 0, "end": 2, "label": "name"}] for side in ("chosen", "rejected")}
    spans = write_jsonl(tmp_path_factory.mktemp("spans") / "train.jsonl", [row | labelled for row in preferences(64)])
    common = SHORT_RUN | {"model_name_or_path": str(tiny_model), "total_train_batch_size": 8}
    return {
        "sft": common | {"trainer": "sft", "dataset_name": str(sft_data)},
        # beta 1 makes the preference loss move by tenths within four steps
        "dpo": common | {"trainer": "dpo", "dataset_name": str(dpo_data), "beta": 1.0},
        "tab_po": common | {"trainer": "tab_po", "dataset_name": str(spans), "token_weights": {"differing": 1.5}},
    }


@pytest.fixture(scope="module")
def curves(
    recipes: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory, run_cli: Any
) -> dict[str, list[Line]]:
    """The reference curves: one process, whole batches."""
    found = {}
    for name, recipe in recipes.items():
        folder = tmp_path_factory.mktemp(f"reference_{name}")
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"output_dir": "run"}))
        run_cli(folder, "train", "recipe.yaml")
        found[name] = curve(folder / "run")
        assert len(found[name]) == 4
        first, last = (found[name][step]["loss"] for step in (0, 3))
        assert abs(first - last) > 0.01, "the model must move, or equal curves prove nothing"
    return found


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("method", "spread"),
    [(method, spread) for method in ("sft", "dpo") for spread in SPREADS]
    + [("tab_po", "accumulation"), ("tab_po", "zero3")],
)
def test_same_curve(
    method: str,
    spread: str,
    recipes: dict[str, dict[str, Any]],
    curves: dict[str, list[Line]],
    tmp_path: Path,
    run_cli: Any,
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipes[method] | {"output_dir": "run"}))
    run_cli(tmp_path, "train", "recipe.yaml", *SPREADS[spread])
    found = curve(tmp_path / "run")
    expected = [line["loss"] for line in curves[method]]
    assert [line["loss"] for line in found] == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)
    if method == "tab_po":
        assert "gradient_mass/name" in found[0]
        for line, reference in zip(found, curves[method], strict=True):
            # Sums of hundreds of log-probabilities: eight digits of float32 leave six of them.
            assert line == pytest.approx(reference, rel=1e-5, abs=1e-5)
    environment = json.loads((tmp_path / "run" / ENVIRONMENT).read_text())
    assert environment["world_size"] == (1 if spread == "accumulation" else 2)
    assert environment["zero_stage"] == {"zero2": 2, "zero3": 3}.get(spread, 0)
    if spread == "zero3":
        assert environment["parameters_partitioned"] == environment["parameters"] > 0
