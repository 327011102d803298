"""What the command prints about a run."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import TrainerState

from tokencredit.cluster.report import scores
from tokencredit.recipes.schema import parse_recipe
from tokencredit.trainers.callbacks import METRICS

LINES = [
    {"step": 1, "epoch": 0.1, "loss": 2.0},
    {"step": 2, "epoch": 0.2, "eval_loss": 1.5, "eval_runtime": 3.0},
    {"step": 2, "epoch": 0.2, "eval_record_f1": 0.625},
    {"step": 4, "epoch": 0.4, "eval_loss": 1.25, "eval_runtime": 3.0},
    {"step": 4, "epoch": 0.4, "eval_record_f1": 0.5},
]


def shown(run: Path, **keys: Any) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        table = scores(parse_recipe({"trainer": "sft", "output_dir": str(run)} | keys))
        assert table is not None
        console.print(table)
    return capture.get()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / METRICS).write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return tmp_path


def test_scores_are_those_of_the_saved_model(run: Path) -> None:
    last = shown(run)
    assert "step 4" in last
    assert "0.5000" in last
    assert "runtime" not in last
    checkpoint = run / "checkpoint-4"
    checkpoint.mkdir()
    TrainerState(global_step=4).save_to_json(str(checkpoint / "trainer_state.json"))
    assert "step 4" in shown(run, load_best_model_at_end=True), "without a best checkpoint the last model is saved"
    moved = "/elsewhere/checkpoint-2"
    TrainerState(global_step=4, best_model_checkpoint=moved).save_to_json(str(checkpoint / "trainer_state.json"))
    best = shown(run, load_best_model_at_end=True)
    assert "step 2" in best
    assert "0.6250" in best


def test_no_evaluation_no_scores(tmp_path: Path) -> None:
    assert scores(parse_recipe({"trainer": "sft", "output_dir": str(tmp_path)})) is None
