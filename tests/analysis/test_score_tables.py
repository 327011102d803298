"""Tables and files of an evaluation."""

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tokencredit.analysis.score_tables import (
    MAIN,
    Grid,
    check_files,
    details,
    markdown,
    notes,
    read_json,
    summary,
    to_json,
    write,
)
from tokencredit.analysis.scores import Answers, Evaluation, Settings, score
from tokencredit.data.serialise import to_json as json_text
from tokencredit.errors import InputError

GOLD = [json_text([{"code": label, "subcode": "x", "span": "s"}]) for label in ("A", "B", "a|b", "Größe")]
ODD = json_text([{"code": "new\nline \x1b[31m", "subcode": "[red]", "span": "s"}])


@pytest.fixture
def evaluation() -> Evaluation:
    settings = Settings(data="d.jsonl", split="test", resamples=200)
    prompts = ["p", "q", [{"role": "user", "content": "r"}], "s"]
    models = [
        Answers("good", "runs/good", "runs/good/recipe.yaml", prompts, GOLD, [True] * 4),
        Answers(
            "[b]bad", "runs/bad", None, prompts, [GOLD[0], ODD, "", '[{"code":"\\ud800"}]'], [True, True, False, False]
        ),
    ]
    return Evaluation(settings, {"device": "cpu"}, GOLD, score(models, GOLD, settings))


@pytest.fixture
def seeds(evaluation: Evaluation) -> Evaluation:
    """Two runs of two arms, and one of a third."""
    settings, answers = evaluation.settings, [GOLD, [GOLD[0], ODD, *GOLD[2:]], ["[]"] * 4]
    models = [
        Answers(label, f"runs/s{seed}/{label}", None, list("pqrs"), answers[which], [which < 2] * 4)
        for label, seed, which in [("sft", 0, 1), ("sft", 1, 2), ("dpo", 0, 0), ("dpo", 1, 1), ("one", 0, 2)]
    ]
    return replace(evaluation, models=score(models, GOLD, settings))


def printed(evaluation: Evaluation, width: int) -> str:
    console = Console(width=width, soft_wrap=True, file=StringIO())
    for grid in [*summary(evaluation), *details(evaluation)]:
        console.print(grid.rich())
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("name", ["evaluation", "seeds"])
def test_json_holds_everything(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    evaluation: Evaluation = request.getfixturevalue(name)
    write(evaluation, tmp_path / "a.json", tmp_path / "a.md")
    again = read_json(tmp_path / "a.json")
    assert again == evaluation
    assert markdown(again) == (tmp_path / "a.md").read_text()
    # Scoring the saved answers again gives the saved scores.
    answers = [
        Answers(
            model.label,
            run.model,
            run.recipe,
            [d.prompt for d in run.documents],
            [d.answer for d in run.documents],
            [d.ended for d in run.documents],
        )
        for model in again.models
        for run in model.runs
    ]
    assert score(answers, again.references, again.settings) == evaluation.models
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.md"]
    assert "Größe" in (tmp_path / "a.json").read_text(), "readable without decoding"


def test_nothing_is_written_unasked(evaluation: Evaluation, tmp_path: Path) -> None:
    write(evaluation, None, None)
    assert not list(tmp_path.iterdir())


def test_tables(evaluation: Evaluation) -> None:
    text = printed(evaluation, 200)
    lines = text.splitlines()
    assert lines[0].strip() == "4 documents, 95% interval"
    assert lines[1].split() == ["model", *MAIN]
    assert lines[3].split()[:2] == ["[b]bad", "0.333"]
    assert lines[3].split()[4:] == ["0.250", "0.333", "0.333", "0.667", "0.500"]
    losses = lines[next(i for i, line in enumerate(lines) if line.startswith("what became")) :]
    assert losses[3].split() == ["[b]bad", "0.250", "0.000", "0.250", "0.500"]
    labels = lines[next(i for i, line in enumerate(lines) if line.startswith("F1 by label")) :]
    assert labels[2].split() == ["A", "1", "1.000", "1.000"]
    place = next(i for i, line in enumerate(lines) if line.startswith("4 documents, 95% intervals"))
    assert lines[place + 1].split() == ["figure", "good", "[b]bad"]
    valid = next(line for line in lines if line.split()[:1] == ["valid_json"])
    assert valid.split()[:4] == ["valid_json", "1.000", "[1.000,", "1.000]"]
    assert valid.split()[4] == "0.500"  # two of four parse to records
    place = next(i for i, line in enumerate(lines) if line.startswith("difference from good, 95% paired intervals"))
    differences = lines[place:]
    exact = next(line for line in differences if line.split()[:1] == ["exact"])
    assert exact.split()[1] == "-0.750"
    names = lines[next(i for i, line in enumerate(lines) if line.startswith("labels, [b]bad")) :]
    assert names[1].split() == ["labels", "support", "precision", "recall", "f1", "f1", "difference"]
    assert names[2].split()[:4] == ["A", "1", "1.000", "1.000"]
    assert names[-1].strip() == "(1 in no document)"
    assert "\x1b" not in text
    assert "…" not in printed(evaluation, 40), "a narrow terminal wraps, but no number is shortened"


def test_markdown(evaluation: Evaluation) -> None:
    page = markdown(evaluation)
    assert "- [b]bad: `runs/bad`\n" in page
    assert "- data: d.jsonl\n- split: test\n" in page
    assert "- [b]bad: 2 of 4 answers were cut at 256 tokens\n" in page
    for title in ("labels, good", "labels, [b]bad", "sub-labels, good", "sub-labels, [b]bad"):
        assert f"## {title}\n" in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    widths = {line.replace("\\|", "").count("|") for line in rows if "a\\|b" in line}
    assert widths == {5, 6, 7}, "a bar in a name is no column"
    assert "\x1b" not in page
    row = Grid("t", ["a"], [["x\\|y <b> &amp;"]]).markdown().splitlines()[-1]
    assert row == "| x\\\\\\|y \\<b> \\&amp; |"


def test_several_runs_in_the_tables(seeds: Evaluation) -> None:
    main, main_differences, losses, _ = summary(seeds)
    assert main.title == "4 documents, 95% interval, mean ± standard deviation over runs"
    assert main.rows[0][:1] + main.rows[0][2:3] == ["sft, 2 runs", "0.375 ±0.530"]
    assert [row[2] for row in main_differences.rows] == ["+0.500 ±0.354", "-0.375"]
    # Of eight gold records of two runs three are right, one has its span under another name.
    assert losses.rows[0] == ["sft, 2 runs", "0.375", "0.000", "0.125", "0.500"]
    figures, differences, names, *others = details(seeds)
    assert figures.title == "4 documents, 95% intervals, mean ± standard deviation over runs"
    assert figures.header == ["figure", "sft, 2 runs", "dpo, 2 runs", "one"]
    exact = next(row for row in figures.rows if row[0] == "exact")
    # Right are 3 and 0 of 4, and 4 and 3 of 4.
    assert [cell.split(" [")[0] for cell in exact[1:]] == ["0.375 ±0.530", "0.875 ±0.177", "0.000"]
    assert differences.title == "difference from sft, 95% paired intervals, mean ± standard deviation over runs"
    exact = next(row for row in differences.rows if row[0] == "exact")
    # 4 − 3 and 3 − 0 quarters; one run has no pair.
    assert [cell.split(" [")[0] for cell in exact[1:]] == ["+0.500 ±0.354", "-0.375"]
    assert names.rows[0][4] == "0.500 ±0.707 [0.500, 1.000]"
    assert [grid.rows[-1][0] for grid in (names, *others[:2])] == ["(1 in no document)"] * 2 + ["a|b"]


def test_several_runs_on_the_page(seeds: Evaluation) -> None:
    page = markdown(seeds)
    assert "- sft: `runs/s0/sft`, `runs/s1/sft`\n" in page
    assert "- one: `runs/s0/one`\n" in page
    assert "- sft (runs/s1/sft): 4 of 4 answers were cut at 256 tokens\n" in page
    assert "| exact | 0.375 ±0.530 [" in page
    assert notes(seeds)[1:] == ["one: 4 of 4 answers were cut at 256 tokens"]


def test_layout_of_the_file(seeds: Evaluation) -> None:
    found = json.loads(to_json(seeds))
    assert found["format"] == 2
    assert list(found["models"][0]) == ["label", "runs", "scores", "differences", "names"]
    assert [list(run) for run in found["models"][0]["runs"]] == [["model", "recipe", "scores", "documents"]] * 2
    assert [run["scores"]["exact"] for run in found["models"][0]["runs"]] == [0.75, 0]
    assert list(found["models"][1]["differences"]["exact"]) == ["value", "low", "high", "spread"]
    assert found["models"][2]["scores"]["exact"]["spread"] is None


def test_notes_name_cut_answers_only(evaluation: Evaluation) -> None:
    assert notes(evaluation) == ["[b]bad: 2 of 4 answers were cut at 256 tokens"]
    assert notes(replace(evaluation, models=evaluation.models[:1])) == []


def test_one_model_has_no_differences(evaluation: Evaluation) -> None:
    titles = [grid.title for grid in summary(replace(evaluation, models=evaluation.models[:1]))]
    assert titles == ["4 documents, 95% interval", "what became of the gold records", "F1 by label"]


def test_files_that_are_none(evaluation: Evaluation, tmp_path: Path) -> None:
    old = json.dumps({"format": 1, "models": [{"label": "a", "model": "m", "documents": []}]})
    for text, says in {
        "{}": "no evaluation",
        "oops": "no evaluation",
        '{"format": 2}': "no evaluation",
        to_json(replace(evaluation, format=9)): "format 9 is not 2; evaluate the models again",
        old: "format 1 is not 2; evaluate the models again",
    }.items():
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(InputError, match=says):
            read_json(tmp_path / "a.json")
    with pytest.raises(InputError, match="no evaluation"):
        read_json(tmp_path / "missing.json")


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    check_files(tmp_path / "a.json", None)
    for wrong in (tmp_path, tmp_path / "missing" / "a.json"):
        with pytest.raises(InputError, match="cannot be written"):
            check_files(wrong, None)
    with pytest.raises(InputError, match="named twice"):
        check_files(tmp_path / "a", tmp_path / "a")
