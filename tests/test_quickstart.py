"""The quick start's own script, with few steps: every command of it works on what the one before it left."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import COMMAND
from tokencredit.analysis.score_tables import read_json
from tokencredit.trainers.callbacks import read_metrics

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "quickstart.sh"
ARMS = ["continued", "sft", "weighted", "dpo", "tab_po", "tab_po_sum"]
# Stands before the real command and makes its work small. After two steps a model confuses nothing yet.
SMALL = """#!/bin/sh
case "$1 $2" in
    "train "*) set -- "$@" max_steps=2 eval_steps=2 save_steps=2 eval_delay=0 launch=none launch.num_processes=1 \\
        task_metric.limit=2 task_metric.max_new_tokens=4 dataset_test_split='validation[:4]' ;;
    "pairs "*) set -- "$@" confusion=uniform ;;
    "eval "*) set -- "$@" --limit 4 --resamples 20 --max-new-tokens 4 ;;
esac
exec COMMAND "$@"
"""


def test_from_labelled_text_to_scores_and_a_report(tmp_path: Path) -> None:
    wrapper = tmp_path / "bin" / "tokencredit"
    wrapper.parent.mkdir()
    wrapper.write_text(SMALL.replace("COMMAND", " ".join(COMMAND)))
    wrapper.chmod(0o755)
    environment = os.environ | {"PATH": f"{wrapper.parent}:{os.environ['PATH']}", "SEEDS": "1", "OUTPUT": "out"}
    done = subprocess.run(["sh", str(SCRIPT)], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for arm in ARMS:
        assert read_metrics(tmp_path / "out" / "0" / arm)[-1]["step"] == 2
    evaluation = read_json(tmp_path / "out" / "scores.json")
    assert [model.label for model in evaluation.models] == ARMS
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
    assert "$ tokencredit train tab_po/addresses " in done.stdout
    shown = done.stdout.split("How long each stage took:")[1]
    assert all(f"0/{arm} " in shown for arm in ARMS)
