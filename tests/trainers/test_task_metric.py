"""Greedy answers during evaluation, and the figures that the trainer picks the best checkpoint by."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.cluster.curves import SHARD_EVERYTHING, train
from tokencredit.recipes.build import build_trainer
from tokencredit.recipes.data import load_data
from tokencredit.recipes.schema import parse_recipe
from tokencredit.trainers.callbacks import read_metrics
from tokencredit.trainers.checkpoints import checkpoints
from tokencredit.trainers.task_metric import Answer, greedy, greedy_answers, question, reached

METRIC = """
calls = []
def score(predictions, references):
    calls.append((predictions, references))
    # Differs when two answers change places.
    order = sum(place * sum(map(ord, text)) for place, text in enumerate(predictions))
    return {"length": sum(map(len, predictions)) / len(predictions), "rows": len(references), "order": order}
"""


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> tuple[Any, Any]:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_pretrained(tiny_model).eval(), AutoTokenizer.from_pretrained(tiny_model)


def argmax_ids(net: Any, prompt: list[int], count: int, stop: int) -> list[int]:
    """The most probable next token, again and again."""
    ids = list(prompt)
    while len(ids) < len(prompt) + count and (len(ids) == len(prompt) or ids[-1] != stop):
        ids.append(int(net(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_batched_answers_equal_one_by_one(model: tuple[Any, Any]) -> None:
    net, tokenizer = model
    prompts = [tokenizer(text)["input_ids"] for text in ("a", "Grace asks very much: ", "Alan", "b c d e f")]
    single = [greedy_answers(net, tokenizer, [p], max_new_tokens=6, batch_size=1)[0] for p in prompts]
    assert greedy_answers(net, tokenizer, prompts, max_new_tokens=6, batch_size=3) == single
    chosen = [argmax_ids(net, prompt, 6, tokenizer.eos_token_id) for prompt in prompts]
    assert single == [tokenizer.decode(ids, skip_special_tokens=True) for ids in chosen]


def test_settings_of_the_model_do_not_count_but_its_stop_tokens_do(
    model: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, tokenizer = model
    prompts = [tokenizer("Grace asks: ")["input_ids"]]
    plain = greedy_answers(net, tokenizer, prompts, max_new_tokens=8, batch_size=1)
    for name, value in {"repetition_penalty": 9.0, "num_beams": 3, "do_sample": True, "top_k": 3}.items():
        monkeypatch.setattr(net.generation_config, name, value)
    assert greedy_answers(net, tokenizer, prompts, max_new_tokens=8, batch_size=1) == plain
    ids = argmax_ids(net, prompts[0], 8, tokenizer.eos_token_id)
    monkeypatch.setattr(net.generation_config, "eos_token_id", [tokenizer.eos_token_id, ids[2]])
    stopped = greedy_answers(net, tokenizer, prompts, max_new_tokens=8, batch_size=1)
    assert stopped == [tokenizer.decode(ids[: ids.index(ids[2]) + 1])]
    assert stopped != plain
    (answer,) = greedy(net, tokenizer, prompts, max_new_tokens=8, batch_size=1)
    assert answer == Answer(stopped[0], ended=True)
    (cut,) = greedy(net, tokenizer, prompts, max_new_tokens=ids.index(ids[2]), batch_size=1)
    assert not cut.ended


def test_chat_prompt_goes_through_the_template(model: tuple[Any, Any]) -> None:
    tokenizer = model[1]
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    tokenizer.chat_template += "{% if add_generation_prompt %}<me>{% endif %}"
    asked = question(tokenizer, [{"role": "user", "content": "hi"}], [{"role": "assistant", "content": "yo"}])
    assert tokenizer.decode(asked.prompt_ids) == "<user>hi<me>"
    assert asked.reference == "yo"


def trained(recipe: dict[str, Any], folder: Path) -> Any:
    Path(recipe["output_dir"]).mkdir()
    parsed = parse_recipe(recipe | {"use_cpu": True, "bf16": False})
    trainer = build_trainer(parsed, load_data(parsed))
    trainer.train()
    return trainer


def test_figures_reach_the_log_and_pick_the_best_checkpoint(
    recipe_text: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "length_metric.py").write_text(METRIC)
    monkeypatch.syspath_prepend(tmp_path)
    steps = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "length", "greater_is_better": True}
    spec = {"function": "length_metric:score", "max_new_tokens": 4, "limit": 5}
    trainer = trained(recipe_text | steps | best | {"task_metric": spec, "save_total_limit": 1}, tmp_path)

    import length_metric

    predictions, references = length_metric.calls[0]
    assert len(predictions) == len(references) == 5
    first = [json.loads(line) for line in (Path(recipe_text["dataset_name"]) / "test.jsonl").open()][:5]
    assert references == [row["completion"] for row in first]
    logged = [line for line in read_metrics(tmp_path / "run") if "eval_length" in line]
    assert [line["step"] for line in logged] == [2, 4]
    assert trainer.state.best_metric == max(line["eval_length"] for line in logged)
    assert all(line["eval_rows"] == 5 for line in logged)
    kept = {path.name for path in (tmp_path / "run").glob("checkpoint-*")}
    assert f"checkpoint-{trainer.state.best_global_step}" in kept
    assert "checkpoint-4" in kept


@pytest.mark.parametrize(
    ("stop_at", "metrics", "ends"),
    [
        ({"f1": 0.5}, {"eval_f1": 0.5}, True),
        ({"f1": 0.5}, {"eval_f1": 0.49}, False),
        ({"f1": 0.5}, {"eval_f1": math.nan}, False),
        ({"f1": 0.5, "exact": 0.1}, {"eval_f1": 0.9, "eval_exact": 0.0}, False),
        ({"f1": 0.5, "exact": 0.1}, {"eval_f1": 0.9, "eval_exact": 0.2}, True),
        ({"f1": 0.5}, {"loss": 1.0}, False),
        ({}, {"eval_f1": 1.0}, False),
    ],
)
def test_every_figure_must_be_reached(stop_at: dict[str, float], metrics: dict[str, float], ends: bool) -> None:
    assert reached(stop_at, metrics) is ends


@pytest.mark.slow
def test_training_stops_at_a_figure_and_the_run_counts_as_complete(
    recipe_text: dict[str, Any], tmp_path: Path, run_cli: Any
) -> None:
    (tmp_path / "rows_metric.py").write_text(METRIC)
    steps = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    spec = {"function": "rows_metric:score", "max_new_tokens": 3, "limit": 5, "stop_at": {"rows": 5}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_text | steps | {"task_metric": spec}))
    run_cli(tmp_path, "train", "recipe.yaml")
    run = tmp_path / "run"
    assert [path.name for path in checkpoints(run)] == ["checkpoint-2"]
    assert read_metrics(run)[-1]["step"] == 2
    for says in ("the run is complete\n", "the run is complete at checkpoint-2"):
        again = run_cli(tmp_path, "train", "recipe.yaml", "resume_from_checkpoint=true")
        assert says in again.stderr
        (run / "training_args.bin").unlink()  # as if killed before the model was saved in the run folder
    run_cli(tmp_path, "train", "recipe.yaml", "resume_from_checkpoint=true", "task_metric.stop_at.rows=6")
    assert read_metrics(run)[-1]["step"] == 6, "five rows never are six"


def test_dpo_compares_with_the_chosen_answer(
    recipe_text: dict[str, Any], dpo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "chosen_metric.py").write_text(METRIC)
    monkeypatch.syspath_prepend(tmp_path)
    spec = {"function": "chosen_metric:score", "max_new_tokens": 2, "limit": 3}
    changes = {"trainer": "dpo", "dataset_name": str(dpo_data), "max_steps": 1, "eval_strategy": "steps"}
    trained(recipe_text | changes | {"task_metric": spec}, tmp_path)

    import chosen_metric

    rows = [json.loads(line) for line in (dpo_data / "test.jsonl").open()][:3]
    assert chosen_metric.calls[0][1] == [row["chosen"] for row in rows]


@pytest.mark.distributed
def test_processes_share_the_prompts(
    recipe_text: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows_metric.py").write_text(METRIC)
    changes = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 1, "per_device_train_batch_size": 4}
    spec = {"function": "rows_metric:score", "max_new_tokens": 3, "limit": 5}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_text | changes | {"task_metric": spec}))
    figures = {}
    for name, spread in {
        "one": ["per_device_train_batch_size=8"],
        "two": ["launch=zero3", SHARD_EVERYTHING, "num_processes=2"],
    }.items():
        assert train("recipe.yaml", f"output_dir={name}", *spread) == 0
        figures[name] = next(line for line in read_metrics(tmp_path / name) if "eval_rows" in line)
    assert figures["two"]["eval_rows"] == 5
    assert figures["two"]["eval_order"] == figures["one"]["eval_order"] > 0
    assert figures["two"]["eval_length"] == figures["one"]["eval_length"]
