"""Data of a recipe: sources, mapping, augmentation."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from tokencredit.data.loading import builtin_folder, load_split, split_expression
from tokencredit.data.serialise import to_json
from tokencredit.errors import InputError
from tokencredit.recipes.data import load_data
from tokencredit.recipes.schema import parse_recipe

ROWS = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(10)]


def load(**keys: Any) -> Any:
    return load_data(parse_recipe({"trainer": "sft", "output_dir": "/runs/a"} | keys))


def texts(dataset: Any) -> list[tuple[str, str]]:
    return [(row["prompt"], row["completion"]) for row in dataset]


WANTED = [(row["prompt"], row["completion"]) for row in ROWS]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_file_formats(tmp_path: Path, suffix: str) -> None:
    path, dataset = tmp_path / f"rows{suffix}", Dataset.from_list(ROWS)
    if suffix == ".csv":
        dataset.to_csv(path)
    elif suffix == ".parquet":
        dataset.to_parquet(path)
    else:
        dataset.to_json(path, lines=suffix == ".jsonl")
    assert texts(load(dataset_name=str(path)).train) == WANTED
    assert texts(load(dataset_name=str(path), dataset_train_split="train[2:4]").train) == WANTED[2:4]


def test_folder_with_a_file_per_split(sft_data: Path) -> None:
    data = load(dataset_name=str(sft_data), eval_strategy="epoch")
    assert (len(data.train), len(data.evaluation)) == (64, 16)
    assert load(dataset_name=str(sft_data)).evaluation is None


def test_saved_dataset(tmp_path: Path) -> None:
    DatasetDict(train=Dataset.from_list(ROWS)).save_to_disk(tmp_path / "dict")
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "single")
    for name in ("dict", "single"):
        part = load(dataset_name=str(tmp_path / name), dataset_train_split="train[50%:]").train
        assert texts(part) == WANTED[5:]


def test_mixture(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Dataset.from_list(ROWS).to_json(tmp_path / f"{name}.jsonl")
    parts = [{"path": "json", "data_files": str(tmp_path / f"{name}.jsonl")} for name in ("a", "b")]
    data = load(datasets=parts, test_split_size=0.25, eval_strategy="epoch")
    assert (len(data.train), len(data.evaluation)) == (15, 5)


@pytest.mark.parametrize(
    ("expression", "name", "rows"),
    [
        ("train", "train", range(10)),
        ("train[:3]", "train", range(3)),
        ("a-b.c[3:]", "a-b.c", range(3, 10)),
        ("train[-2:]", "train", range(8, 10)),
        ("train[10%:50%]", "train", range(1, 5)),
    ],
)
def test_split_expressions(expression: str, name: str, rows: range) -> None:
    found, part = split_expression(expression)
    assert (found, part(10)) == (name, rows)


def test_records_in_the_column_named_completion(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": [{"a": 1}]}, {"prompt": "q", "completion": [{"b": 2}]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = load(dataset_name=str(tmp_path / "rows.jsonl"), completion_column="completion")
    assert texts(data.train) == [("p", '[{"a":1}]'), ("q", '[{"b":2}]')]


def test_a_folder_with_the_counts_beside_the_pairs(tmp_path: Path) -> None:
    """What `tokencredit pairs` writes beside `train.jsonl` is no part of the split `train`."""
    for name, count in (("train", 3), ("validation", 2)):
        Dataset.from_list(ROWS[:count]).to_json(tmp_path / f"{name}.jsonl")
    (tmp_path / "train.jsonl.confusion.json").write_text('{"labels":{},"seed":0}')
    assert texts(load_split(str(tmp_path), "train")) == WANTED[:3]
    assert texts(load_split(str(tmp_path), "validation[1:]")) == WANTED[1:2]
    with pytest.raises(InputError, match="Should be one of"):
        load_split(str(tmp_path), "test")


def test_optional_keys_stay_absent(tmp_path: Path) -> None:
    """Columns of records must not gain nulls for keys that only other rows have."""
    records = [[{"code": "A", "note": "n"}], [{"code": "B"}], []]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"q": "x", "records": r}) + "\n" for r in records))
    data = load(dataset_name=str(path), prompt_template="{q}?", completion_column="records")
    assert texts(data.train) == [("x?", to_json(r)) for r in records]


def test_addresses_with_template() -> None:
    data = load(dataset_name="us_addresses", prompt_template="{text}\n", completion_column="results")
    rows = [json.loads(line) for line in (builtin_folder("us_addresses") / "train.jsonl").open()]
    assert texts(data.train) == [(row["text"] + "\n", to_json(row["results"])) for row in rows]
    # A column named `text` beside a completion would make TRL's SFT leave the end-of-text token out.
    assert "text" not in data.train.column_names


def test_chat_template_makes_messages() -> None:
    template = [{"role": "system", "content": "Label."}, {"role": "user", "content": "{text}"}]
    data = load(dataset_name="us_addresses", prompt_template=template, completion_column="results")
    row = data.train[1]
    assert row["prompt"] == [
        {"role": "system", "content": "Label."},
        {"role": "user", "content": "3600 West 5th Ave"},
    ]
    assert [message["role"] for message in row["completion"]] == ["assistant"]
    assert row["completion"][0]["content"].startswith('[{"code":"Number"')


def test_text_that_answers_a_chat_prompt_becomes_messages() -> None:
    template = [{"role": "user", "content": "{text}"}]
    keys: dict[str, Any] = {"dataset_name": "us_addresses", "dataset_config": "pairs"}
    plain = load(trainer="dpo", **keys).train
    data = load(trainer="dpo", prompt_template=template, **keys).train
    for row, text in zip(data, plain, strict=True):
        assert row["prompt"] == [{"role": "user", "content": text["prompt"].removesuffix("\n")}]
        for side in ("chosen", "rejected"):
            assert row[side] == [{"role": "assistant", "content": text[side]}]
            assert row[f"{side}_spans"] == text[f"{side}_spans"]


def test_prompts_and_completions_that_are_text_become_messages(sft_data: Path) -> None:
    data = load(dataset_name=str(sft_data), prompt_template=[{"role": "user", "content": "Now: {prompt}"}]).train
    plain = load(dataset_name=str(sft_data)).train
    for row, text in zip(data, plain, strict=True):
        assert row["prompt"] == [{"role": "user", "content": f"Now: {text['prompt']}"}]
        assert row["completion"] == [{"role": "assistant", "content": text["completion"]}]


def test_augmentation_is_of_the_training_data_only_and_repeats() -> None:
    keys: dict[str, Any] = {
        "dataset_name": "us_addresses",
        "dataset_train_split": "train[:20]",
        "dataset_test_split": "validation",
        "eval_strategy": "epoch",
        "prompt_template": "{text}\n",
        "completion_column": "results",
        "augment": {"copies": 3, "share": 0.5},
    }
    first, second, other = load(**keys, seed=1), load(**keys, seed=1), load(**keys, seed=2)
    assert len(first.train) == 60
    assert len(first.evaluation) == 252
    assert texts(first.train) == texts(second.train) != texts(other.train)


def test_address_pairs() -> None:
    pairs = load_split("us_addresses", "validation", config="pairs")
    assert len(pairs) == 252
    for row in pairs:
        assert row["chosen"] != row["rejected"]
        assert row["prompt"].endswith("\n")
        for side in ("chosen", "rejected"):
            records = json.loads(row[side])
            values = [record[name] for record in records for name in ("code", "subcode", "span")]
            assert [row[side][s["start"] : s["end"]] for s in row[f"{side}_spans"]] == [
                json.dumps(value, ensure_ascii=False)[1:-1] for value in values
            ]
    assert list(load_split("us_addresses", "validation[:5]", config="pairs")) == list(pairs)[:5]
