"""`tokencredit reward list` and `reward check`: the same pool, functions and settings as in training."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from tests.conftest import write_jsonl
from tokencredit.cli import app
from tokencredit.console import out
from tokencredit.errors import InputError
from tokencredit.recipes.rewards_schema import parse_rewards
from tokencredit.rewards import RewardFunction, RewardPool
from tokencredit.rewards.builtin import BUILTIN

ROOT = Path(__file__).parents[2]
EXAMPLE = "docs/examples/rewards.yaml"
OBEY = "tests.rewards.reward_functions:obey"


def reward(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["reward", *arguments])


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a wide terminal; the console has asked for its width when it was imported."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(out, "_width", 200)
    monkeypatch.setattr(out, "_height", 50)


def test_list_names_every_reward_and_adapter() -> None:
    shown = reward("list").stdout
    for name in (*BUILTIN, "verl", "openrlhf", "reasoning_gym:<task>"):
        assert name in shown


def test_list_says_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokencredit.rewards.builtin.find_spec", lambda name: None)
    assert "pip install 'tokencredit[rewards]'" in reward("list").stdout


def test_the_example_of_the_documentation() -> None:
    result = reward("check", EXAMPLE)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert "sample 0 · math 0 · json_records 0.8667 · format 1 · brevity 1 · together 1.467 · 3 tokens" in lines
    assert any(line.startswith("lowest -0.1667 at 'Name'") for line in lines)
    summary = next(line.split() for line in lines if line.split()[:1] == ["json_records"] and "adds" not in line)
    assert summary[3:7] == ["4", "0", "0", "0"]
    assert any(line.startswith("slowest: ") for line in lines)


def test_failures_are_shown_and_end_with_1(tmp_path: Path) -> None:
    rows = [{"completion": text} for text in ("fine", "raise", "sleep", "exit", "none")]
    recipe = {"reward_funcs": [OBEY], "reward_pool": {"timeout": 0.5, "workers": 2}, "samples": rows, "trainer": "grpo"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    result = reward("check", str(tmp_path / "recipe.yaml"), "--samples", "2")
    assert result.exit_code == 1
    assert "sample 0 · obey 1" in result.stdout
    assert "sample 1 · obey error" in result.stdout
    assert "sample 2 ·" not in result.stdout
    for words in ("ArithmeticError: no such sum", "timeout (deadline)", "exit code 3", "in _obey"):
        assert words in result.stdout
    (summary,) = [line.split() for line in result.stdout.splitlines() if line.split()[:1] == ["obey"]]
    assert summary[1:7] == ["1", "0", "1", "1", "1", "2"]


def test_nothing_steers_the_terminal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither completions and prompts, nor what functions raise, log or are called."""
    function = {"function": "tests.rewards.reward_functions:writes_to_the_terminal", "name": "\x1b[31mred"}
    rows = [{"completion": text, "prompt": "\x1b[2J"} for text in ("\x1b]0;yours\x07", "raise")]
    recipe = {"reward_funcs": [function], "samples": rows, "reward_pool": {"workers": 1}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    result = reward("check", str(tmp_path / "recipe.yaml"))
    assert result.exit_code == 1, result.stderr
    assert r"logged \x1b]0;mine\x07\u202e\ud800: 1" in result.stdout
    assert r"reward \x1b[31mred, sample 1: error (\x1b]0;mine\x07\u202e)" in result.stdout
    with pytest.raises(InputError) as caught, RewardPool([obey := RewardFunction(**function)], stop_after=1) as pool:
        pool.score(["raise"])
    assert obey.name in caught.value.where
    for text in (result.stdout, result.stderr, str(caught.value), *caplog.messages):
        assert not {"\x1b", "\x07", "\u202e", "\ud800"} & set(text), text
    assert len(caplog.messages) == 2


def test_rows_from_a_file(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"completion": "x " * i, "answer": "x"} for i in range(70)])
    result = reward("check", str(file), "--reward", "tests.rewards.reward_functions:count_words", "--samples", "1")
    assert result.exit_code == 0, result.stderr
    summary = next(line.split() for line in result.stdout.splitlines() if line.split()[:1] == ["count_words"])
    assert summary[1] == "34.5"
    assert summary[3] == "70"
    result = reward("check", EXAMPLE, "--data", str(file), "--reward", OBEY, "--limit", "3")
    assert " 3 " in result.stdout.splitlines()[-2]


def test_tokens_of_a_model(tiny_model: Path, tmp_path: Path) -> None:
    """With a tokenizer the length is known, and a span colours the tokens that wrote it."""
    gold = [{"code": "A", "span": "é🙂"}]
    rows = [{"completion": '[{"code":"B","span":"é🙂"}]', "records": gold}]
    recipe = {
        "reward_funcs": [{"function": "length", "arguments": {"target": 10}}, "json_records"],
        "samples": rows,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    result = reward("check", str(tmp_path / "recipe.yaml"), "--tokenizer", str(tiny_model))
    assert result.exit_code == 0, result.stderr
    assert "sample 0 · length -1 · json_records 0.6 · together -0.4 · 30 tokens" in result.stdout
    assert "lowest -0.5 at 'B'" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.yaml"], "nowhere.yaml"),
        (["rows.jsonl"], "--reward: is missing"),
        (["rows.jsonl", "--reward", OBEY, "--data", "rows.jsonl"], "is data already"),
        (["rows.jsonl", "reward_pool.timeout=1", "--reward", OBEY], "overrides nothing in a data file"),
        ([EXAMPLE, "reward_funcs=[]"], "reward_funcs: is missing"),
        ([EXAMPLE, "samples=[]"], "samples: are missing"),
        ([EXAMPLE, "samples=[{text: x}]"], "row 0 has no completion but text"),
        ([EXAMPLE, "samples=[{completion: x}, {completion: x, a: 1}]"], "row 1 and the first differ in a"),
        ([EXAMPLE, "--reward", "maths"], "did you mean 'math'?"),
        ([EXAMPLE, "reward_funcs=[{function: math, argument: 1}]", "reward_weights=null"], "did you mean 'arguments'?"),
        ([EXAMPLE, "reward_pool.timout=1"], "did you mean 'timeout'?"),
        ([EXAMPLE, "reward_weights=[1]"], "reward_weights: 1 weights for 4 functions"),
        ([EXAMPLE, "reward_pool.timeout=0"], "reward_pool.timeout: 0 is wrong; Input should be greater than 0"),
        ([EXAMPLE, "--tokenizer", "nowhere"], "--tokenizer: 'nowhere' cannot be loaded"),
        ([EXAMPLE, "--column", "nowhere"], "no column 'nowhere'; there are json_records"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"completion": "x"}])
    result = reward("check", *(str(file) if argument == "rows.jsonl" else argument for argument in arguments))
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert message in line


def test_the_section_of_a_recipe() -> None:
    """What training will hand to `RewardPool`."""
    layer: dict[str, Any] = {
        "trainer": "grpo",
        "reward_funcs": ["math", {"function": "a:b", "batched": True, "columns": {"gold": "answer"}}],
        "reward_weights": [1.0, 0.5],
        "reward_pool": {"timeout": 2, "workers": 3},
    }
    sections = parse_rewards(layer)
    assert sections.functions == [
        RewardFunction("math"),
        RewardFunction("a:b", batched=True, columns={"gold": "answer"}),
    ]
    assert sections.reward_pool.model_dump(exclude_unset=True) == {"timeout": 2, "workers": 3}
    assert parse_rewards({"reward_funcs": "math"}).functions == [RewardFunction("math")]
    with pytest.raises(InputError, match="reward_funcs"):
        parse_rewards({"reward_funcs": [3]})
