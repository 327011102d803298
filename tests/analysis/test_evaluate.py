"""`tokencredit eval` with models that answer: from the command to the files, and everything that it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from tokencredit.analysis.evaluate import Candidate, evaluate
from tokencredit.analysis.models import load_model, load_tokenizer, max_positions
from tokencredit.analysis.score_tables import read_json
from tokencredit.analysis.scores import Estimate, Settings
from tokencredit.cli import app
from tokencredit.data.serialise import to_json
from tokencredit.errors import InputError

pytestmark = pytest.mark.slow

STREET = [{"code": "Street", "subcode": "Name", "span": "Main"}]
BOX = [{"code": "Box", "subcode": "Type", "span": "PO Box"}]
# Three of four answers are the street.
ROWS = [{"text": f"line {i}", "records": records} for i, records in enumerate([STREET, STREET, BOX, STREET])]
TEMPLATE = {"prompt_template": "{text}: ", "completion_column": "records"}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_recipe(folder: Path, **keys: Any) -> None:
    recipe = {"trainer": "sft", "output_dir": str(folder), "dataset_name": "d"} | keys
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


@pytest.fixture(scope="module")
def street_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose model has learnt to answer every prompt with the street, a single token."""
    from tokencredit.recipes.init_model import write_initial_model
    from tokencredit.recipes.schema import Init

    folder = tmp_path_factory.mktemp("runs") / "street"
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    answer = to_json(STREET)
    init = Init.model_validate(
        {
            "model_type": "llama",
            "config": shape | {"max_position_embeddings": 64},
            "tokenizer": {"kind": "characters", "pieces": [answer]},
        }
    )
    write_initial_model(init, [{"prompt": "line 0123456789?: ", "completion": answer}], folder, seed=0)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer(f"line {i}: {answer}{tokenizer.eos_token}")["input_ids"] for i in range(8)])
    labels = ids.clone()
    labels[:, :-2] = -100
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(30):
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    write_recipe(folder, **TEMPLATE)
    return folder


def call(*arguments: object) -> tuple[int, str, str]:
    """Exit code, output and errors of `tokencredit eval`, run in this process."""
    result = CliRunner().invoke(app, ["eval", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_the_command(street_model: Path, tmp_path: Path, tiny_model: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(street_model, copy)
    random = tmp_path / "random"
    shutil.copytree(tiny_model, random)
    write_recipe(random, **TEMPLATE)
    data, saved, page = write_rows(tmp_path / "rows.jsonl", ROWS), tmp_path / "all.json", tmp_path / "all.md"
    options = ["--max-new-tokens", 6, "--batch-size", 3, "--resamples", 400, "--output", saved, "--markdown", page]
    code, shown, notes = call(street_model, f"same={copy}", random, data, *options)

    assert code == 0
    assert "note: random: 4 of 4 answers were cut at 6 tokens" in notes
    found = read_json(saved)
    assert found.settings == Settings(
        data=str(data), split="train", max_new_tokens=6, batch_size=3, resamples=400, seed=0
    )
    assert found.references == [to_json(row["records"]) for row in ROWS]
    street, same, random_scores = found.models
    assert [model.label for model in found.models] == ["street", "same", "random"]
    (run,) = street.runs
    assert (run.model, run.recipe) == (str(street_model), str(street_model / "recipe.yaml"))
    assert [document.prompt for document in run.documents] == [f"line {i}: " for i in range(4)]
    assert [document.answer for document in run.documents] == [to_json(STREET)] * 4
    assert all(document.ended for document in run.documents)
    # One record is predicted in each of four documents and right in three.
    for level in ("label", "sublabel", "span_exact", "span_relaxed", "record"):
        assert [street.scores[f"{level}_{part}"].value for part in ("precision", "recall", "f1")] == [0.75] * 3
    assert (street.scores["exact"].value, street.scores["valid_json"]) == (0.75, Estimate(1, 1, 1))
    assert street.scores["exact"].low == 0.25, "none or one of four has a chance of 5 %, none of 0.4 %"
    labels = [(name.name, name.support, name.recall.value) for name in street.names["label"]]
    assert labels == [(["Box"], 1, 0), (["Street"], 3, 1)]

    assert same.differences is not None
    assert set(same.differences.values()) == {Estimate(0, 0, 0)}
    assert same.runs[0].documents == run.documents
    assert random_scores.scores["valid_json"].value == 0
    assert random_scores.differences is not None
    assert random_scores.differences["exact"].value == -0.75
    assert "random" in shown
    assert "-0.750" in shown
    assert "| valid_json | 1.000 [1.000, 1.000] | 1.000 [1.000, 1.000] | 0.000 [0.000, 0.000] |" in page.read_text()


def test_models_of_one_name_are_runs_of_one_arm(street_model: Path, tmp_path: Path, tiny_model: Path) -> None:
    folders = [tmp_path / seed / "run" for seed in ("s0", "s1", "s2", "s3")]
    for folder, model in zip(folders, [street_model, tiny_model, street_model, street_model], strict=True):
        shutil.copytree(model, folder)
        write_recipe(folder, **TEMPLATE)
    data, saved, page = write_rows(tmp_path / "rows.jsonl", ROWS), tmp_path / "all.json", tmp_path / "all.md"
    named = [f"{name}={folder}" for name, folder in zip("aabb", folders, strict=True)]
    options = ["--max-new-tokens", 6, "--resamples", 100, "--output", saved, "--markdown", page]
    code, shown, notes = call(*named, data, *options)

    assert code == 0, notes
    assert f"note: a ({folders[1]}): 4 of 4 answers were cut at 6 tokens" in notes
    first, second = read_json(saved).models
    assert [[run.model for run in arm.runs] for arm in (first, second)] == [
        [str(folder) for folder in folders[:2]],
        [str(folder) for folder in folders[2:]],
    ]
    # 3 and 0 of 4 right, against 3 and 3: the second pair of seeds differs by 3/4.
    assert [run.scores["exact"] for run in first.runs] == [0.75, 0]
    assert first.scores["exact"].value == 0.375
    assert first.scores["exact"].spread == pytest.approx(0.75 / 2**0.5)
    assert second.scores["exact"].spread == 0
    assert second.differences is not None
    assert second.differences["exact"].value == 0.375
    assert second.differences["exact"].spread == pytest.approx(0.75 / 2**0.5)
    assert "a, 2 runs" in shown
    assert "0.375 ±0.530 [" in shown
    assert "+0.375 ±0.530 [" in page.read_text()
    # In turns, the arms and their pairs are the same.
    assert call(*(named[place] for place in (0, 2, 1, 3)), data, *options)[0] == 0
    assert read_json(saved).models == [first, second]


def test_the_size_of_a_batch_changes_no_answer(tiny_model: Path) -> None:
    prompts = [f"{'line ' * (i % 4)}{i}: " for i in range(60)]
    candidate = Candidate("a", str(tiny_model), prompts, [to_json(STREET)] * 60)
    found = [
        evaluate([candidate], Settings(data="d", max_new_tokens=8, batch_size=size, resamples=1)).models
        for size in (1, 7, 256)
    ]
    assert len({document.answer for document in found[0][0].runs[0].documents}) > 10, "prompts are told apart"
    assert found[0] == found[1] == found[2]


def test_limit_split_and_repetition(street_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_rows(folder / "test.jsonl", ROWS)
    write_rows(folder / "validation.jsonl", ROWS[2:3])
    options = ["--max-new-tokens", 4, "--output", tmp_path / "a.json"]
    assert call(street_model, folder, "--limit", 2, *options)[0] == 0
    first = (tmp_path / "a.json").read_text()
    assert read_json(tmp_path / "a.json").references == [to_json(STREET)] * 2
    assert read_json(tmp_path / "a.json").settings.split == "test"
    assert call(street_model, folder, "--limit", 2, *options)[0] == 0
    assert (tmp_path / "a.json").read_text() == first
    assert call(street_model, folder, "--split", "validation", *options)[0] == 0
    assert read_json(tmp_path / "a.json").references == [to_json(BOX)]


def test_whose_recipe_asks(street_model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", ROWS)

    def prompt(model: object, *options: object, rows: Path = data) -> tuple[str, str | None]:
        code, _, errors = call(model, rows, "--max-new-tokens", 2, "--output", tmp_path / "a.json", *options)
        assert code == 0, errors
        (found,) = read_json(tmp_path / "a.json").models[0].runs
        return found.documents[1].prompt, found.recipe

    own = street_model / "recipe.yaml"
    assert prompt(street_model) == ("line 1: ", str(own))
    # The one given counts for all.
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({"trainer": "sft", "output_dir": "r"} | TEMPLATE | {"prompt_template": "{text}?"}))
    assert prompt(street_model, "--recipe", other) == ("line 1?", str(other))
    # A checkpoint is asked as its run.
    checkpoint = tmp_path / "run" / "checkpoint-4"
    shutil.copytree(street_model, checkpoint, ignore=shutil.ignore_patterns("recipe.yaml"))
    write_recipe(checkpoint.parent, **TEMPLATE)
    assert prompt(checkpoint) == ("line 1: ", str(checkpoint.parent / "recipe.yaml"))
    # A run on pairs that began with the model, on data without prompts ...
    tuned = tmp_path / "tuned"
    shutil.copytree(street_model, tuned)
    write_recipe(tuned, trainer="dpo", model_name_or_path=str(street_model))
    assert prompt(tuned) == ("line 1: ", str(own))
    # (also when it took its answers from a column of the pairs, or has a template for their prompts) ...
    for keys in ({"trainer": "sft", "completion_column": "chosen"}, {"trainer": "dpo", "prompt_template": "{text}!"}):
        write_recipe(tuned, model_name_or_path=str(street_model), **keys)
        assert prompt(tuned) == ("line 1: ", str(own))
    write_recipe(tuned, trainer="dpo", model_name_or_path=str(street_model))
    # ... and on pairs.
    pairs = [{"prompt": f"{i}: ", "chosen": to_json(BOX), "rejected": "[]"} for i in range(2)]
    assert prompt(tuned, rows=write_rows(tmp_path / "pairs.jsonl", pairs)) == ("1: ", str(tuned / "recipe.yaml"))
    assert read_json(tmp_path / "a.json").references == [to_json(BOX)] * 2
    # A model without a recipe, on plain columns.
    (tuned / "recipe.yaml").unlink()
    plain = [{"prompt": f"line {i}: ", "completion": to_json(STREET)} for i in range(2)]
    assert prompt(tuned, rows=write_rows(tmp_path / "plain.jsonl", plain)) == ("line 1: ", None)


def test_chat_prompts_and_answers(street_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "chat"
    shutil.copytree(street_model, model, ignore=shutil.ignore_patterns("recipe.yaml"))
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}: "
    tokenizer.save_pretrained(model)
    row = {
        "prompt": [{"role": "user", "content": "line 1"}],
        "completion": [{"role": "assistant", "content": to_json(STREET)}],
    }
    data = write_rows(tmp_path / "chat.jsonl", [row])
    assert call(model, data, "--max-new-tokens", 3, "--output", tmp_path / "a.json")[0] == 0
    found = read_json(tmp_path / "a.json")
    assert found.models[0].scores["exact"].value == 1
    assert found.models[0].runs[0].documents[0].prompt == row["prompt"]
    code, _, errors = call(f"a={model}", f"b={street_model}", data, "--max-new-tokens", 3, "--recipe", "sft/addresses")
    assert code == 2, errors  # the recipe's template needs a column that this data lacks
    (model / "chat_template.jinja").unlink()
    code, _, errors = call(model, data, "--max-new-tokens", 3)
    assert (code, "has no chat template" in errors) == (2, True)


def test_an_adapter_is_a_model(street_model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(street_model)
    tuned: Any = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    torch.nn.init.constant_(tuned.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight, 0.5)
    tuned.save_pretrained(tmp_path / "lora")
    AutoTokenizer.from_pretrained(street_model).save_pretrained(tmp_path / "lora")
    loaded = load_model(str(tmp_path / "lora"))
    ids = torch.tensor([[3, 4, 5]])
    torch.testing.assert_close(loaded(ids).logits, tuned.eval()(ids).logits)
    plain = load_model(str(street_model))
    assert not torch.allclose(loaded(ids).logits, plain(ids).logits)
    assert max_positions(str(tmp_path / "lora")) == 64


def test_models_in_memory_one_at_a_time(street_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import weakref

    from tokencredit.analysis import evaluate as module

    alive: list[Any] = []

    def load(name: str) -> Any:
        assert all(model() is None for model in alive)
        model = load_model(name)
        alive.append(weakref.ref(model))
        return model

    monkeypatch.setattr(module, "load_model", load)
    candidates = [Candidate(label, str(street_model), ["line 1: "], [to_json(STREET)]) for label in "abc"]
    lines: list[str] = []
    settings = Settings(data="d", max_new_tokens=2, resamples=10)
    evaluate(candidates, settings, versions={"torch": "x"}, progress=lines.append)
    assert len(alive) == 3
    assert lines == ["answers of a (1 of 3)", "answers of b (2 of 3)", "answers of c (3 of 3)", "scores and intervals"]


def without(folder: Path, copy: Path, *names: str) -> Path:
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(*names))
    return copy


def broken_weights(folder: Path, copy: Path) -> Path:
    """A model whose file lacks a weight, which Transformers would fill with random numbers."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, copy)
    weights = load_file(copy / "model.safetensors")
    weights.pop("model.layers.0.mlp.up_proj.weight")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


WRONG: dict[str, tuple[list[str], list[str]]] = {
    "no such folder": (["./nowhere", "rows.jsonl"], ["MODEL: no folder './nowhere'; name the folder of a saved model"]),
    "neither folder nor hub model": (["nowhere", "rows.jsonl"], ["MODEL: no folder 'nowhere', and no model", "hub"]),
    "no model in the folder": (["empty", "rows.jsonl"], ["MODEL: 'empty' is no model (no config.json)"]),
    "no tokenizer": (["mute", "rows.jsonl", "--recipe", "r.yaml"], ["MODEL: 'mute' has no tokenizer"]),
    "no weights": (["bare", "rows.jsonl"], ["MODEL: 'bare' has no model that can be loaded"]),
    "weights missing": (["broken", "rows.jsonl"], ["MODEL: 'broken' lacks 1 of its weights (", "up_proj"]),
    "the same label twice": (["run", "other/run", "rows.jsonl"], ["MODEL: two models are called 'run'", "name=path"]),
    "a given label that a folder has": (
        ["run=turned", "run", "two.jsonl"],
        ["MODEL: two models are called 'run'", "one name= before several paths means training seeds of one arm"],
    ),
    "a folder that has a given label": (
        ["other/run", "run=turned", "two.jsonl"],
        ["MODEL: two models are called 'run'"],
    ),
    "a run twice in an arm": (
        ["a=run", "a=./other/../run", "rows.jsonl"],
        ["MODEL: 'a' has './other/../run' twice", "give every training seed its own folder"],
    ),
    "a label without model": (["a=", "rows.jsonl"], ["MODEL: 'a=' is no model; write a folder, a hub name or"]),
    "a model without label": (["=run", "rows.jsonl"], ["MODEL: '=run' is no model"]),
    "no such data": (["run", "missing.jsonl"], ["DATA: no file or folder", "missing.jsonl", "a path that exists"]),
    "an unknown split": (["run", "us_addresses", "--split", "dev"], ["DATA: 'us_addresses'", "dev", "Should be one"]),
    "an unknown configuration": (["run", "us_addresses", "--config", "x"], ["DATA: 'us_addresses'", "'x'", "'pairs'"]),
    "an empty split": (["run", "rows.jsonl", "--split", "train[:0]"], ["DATA:", "train[:0]", "no data"]),
    "no documents": (
        ["run", "us_addresses", "--config", "pairs", "--split", "test[:0]"],
        ["DATA: 'us_addresses' has no documents in split test[:0]; give at least one"],
    ),
    "no records": (["run", "names.jsonl"], ["DATA[0]: 'Ada' is not JSON with records; give a list of objects"]),
    "no prompt": (
        ["free", "rows.jsonl"],
        ["DATA: the columns are records, text, not prompt and completion", "--recipe"],
    ),
    "records as completion": (["free", "raw.jsonl"], ["DATA: row 0 holds", "completion_column: completion"]),
    "a prompt that is none": (["free", "numbers.jsonl"], ["DATA: row 0 of the evaluation data holds 1 in column"]),
    "an empty prompt": (["free", "blank.jsonl"], ["DATA: document 1 has an empty prompt"]),
    "a column that the recipe names": (["run", "names2.jsonl"], ["prompt_template: the evaluation data has no column"]),
    "different gold answers": (
        ["run", "turned", "two.jsonl"],
        ["MODEL: 'turned' and 'run' have different gold", "--recipe"],
    ),
    "different gold answers in an arm": (
        ["a=run", "a=turned", "two.jsonl"],
        ["MODEL: 'turned' and 'run' have different gold", "--recipe"],
    ),
    "no such recipe": (["run", "rows.jsonl", "--recipe", "no.yaml"], ["recipe: no file 'no.yaml'"]),
    "limit 0": (["run", "rows.jsonl", "--limit", "0"], ["limit: 0 is too small; give 1 or more"]),
    "no resamples": (["run", "rows.jsonl", "--resamples", "0"], ["resamples: 0 is too small; give 1 or more"]),
    "no tokens": (["run", "rows.jsonl", "--max-new-tokens", "0"], ["max_new_tokens: 0 is too small"]),
    "more tokens than positions": (
        ["run", "rows.jsonl", "--max-new-tokens", "60"],
        ["max_new_tokens: 60 is too much: 'run' has 64 positions", "takes 8 of them; set max_new_tokens to 56 or less"],
    ),
    "no place for the result": (
        ["run", "rows.jsonl", "--output", "no/all.json"],
        ["no/all.json: cannot be written; name a file in a folder that exists"],
    ),
}


@pytest.fixture(scope="module")
def workplace(street_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good and bad models and data."""
    folder = tmp_path_factory.mktemp("work")
    shutil.copytree(street_model, folder / "run")
    shutil.copytree(street_model, folder / "other" / "run")
    (folder / "empty").mkdir()
    without(street_model, folder / "mute", "token*")
    without(street_model, folder / "bare", "*.safetensors")
    without(street_model, folder / "free", "recipe.yaml")
    without(street_model, folder / "turned")
    write_recipe(folder / "turned", **TEMPLATE | {"completion_column": "others"})
    broken_weights(street_model, folder / "broken")
    write_rows(folder / "rows.jsonl", ROWS)
    write_rows(folder / "two.jsonl", [row | {"others": BOX} for row in ROWS])
    write_rows(folder / "names.jsonl", [{"text": "a", "records": "Ada"}])
    write_rows(folder / "names2.jsonl", [{"name": "a", "records": "Ada"}])
    write_rows(folder / "raw.jsonl", [{"prompt": "a", "completion": STREET}])
    write_rows(folder / "numbers.jsonl", [{"prompt": 1, "completion": "[]"}])
    write_rows(folder / "blank.jsonl", [{"prompt": "line", "completion": "[]"}, {"prompt": "", "completion": "[]"}])
    (folder / "r.yaml").write_text(yaml.safe_dump({"trainer": "sft", "output_dir": "r"} | TEMPLATE))
    return folder


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_line(name: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, says = WRONG[name]
    monkeypatch.chdir(workplace)
    before = sorted(workplace.rglob("*"))
    more = [] if "--max-new-tokens" in arguments else ["--max-new-tokens", "2"]
    code, shown, errors = call(*arguments, *more)
    assert (code, shown, len(errors.splitlines())) == (2, "", 1), errors
    position = len("error: ")
    assert errors.startswith("error: ")
    for piece in says:
        position = errors.find(piece, position)
        assert position >= 0, f"{piece!r} is not in {errors!r} after the pieces before it"
    assert sorted(workplace.rglob("*")) == before


def test_a_folder_with_an_equals_sign(street_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokencredit.recipes.evaluation import labelled

    monkeypatch.chdir(tmp_path)
    Path("lr=1").mkdir()
    assert labelled(["lr=1", "b=lr=1", "org/name", "x=./a/", "b=org/name"]) == [
        ("lr=1", "lr=1"),
        ("b", "lr=1"),
        ("name", "org/name"),
        ("x", "./a/"),
        ("b", "org/name"),
    ]


def test_nothing_to_evaluate() -> None:
    for candidates in ([], [Candidate("a", "m", [], [])]):
        with pytest.raises(InputError, match="nothing to evaluate"):
            evaluate(candidates, Settings(data="d"))


def test_a_hub_name_twice_in_an_arm() -> None:
    candidates = [Candidate("a", "org/name", ["p"], ["[]"])] * 2
    with pytest.raises(InputError, match="'a' has 'org/name' twice, and a run cannot differ from itself"):
        evaluate(candidates, Settings(data="d"))


def test_a_tokenizer_pads_with_its_end(street_model: Path, tmp_path: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(street_model)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(without(street_model, tmp_path / "a"))
    loaded = load_tokenizer(str(tmp_path / "a"))
    assert loaded.pad_token_id == loaded.eos_token_id is not None
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "a")
    with pytest.raises(InputError, match="neither a padding nor an end-of-text token"):
        load_tokenizer(str(tmp_path / "a"))
