"""Wrong input ends with one line naming field, value and remedy, with exit code 2, and nothing is written."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tokencredit.cli import app
from tokencredit.cluster import plan
from tokencredit.trainers.checkpoints import Manifest

Recipe = dict[str, Any]
Prepare = Callable[[Recipe, Path], None]


@dataclass
class Case:
    """One wrong input.

    Args:
        says: Pieces of the line, in this order.
        changes: Keys laid over a recipe that works; None removes the key.
        arguments: More words on the command line.
        prepare: Changes to the recipe or to files.
        text: The recipe file itself.
    """

    says: list[str]
    changes: Recipe = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)
    prepare: Prepare = lambda recipe, folder: None
    text: str | None = None


ADDRESSES = {
    "dataset_name": "us_addresses",
    "dataset_test_split": "validation",
    "prompt_template": "{text}",
    "completion_column": "results",
    "eval_strategy": "epoch",
}


def void(result: object) -> None:
    """For what returns something nobody needs."""


def data(content: str, name: str = "rows.jsonl") -> Prepare:
    def write(recipe: Recipe, folder: Path) -> None:
        (folder / name).write_text(content, encoding="utf-8")
        recipe["dataset_name"] = name

    return write


def model(files: dict[str, str]) -> Prepare:
    def write(recipe: Recipe, folder: Path) -> None:
        (folder / "model").mkdir()
        for name, content in files.items():
            (folder / "model" / name).write_text(content)
        recipe["model_name_or_path"] = "model"

    return write


def accelerate_file(content: str) -> Prepare:
    def write(recipe: Recipe, folder: Path) -> None:
        (folder / "accelerate.yaml").write_text(content)
        recipe["launch"] = "accelerate.yaml"

    return write


def pairs(recipe: Recipe, folder: Path) -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    (folder / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    recipe |= {"trainer": "dpo", "dataset_name": "pairs.jsonl"}


def tab_po_pairs(recipe: Recipe, folder: Path) -> None:
    pairs(recipe, folder)
    recipe["trainer"] = "tab_po"


def malformed(recipe: Recipe, folder: Path) -> None:
    (folder / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{oops}\n')


def damaged_checkpoint(recipe: Recipe, folder: Path) -> None:
    checkpoint = folder / "checkpoint-2"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text("{}")
    Manifest(step=2, world_size=1, zero_stage=0, files={"optimizer.pt": 5}).write(checkpoint)
    recipe["resume_from_checkpoint"] = "./checkpoint-2"


def other_model(recipe: Recipe, folder: Path) -> None:
    checkpoint = folder / "begun" / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    Manifest(step=2, world_size=1, zero_stage=0, files={}).write(checkpoint)
    (folder / "begun" / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"model_name_or_path": "another"}))
    recipe |= {"output_dir": "begun", "resume_from_checkpoint": True}


def used_folder(recipe: Recipe, folder: Path) -> None:
    (folder / "used").mkdir()
    (folder / "used" / "notes.txt").write_text("mine")
    recipe["output_dir"] = "used"


def zero_checkpoint(recipe: Recipe, folder: Path) -> None:
    checkpoint = folder / "old" / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    Manifest(step=2, world_size=1, zero_stage=2, files={}).write(checkpoint)
    recipe |= {"output_dir": "old", "resume_from_checkpoint": True, "launch": {"strategy": "zero2", "num_processes": 2}}


def circle(recipe: Recipe, folder: Path) -> None:
    (folder / "other.yaml").write_text("defaults: recipe.yaml\n")
    recipe["defaults"] = "other.yaml"


def failing_metric(recipe: Recipe, folder: Path) -> None:
    (folder / "broken_metric.py").write_text("def score(predictions, references):\n    raise KeyError('oops')\n")
    recipe |= {"task_metric": "broken_metric:score", "eval_strategy": "epoch"}


SCRATCH = {"model_name_or_path": None, "init": {"model_type": "llama"}}

CASES = {
    "malformed YAML": Case(["recipe.yaml line 2", "not valid YAML"], text="trainer: sft\n  output_dir: [run\n"),
    "recipe is a list": Case(["recipe.yaml", "not a mapping"], text="- trainer: sft\n"),
    "key given twice": Case(["line 2", "'trainer' is given twice"], text="trainer: sft\ntrainer: dpo\n"),
    "no trainer": Case(["trainer", "missing", "choose one of sft, dpo"], {"trainer": None}),
    "unknown trainer": Case(["trainer", "'ppo'", "choose one of sft, dpo"], {"trainer": "ppo"}),
    "unknown key": Case(["learning_rte", "unknown key", "'learning_rate'"], {"learning_rte": 1e-4}),
    "unknown nested key": Case(["launch.num_proc", "unknown key", "'num_processes'"], {"launch": {"num_proc": 2}}),
    "a number that is none": Case(["learning_rate", "'fast'", "valid number"], {"learning_rate": "fast"}),
    "a choice that is none": Case(["eval_strategy", "'often'", "no, steps, epoch"], {"eval_strategy": "often"}),
    "batch of nothing": Case(["per_device_train_batch_size", "0", "1 or more"], {"per_device_train_batch_size": 0}),
    "no output folder": Case(["output_dir", "missing", "name the folder"], {"output_dir": None}),
    "contradicting settings": Case(
        ["load_best_model_at_end", "strategy"], {"load_best_model_at_end": True, "save_strategy": "steps"}
    ),
    "override without value": Case(["command line", "'seed'", "key=value"], arguments=["seed"]),
    "override unknown key": Case(["sed", "unknown key", "'seed'"], arguments=["sed=1"]),
    "defaults that do not exist": Case(["defaults", "'base.yaml'", "built in are"], {"defaults": "base.yaml"}),
    "defaults in a circle": Case(["defaults", "circle", "break"], prepare=circle),
    "data file missing": Case(["dataset_name", "rows.jsonl", "path that exists"], {"dataset_name": "rows.jsonl"}),
    "data file empty": Case(["dataset_name", "rows.jsonl", "empty"], prepare=data("")),
    "data format unknown": Case(["dataset_name", "'rows.xml'", ".jsonl"], prepare=data("<a/>", "./rows.xml")),
    "data line malformed": Case(
        ["rows.jsonl line 2", "not valid JSON"], prepare=data('{"prompt": "a", "completion": "b"}\n{oops}\n')
    ),
    "text that is none": Case(["dataset_name", "row 0", "holds 1 in column 'text'"], prepare=data('{"text": 1}\n')),
    "a row without text": Case(
        ["dataset_name", "row 1", "holds None in column 'prompt'"],
        prepare=data("prompt,completion\na,b\n,c\n", "./rows.csv"),
    ),
    "a cell that the template needs": Case(
        ["dataset_name", "row 1", "nothing in column 'q'"],
        {"prompt_template": "{q}?"},
        prepare=data("q,completion\na,b\n,c\n", "./rows.csv"),
    ),
    "an answer that is missing": Case(
        ["dataset_name", "row 1", "nothing in column 'a'"],
        {"completion_column": "a"},
        prepare=data("prompt,a\np,b\nq,\n", "./rows.csv"),
    ),
    "prompt without completion": Case(
        ["dataset_name", "columns prompt, text", "sft needs"], prepare=data('{"text": "a", "prompt": "b"}\n')
    ),
    "ids beside text": Case(
        ["dataset_name", "input_ids beside completion, prompt"],
        prepare=data('{"prompt": "a", "completion": "b", "input_ids": [5, 6]}\n'),
    ),
    "keys without effect": Case(["test_split_size", "0.2 has no effect", "datasets"], {"test_split_size": 0.2}),
    "rows that do not fit": Case(["max_length", "1 leaves nothing", "raise it"], {"max_length": 1}),
    "rate that is no number": Case(["learning_rate", "nan is not finite"], {"learning_rate": float("nan")}),
    "negative rate": Case(["learning_rate", "-1.0 is negative"], {"learning_rate": -1.0}),
    "no steps": Case(["max_steps", "0 steps"], {"max_steps": 0}),
    "empty output folder": Case(["output_dir", "missing"], arguments=["output_dir="]),
    "output folder with an impossible name": Case(["output_dir", "cannot write"], {"output_dir": "x" * 300}),
    "mixture with a malformed file": Case(
        ["datasets", "JSON parse error"],
        {"dataset_name": None, "datasets": [{"path": "json", "data_files": "rows.jsonl"}]},
        prepare=malformed,
    ),
    "no rows after slicing": Case(["dataset_name", "train[:0]", "no data"], {"dataset_train_split": "train[:0]"}),
    "unknown split": Case(["dataset_name", "valid", "Should be one of"], {"dataset_train_split": "valid"}),
    "wrong columns": Case(
        ["dataset_name", "columns question", "sft needs completion+prompt"], prepare=data('{"question": "a"}\n')
    ),
    "template column missing": Case(
        ["prompt_template", "no column 'text'", "columns are"], {"prompt_template": "{text}"}
    ),
    "completion column missing": Case(
        ["completion_column", "no column 'label'", "completion, prompt"], {"completion_column": "label"}
    ),
    "unknown built-in configuration": Case(
        ["dataset_name", "'triples'", "'pairs'"], {"dataset_name": "us_addresses", "dataset_config": "triples"}
    ),
    "dataset not reachable": Case(
        ["dataset_name", "'nobody/nothing'", "cannot be loaded"], {"dataset_name": "nobody/nothing"}
    ),
    "no model": Case(["model_name_or_path", "missing", "init:"], {"model_name_or_path": None}),
    "model folder missing": Case(
        ["model_name_or_path", "no folder", "saved model"], {"model_name_or_path": "./nowhere"}
    ),
    "model folder without model": Case(["model_name_or_path", "no config.json"], prepare=model({"a.txt": ""})),
    "model folder with adapter": Case(
        ["model_name_or_path", "is an adapter", "tokencredit merge"], prepare=model({"adapter_config.json": "{}"})
    ),
    "model configuration broken": Case(["model_name_or_path", "no model"], prepare=model({"config.json": "{"})),
    "model without tokenizer": Case(
        ["model_name_or_path", "no tokenizer"], prepare=model({"config.json": '{"model_type": "llama"}'})
    ),
    "hub model not reachable": Case(["model_name_or_path", "'nobody/model'"], {"model_name_or_path": "nobody/model"}),
    "model and init": Case(["init", "together with model_name_or_path"], {"init": {"model_type": "llama"}}),
    "unknown architecture": Case(["init.model_type", "'lama'", "llama"], SCRATCH | {"init": {"model_type": "lama"}}),
    "unknown architecture field": Case(
        ["init.config.hidden", "unknown field", "llama"],
        SCRATCH | {"init": {"model_type": "llama", "config": {"hidden": 1}}},
    ),
    "chat data without template": Case(
        ["model_name_or_path", "chat messages", "instruction-tuned"],
        prepare=data(
            json.dumps({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}) + "\n"
        ),
    ),
    "unknown PEFT method": Case(["peft.peft_type", "'LORE'", "LORA"], {"peft": {"peft_type": "LORE"}}),
    "unknown PEFT field": Case(["peft.rank", "unknown key"], {"peft": {"peft_type": "LORA", "rank": 4}}),
    "PEFT twice": Case(["peft", "together with use_peft"], {"peft": {"peft_type": "LORA"}, "use_peft": True}),
    "unknown task metric": Case(
        ["task_metric", "'rouge'", "json_records"], {"task_metric": "rouge", "eval_strategy": "epoch"}
    ),
    "token weights misspelt": Case(
        ["token_weights.diffring", "unknown key", "differing"], {"token_weights": {"diffring": 1.2}}, ["--dry-run"]
    ),
    "token weights as a list": Case(["token_weights", "[1.2]"], {"token_weights": [1.2]}),
    "token weights empty": Case(["token_weights", "names no weight"], {"token_weights": {}}),
    "token weights and packing": Case(["packing", "True"], {"token_weights": {"json": {"a": 2}}, "packing": True}),
    "no loss": Case(["loss", "is missing", "tab_po"], {"trainer": "preference"}, ["--dry-run"]),
    "loss that breaks on import": Case(
        ["loss", "'broken_loss:f'", "SyntaxError"],
        {"trainer": "preference", "loss": "broken_loss:f"},
        prepare=lambda recipe, folder: void((folder / "broken_loss.py").write_text("def f(:")),
    ),
    "tau of five": Case(["tau", "5", "0 < tau <= 1"], {"trainer": "tab_po", "tau": 5.0}, ["--dry-run"]),
    "sum with weights": Case(
        ["token_weights", "form: weighted"],
        {"trainer": "tab_po", "form": "sum", "token_weights": {"differing": 1.2}},
        ["--dry-run"],
    ),
    "samples every minus one": Case(["token_samples_steps", "-1"], {"trainer": "tab_po", "token_samples_steps": -1}),
    "task metric not importable": Case(
        ["task_metric", "'nowhere:score'", "imported"], {"task_metric": "nowhere:score", "eval_strategy": "epoch"}
    ),
    "task metric that fails": Case(["task_metric", "broken_metric:score", "KeyError('oops')"], prepare=failing_metric),
    "task metric without evaluation": Case(
        ["task_metric", "no evaluation", "eval_strategy"], {"task_metric": "json_records"}
    ),
    "best by an unknown figure": Case(
        ["metric_for_best_model", "'record_f2'", "'record_f1'"],
        ADDRESSES | {"task_metric": "json_records", "metric_for_best_model": "record_f2"},
    ),
    "streaming without end": Case(["max_steps", "streamed"], {"dataset_streaming": True, "max_steps": None}),
    "a DPO loss that is none": Case(["loss_type", "'sigmoyd'", "sigmoid"], {"trainer": "dpo", "loss_type": "sigmoyd"}),
    "settings the trainer refuses": Case(
        ["loss_type", "['exo_pair'] cannot be used", "Label smoothing"], {"loss_type": "exo_pair"}, prepare=pairs
    ),
    "TAB-PO settings that contradict": Case(
        ["token_weights", "sum form", "form: weighted"],
        {"form": "sum", "token_weights": {"differing": 1.2}},
        prepare=tab_po_pairs,
    ),
    "token weights unknown": Case(
        ["token_weights.diffring", "unknown key", "'differing'"],
        {"token_weights": {"diffring": 1.2}},
        prepare=tab_po_pairs,
    ),
    "augmentation without records": Case(["augment", "labelled rows", "completion_column"], {"augment": {"copies": 2}}),
    "tracker not installed": Case(["report_to", "'swanlab'", "pip install swanlab"], {"report_to": "swanlab"}),
    "tracker unknown": Case(["report_to", "'tensorbord'", "choose tensorboard"], {"report_to": "tensorbord"}),
    "best by a figure nobody has": Case(
        ["metric_for_best_model", "'accuracy'", "no figure of the evaluation"],
        {"metric_for_best_model": "accuracy", "eval_strategy": "epoch"},
    ),
    "stop at a figure nobody has": Case(
        ["task_metric.stop_at", "'record_f2'", "did you mean 'record_f1'?"],
        ADDRESSES | {"task_metric": {"function": "json_records", "stop_at": {"record_f2": 0.5}}},
    ),
    "chat data for a model from scratch": Case(
        ["model_name_or_path", "chat messages"],
        {"model_name_or_path": None, "init": {"model_type": "llama"}},
        prepare=data(json.dumps({"messages": [{"role": "user", "content": "hi"}]}) + "\n"),
    ),
    "unknown launch": Case(["launch.strategy", "'zero4'", "zero3"], {"launch": "zero4"}),
    "several processes without strategy": Case(
        ["launch.num_processes", "2 processes with strategy none", "launch=ddp"], {"num_processes": 2}
    ),
    "more processes than cores": Case(
        ["launch.num_processes", "4096", "here"], {"launch": {"strategy": "ddp", "num_processes": 4096}}
    ),
    "processes not said": Case(["launch.num_processes", "missing", "say how many"], {"launch": "ddp"}),
    "FSDP on CPU": Case(["launch.strategy", "fsdp", "CPU"], {"launch": {"strategy": "fsdp", "num_processes": 2}}),
    "Accelerate file missing": Case(["launch.strategy", "no Accelerate file"], {"launch": "./missing.yaml"}),
    "Accelerate file that would run one process": Case(
        ["launch.strategy", "2 CPU processes and would get one", "launch=ddp"],
        prepare=accelerate_file("distributed_type: MULTI_CPU\nuse_cpu: true\nnum_processes: 2\n"),
    ),
    "Accelerate file for GPUs": Case(
        ["launch.strategy", "MULTI_GPU", "launch=ddp"],
        prepare=accelerate_file("distributed_type: MULTI_GPU\nnum_processes: 2\n"),
    ),
    "DeepSpeed file on one process": Case(["deepspeed", "one plain process"], {"deepspeed": {"train_batch_size": 1}}),
    "batch that does not divide": Case(
        ["total_train_batch_size", "12", "= 8", "change one"], {"total_train_batch_size": 12}
    ),
    "output folder is a file": Case(["output_dir", "is a file"], {"output_dir": "recipe.yaml"}),
    "output folder not writable": Case(["output_dir", "cannot write to '/proc'"], {"output_dir": "/proc/run"}),
    "output folder not empty": Case(["output_dir", "not empty", "resume_from_checkpoint=true"], prepare=used_folder),
    "resume from no checkpoint": Case(
        ["resume_from_checkpoint", "no checkpoint", "checkpoint-N"], {"resume_from_checkpoint": "./checkpoint-9"}
    ),
    "resume from a damaged checkpoint": Case(
        ["resume_from_checkpoint", "checkpoint-2", "incomplete"], prepare=damaged_checkpoint
    ),
    "resume with another model": Case(
        ["model_name_or_path", "not what the run began with, 'another'"], prepare=other_model
    ),
    "resume ZeRO with other processes": Case(
        ["launch.num_processes", "written by 1 ZeRO", "set launch.num_processes=1"], prepare=zero_checkpoint
    ),
    "environment is no mapping": Case(["env", "'A=1'", "NAME: value"], {"env": "A=1"}),
}


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "cpu_count", lambda: 2)


def call(folder: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and standard error of the command, run in this process."""
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stderr


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_exit_code_2(
    name: str, recipe_text: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    recipe = {key: value for key, value in (recipe_text | case.changes).items() if value is not None}
    recipe.setdefault("output_dir", "run") if "output_dir" not in case.changes else None
    case.prepare(recipe, tmp_path)
    text = case.text if case.text is not None else yaml.safe_dump(recipe)
    (tmp_path / "recipe.yaml").write_text(text)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    code, stderr = call(tmp_path, "train", "recipe.yaml", *case.arguments)

    lines = [line for line in stderr.splitlines() if not line.startswith("note: ")]
    assert code == 2, stderr
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ")
    position = 0
    for piece in case.says:
        position = lines[0].find(piece, position)
        assert position >= 0, f"{piece!r} is not in {lines[0]!r} after the pieces before it"
        position += len(piece)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if "__pycache__" not in path.parts}
    assert after == before


def test_missing_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, stderr = call(tmp_path, "train", "nowhere.yaml")
    assert code == 2
    assert stderr.startswith("error: recipe: no file 'nowhere.yaml'; give the path of a YAML file or a built-in name (")
    assert len(stderr.splitlines()) == 1


def test_zero_without_deepspeed(recipe_text: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "find_spec", lambda name: None)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_text))
    code, stderr = call(tmp_path, "train", "recipe.yaml", "launch=zero2", "launch.num_processes=2")
    assert code == 2
    assert "error: launch.strategy: zero2 needs DeepSpeed; pip install 'tokencredit[deepspeed]'" in stderr


def test_one_process_on_several_accelerators(
    recipe_text: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "accelerator_count", lambda: 4)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_text))
    code, stderr = call(tmp_path, "train", "recipe.yaml")
    assert code == 2
    assert "one process sees 4 accelerators" in stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["recipes", "show", "sft/nothing"], "recipes show: no built-in recipe 'sft/nothing'"),
        (["merge", "nowhere", "out"], "adapter: 'nowhere' is no adapter"),
    ],
)
def test_other_commands(arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, stderr = call(tmp_path, *arguments)
    assert code == 2
    assert stderr.startswith(f"error: {says}")
    assert len(stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
