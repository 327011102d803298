"""The metrics file of a run, also after kills and restarts."""

import json
from io import StringIO
from pathlib import Path

from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from tokencredit.trainers.callbacks import METRICS, JsonlMetrics, ProgressLines, read_metrics


def arguments(run: Path) -> TrainingArguments:
    return TrainingArguments(output_dir=str(run), use_cpu=True)


def state(step: int, *, main: bool = True) -> TrainerState:
    return TrainerState(global_step=step, epoch=step / 10, max_steps=10, is_world_process_zero=main)


def test_one_line_per_log_with_step_and_epoch(tmp_path: Path) -> None:
    writer = JsonlMetrics()
    writer.on_train_begin(arguments(tmp_path), state(0), TrainerControl())
    writer.on_log(arguments(tmp_path), state(1), TrainerControl(), logs={"loss": 2.5})
    writer.on_log(arguments(tmp_path), state(2), TrainerControl(), logs={"eval_loss": 2.0})
    assert read_metrics(tmp_path) == [
        {"step": 1, "epoch": 0.1, "loss": 2.5},
        {"step": 2, "epoch": 0.2, "eval_loss": 2.0},
    ]


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    JsonlMetrics().on_log(arguments(tmp_path), state(1, main=False), TrainerControl(), logs={"loss": 1.0})
    assert read_metrics(tmp_path) == []


def test_resume_drops_what_comes_after_the_checkpoint(tmp_path: Path) -> None:
    lines = [{"step": step, "epoch": None, "loss": 1.0} for step in (1, 2, 3, 4)]
    lines.insert(2, {"step": 2, "epoch": None, "train_runtime": 9.0})
    (tmp_path / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    JsonlMetrics().on_train_begin(arguments(tmp_path), state(2), TrainerControl())
    assert [(line["step"], "train_runtime" in line) for line in read_metrics(tmp_path)] == [(1, False), (2, False)]


def test_a_line_cut_off_by_a_kill_is_no_metric(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}]


def test_progress_line_names_the_main_figures(tmp_path: Path) -> None:
    stream = StringIO()
    shown = ProgressLines(Console(file=stream, soft_wrap=True))
    logs = {"loss": 0.6931471805, "grad_norm": 3.0, "eval_record_f1": 0.5, "eval_runtime": 1.0}
    shown.on_log(arguments(tmp_path), state(3), TrainerControl(), logs=logs)
    assert stream.getvalue() == "step 3/10  loss 0.6931  eval_record_f1 0.5\n"
