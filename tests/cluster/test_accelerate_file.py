"""A user's own Accelerate configuration file launches the same run."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tokencredit.trainers.callbacks import ENVIRONMENT, read_metrics

ZERO2 = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "DEEPSPEED",
    "deepspeed_config": {"zero_stage": 2, "gradient_accumulation_steps": 1, "zero3_init_flag": False},
    "mixed_precision": "no",
    "num_machines": 1,
    "num_processes": 2,
    "machine_rank": 0,
    "use_cpu": True,
}


@pytest.mark.distributed
def test_deepspeed_file(recipe_text: dict[str, Any], tmp_path: Path, run_cli: Any) -> None:
    (tmp_path / "zero2.yaml").write_text(yaml.safe_dump(ZERO2))
    recipe = recipe_text | {"launch": "zero2.yaml", "per_device_train_batch_size": 4, "max_steps": 2}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run_cli(tmp_path, "train", "recipe.yaml")
    environment = json.loads((tmp_path / "run" / ENVIRONMENT).read_text())
    assert environment["world_size"] == 2
    assert environment["zero_stage"] == 2
    assert [line["step"] for line in read_metrics(tmp_path / "run") if "loss" in line] == [1, 2]
