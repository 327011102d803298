"""One recipe gives one curve, however it is spread over processes and micro-batches.

The reference is one process with a batch of 8. Tolerance 1e-6: the same float32 sums are taken in another order
(float32 resolves 6e-8 of a loss near one, 5e-7 of a loss near eight), and four optimiser steps pass that on.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.curves import SHARD_EVERYTHING, TOLERANCE, Line, curve, train
from tokencredit.trainers.callbacks import ENVIRONMENT

SPREADS = {
    "accumulation": ["per_device_train_batch_size=1"],
    "ddp": ["per_device_train_batch_size=4", "launch=ddp", "launch.num_processes=2"],
    "zero2": ["per_device_train_batch_size=4", "launch=zero2", "launch.num_processes=2"],
    "zero3": ["per_device_train_batch_size=4", "launch=zero3", "launch.num_processes=2", SHARD_EVERYTHING],
}


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("method", "spread"),
    [(method, spread) for method in ("sft", "dpo") for spread in SPREADS]
    + [("tab_po", "accumulation"), ("tab_po", "zero3")],
)
def test_same_curve(
    method: str,
    spread: str,
    short_recipes: dict[str, dict[str, Any]],
    curves: dict[str, list[Line]],
    tmp_path: Path,
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(short_recipes[method] | {"output_dir": "run"}))
    assert train(tmp_path / "recipe.yaml", *SPREADS[spread]) == 0
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
