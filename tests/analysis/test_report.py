"""`tokencredit report`: what it reads of run folders, what it says is missing, and the file it writes."""

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from tests.analysis.sample_runs import metrics, sample, write_run
from tokencredit.analysis import report, run_folder
from tokencredit.analysis.page import SCRIPTS, render
from tokencredit.analysis.report import build, notes, read_runs, token_view, write_report
from tokencredit.cli import app
from tokencredit.errors import InputError


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def pairs(tokens: list[str], **keys: Any) -> list[dict[str, Any]]:
    return [sample(tokens, side, **keys) for side in ("chosen", "rejected")]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "first", pairs(["a", " b"]) + pairs(["c"], step=20), metrics())


def test_names_of_files_are_those_that_the_trainers_write() -> None:
    from tokencredit.cluster.preflight import RECIPE_FILE
    from tokencredit.trainers import callbacks, diagnostics

    assert run_folder.METRICS == callbacks.METRICS
    assert run_folder.ENVIRONMENT == callbacks.ENVIRONMENT
    assert run_folder.SAMPLES == diagnostics.SAMPLES
    assert run_folder.RECIPE == RECIPE_FILE


def test_the_page_is_written_into_the_run_folder(run: Path, tmp_path: Path) -> None:
    done = command(run)
    assert done.exit_code == 0
    assert done.stdout == f"written to {run / 'report.html'}\n"
    assert done.stderr == ""
    html = (run / "report.html").read_text(encoding="utf-8")
    for text in (
        "<title>first · tokencredit</title>",
        "901 k",
        "trl 1.16.0",
        "token_weights.differing",
        "record · eval",
    ):
        assert text in html
    elsewhere = tmp_path / "elsewhere.html"
    assert command(run, "--output", elsewhere).exit_code == 0
    assert elsewhere.read_bytes() == (run / "report.html").read_bytes()
    assert not list(run.glob("*.tmp"))


def test_the_same_run_gives_the_same_bytes_wherever_it_lies(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "other" / "first"))
    first, again, moved = (
        write_report(read_runs([path]), tmp_path / "page.html").read_bytes() for path in (run, run, copy)
    )
    assert first == again == moved


def test_nothing_on_the_page_points_outside(run: Path) -> None:
    html = render(build(read_runs([run])))
    assert set(re.findall(r"[a-z]+://[^\"'\s]+", html)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\bsrc=|url\(|@import|\son\w+=|javascript:|<base|<iframe|<object|<embed", html)
    assert re.findall(r"<link[^>]*>", html) == ['<link rel="icon" href="data:,">']


def test_policy_allows_exactly_the_scripts_and_the_style_of_the_page(run: Path) -> None:
    html = render(build(read_runs([run])))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', html)
    assert policy
    rules = dict(rule.split(" ", 1) for rule in policy[1].replace("&#39;", "'").split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert "unsafe" not in policy[1]

    def hashes(name: str) -> list[str]:
        contents = re.findall(rf"<{name}>(.*?)</{name}>", html, re.DOTALL)
        return [
            "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'" for text in contents
        ]

    assert rules["script-src"].split() == hashes("script")
    assert len(hashes("script")) == len(SCRIPTS)
    assert rules["style-src"].split() == hashes("style")
    assert html.index("Content-Security-Policy") < html.index("<style>")


def test_change_of_the_log_probability_is_the_first_column(run: Path) -> None:
    view = token_view(read_runs([run]))
    assert view
    first = view.responses[0]
    assert first.columns["logps_change"] == [0.5, -0.5]  # −0.5 − (−1), −1.5 − (−1)
    assert view.start() == "logps_change"
    assert not view.used["ids"].coloured
    assert (first.title, first.side, first.group, first.step, first.run) == ("pair 0", "chosen", "pair 0", 10, "")


def test_without_a_reference_there_is_no_change(tmp_path: Path) -> None:
    lines = [sample(["a"]), sample(["a"], logps=[None])]
    del lines[0]["ref_logps"]
    view = token_view(read_runs([write_run(tmp_path / "run", lines)]))
    assert view
    assert "logps_change" not in view.responses[0].columns
    assert view.responses[1].columns["logps_change"] == [None]


def test_several_runs_are_named_and_compared(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "second", pairs(["a", " x"]), metrics(level=2.0), beta=0.1, output_dir="runs/second")
    page = build(read_runs([run, other]))
    assert page.title == "first and second"
    assert page.summary == "They differ in beta (0.5, 0.1)."
    assert page.tables[0].rows == [["output_dir", "runs/first", "runs/second"], ["beta", "0.5", "0.1"]]
    assert page.view
    assert [response.run for response in page.view.responses] == ["first"] * 4 + ["second"] * 2
    loss = page.charts[0].charts[0]
    assert [line.label for line in loss.lines] == ["first", "second"] * 2
    assert page.notes == []
    shutil.rmtree(other / "token_samples")
    assert "note: second: no token_samples/" in command(run, other).stderr
    assert (run / "report.html").is_file()
    assert not (other / "report.html").exists()


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / seed / "run", None, metrics(2)) for seed in ("a", "b")]
    assert list(read_runs(paths)) == ["a/run", "b/run"]
    with pytest.raises(InputError, match="is given twice"):
        read_runs([paths[0], paths[1] / ".." / "run", paths[0]])


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("recipe.yaml", "no recipe.yaml: the settings are not shown"),
        ("environment.json", "no environment.json: the versions are not shown"),
        ("metrics.jsonl", "no metrics.jsonl, or nothing in it yet: there are no curves"),
        ("token_samples", "no token_samples/: there are no tokens to show"),
    ],
)
def test_what_is_missing_is_said_and_the_rest_shown(part: str, says: str, run: Path) -> None:
    path = run / part
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    done = command(run)
    assert done.exit_code == 0
    assert f"note: {says}" in done.stderr
    assert says in (run / "report.html").read_text(encoding="utf-8")
    assert command(run, "--terminal").exit_code == 0


def test_a_run_that_is_still_going(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", None, metrics(3))
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "lo')
    assert len(read_runs([run])["run"].metrics) == 4


def test_too_many_samples_are_thinned_by_step_and_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(run / "token_samples")
    write_run(run, [line for step in range(10) for line in pairs(["a"] * 10, step=step)])
    monkeypatch.setattr(report, "MAX_TOKENS", 80)
    runs = read_runs([run])
    view = token_view(runs)
    assert view
    assert [response.step for response in view.responses[::2]] == [0, 3, 6, 9]
    assert notes(runs) == ["12 of 20 sampled responses are left out, to keep the page small"]


def test_of_one_large_sample_the_first_pairs_are_kept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(run / "token_samples")
    write_run(run, [line for pair in range(10) for line in pairs(["a"] * 10, pair=pair)])
    monkeypatch.setattr(report, "MAX_TOKENS", 50)
    view = token_view(read_runs([run]))
    assert view
    assert [response.title for response in view.responses] == ["pair 0", "pair 0", "pair 1", "pair 1"]
    monkeypatch.setattr(report, "MAX_TOKENS", 5)
    view = token_view(read_runs([run]))
    assert view
    assert len(view.responses) == 2, "one pair at least"


Change = Callable[[Path], object]


def put(name: str, text: str) -> Change:
    return lambda run: (run / name).write_text(text, encoding="utf-8")


def sample_line(**changes: Any) -> Change:
    name = "token_samples/step-00000010.jsonl"
    return lambda run: (run / name).write_text(json.dumps(sample(["a", "b"]) | changes) + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (put("metrics.jsonl", '{"step": 1}\n{"step"\n'), "metrics.jsonl line 2: is not JSON"),
        (put("metrics.jsonl", "[1]\n"), "metrics.jsonl line 1: '[1]' is no object"),
        (put("metrics.jsonl", '{"loss": 1}\n'), "metrics.jsonl line 1: step is None"),
        (put("recipe.yaml", "a: [1"), "recipe.yaml: is not YAML"),
        (put("recipe.yaml", "text"), "recipe.yaml: is not a mapping"),
        (put("environment.json", "{"), "environment.json line 1: is not JSON"),
        (sample_line(tokens=["a", 1]), "step-00000010.jsonl line 1: `tokens` is not a list of texts"),
        (sample_line(step="x"), "step-00000010.jsonl line 1: step is 'x'"),
        (sample_line(weights=[1.0]), "'weights' has 1 items for 2 tokens; give one per token"),
        (sample_line(weights=[1.0, "x"]), "'weights' holds float, str; give numbers, or texts, or null"),
        (sample_line(weights=[[1], [2]]), "'weights' holds list"),
        (lambda run: (run / "metrics.jsonl").write_bytes(b"\xff\xfe\n"), "metrics.jsonl: cannot be read"),
    ],
)
def test_files_that_cannot_be_read_are_named_with_the_line(change: Change, says: str, run: Path) -> None:
    change(run)
    done = command(run)
    assert done.exit_code == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "nowhere: there is no such folder"),
        (["."], ".: is not a run folder: it has no recipe.yaml, no metrics.jsonl and no token_samples/"),
        (["first/recipe.yaml"], "first/recipe.yaml: is a file"),
        (["first", "first"], "is given twice"),
        (["first", "--column", "nothing"], "--column: no column 'nothing'; there are logps_change, weights"),
        (["first", "--terminal", "--column", "ids"], "--column: no column 'ids'"),
        (["first", "--terminal", "--open"], "--terminal: writes no page"),
        (["first", "--output", "first"], "--output: first is a folder"),
        (["first", "--output", "no/where.html"], "--output: there is no folder no"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], says: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    done = command(*arguments)
    assert done.exit_code == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (run / "report.html").exists()


def test_open_shows_the_page(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert command(run, "--open", "--column", "weights").exit_code == 0
    assert opened == [(run / "report.html").as_uri()]
    assert 'data-start="weights"' in (run / "report.html").read_text(encoding="utf-8")


def test_terminal_shows_the_last_step_and_writes_nothing(run: Path) -> None:
    done = command(run, "--terminal", "--column", "weights")
    assert done.exit_code == 0
    assert "raw token weight" in done.stdout
    assert "pair 0 · rejected · step 20 · 1 tokens" in done.stdout
    assert "step 10" not in done.stdout
    assert not (run / "report.html").exists()


@pytest.mark.slow
def test_a_run_of_the_trainer_is_shown_whole(tiny_model: Path, tmp_path: Path, run_cli: Any) -> None:
    keys = {"defaults": "tab_po/addresses", "model_name_or_path": str(tiny_model), "output_dir": "run", "max_steps": 2}
    keys |= {"dataset_train_split": "train[:8]", "per_device_train_batch_size": 4, "token_samples_steps": 1}
    keys |= {"task_metric": None, "eval_strategy": "no", "save_strategy": "no", "logging_steps": 1, "max_length": 64}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(keys))
    run_cli(tmp_path, "train", "recipe.yaml")
    done = run_cli(tmp_path, "report", "run")
    assert done.stderr == ""
    page = build(read_runs([tmp_path / "run"]))
    assert page.notes == []
    assert dict(page.facts)["trainer"] == "tab_po"
    assert {"logps_change", "gradient_mass"} <= {chart.title for group in page.charts for chart in group.charts}
    assert page.view
    named = {column.name for column in report.COLUMNS} - {"advantages", "token_rewards", "implicit_rewards"}
    assert set(page.view.used) == named, "every column that the trainer writes has its line of meaning"
    assert {response.side for response in page.view.responses} == {"chosen", "rejected"}
