"""`tokencredit cross-sample`: what it prints, writes, takes up again and refuses."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner, Result

from tests.analysis import markov
from tests.conftest import write_jsonl
from tokencredit.cli import app
from tokencredit.console import out

REWARDS: dict[str, Any] = {"reward_funcs": [{"function": "format", "arguments": {"pattern": ".*G.*"}, "name": "good"}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two saved models, prompts, and a reward for the right decision."""
    folder = tmp_path_factory.mktemp("cross")
    tokenizer = markov.letters_tokenizer()
    for name, model in zip(("base", "tuned"), markov.pair(tokenizer), strict=True):
        markov.save(model, tokenizer, folder / name)
    other = markov.letters_tokenizer(more="A")
    markov.save(markov.chain(other), other, folder / "stranger")
    write_jsonl(folder / "prompts.jsonl", [{"prompt": letters} for letters in ("p", "qr", "pqr", "r") * 10])
    (folder / "rewards.yaml").write_text(yaml.safe_dump(REWARDS))
    return folder


@pytest.fixture(autouse=True)
def wide(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(out, "_width", 200)
    monkeypatch.setattr(out, "_height", 50)


def run(*arguments: str, models: tuple[str, str] = ("base", "tuned")) -> Result:
    common = ["--prompts", "prompts.jsonl", "--max-new-tokens", "12", "--resamples", "200"]
    return CliRunner().invoke(app, ["cross-sample", *models, *common, *arguments])


def test_table_settings_and_files(folder: Path) -> None:
    asked = ["--reward", "rewards.yaml", "--epsilon", "0.1", "--num-samples", "2", "--labels", "10", "--output", "a"]
    done = run(*asked)
    assert done.exit_code == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    (rule,) = (row for row in rows if row[:2] == ["forward", "js"])
    assert rule[4:11] == ["0.1", "11.1", "%", "11.1", "%", rule[9], "%"]
    assert [row[1] for row in rows if row[:1] == ["forward"]][:4] == ["primary", "intervention", "js", "random"]
    for name, value in {"temperature": "1.0", "top_p": "1.0", "score_top_p": "None", "rewards": "good"}.items():
        assert [name, value] in rows
    assert ["forward", "divergent"] in [row[:2] for row in rows]
    files = ["summary.json", "samples.parquet", "cross_sample.html", "labels.parquet"]
    assert [line for line in done.stdout.splitlines() if line.startswith("written")] == [
        f"written to a/{name}" for name in files
    ]
    summary = json.loads(Path("a/summary.json").read_text())
    assert summary["settings"]["primary"] == "base"
    assert [arm["gap_recovered"] for arm in summary["arms"] if arm["kind"] == "rule"] == [1.0, 1.0]
    parts = {path.name: path.stat().st_mtime_ns for path in Path("a/parts").iterdir()}
    again = run(*asked)
    assert again.stdout == done.stdout
    assert {path.name: path.stat().st_mtime_ns for path in Path("a/parts").iterdir()} == parts


def test_without_a_reward_tokens_are_counted(folder: Path) -> None:
    done = run("--rate", "0.12", "--limit", "8", "--direction", "forward", "--output", "b")
    assert done.exit_code == 0, done.stderr
    assert "gap" not in done.stdout
    assert pq.read_table("b/samples.parquet")["reward"].null_count == 4 * 8


@pytest.mark.parametrize(
    ("arguments", "models", "message"),
    [
        ([], ("base", "tuned"), "epsilon: is missing; give a threshold or a rate"),
        (["--epsilon", "0.1", "--rule", "no"], ("base", "tuned"), "rule: no rule 'no'"),
        (["--epsilon", "0.1", "--direction", "no"], ("base", "tuned"), "directions: ['no']; give forward or reverse"),
        (["--epsilon", "0.1"], ("base", "stranger"), "'stranger' and 'base' have different tokenizers"),
        (["--epsilon", "0.1"], ("base", "./none"), "MODEL: no folder './none'"),
        (["--epsilon", "0.1", "--max-new-tokens", "5000"], ("base", "tuned"), "max_new_tokens: 5000 is too much"),
        (["--epsilon", "0.1", "--reward", "no"], ("base", "tuned"), "no built-in reward 'no'"),
        (
            ["--epsilon", "0.1", "--reward", "a.yaml", "--reward", "math"],
            ("base", "tuned"),
            "'a.yaml' says all rewards",
        ),
        (["--epsilon", "0.1", "--num-samples", "0"], ("base", "tuned"), "samples: 0 is too few"),
        (["--epsilon", "0.1", "--batch-size", "0"], ("base", "tuned"), "batch_size: 0 is too few"),
        (["--epsilon", "0.1", "--labels", "9"], ("base", "tuned"), "labels: there is no reward"),
        (["--epsilon", "0.1", "--dtype", "int8"], ("base", "tuned"), "--dtype: unknown 'int8'"),
        (["--epsilon", "0.1", "--prompts", "no.jsonl"], ("base", "tuned"), "error: --prompts: no file or folder"),
        (
            ["--epsilon", "0.1", "--prompts", "us_addresses", "--split", "no"],
            ("base", "tuned"),
            "error: --prompts: 'us",
        ),
        (
            ["--epsilon", "0.1", "--prompts", "us_addresses", "--config", "pairs", "--split", "test[:0]"],
            ("base", "tuned"),
            "error: --prompts: 'us_addresses' has no documents in split test[:0]",
        ),
        (["--epsilon", "0.1", "--ray", "http://x"], ("base", "tuned"), "error: --ray: 'http://x' is a job server"),
        (["--epsilon", "0.1", "--ray", "localhost:1"], ("base", "tuned"), "`ray start --head`, or use --ray local"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], models: tuple[str, str], message: str) -> None:
    done = run(*arguments, models=models)
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
