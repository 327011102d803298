"""The quick start's own script: which commands it gives, and with few steps that they work one after the other."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import COMMAND
from tokencredit.analysis.score_tables import read_json
from tokencredit.trainers.callbacks import read_metrics

SCRIPT = Path(__file__).parents[1] / "quickstart.sh"
ARMS = ["continued", "sft", "weighted", "dpo", "tab_po", "tab_po_sum"]
# Writes down how it was called, an argument a line, and leaves behind what the script looks for.
STUB = """#!/bin/sh
printf '%s\\n' --- "$@" >> calls
for argument in "$@"; do
    case "$argument" in output_file=*) mkdir -p "$(dirname "${argument#*=}")" && : > "${argument#*=}" ;; esac
done
"""
# Stands before the real command and makes its work small. After two steps a model confuses nothing yet, so the first
# pairs are uniform, and counts are put where measured ones would lie.
SMALL = """#!/bin/sh
case "$1 $2 $*" in
    "train "*) set -- "$@" max_steps=2 eval_steps=2 save_steps=2 eval_delay=0 launch=none launch.num_processes=1 \\
        task_metric.limit=2 task_metric.max_new_tokens=4 dataset_test_split='validation[:4]' ;;
    "pairs "*" confusion="*) ;;
    "pairs "*) set -- "$@" confusion=uniform && trap 'cp counts.json out/0/pairs/train.jsonl.confusion.json' EXIT ;;
    "eval "*) set -- "$@" --limit 4 --resamples 20 --max-new-tokens 4 ;;
esac
COMMAND "$@"
"""
COUNTS = {"labels": {"Street": {"Region": 1}}, "sublabels": {"Name": {"City": 1}}}


def quickstart(folder: Path, program: str, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run the script with another `tokencredit` on the path."""
    (folder / "bin").mkdir()
    (folder / "bin" / "tokencredit").write_text(program)
    (folder / "bin" / "tokencredit").chmod(0o755)
    environment = os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"} | variables
    command = ["sh", str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def calls(folder: Path) -> list[list[str]]:
    return [call.splitlines() for call in (folder / "calls").read_text().split("---\n")[1:]]


def test_commands_for_two_seeds(tmp_path: Path) -> None:
    done = quickstart(tmp_path, STUB, SEEDS="2", OUTPUT="my runs")
    assert done.returncode == 0, done.stderr
    found = calls(tmp_path)
    names = [call[0] for call in found]
    assert names == (["train"] + ["pairs"] * 2 + ["train"] * 5) * 2 + ["eval", "report"]
    assert found[-2][1:13] == [f"{arm}=my runs/{seed}/{arm}" for arm in ARMS for seed in (0, 1)]
    tuned = [call for call in found if "dataset_config=null" in call]
    assert [[item for item in call if item.startswith("seed=")] for call in tuned] == [["seed=0"]] * 5 + [
        ["seed=1"]
    ] * 5
    # Nothing but the recipe and the folder differs between arms of a seed.
    shared = {tuple(item for item in call[2:] if not item.startswith("output_dir=")) for call in tuned[:5]}
    assert len(shared) == 1
    # Nothing before the evaluation reads the test split.
    assert not any("test" in item.replace("dataset_test_split", "") for call in found[:-2] for item in call)


def test_commands_of_tuning(tmp_path: Path) -> None:
    assert quickstart(tmp_path, STUB, "tune").returncode == 0
    rates = [item for call in calls(tmp_path) for item in call if item.startswith("learning_rate=")]
    assert len(rates) == 5 * 4 + 2
    assert sum("lam=0" in call for call in calls(tmp_path)) == 2


@pytest.mark.parametrize(
    ("arguments", "seeds", "says"), [(["tnue"], "1", "'tnue'"), ([], "0", "SEEDS"), ([], "abc", "SEEDS")]
)
def test_wrong_input(arguments: list[str], seeds: str, says: str, tmp_path: Path) -> None:
    done = quickstart(tmp_path, STUB, *arguments, SEEDS=seeds)
    assert (done.returncode, says in done.stderr, done.stdout) == (2, True, "")
    assert not (tmp_path / "calls").exists()


@pytest.mark.slow
def test_from_labelled_text_to_scores_and_a_report(tmp_path: Path) -> None:
    (tmp_path / "counts.json").write_text(json.dumps(COUNTS))
    done = quickstart(tmp_path, SMALL.replace("COMMAND", " ".join(COMMAND)), SEEDS="1", OUTPUT="out")
    assert done.returncode == 0, done.stdout + done.stderr
    for arm in ARMS:
        assert read_metrics(tmp_path / "out" / "0" / arm)[-1]["step"] == 2
    evaluation = read_json(tmp_path / "out" / "scores.json")
    assert [model.label for model in evaluation.models] == ARMS
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
    assert "$ tokencredit train tab_po/addresses " in done.stdout
    shown = done.stdout.split("How long each stage took:")[1]
    assert all(f"0/{arm} " in shown for arm in ARMS)
