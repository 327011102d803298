"""Weights and classes in the rows: what is refused, what is said, and what is reused between runs."""

import importlib
import logging
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from tests.conftest import SHORT_RUN
from tokencredit.data import weighters
from tokencredit.errors import InputError
from tokencredit.trainers import annotate
from tokencredit.trainers.pairs import MOST_CLASSES, class_names
from tokencredit.trainers.tab_po import TABPOConfig, TABPOTrainer

pytestmark = pytest.mark.slow

COMMON: dict[str, Any] = SHORT_RUN | {"use_cpu": True, "bf16": False, "disable_tqdm": True}
STREAM = {name: value for name, value in COMMON.items() if name != "max_steps"}
PAIR = {"prompt": "Ada asks: ", "chosen": "Grace", "rejected": "Alan!"}


def zeros(example: Any, text: str, offsets: Any) -> list[float]:
    return [0.0 if start < end else 1.0 for start, end in offsets]


def one_short(example: Any, text: str, offsets: Any) -> list[float]:
    return [1.0] * (len(offsets) - 1)


def two_arguments(example: Any, text: str) -> list[float]:
    return []


def not_a_number(example: Any, text: str, offsets: Any) -> list[float]:
    return [math.nan] * len(offsets)


def build(model: Path, run: Path, rows: list[dict[str, Any]], **keys: Any) -> TABPOTrainer:
    args = TABPOConfig(output_dir=str(run), **(COMMON | keys))
    return TABPOTrainer(str(model), args=args, train_dataset=Dataset.from_list(rows))


def function(name: str) -> dict[str, str]:
    return {"function": f"{__name__}:{name}"}


def span(start: int, end: int, **more: Any) -> dict[str, Any]:
    return {"chosen_spans": [{"start": start, "end": end, **more}], "rejected_spans": None}


@pytest.mark.parametrize(
    ("extra", "keys", "message"),
    [
        (span(2, 9, weight=2.0), {"token_weights": {"spans": True}}, "is not inside the 5 characters of the chosen"),
        (span(0, 2), {"token_weights": {"spans": True}}, "has no weight"),
        (span(0, 2, weight=math.nan), {"token_weights": {"spans": True}}, "has weight nan"),
        ({}, {"token_weights": {"spans": True}}, "there is no column 'chosen_spans'"),
        ({}, {"token_weights": function("one_short")}, "weights for the . tokens of the chosen response of example 0"),
        ({}, {"token_weights": function("not_a_number")}, "returned nan for token 0"),
        ({}, {"token_weights": {"json": {"a": -1}}}, "-1 cannot be a weight"),
        ({}, {"token_weights": {"jsn": {"a": 1}}}, "did you mean 'json'"),
        ({}, {"token_weights": function("zeros"), "max_length": 11}, "that max_length keeps is 0"),
        ({"chosen_weights": [1.0], "rejected_weights": [1.0]}, {}, "1 weights for the . tokens of the chosen response"),
        (
            {"chosen_weights": [1.0], "rejected_weights": [1.0]},
            {"token_weights": {"differing": 1.2}},
            "has a column 'chosen_weights' already",
        ),
        ({"rejected": "Grace"}, {}, "chosen and rejected of row 0 are the same"),
        ({"chosen_classes": ["a"]}, {}, "the data has a column 'chosen_classes', which is made here"),
        ({"ref_chosen_token_logps": [0.0]}, {}, "the data has a column 'ref_chosen_token_logps'"),
        ({"chosen_weights": [1.0] * 6}, {}, "the data has 'chosen_weights' only"),
        ({"chosen_weights": None, "rejected_weights": None}, {}, "'None' are the weights of the chosen response"),
        ({"chosen_weights": "1", "rejected_weights": "1"}, {}, "'1' are the weights of the chosen response"),
        ({"chosen_spans": "0-2"}, {"token_weights": {"spans": True}}, "'0-2' in the chosen response .* is no list of"),
        (span(0, 2, label=3, weight=1.0), {"token_weights": {"spans": True}}, "3 in the chosen .* cannot be a label"),
        ({"prompt": ""}, {"max_length": 1}, "leaves no scored token of the chosen response"),
        ({}, {"token_weights": function("two_arguments")}, "cannot be called .*; take example, text and offsets"),
        ({}, {"barrier_scope": "weighted"}, "barrier_scope: 'weighted' without token weights"),
    ],
)
def test_wrong_weights_are_refused(
    extra: dict[str, Any], keys: dict[str, Any], message: str, tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        build(tiny_model, tmp_path, [PAIR | extra], **keys)


def own_weights(model: Path, bad: float | None = None) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(model)
    found = {}
    for side in ("chosen", "rejected"):
        count = len(tokenizer(PAIR[side])["input_ids"]) + 1  # and the end of text
        found[f"{side}_weights"] = [1.5] * count
    if bad is not None:
        found["rejected_weights"][1] = bad
    return PAIR | found


def test_weights_may_come_with_the_data(tiny_model: Path, tmp_path: Path) -> None:
    trainer = build(tiny_model, tmp_path, [own_weights(tiny_model)])
    batch = trainer.data_collator([trainer.train_dataset[0]])  # type: ignore[index]
    assert (batch["token_weights"][batch["completion_mask"].bool()] == 1.5).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_weights_of_the_data_are_checked(bad: float, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{bad} for token 1 of the rejected response of example 0"):
        build(tiny_model, tmp_path, [own_weights(tiny_model, bad)])


def test_the_sum_form_refuses_weights_in_the_data(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="form: 'sum' has no token weights"):
        build(tiny_model, tmp_path, [own_weights(tiny_model)], form="sum")


def test_alarms_sound_once_each_and_again_when_the_result_is_reused(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Dataset.from_list([PAIR | {"prompt": f"{i}"} for i in range(5)])
    rows.to_json(tmp_path / "rows.jsonl")
    fingerprints = []
    for _ in range(2):
        monkeypatch.setattr(annotate, "ALARMS", weighters.Alarms())
        caplog.clear()
        data = Dataset.from_json(str(tmp_path / "rows.jsonl"), cache_dir=str(tmp_path / "cache"))
        args = TABPOConfig(output_dir=str(tmp_path), token_weights={"json": {"[].code": 1.1}}, **COMMON)
        with caplog.at_level(logging.WARNING, logger="tokencredit"):
            trainer = TABPOTrainer(str(tiny_model), args=args, train_dataset=data)
        said = [record.getMessage() for record in caplog.records if record.name == "tokencredit"]
        assert [line.split(":")[0] for line in said] == ["response is not JSON", "no weighted token in a response"]
        fingerprints.append(trainer.train_dataset._fingerprint)  # type: ignore[union-attr]
    assert fingerprints[0] == fingerprints[1], "the same data, tokenizer and weights are annotated once"


def test_a_function_that_changed_is_run_again(tiny_model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """A function is known by its name only, so that what it returned in an earlier run says nothing."""
    Dataset.from_list([PAIR]).to_json(tmp_path / "rows.jsonl")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = []
    for weight in (2.0, 3.0):
        (tmp_path / "changing_weights.py").write_text(
            f"def weigh(example, text, offsets):\n    return [{weight}] * len(offsets)\n"
        )
        sys.modules.pop("changing_weights", None)
        importlib.invalidate_caches()
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        data = Dataset.from_json(str(tmp_path / "rows.jsonl"), cache_dir=str(tmp_path / "cache"))
        args = TABPOConfig(output_dir=str(tmp_path), token_weights={"function": "changing_weights:weigh"}, **COMMON)
        trainer = TABPOTrainer(str(tiny_model), args=args, train_dataset=data)
        found.append(max(trainer.train_dataset[0]["chosen_weights"]))  # type: ignore[index]
    assert found == [2.0, 3.0]


def test_alarms_sound_for_streams_too(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = weighters.Alarms()
    monkeypatch.setattr(annotate, "ALARMS", heard)
    rows = Dataset.from_list([PAIR] * 16).to_iterable_dataset()
    args = TABPOConfig(output_dir=str(tmp_path), token_weights={"json": {"[].code": 1.1}}, max_steps=1, **STREAM)
    with caplog.at_level(logging.WARNING, logger="tokencredit"):
        TABPOTrainer(str(tiny_model), args=args, train_dataset=rows).train()
    assert sum("response is not JSON" in record.getMessage() for record in caplog.records) == 1


def test_evaluating_the_trainers_own_data_is_fine(tiny_model: Path, tmp_path: Path) -> None:
    args = TABPOConfig(output_dir=str(tmp_path), token_weights={"differing": 1.2}, **COMMON)
    rows = Dataset.from_list([PAIR | {"prompt": f"{i}"} for i in range(3)])
    for precompute in (False, True):
        args.precompute_ref_log_probs = precompute
        trainer = TABPOTrainer(str(tiny_model), args=args, train_dataset=rows, eval_dataset=rows)
        again = trainer.evaluate(trainer.eval_dataset)
        assert again["eval_loss"] == pytest.approx(trainer.evaluate()["eval_loss"])


def test_other_weights_are_not_taken_from_an_earlier_run(tiny_model: Path, tmp_path: Path) -> None:
    Dataset.from_list([PAIR]).to_json(tmp_path / "rows.jsonl")
    found = []
    for weight in (1.5, 2.0):
        data = Dataset.from_json(str(tmp_path / "rows.jsonl"), cache_dir=str(tmp_path / "cache"))
        args = TABPOConfig(output_dir=str(tmp_path), token_weights={"differing": weight}, **COMMON)
        found.append(TABPOTrainer(str(tiny_model), args=args, train_dataset=data).train_dataset)
    assert max(found[0][0]["chosen_weights"]) == 1.5
    assert max(found[1][0]["chosen_weights"]) == 2.0


def test_data_that_cannot_be_classed_trains_and_is_named_once(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(annotate, "ALARMS", weighters.Alarms())
    with caplog.at_level(logging.WARNING, logger="tokencredit"):
        trainer = build(tiny_model, tmp_path, [PAIR | span(0, 99)] * 8, max_steps=1)
    assert sum("no token classes" in record.getMessage() for record in caplog.records) == 1
    trainer.train()
    assert trainer.data_collator.classes == []  # type: ignore[attr-defined]


def test_the_most_frequent_classes_are_named_and_the_rest_is_other() -> None:
    rare = [f"k{i}" for i in range(MOST_CLASSES + 3)]
    data = Dataset.from_list([{"chosen_classes": ["scaffold", *rare], "rejected_classes": [*rare[:MOST_CLASSES]]}])
    assert class_names([data, None]) == ["scaffold", *sorted(rare[:MOST_CLASSES]), "other"]
    assert class_names([Dataset.from_list([{"chosen_classes": ["scaffold"], "rejected_classes": []}])]) == []


def test_conversations_are_weighted_at_their_content(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    row = {
        "prompt": [{"role": "user", "content": "code?"}],
        "chosen": [{"role": "assistant", "content": '[{"code":"code"}]'}],
        "rejected": [{"role": "assistant", "content": '[{"code":"user"}]'}],
    }
    args = TABPOConfig(output_dir=str(tmp_path), token_weights={"json": {"[].code": 3.0}}, **COMMON)
    rows = Dataset.from_list([row])
    trainer = TABPOTrainer(str(tiny_model), args=args, train_dataset=rows, processing_class=tokenizer)
    for side, value in (("chosen", "code"), ("rejected", "user")):
        found: Any = trainer.train_dataset[0]  # type: ignore[index]
        heavy = [i for i, w in zip(found[f"{side}_ids"], found[f"{side}_weights"], strict=True) if w == 3.0]
        assert tokenizer.decode(heavy) == value
        classes = found[f"{side}_classes"]
        assert [c == "code" for c in classes] == [w == 3.0 for w in found[f"{side}_weights"]]
