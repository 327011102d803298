"""`tokencredit pairs`: from a recipe to a file of preference pairs that trains."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from tests.conftest import SHORT_RUN, write_jsonl
from tokencredit.cli import app
from tokencredit.data.loading import load_split
from tokencredit.data.records import ontology
from tokencredit.data.serialise import to_json
from tokencredit.errors import InputError
from tokencredit.recipes import pairs_build as pairs
from tokencredit.recipes.files import builtin_recipes, read_recipe
from tokencredit.recipes.init_model import write_initial_model
from tokencredit.recipes.pairs_schema import parse_pairs_recipe
from tokencredit.recipes.schema import Init
from tokencredit.trainers.task_metric import Answer, question

BASE: dict[str, Any] = {
    "from": "confusions",
    "output_file": "out/pairs.jsonl",
    "dataset_name": "us_addresses",
    "dataset_train_split": "train[:20]",
    "dataset_test_split": "validation[:12]",
    "prompt_template": "{text}\n",
    "completion_column": "results",
    "max_new_tokens": 16,
    "seed": 0,
}
UNIFORM = BASE | {"confusion": "uniform"}
SAMPLES = BASE | {"from": "samples", "score_function": "measures:length", "num_samples": 3}
COLUMNS = ["prompt", "chosen", "rejected", "strategy", "chosen_spans", "rejected_spans"]
# Scores without meaning that differ from answer to answer.
MEASURES = """
import json
def length(predictions, references):
    return [len(text) + sum(map(ord, text)) % 7 for text in predictions]
def fails(predictions, references):
    raise KeyError("oops")
def short(predictions, references):
    return [1.0]
def nothing(predictions, references):
    return [float("nan") for _ in predictions]
def words(predictions, references):
    return ["good" for _ in predictions]
number = 3
"""


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "measures.py").write_text(MEASURES)


@pytest.fixture(scope="module")
def one_answer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that calls everything a street's name, whatever it is asked."""
    text = '[{"code":"Street","subcode":"Name","span":"Main"}]'
    pieces = ['[{"code":"Street","subcode":"Name","span":"', '"}]']
    config = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    folder = tmp_path_factory.mktemp("constant") / "model"
    rows = list(load_split("us_addresses", "train"))
    init = Init(model_type="llama", config=config, tokenizer={"pieces": pieces})  # type: ignore[arg-type]
    write_initial_model(init, rows, folder, seed=0)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    answer = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for row in random.Random(0).sample(rows, 100):
        asked = question(tokenizer, row["text"] + "\n", "").prompt_ids
        ids = torch.tensor([asked + answer])
        labels = torch.tensor([[-100] * len(asked) + answer])
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def brief_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The untrained model with every eighth token as a stop token, so that most of its answers end."""
    folder = tmp_path_factory.mktemp("brief") / "model"
    shutil.copytree(tiny_model, folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": list(range(0, 288, 8))}))
    return folder


def run(keys: dict[str, Any], *words: str) -> tuple[int, str, str]:
    """Exit code, output and errors of the command, run in this process."""
    Path("recipe.yaml").write_text(yaml.safe_dump({key: value for key, value in keys.items() if value is not None}))
    result = CliRunner().invoke(app, ["pairs", "recipe.yaml", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def read(path: str | Path = "out/pairs.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def made(keys: dict[str, Any], *words: str) -> list[dict[str, Any]]:
    code, _, stderr = run(keys, *words)
    assert code == 0, stderr
    return read()


def rewritten(change: Callable[[list[dict[str, str]]], Any]) -> Callable[..., list[str]]:
    """A stand-in for the model: the gold answers of the counting split, changed."""
    rows = list(load_split("us_addresses", BASE["dataset_test_split"]))

    def answer(model: Any, tokenizer: Any, prompts: list[list[int]], **options: Any) -> list[str]:
        assert len(prompts) == len(rows)
        found = [change([dict(record) for record in row["results"]]) for row in rows]
        return [value if isinstance(value, str) else to_json(value) for value in found]

    return answer


def renamed(records: list[dict[str, str]]) -> list[dict[str, str]]:
    return [record | ({"subcode": "PreType"} if record["subcode"] == "PostType" else {}) for record in records]


@pytest.fixture
def model_keys(one_answer: Path) -> dict[str, Any]:
    return BASE | {"model_name_or_path": str(one_answer)}


def test_every_pair_of_all_addresses(monkeypatch: pytest.MonkeyPatch, model_keys: dict[str, Any]) -> None:
    monkeypatch.setattr(pairs, "greedy_answers", rewritten(renamed))
    rows = made(model_keys, "dataset_train_split=train", "negatives_per_example=2", "span_perturbation=0.2")
    gold = {row["text"] + "\n": row for row in load_split("us_addresses", "train")}
    both = [row["results"] for split in ("train", "validation[:12]") for row in load_split("us_addresses", split)]
    allowed = ontology(both)
    assert len(gold) == 877
    assert {row["prompt"] for row in rows} == set(gold)
    for row in rows:
        assert list(row) == COLUMNS
        source = gold[row["prompt"]]
        assert row["chosen"] == to_json(source["results"]) != row["rejected"]
        records = json.loads(row["rejected"])
        assert to_json(records) == row["rejected"]
        assert sorted(map(to_json, records)) != sorted(map(to_json, source["results"]))
        assert all(record["subcode"] in allowed[record["code"]] for record in records)
        assert all(record["span"] in source["text"] for record in records)


def test_the_measured_confusion_is_the_one_that_is_drawn(
    monkeypatch: pytest.MonkeyPatch, model_keys: dict[str, Any]
) -> None:
    monkeypatch.setattr(pairs, "greedy_answers", rewritten(renamed))
    rows = made(model_keys | {"mix": {"sublabel": 1}}, "dataset_train_split=train[:100]")
    seen = 0
    for row in rows:
        before, after = json.loads(row["chosen"]), json.loads(row["rejected"])
        (change,) = [(a["subcode"], b["subcode"]) for a, b in zip(before, after, strict=True) if a != b]
        if any(record["subcode"] == "PostType" for record in before):
            assert change == ("PostType", "PreType")
            seen += 1
    assert seen > 50
    table = json.loads(Path("out/pairs.jsonl.confusion.json").read_text())
    streets = sum(
        any(record["subcode"] == "PostType" for record in row["results"])
        for row in load_split("us_addresses", BASE["dataset_test_split"])
    )
    assert table == {
        "labels": {},
        "sublabels": {"PostType": {"PreType": streets}},
        "model_name_or_path": model_keys["model_name_or_path"],
        "dataset_name": "us_addresses",
        "dataset_config": None,
        "dataset_test_split": "validation[:12]",
        "max_new_tokens": 16,
        "seed": 0,
        "predictions": 12,
        "not_valid_json": 0,
    }


def test_what_the_command_says(monkeypatch: pytest.MonkeyPatch, model_keys: dict[str, Any]) -> None:
    found = rewritten(renamed)
    monkeypatch.setattr(pairs, "greedy_answers", lambda *a, **k: ["oops", "[", *found(*a, **k)[2:]])
    write_jsonl(Path("expert.jsonl"), [{"prompt": "p", "chosen": '[ {"a": 1} ]', "rejected": "no"}])
    code, stdout, stderr = run(model_keys, "expert_pairs=expert.jsonl", "mix={sublabel: 1}")
    assert code == 0
    assert "2 of 12 answers were not valid JSON with records" in stdout
    assert "21 pairs: sublabel 20, expert 1" in stdout
    assert "follow measured confusions" in stdout
    assert "PostType" in stdout
    assert "note: the model confused no labels: labels are confused uniformly" in stderr
    assert read()[-1] == {
        "prompt": "p",
        "chosen": '[{"a":1}]',
        "rejected": "no",
        "strategy": "expert",
        "chosen_spans": [],
        "rejected_spans": [],
    }
    assert json.loads(Path("out/pairs.jsonl.confusion.json").read_text())["not_valid_json"] == 2


def test_names_outside_the_ontology_are_counted_but_never_written(
    monkeypatch: pytest.MonkeyPatch, model_keys: dict[str, Any]
) -> None:
    def invented(records: list[dict[str, str]]) -> list[dict[str, str]]:
        return [record | {"subcode": "Nowhere"} for record in renamed(records)[:1]] + renamed(records)[1:]

    monkeypatch.setattr(pairs, "greedy_answers", rewritten(invented))
    rows = made(model_keys)
    assert "Nowhere" not in Path("out/pairs.jsonl").read_text()
    assert "Nowhere" in Path("out/pairs.jsonl.confusion.json").read_text()
    assert len(rows) == 20


def test_a_model_without_confusions_stops_the_command(
    monkeypatch: pytest.MonkeyPatch, model_keys: dict[str, Any]
) -> None:
    monkeypatch.setattr(pairs, "greedy_answers", rewritten(lambda records: records))
    code, _, stderr = run(model_keys)
    assert code == 2
    assert stderr.startswith("error: confusion: the model confused no names of the ontology in 12 answers, of which 0")
    assert "confusion: uniform" in stderr
    assert not Path("out").exists()


def test_the_only_confusions_of_the_constant_model_are_with_what_it_always_says(model_keys: dict[str, Any]) -> None:
    made(model_keys, "dataset_test_split=validation[:40]")
    table = json.loads(Path("out/pairs.jsonl.confusion.json").read_text())
    assert table["not_valid_json"] == 0
    assert table["labels"]
    assert all(list(row) == ["Street"] for row in table["labels"].values())
    assert all(list(row) == ["Name"] for row in table["sublabels"].values())


def test_batch_size_changes_nothing(model_keys: dict[str, Any], brief_model: Path) -> None:
    for keys in (model_keys, SAMPLES | {"model_name_or_path": str(brief_model)}):
        written = []
        for batch_size in (1, 5):
            made(keys, f"batch_size={batch_size}", "overwrite=true")
            written.append({path.name: path.read_bytes() for path in Path("out").iterdir()})
        assert written[0] == written[1]


@pytest.mark.slow
def test_the_command_writes_the_same_bytes_under_any_hash_seed(
    model_keys: dict[str, Any], brief_model: Path, tmp_path: Path, run_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = {
        "confusions": model_keys | {"negatives_per_example": 2, "span_perturbation": 0.3},
        "samples": SAMPLES | {"model_name_or_path": str(brief_model)},
    }
    for name, keys in recipes.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(keys))
        for seed in (1, 2):
            monkeypatch.setenv("PYTHONHASHSEED", str(seed))
            run_cli(tmp_path, "pairs", f"{name}.yaml", f"output_file={name}{seed}.jsonl", f"batch_size={3 * seed}")
        first, second = (tmp_path / f"{name}{seed}.jsonl" for seed in (1, 2))
        assert first.read_bytes() == second.read_bytes()
        assert len(read(first)) >= 15
    tables = [(tmp_path / f"confusions{seed}.jsonl.confusion.json").read_bytes() for seed in (1, 2)]
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_the_file_trains(tiny_model: Path, brief_model: Path, tmp_path: Path, run_cli: Any) -> None:
    model = {"model_name_or_path": str(tiny_model)}
    recipes = {
        "folder/train": UNIFORM,
        "folder/test": UNIFORM | {"dataset_train_split": "validation[:8]"},
        "samples": SAMPLES | {"model_name_or_path": str(brief_model)},
    }
    for name, keys in recipes.items():
        code, _, stderr = run(keys, f"output_file={name}.jsonl")
        assert code == 0, stderr
    short = SHORT_RUN | model | {"max_steps": 2, "per_device_train_batch_size": 4}
    weights = {"json": {"[].code": 1.1, "[].subcode": 1.2}, "spans": {"span": 1.1}, "differing": 1.2}
    runs = {
        "dpo": {"trainer": "dpo", "dataset_name": "samples.jsonl"},
        "tab_po": {"trainer": "tab_po", "dataset_name": "folder", "token_weights": weights, "eval_strategy": "epoch"},
    }
    for name, keys in runs.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(short | keys | {"output_dir": name}))
        run_cli(tmp_path, "train", f"{name}.yaml")
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert lines[-1]["step"] == 2
        assert any("eval_margins/subcode" in line for line in lines) == (name == "tab_po")


def test_samples_are_scored_by_record_f1_and_set_best_against_worst(
    monkeypatch: pytest.MonkeyPatch, model_keys: dict[str, Any]
) -> None:
    rows = list(load_split("us_addresses", "train[:20]"))

    def sampled(model: Any, tokenizer: Any, prompts: list[list[int]], **options: Any) -> list[list[Answer]]:
        assert options == {
            "num_samples": 3,
            "temperature": 0.7,
            "top_p": 0.9,
            "seed": 0,
            "max_new_tokens": 16,
            "batch_size": 16,
        }
        gold = [json.dumps(row["results"]) for row in rows]
        found = [[Answer("oops", True), Answer(text, True), Answer("[]", True)] for text in gold]
        found[0] = [Answer("oops", True)] * 3
        found[1] = [Answer(gold[1], False), Answer("[]", True), Answer("oops", True)]
        found[2] = [Answer(gold[2], False), Answer("[]", False), Answer("oops", False)]
        return found

    monkeypatch.setattr(pairs, "sampled", sampled)
    keys = model_keys | {"from": "samples", "num_samples": 3, "temperature": 0.7, "top_p": 0.9}
    code, stdout, stderr = run(keys)
    assert code == 0
    found = read()
    assert [row["prompt"] for row in found] == [row["text"] + "\n" for row in rows[3:]]
    for pair, row in zip(found, rows[3:], strict=True):
        assert pair["chosen"] == to_json(row["results"]), "written by the one serialiser, whatever spaces the model put"
        assert (pair["rejected"], pair["strategy"], list(pair)) == ("oops", "samples", COLUMNS)
        assert len(pair["chosen_spans"]) == 3 * len(row["results"])
    assert "17 pairs: samples 17" in stdout
    assert "not made: 1 (all samples are the same text)" in stdout
    assert "not made: 1 (best and worst sample score the same)" in stdout
    assert "not made: 1 (every sample was cut off at max_new_tokens)" in stdout
    assert "note: 4 of 60 samples were cut off at max_new_tokens: never chosen" in stderr
    assert [path.name for path in Path("out").iterdir()] == ["pairs.jsonl"], "nothing was confused"


def test_uniform_needs_no_model_and_no_second_split() -> None:
    keys = {key: value for key, value in UNIFORM.items() if key != "dataset_test_split"}
    assert len(made(keys)) == 20
    first = Path("out/pairs.jsonl").read_bytes()
    made(keys, "overwrite=true", "seed=1")
    assert Path("out/pairs.jsonl").read_bytes() != first


def test_chat_prompts(model_keys: dict[str, Any], one_answer: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(one_answer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    AutoModelForCausalLM.from_pretrained(one_answer).save_pretrained(tmp_path / "chat")
    tokenizer.save_pretrained(tmp_path / "chat")
    messages = [{"role": "user", "content": "{text}\n"}]
    row, *_ = made(model_keys | {"model_name_or_path": "./chat", "prompt_template": messages})
    address = load_split("us_addresses", "train")[0]
    assert row["prompt"] == [{"role": "user", "content": address["text"] + "\n"}]
    assert row["chosen"] == [{"role": "assistant", "content": to_json(address["results"])}]
    place = row["chosen_spans"][0]
    assert row["chosen"][0]["content"][place["start"] : place["end"]] == address["results"][0]["code"]


def test_ontology_from_a_file_or_the_recipe() -> None:
    allowed = ontology(row["results"] for row in load_split("us_addresses", "train"))
    allowed["Street"].append("Alley")
    Path("names.json").write_text(json.dumps(allowed))
    Path("names.yaml").write_text(yaml.safe_dump(allowed))
    written = []
    for given in ("names.json", "names.yaml", allowed):
        made(UNIFORM | {"ontology": given, "overwrite": True, "negatives_per_example": 9, "mix": {"sublabel": 1}})
        written.append(Path("out/pairs.jsonl").read_text())
    assert written[0] == written[1] == written[2]
    assert "Alley" in written[0]


def test_answers_as_text_in_another_form_are_noted() -> None:
    rows = [
        {"prompt": "p", "text": "one two", "completion": '[{"code": "A", "subcode": "x", "span": "one"}]'},
        {"prompt": "q", "text": "two", "completion": '[{"code":"A","subcode":"y","span":"two"}]'},
    ]
    write_jsonl(Path("rows.jsonl"), rows)
    keys = {
        "from": "confusions",
        "confusion": "uniform",
        "output_file": "out/pairs.jsonl",
        "dataset_name": "rows.jsonl",
    }
    code, _, stderr = run(keys)
    assert code == 0
    assert "note: 1 of 2 gold answers are in another form" in stderr
    assert read()[0]["chosen"] == '[{"code":"A","subcode":"x","span":"one"}]'


def test_a_note_about_documents_in_both_splits(model_keys: dict[str, Any]) -> None:
    rows = list(load_split("us_addresses", "train[:30]"))
    write_jsonl(Path("rows.jsonl"), [*rows[:25], *rows[20:]])
    keys = model_keys | {"dataset_name": "rows.jsonl", "dataset_train_split": "train[:25]"}
    code, _, stderr = run(keys | {"dataset_test_split": "train[25:]"}, "--dry-run")
    assert code == 0, stderr
    assert "note: 5 of 10 counting documents are in the training split too" in stderr
    code, _, stderr = run(keys | {"dataset_test_split": "train[25:30]"}, "--dry-run")
    assert code == 2
    assert "dataset_test_split: every document of the counting split is in the training split too" in stderr


def test_dry_run_writes_nothing_and_prints_a_recipe(model_keys: dict[str, Any]) -> None:
    code, stdout, _ = run(model_keys, "seed=7", "--dry-run")
    assert code == 0
    assert {path.name for path in Path().iterdir()} == {"recipe.yaml", "measures.py"}
    assert parse_pairs_recipe(yaml.safe_load(stdout)).seed == 7
    assert "# documents        20" in stdout
    assert "# counted on       12 documents" in stdout


def test_dry_run_says_what_is_not_on_this_machine() -> None:
    code, _, stderr = run(BASE | {"model_name_or_path": "nobody/model", "dataset_name": "nobody/data"}, "--dry-run")
    assert code == 0
    assert [line.startswith("note: not available locally: ") for line in stderr.splitlines()] == [True, True]
    code, _, stderr = run(UNIFORM | {"fields": {"label": "label"}}, "--dry-run")
    assert code == 2, "what is on this machine is checked in full"
    assert "record 0 of row 0" in stderr


@pytest.mark.parametrize("name", [name for name in builtin_recipes() if name.startswith("pairs/")])
def test_builtin_recipes(name: str) -> None:
    recipe = parse_pairs_recipe(read_recipe(name, []))
    assert parse_pairs_recipe(yaml.safe_load(yaml.safe_dump(recipe.flat()))) == recipe
    assert recipe.dataset_test_split == "validation"


def test_a_file_inherits_and_its_paths_are_its_own(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    keys = {"defaults": "pairs/addresses", "output_file": "a.jsonl", "ontology": "b.json", "expert_pairs": "c.jsonl"}
    (tmp_path / "conf" / "mine.yaml").write_text(yaml.safe_dump(keys))
    recipe = parse_pairs_recipe(read_recipe("conf/mine.yaml", ["seed=3"]))
    assert recipe.output_file == str(tmp_path / "conf" / "a.jsonl")
    assert recipe.ontology == str(tmp_path / "conf" / "b.json")
    assert recipe.expert_pairs == str(tmp_path / "conf" / "c.jsonl")
    assert (recipe.seed, recipe.dataset_name) == (3, "us_addresses")


def test_training_and_pairs_recipes_point_at_each_other(tmp_path: Path) -> None:
    code, _, stderr = run({"trainer": "sft"})
    assert code == 2
    assert "trainer: this is a recipe for training; run it with `tokencredit train`" in stderr
    result = CliRunner().invoke(app, ["train", "pairs/addresses"])
    assert result.exit_code == 2
    assert "run it with `tokencredit pairs`" in result.stderr


def test_an_existing_file_is_kept(model_keys: dict[str, Any]) -> None:
    Path("out").mkdir()
    for name in ("pairs.jsonl", "pairs.jsonl.confusion.json"):
        Path("out", name).write_text("mine")
        code, _, stderr = run(model_keys)
        assert code == 2
        assert f"{name}' exists; name another file, or set overwrite: true" in stderr
        assert Path("out", name).read_text() == "mine"
        Path("out", name).unlink()


ROW = {"prompt": "p", "text": "one", "completion": [{"code": "A", "subcode": "x", "span": "one"}]}
OWN = {"dataset_name": "rows.jsonl", "prompt_template": None, "dataset_train_split": None}


def rows(*changed: dict[str, Any]) -> dict[str, Any]:
    """Keys for data of one's own whose last rows are these; None removes a column."""
    full = [{**ROW, "prompt": f"p{number}"} for number in range(2)]
    full += [{key: value for key, value in (ROW | row).items() if value is not None} for row in changed]
    write_jsonl(Path("rows.jsonl"), full)
    return UNIFORM | OWN | {"completion_column": "completion"}


def text_rows(*answers: str) -> dict[str, Any]:
    """Keys for data of one's own whose answers are these texts."""
    write_jsonl(Path("rows.jsonl"), [{**ROW, "completion": answer} for answer in answers])
    return UNIFORM | OWN | {"completion_column": None}


def with_file(name: str, text: str, **keys: Any) -> dict[str, Any]:
    Path(name).write_text(text)
    return UNIFORM | keys


WRONG: dict[str, tuple[Callable[[], dict[str, Any]], list[str]]] = {
    "no kind": (lambda: UNIFORM | {"from": None}, ["from", "is missing", "confusions or samples"]),
    "unknown kind": (lambda: UNIFORM | {"from": "thin air"}, ["from", "'thin air' is wrong", "'samples'"]),
    "no output": (lambda: UNIFORM | {"output_file": None}, ["output_file", "missing"]),
    "no data": (lambda: UNIFORM | {"dataset_name": None}, ["dataset_name", "missing"]),
    "unknown key": (lambda: UNIFORM | {"batchsize": 2}, ["batchsize", "unknown key", "'batch_size'"]),
    "unknown nested key": (
        lambda: UNIFORM | {"fields": {"lable": "a"}},
        ["fields.lable", "unknown key", "'label'"],
    ),
    "wrong type": (lambda: UNIFORM | {"batch_size": "many"}, ["batch_size", "'many' is wrong", "integer"]),
    "no batch": (lambda: UNIFORM | {"batch_size": 0}, ["batch_size", "0 is wrong", "greater than or equal to 1"]),
    "no model": (lambda: BASE, ["model_name_or_path", "missing", "confusion: uniform"]),
    "no model for samples": (lambda: SAMPLES, ["model_name_or_path", "missing", "hub model"]),
    "model that is not there": (lambda: BASE | {"model_name_or_path": "./no"}, ["model_name_or_path", "no folder"]),
    "hub model out of reach": (lambda: BASE | {"model_name_or_path": "no/model"}, ["model_name_or_path", "'no/model'"]),
    "no counting split": (
        lambda: BASE | {"model_name_or_path": "m", "dataset_test_split": None},
        ["dataset_test_split", "missing", "validation"],
    ),
    "counting on the training split": (
        lambda: BASE | {"model_name_or_path": "m", "dataset_test_split": "train[:20]"},
        ["dataset_test_split", "'train[:20]' shares rows with the training split", "validation"],
    ),
    "counting on a part of it": (
        lambda: BASE | {"model_name_or_path": "m", "dataset_test_split": "train[2%:]"},
        ["dataset_test_split", "'train[2%:]' shares rows with the training split 'train[:20]'"],
    ),
    "split that cannot be read": (
        lambda: BASE | {"model_name_or_path": "m", "dataset_test_split": "train+test"},
        ["dataset_test_split", "'train+test' is not a split"],
    ),
    "unknown split": (lambda: UNIFORM | {"dataset_train_split": "trian"}, ["dataset_name", "trian"]),
    "empty split": (lambda: UNIFORM | {"dataset_train_split": "train[:0]"}, ["train[:0]"]),
    "empty counting split": (
        lambda: BASE | {"model_name_or_path": "m", "dataset_test_split": "validation[:0]"},
        ["validation[:0]"],
    ),
    "unknown strategy": (lambda: UNIFORM | {"mix": {"labels": 1}}, ["mix", "'labels'", "label, sublabel, both"]),
    "spans in the mix": (lambda: UNIFORM | {"mix": {"span": 1}}, ["mix", "'span'", "span_perturbation"]),
    "negative share": (lambda: UNIFORM | {"mix": {"label": -1, "both": 2}}, ["mix", "-1.0 for label"]),
    "infinite share": (lambda: UNIFORM | {"mix": {"label": float("inf")}}, ["mix", "inf for label"]),
    "no share": (lambda: UNIFORM | {"mix": {"label": 0}}, ["mix", "no strategy has a share"]),
    "share that is none": (lambda: UNIFORM | {"mix": {"label": "much"}}, ["mix.label", "'much' is wrong"]),
    "too much perturbation": (lambda: UNIFORM | {"span_perturbation": 1.5}, ["span_perturbation", "1.5 is wrong"]),
    "one sample": (lambda: SAMPLES | {"num_samples": 1}, ["num_samples", "1 is wrong", "greater than or equal to 2"]),
    "no temperature": (lambda: SAMPLES | {"temperature": 0}, ["temperature", "0 is wrong", "greater than 0"]),
    "keys of the other kind": (lambda: UNIFORM | {"num_samples": 4}, ["num_samples", "no effect", "from: samples"]),
    "and the other way": (lambda: SAMPLES | {"mix": {"label": 1}}, ["mix", "no effect", "from: confusions"]),
    "ontology that is not there": (lambda: UNIFORM | {"ontology": "no.json"}, ["ontology", "no file", "no.json"]),
    "ontology that is no JSON": (lambda: with_file("o.json", "{", ontology="o.json"), ["ontology", "o.json", "cannot"]),
    "ontology that is no YAML": (lambda: with_file("o.yaml", "a: [", ontology="o.yaml"), ["o.yaml line", "YAML"]),
    "ontology that is a list": (lambda: with_file("o.json", "[1]", ontology="o.json"), ["o.json", "no mapping"]),
    "ontology without names": (lambda: with_file("o.json", '{"A": "x"}', ontology="o.json"), ["'x' under 'A'"]),
    "ontology with a bare no": (lambda: with_file("o.yaml", "A: [no]", ontology="o.yaml"), ["under 'A'", "quotes"]),
    "ontology that is a number": (lambda: UNIFORM | {"ontology": 3}, ["ontology", "3 is wrong"]),
    "empty ontology": (lambda: UNIFORM | {"ontology": {}}, ["ontology", "no mapping"]),
    "label that is no text": (lambda: UNIFORM | {"ontology": {True: ["x"]}}, ["ontology", "wrong", "string"]),
    "gold outside the ontology": (
        lambda: rows({"completion": [{"code": "B", "subcode": "x", "span": "one"}]}) | {"ontology": {"A": ["x", "y"]}},
        ["ontology", "no 'B' with 'x'", "row 2 of the training data"],
    ),
    "record without a key": (
        lambda: rows({"completion": [ROW["completion"][0], {"code": "A", "span": "one"}]}),
        ["dataset_name", "record 1 of row 2 of the training data has no text under 'subcode'"],
    ),
    "other keys": (
        lambda: UNIFORM | {"fields": {"label": "label"}},
        ["record 0 of row 0", "under 'label'", "fields"],
    ),
    "answer that is no JSON": (
        lambda: text_rows(to_json(ROW["completion"]), "oops"),
        ["answer of row 1 of the training data is not JSON"],
    ),
    "answer that is no list": (
        lambda: text_rows(to_json(ROW["completion"]), '{"results": []}'),
        ["answer of row 1 of the training data is no list"],
    ),
    "row without text": (lambda: rows({"text": None}), ["text_column", "row 2 of the training data holds None"]),
    "no text column": (lambda: UNIFORM | {"text_column": "body"}, ["text_column", "no 'body'", "text_column"]),
    "no prompt": (lambda: UNIFORM | {"prompt_template": None}, ["dataset_name", "no 'prompt'", "prompt_template"]),
    "no answer": (lambda: UNIFORM | {"completion_column": None}, ["no 'completion'", "completion_column"]),
    "template of another column": (lambda: UNIFORM | {"prompt_template": "{body}"}, ["prompt_template", "'body'"]),
    "unknown score": (lambda: SAMPLES | {"score_function": "bleu"}, ["score_function", "'bleu'", "record_f1"]),
    "score that is not there": (lambda: SAMPLES | {"score_function": "no:where"}, ["score_function", "imported"]),
    "score that is none": (lambda: SAMPLES | {"score_function": "measures:number"}, ["is not a function"]),
    "score that fails": (lambda: SAMPLES | {"score_function": "measures:fails"}, ["failed", "KeyError('oops')"]),
    "too few scores": (lambda: SAMPLES | {"score_function": "measures:short"}, ["1 scores for 20 predictions"]),
    "scores that are none": (lambda: SAMPLES | {"score_function": "measures:nothing"}, ["nan", "finite"]),
    "scores in words": (lambda: SAMPLES | {"score_function": "measures:words"}, ["failed", "'good'"]),
    "expert file that is not there": (lambda: UNIFORM | {"expert_pairs": "no.jsonl"}, ["expert_pairs", "no.jsonl"]),
    "expert file without a side": (
        lambda: with_file("e.jsonl", '{"prompt": "p", "chosen": "c"}\n', expert_pairs="e.jsonl"),
        ["expert_pairs", "no 'rejected'"],
    ),
    "expert chat among text": (
        lambda: with_file(
            "e.jsonl", '{"prompt": [{"a": "b"}], "chosen": "c", "rejected": "d"}', expert_pairs="e.jsonl"
        ),
        ["expert_pairs", "row 0 holds", "as prompt", "give text"],
    ),
    "expert pair of the same": (
        lambda: with_file("e.jsonl", '{"prompt": "p", "chosen": "[ ]", "rejected": "[]"}', expert_pairs="e.jsonl"),
        ["expert_pairs", "row 0 are the same"],
    ),
    "expert line that is no JSON": (lambda: with_file("e.jsonl", "oops\n", expert_pairs="e.jsonl"), ["e.jsonl line 1"]),
    "output that is a folder": (lambda: UNIFORM | {"output_file": "."}, ["output_file", "is a folder"]),
    "output that cannot be written": (lambda: UNIFORM | {"output_file": "/proc/a/b"}, ["output_file", "cannot write"]),
    "nothing to make": (
        lambda: text_rows("[]", "[]") | {"mix": {"missing": 1}},
        ["from", "no pair could be made: no strategy of the mix is possible (2)"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_line_and_writes_nothing(name: str, tiny_model: Path) -> None:
    prepare, says = WRONG[name]
    keys = prepare()
    if keys.get("model_name_or_path") == "m" or (keys["from"] == "samples" and "for samples" not in name):
        keys = keys | {"model_name_or_path": str(tiny_model)}
    before = set(Path().rglob("*")) | {Path("recipe.yaml")}
    code, _, stderr = run(keys)
    lines = [line for line in stderr.splitlines() if not line.startswith("note: ")]
    assert code == 2, stderr
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ")
    position = 0
    for piece in says:
        position = lines[0].find(piece, position)
        assert position >= 0, f"{piece!r} is not in {lines[0]!r} after the pieces before it"
        position += len(piece)
    assert {path for path in Path().rglob("*") if "__pycache__" not in path.parts} <= before


def test_what_is_missing_for_the_model(tiny_model: Path, tmp_path: Path) -> None:
    keys = BASE | {"model_name_or_path": str(tiny_model)}
    code, _, stderr = run(keys, "max_new_tokens=100")
    assert code == 2
    assert "max_new_tokens: 100 after " in stderr
    assert "more than the model's 128 positions; give" in stderr
    code, _, stderr = run(keys | {"prompt_template": [{"role": "user", "content": "{text}"}]})
    assert code == 2
    assert "model_name_or_path: the prompts are chat messages" in stderr
    (tmp_path / "empty").mkdir()
    code, _, stderr = run(keys | {"model_name_or_path": "./empty"})
    assert code == 2
    assert "model_name_or_path:" in stderr
    assert "config.json" in stderr


def test_a_score_function_that_fails_only_on_samples(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path
) -> None:
    """What shows only after the model has answered still leaves nothing behind."""
    (tmp_path / "late.py").write_text("def score(p, r):\n    return [1.0] * len(p) if p == r else [None] * len(p)\n")
    code, _, stderr = run(SAMPLES | {"model_name_or_path": str(tiny_model), "score_function": "late:score"})
    assert code == 2
    assert "score_function: late:score failed" in stderr
    assert not Path("out").exists()


def test_library_use() -> None:
    recipe = parse_pairs_recipe(UNIFORM)
    result = pairs.make(pairs.prepare(recipe))
    assert len(result.pairs.rows) == 20
    assert not Path("out").exists()
    assert pairs.save(recipe, result) == [Path("out/pairs.jsonl")]
    with pytest.raises(InputError, match="exists"):
        pairs.prepare(recipe)
