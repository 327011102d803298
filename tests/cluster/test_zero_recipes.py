"""The recipes for larger models under ZeRO-3, with a tiny model on two CPU processes."""

import json
from pathlib import Path

import pytest

from tests.cluster.curves import SHARD_EVERYTHING, train

SMALL = [
    "num_processes=2",
    SHARD_EVERYTHING,
    "max_steps=2",
    "num_train_epochs=1",
    "total_train_batch_size=4",
    "logging_steps=1",
    "dataset_train_split=train[:8]",
    "dataset_test_split=validation[:4]",
    "task_metric.limit=2",
    "task_metric.max_new_tokens=4",
]


@pytest.mark.slow
@pytest.mark.distributed
def test_lora_in_bfloat16_with_a_computed_reference(
    tiny_chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train("tab_po/addresses_llama3.1-8b", f"model_name_or_path={tiny_chat_model}", *SMALL) == 0
    run = tmp_path / "runs" / "tab_po-addresses_llama3.1-8b"
    environment = json.loads((run / "environment.json").read_text())
    assert (environment["world_size"], environment["zero_stage"]) == (2, 3)
    assert environment["parameters_partitioned"] == environment["parameters"]
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # Policy and reference are the same model in the first step. They were computed in batches of other shapes, and
    # bfloat16 rounds at 2⁻⁸.
    assert metrics[0]["pref_loss"] == pytest.approx(0.69315, abs=1e-3)
    assert any("eval_record_f1" in line for line in metrics)
    assert (run / "adapter_model.safetensors").is_file()
