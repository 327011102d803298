"""SPAE in real training steps on fixed answers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from tests.trainers.grpo_runs import trusted
from tests.trainers.spae_runs import TEMPLATE, answers, boxed_right, fixed, rows, spae, spae_settings, write_model
from tokencredit.errors import InputError
from tokencredit.losses import spae_advantages
from tokencredit.scoring import ProbeTask, probe_steps
from tokencredit.scoring.probe import answer_ids, template_ids
from tokencredit.trainers import SPAEConfig, SPAETrainer, TokenGRPOConfig, TokenGRPOTrainer
from tokencredit.trainers.spae import dealt_out


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("sums") / "model")


@pytest.fixture(scope="module")
def trained(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One step of SPAE with its defaults."""
    trainer = spae(model, tmp_path_factory.mktemp("spae"))
    trainer.train()
    return trainer


def test_without_its_terms_it_is_the_baseline_exactly(model: Path, tmp_path: Path) -> None:
    changes = {"epsilon_high": 0.28, "max_steps": 2}
    ours = spae(model, tmp_path / "spae", alpha=0.0, xi=0.0, max_steps=2)
    ours.train()
    args = spae_settings(tmp_path / "plain", credit="reinforce_pp_baseline", **changes)
    plain = fixed(TokenGRPOTrainer)(
        model=str(model),
        reward_funcs=[trusted(boxed_right)],
        args=TokenGRPOConfig(**{name: value for name, value in args.items() if name != "probe_template"}),
        train_dataset=Dataset.from_list(rows()),
    )
    plain.train()
    for a, b in zip(ours.seen, plain.seen, strict=True):
        assert torch.equal(a["advantages"], b["advantages"])
    for a, b in zip(ours.gradients, plain.gradients, strict=True):
        assert a.abs().max() > 1e-3
        assert torch.equal(a, b)


def test_advantages_are_those_of_the_functions(trained: Any, model: Path) -> None:
    """By hand: every step of every live response probed alone, then `spae_advantages`."""
    (seen,) = trained.seen
    tokenizer = trained._tokenizer
    order = [row["prompt"] for row in rows()]
    start = AutoModelForCausalLM.from_pretrained(model)
    template = template_ids(tokenizer, TEMPLATE)
    step_ids = torch.full(seen["completion_ids"].shape, -1)
    width = 9
    acc, conf, real = (torch.zeros(8, width) for _ in range(3))
    rewards = []
    for row in range(8):
        prompt = tokenizer.decode(seen["prompt_ids"][row][seen["prompt_mask"][row].bool()])
        gold = rows()[order.index(prompt)]["answer"]
        ids = seen["completion_ids"][row][seen["completion_mask"][row].bool()].tolist()
        text = tokenizer.decode(ids, skip_special_tokens=True)
        rewards.append(boxed_right([text], [gold])[0])
        end = tokenizer("</think>")["input_ids"][0]
        thinking = ids.index(end) if end in ids else len(ids)
        boundary = tokenizer(".\n\n")["input_ids"][0]
        ends = [place + 1 for place in range(thinking) if ids[place] == boundary]
        for place in range(thinking):
            step_ids[row, place] = sum(e <= place for e in ends)
        for step, e in enumerate(ends):
            context = tokenizer(prompt)["input_ids"] + ids[:e]
            task = ProbeTask(context, [len(context)], template, [answer_ids(tokenizer, TEMPLATE, gold)])
            (a, c) = probe_steps(start, [task])[0]
            acc[row, step], conf[row, step], real[row, step] = a[0], c[0], 1
    assert len(set(rewards)) == 2
    expected = spae_advantages(torch.tensor(rewards), 4, step_ids, acc, conf, real, seen["completion_mask"])
    found = seen["advantages"] * seen["tool_mask"]
    torch.testing.assert_close(found, expected * seen["tool_mask"], atol=1e-5, rtol=0)
    assert max(row.unique().numel() for row in expected) > 4


def test_metrics(trained: Any) -> None:
    last = next(line for line in trained.state.log_history if "loss" in line)
    for name in ("potential", "saturated_responses", "saturated_steps", "steps", "penalty", "shaping", "probe_share"):
        assert f"spae/{name}" in last
    assert last["spae/steps"] > 1
    assert -1 <= last["spae/potential/step_1"] <= 1
    assert last["spae/shaping"] > 0
    assert 0 < last["spae/probe_share"] < 1
    assert last["time/probe"] > 0


def test_the_order_of_responses_changes_nothing(model: Path, tmp_path: Path) -> None:
    """Members of a group in another order: the same number on every token."""

    def turned(row: int) -> str:
        return answers(row // 4 * 4 + (row + 2) % 4)

    found = []
    for given in (answers, turned):
        trainer = spae(model, tmp_path / given.__name__, given=given)
        trainer.train()
        (seen,) = trainer.seen
        masked = seen["advantages"] * seen["tool_mask"]
        found.append(sorted(str([round(x, 4) for x in row if x]) for row in masked.tolist()))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"alpha": 0.0},
        {"xi": 0.0},
        {"positive_only": True},
        {"use_conf": False},
        {"probe_mode": "sampled", "probe_num_samples": 2, "probe_max_tokens": 3},
        {"shuffle_potentials": True},
        {"saturation": -2.0},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_switches_change_the_advantages(changes: dict[str, Any], trained: Any, model: Path, tmp_path: Path) -> None:
    if "alpha" in changes or "positive_only" in changes:
        changes = changes | {"saturation": -2.0}
        trained = spae(model, tmp_path / "other", saturation=-2.0)
        trained.train()
    trainer = spae(model, tmp_path / "run", **changes)
    trainer.train()
    a, b = trainer.seen[0]["advantages"], trained.seen[0]["advantages"]
    assert a.isfinite().all()
    assert (a - b).abs().max() > 1e-3
    # The whitened mean over live tokens is 0 and their variance 1, whichever terms there are.
    live = a[trainer.seen[0]["tool_mask"].bool()]
    assert live.mean().abs() < 1e-5
    assert live.var(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_sampling_answers_leaves_the_random_numbers_alone(model: Path, tmp_path: Path) -> None:
    trainer = spae(model, tmp_path, probe_mode="sampled", probe_max_tokens=3)
    state = torch.get_rng_state()
    contexts = [[5, 6, 7], [5], [8, 9]]
    first = trainer._answers_of_the_model(contexts)
    assert torch.equal(torch.get_rng_state(), state)
    assert trainer._answers_of_the_model(contexts) == first
    assert [1 <= len(ids) <= 3 for ids in first] == [True] * 3
    for name, value in {"repetition_penalty": 9.0, "num_beams": 2, "min_p": 0.5, "no_repeat_ngram_size": 1}.items():
        setattr(trainer.model.generation_config, name, value)
    assert trainer._answers_of_the_model(contexts) == first, "the model's own settings do not count"
    assert trainer._answers_of_the_model([]) == []


def test_evaluation_counts_to_no_step(model: Path, tmp_path: Path) -> None:
    trainer = spae(model, tmp_path)
    trainer.train()
    metrics = trainer.evaluate(trainer.train_dataset)
    assert "eval_spae/steps" in metrics
    assert not trainer._time.seconds
    assert trainer._probe_seconds == 0


def test_nothing_to_probe(model: Path, tmp_path: Path) -> None:
    """No response has a step: the plain outcome."""
    trainer = spae(model, tmp_path, given=lambda row: f"\\boxed{{{row}}}")
    trainer.train()
    advantages = trainer.seen[0]["advantages"]
    for row, mask in zip(advantages, trainer.seen[0]["tool_mask"].bool(), strict=True):
        assert row[mask].unique().numel() <= 1


def test_dead_groups_are_not_probed(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[ProbeTask]] = []

    def watch(model: Any, tasks: list[ProbeTask], **options: Any) -> Any:
        asked.append(tasks)
        return probe_steps(model, tasks, **options)

    monkeypatch.setattr("tokencredit.trainers.spae.probe_steps", watch)
    trainer = spae(model, tmp_path, given=lambda row: answers(0) if row < 4 else "1+1=2.\n\n</think>no")
    trainer.train()
    ((*tasks,),) = asked
    alive = [bool(task.places) for task in tasks]
    rewarded = trainer.seen[0]["tool_mask"].any(dim=1).tolist()
    assert sorted(alive) == sorted(rewarded)
    assert 0 < sum(alive) < 8


def test_the_control_deals_potentials_out_among_steps_of_one_number() -> None:
    mask = torch.tensor([[1.0, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]])
    acc = torch.arange(12.0).view(4, 3) * mask
    found = dealt_out(acc, acc / 10, mask, torch.Generator().manual_seed(1))
    assert torch.equal(found["acc"] / 10, found["conf"])
    assert torch.equal(found["acc"].sort(dim=0).values, acc.sort(dim=0).values)
    assert not torch.equal(found["acc"], acc)
    assert torch.equal(found["acc"] * (1 - mask), torch.zeros(4, 3))


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"alpha": 2.0}, "alpha"),
        ({"credit": "outcome"}, "credit"),
        ({"mask_dead_groups": False}, "mask_dead_groups"),
        ({"probe_mode": "guessed"}, "probe_mode"),
        ({"probe_num_samples": 0}, "probe_num_samples"),
        ({"probe_template": ""}, "probe_template"),
        ({"probe_temperature": 0.0}, "probe_temperature"),
    ],
)
def test_settings_that_cannot_work(changes: dict[str, Any], where: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        SPAEConfig(**spae_settings(tmp_path, **changes))
    assert caught.value.where == where


def without(column: str) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != column} for row in rows(4)]


@pytest.mark.parametrize(
    ("data", "evaluation", "says"),
    [
        (without("answer"), None, "column 'answer' holds None (row 0 of the training data)"),
        ([*rows(3), {**rows(1)[0], "answer": " "}], None, "is empty (row 3 of the training data)"),
        (rows(4), without("answer"), "column 'answer' holds None (row 0 of the evaluation data)"),
        (rows(4), {"a": rows(2), "b": without("answer")}, "(row 0 of the evaluation 'b' data)"),
    ],
)
def test_data_without_answers_is_refused(data: Any, evaluation: Any, says: str, model: Path, tmp_path: Path) -> None:
    if isinstance(evaluation, dict):
        held: Any = {name: Dataset.from_list(part) for name, part in evaluation.items()}
    else:
        held = None if evaluation is None else Dataset.from_list(evaluation)
    with pytest.raises(InputError) as caught:
        SPAETrainer(
            model=str(model),
            reward_funcs=[trusted(boxed_right)],
            args=SPAEConfig(**spae_settings(tmp_path)),
            train_dataset=Dataset.from_list(data),
            eval_dataset=held,
        )
    assert caught.value.where == "answer_column"
    assert says in str(caught.value)


def test_a_delimiter_that_never_comes_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="step_delimiter: no token of this tokenizer ends in 'step'"):
        spae(model, tmp_path, step_delimiter="step")


def test_templates_and_spellings_per_row(model: Path, tmp_path: Path) -> None:
    data = [
        {**row, "ask": TEMPLATE if i % 2 else "so \\boxed{", "gold": {"texts": [row["answer"], "0" + row["answer"]]}}
        for i, row in enumerate(rows())
    ]
    changes = {"probe_template_column": "ask", "answer_column": "gold.texts", "probe_template": "unused"}
    trainer = spae(model, tmp_path, data=Dataset.from_list(data), **changes)
    template, spelt = trainer._maker.of_row(data[0])
    assert trainer._tokenizer.decode(template) == "so \\boxed{"
    assert [trainer._tokenizer.decode(ids) for ids in spelt] == data[0]["gold"]["texts"]
    trainer.train()
    assert trainer.seen[0]["advantages"].abs().max() > 0


def test_samples_are_written(model: Path, tmp_path: Path) -> None:
    trainer = spae(model, tmp_path, token_samples_steps=1)
    trainer.train()
    (file,) = (tmp_path / "token_samples").iterdir()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 8
    assert any(len(set(line["advantages"])) > 3 for line in lines)


def test_resumed_is_uninterrupted(model: Path, tmp_path: Path) -> None:
    """From the checkpoint after two of four steps: the same gradients, number for number."""
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = spae(model, tmp_path / "run", **saving)
    whole.train()
    rest = spae(model, tmp_path / "run", **saving)
    rest.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert len(rest.gradients) == 2
    for a, b in zip(whole.gradients[2:], rest.gradients, strict=True):
        assert a.abs().max() > 1e-3
        assert torch.equal(a, b)
