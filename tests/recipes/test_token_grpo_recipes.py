"""TokenGRPO by the real command: rewards in worker processes, credit from the working directory, kill and resume."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import COMMAND, Cli
from tokencredit.analysis.report import read_runs, token_view
from tokencredit.trainers.callbacks import read_metrics
from tokencredit.trainers.checkpoints import latest_complete

MODULE = """
import os
import time

def letters(completions, trainer_state, **columns):
    while os.path.exists("wait") and trainer_state.global_step >= 6:
        time.sleep(0.05)
    return [{"score": sum(map(ord, text)) % 101 / 101, "tokens": None,
             "spans": [{"start": 0, "end": 1, "value": -1.0}] if text else []} for text in completions]

def halved(rollouts, advantages, *, factor=0.5):
    return factor * advantages
"""
STEPS = 10


@pytest.fixture
def recipe(recipe_text: dict[str, Any], tmp_path: Path) -> Path:
    keys = {
        "trainer": "token_grpo",
        "reward_funcs": "mine:letters",
        "reward_pool": {"workers": 1},
        "credit": ["outcome", "reward_spans", {"function": "mine:halved", "arguments": {"factor": 0.25}}],
        "token_weight": "divergence_weighted",
        "max_steps": STEPS,
        "num_generations": 4,
        "num_iterations": 2,
        "max_completion_length": 8,
        "save_strategy": "steps",
        "save_steps": 3,
        "resume_from_checkpoint": True,
        "token_samples_steps": 4,
    }
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_text | keys))
    return tmp_path


def curve(run: Path) -> list[tuple[int, float, float | None]]:
    return [(line["step"], line["loss"], line.get("reward")) for line in read_metrics(run) if "loss" in line]


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(recipe: Path, run_cli: Cli) -> None:
    done = run_cli(recipe, "train", "recipe.yaml", "output_dir=whole")
    assert (done.stdout + done.stderr).count("save_steps: 3 moved to 4") == 1
    whole = curve(recipe / "whole")
    assert [step for step, _, _ in whole] == list(range(1, STEPS + 1))
    metrics = read_metrics(recipe / "whole")[0]
    for name in ("time/generate", "time/reward", "time/score", "time/train", "tokens_per_second", "peak_memory_gb"):
        assert metrics[name] > 0

    (recipe / "wait").touch()  # the reward of the seventh step does not come
    process = subprocess.Popen(
        [*COMMAND, "train", "recipe.yaml"], cwd=recipe, start_new_session=True, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while not any(line["step"] >= 6 for line in read_metrics(recipe / "run")):
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (recipe / "wait").unlink()
    resumed_from, _ = latest_complete(recipe / "run")
    assert resumed_from is not None
    assert resumed_from.name == "checkpoint-4"
    run_cli(recipe, "train", "recipe.yaml")
    assert curve(recipe / "run") == whole


@pytest.mark.slow
def test_samples_have_advantages_and_the_token_view_shows_them(recipe: Path, run_cli: Cli) -> None:
    run_cli(recipe, "train", "recipe.yaml", "max_steps=2", "save_strategy=no")
    (path,) = sorted((recipe / "run" / "token_samples").iterdir())
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 8
    for line in lines:
        assert len(line["tokens"]) == len(line["ids"]) == len(line["advantages"])
    assert any(min(line["rewards"]) < 0 for line in lines)
    view = token_view(read_runs([recipe / "run"]))
    assert view is not None
    assert all("advantages" in response.columns for response in view.responses)


def test_wrong_rewards_and_credit_are_one_clear_line(recipe: Path, run_cli: Cli) -> None:
    for override, said in (("reward_funcs=mine:nothing", "nothing"), ("credit=outcom", "unknown name 'outcom'")):
        done = run_cli(recipe, "train", "recipe.yaml", override, check=False)
        assert done.returncode == 2
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    assert not (recipe / "run").exists()
