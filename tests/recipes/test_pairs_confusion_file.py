"""Confusion counts read back from the file beside pairs: the same pairs without the model."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import write_jsonl
from tests.recipes.pairs_runs import BASE, made, read, renamed, rewritten, run
from tokencredit.recipes import pairs_build as pairs
from tokencredit.recipes.files import read_recipe
from tokencredit.recipes.pairs_schema import parse_pairs_recipe

pytestmark = pytest.mark.usefixtures("working_directory")

TABLE = "out/pairs.jsonl.confusion.json"
SIDES = ("chosen", "rejected")
READ = BASE | {"confusion": TABLE, "output_file": "again/pairs.jsonl"}


def no_model(*arguments: Any, **options: Any) -> list[str]:
    raise AssertionError("the model is asked")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, model_keys: dict[str, Any]) -> Path:
    """The counts of a model that confuses one sub-label with another; from then on there is no model."""
    monkeypatch.setattr(pairs, "greedy_answers", rewritten(renamed))
    made(model_keys)
    monkeypatch.setattr(pairs, "greedy_answers", no_model)
    monkeypatch.setattr(pairs, "load_tokenizer", no_model)
    return Path(TABLE)


def test_the_counts_of_a_model_give_the_same_bytes_without_it(model_keys: dict[str, Any]) -> None:
    keys = {"negatives_per_example": 3, "span_perturbation": 0.2, "dataset_train_split": "train[:60]"}
    made(model_keys | keys)
    assert json.loads(Path(TABLE).read_text())["labels"]
    code, _, stderr = run(READ | keys)
    assert (code, stderr) == (0, "")
    first, again = (Path(folder, "pairs.jsonl").read_bytes() for folder in ("out", "again"))
    assert first == again
    assert len(first.splitlines()) == 180


def test_names_of_the_counting_split_belong_to_the_ontology_where_it_is_named(model_keys: dict[str, Any]) -> None:
    few = {"dataset_train_split": "train[:6]", "negatives_per_example": 20}
    made(model_keys | few)
    written = []
    for split in ("validation[:12]", None):
        code, _, stderr = run(READ | few | {"dataset_test_split": split, "overwrite": True})
        assert code == 0, stderr
        written.append(Path("again/pairs.jsonl").read_bytes())
    assert written[0] == Path("out/pairs.jsonl").read_bytes() != written[1]
    rows = read("again/pairs.jsonl")
    names = [{record["subcode"] for row in rows for record in json.loads(row[side])} for side in SIDES]
    assert names[1] <= names[0], "nothing but the names of the six addresses"


def test_the_file_is_read_and_none_is_written(measured: Path) -> None:
    before = measured.read_bytes()
    code, stdout, stderr = run(READ | {"model_name_or_path": "nobody/model"}, "output_file=out/pairs.jsonl")
    assert code == 2
    assert "pairs.jsonl' exists" in stderr
    code, stdout, stderr = run(READ | {"model_name_or_path": "nobody/model"}, "mix={sublabel: 1}")
    assert code == 0
    assert "note: counts from a file need no model: model_name_or_path is not used" in stderr
    assert "note: the model confused no labels: labels are confused uniformly" in stderr
    assert "new names follow measured confusions" in stdout
    assert "PostType" in stdout
    assert [path.name for path in Path("again").iterdir()] == ["pairs.jsonl"]
    run(READ, "output_file=out/pairs.jsonl", "overwrite=true")
    assert measured.read_bytes() == before


def test_pairs_of_the_split_that_was_counted_on(measured: Path) -> None:
    code, _, stderr = run(READ, "dataset_train_split=validation[:200]")
    assert code == 0, stderr
    assert len(read("again/pairs.jsonl")) == 200


def test_the_path_is_relative_to_the_recipe_and_stands_in_a_dry_run(measured: Path, tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "mine.yaml").write_text(yaml.safe_dump(READ | {"confusion": f"../{TABLE}"}))
    recipe = parse_pairs_recipe(read_recipe("conf/mine.yaml", []))
    assert recipe.confusion_table == tmp_path / TABLE
    assert parse_pairs_recipe(read_recipe("conf/mine.yaml", ["confusion=uniform"])).confusion == "uniform"
    code, stdout, _ = run(READ, "--dry-run")
    assert code == 0
    assert f"# counts read from {tmp_path / TABLE}" in stdout
    assert "counted on" not in stdout
    assert parse_pairs_recipe(yaml.safe_load(stdout)).confusion_table == tmp_path / TABLE


def test_counts_written_by_hand(tmp_path: Path) -> None:
    records = [{"code": "A", "subcode": "x", "span": "one"}, {"code": "A", "subcode": "y", "span": "two"}]
    write_jsonl(Path("rows.jsonl"), [{"prompt": "p", "text": "one two", "completion": json.dumps(records)}])
    Path("mine.json").write_text('{"labels": {}, "sublabels": {"x": {"y": 0.5, "elsewhere": 9}}}')
    keys = {"from": "confusions", "confusion": "mine.json", "output_file": "out/pairs.jsonl", "mix": {"sublabel": 1}}
    (row,) = made(keys | {"dataset_name": "rows.jsonl"})
    assert [record["subcode"] for record in json.loads(row["rejected"])] == ["y", "y"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no file '{path}'; give measured, uniform, or a file of counts"),
        ("{", "'{path}' cannot be read (Expecting property name"),
        ("\xff", "'{path}' cannot be read ("),
        ("[1]", "'{path}' holds no mapping; write {{labels: {{gold: {{predicted: count}}}}, sublabels: …}}"),
        ('{"labels": {}}', "'{path}' has no mapping 'sublabels'"),
        ('{"labels": [], "sublabels": {}}', "'{path}' has no mapping 'labels'"),
        ('{"labels": {"A": 3}, "sublabels": {}}', "'{path}' holds '3' under labels.A"),
        ('{"labels": {"A": {"B": "3"}}, "sublabels": {}}', "'{path}' holds 3 as count of labels.A.B"),
        ('{"labels": {"A": {"B": true}}, "sublabels": {}}', "holds True as count of labels.A.B"),
        ('{"labels": {}, "sublabels": {"A": {"B": -1}}}', "holds -1 as count of sublabels.A.B"),
        ('{"labels": {}, "sublabels": {"A": {"B": NaN}}}', "holds nan as count of sublabels.A.B"),
        ('{"labels": {}, "sublabels": {"A": {"B": 1e400}}}', "holds inf as count of sublabels.A.B"),
        ('{"labels": {}, "sublabels": {}}', "no count of '{path}' is between two names of the ontology"),
        ('{"labels": {"A": {"B": 1}}, "sublabels": {}}', "no count of '{path}' is between two names of the ontology"),
    ],
)
def test_files_that_cannot_be_used(text: str | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "counts.json"
    if text is not None:
        path.write_text(text, encoding="latin-1")
    code, _, stderr = run(READ | {"confusion": "counts.json"})
    assert code == 2
    assert stderr.startswith("error: confusion: " + says.format(path=path) if "{path}" in says else "error: confusion:")
    assert says.format(path=path) in stderr
    assert len(stderr.splitlines()) == 1
    assert not Path("again").exists()


def test_a_file_has_no_effect_with_samples() -> None:
    code, _, stderr = run(READ | {"from": "samples"})
    assert code == 2
    assert "confusion: has no effect with from: samples" in stderr
