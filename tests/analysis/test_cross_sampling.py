"""Cross-sampling of two models that differ in one decision, where every figure is known."""

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.analysis import markov
from tokencredit.analysis import cross_sample, cross_samples, cross_sampling
from tokencredit.analysis.cross_arms import Arm, quantile
from tokencredit.analysis.cross_page import Shown, page
from tokencredit.analysis.cross_result import CrossResult, arm_table
from tokencredit.analysis.cross_samples import fingerprint
from tokencredit.errors import InputError
from tokencredit.rewards import RewardFunction, RewardPool

PROMPTS = [{"prompt": letters} for letters in ("p", "qr", "pqr", "r") * 12]
TOKENIZER = markov.letters_tokenizer()
MODELS = markov.pair(TOKENIZER)


@pytest.fixture(scope="module")
def pool() -> Iterator[RewardPool]:
    with RewardPool([RewardFunction(markov.says_good, trusted=True)]) as made:
        yield made


def sampled(pool: RewardPool | None, *, models: tuple[Any, Any] = MODELS, **changes: Any) -> CrossResult:
    settings: dict[str, Any] = {"samples": 4, "max_new_tokens": 12, "resamples": 500, "reward": pool, "batch_size": 192}
    return cross_sample(*models, TOKENIZER, PROMPTS, **settings | changes)


def rows(result: CrossResult, **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in result.rows if all(row[name] == value for name, value in wanted.items())]


@pytest.fixture(scope="module")
def result(pool: RewardPool) -> CrossResult:
    return sampled(pool, epsilon=0.1)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_one_token_recovers_the_whole_gap_and_a_random_one_does_not(result: CrossResult, direction: str) -> None:
    primary, intervention, rule, control = rows(result, direction=direction)
    # 5 % and 95 % of 192 answers, five standard deviations: 0.08.
    low, high = (0.05, 0.95) if direction == "forward" else (0.95, 0.05)
    assert primary["reward"] == pytest.approx(low, abs=0.08)
    assert intervention["reward"] == pytest.approx(high, abs=0.08)
    # By common random numbers the replaced decision is exactly that of the intervention alone.
    assert rule["reward"] == intervention["reward"]
    assert rule["gap_recovered"] == 1.0
    assert rule["gap_recovered_interval"] == (1.0, 1.0)
    assert rule["used"] == rule["flagged"] == 1 / markov.LENGTH
    # A ninth of the positions at random hits a ninth of the decisions.
    assert control["gap_recovered"] == pytest.approx(1 / 9, abs=0.14)
    assert abs(rule["over_control"]) > 0.6
    assert np.prod(np.sign(rule["over_control_interval"])) > 0
    assert (primary["used"], intervention["used"]) == (0.0, 1.0)
    assert primary["gap_recovered"] == 0.0


def test_only_the_decision_is_replaced(result: CrossResult) -> None:
    (arm,) = (arm for arm in result.arms if (arm.direction, arm.kind) == ("forward", "rule"))
    for trace in (trace for traces in arm.traces for trace in traces):
        assert [at for at, used in enumerate(trace.used) if used] == [markov.DECISION]
        assert trace.ended
        assert [at for at, score in enumerate(trace.scores) if score > 0] == [markov.DECISION]
    # The draw decides alike unless it lies between 5 % and 95 %: five standard deviations of 192 are 0.11.
    share = rows(result, direction="forward", kind="rule")[0]["effective"] * markov.LENGTH
    assert share == pytest.approx(0.9, abs=0.11)


def test_random_control_has_the_rate_of_the_rule(result: CrossResult) -> None:
    for row in rows(result, kind="control"):
        assert row["rate_matched"] is True
        # Five standard deviations of a share of 1,728 tokens.
        assert abs(row["used"] - 1 / 9) < 5 * math.sqrt(8 / 81 / 1728)
        assert row["effective"] < rows(result, direction=row["direction"], kind="rule")[0]["effective"] / 3


def test_extreme_thresholds_are_the_models_alone(pool: RewardPool) -> None:
    found = sampled(pool, epsilon=[-0.1, math.log(2), 0.1, 0.2], directions=["forward"])
    # Two that replace all or nothing, and two that come to the same.
    assert [row["asked"] for row in found.rows] == ["ε 0.693147", "ε -0.1", "ε 0.1, ε 0.2", "control of ε 0.1"]


def test_rates_are_calibrated_and_budgets_exact(pool: RewardPool) -> None:
    found = sampled(pool, rule="entropy", rate=[3.5 / 9], budget=[1, 2], directions=["forward"])
    one, two = rows(found, kind="rule")
    # Three positions of nine have an entropy apart from the decision's own, which is the lowest of four.
    assert one["flagged"] == two["flagged"] == 3 / 9
    assert (one["used"], two["used"]) == (1 / 9, 2 / 9)
    assert one["gap_recovered"] == two["gap_recovered"] == 0.0
    assert one["budget"] == 1


def test_first_tokens_need_a_budget_alone(pool: RewardPool) -> None:
    found = sampled(pool, rule="first_k", budget=[markov.DECISION, markov.DECISION + 1], directions=["forward"])
    short, long = rows(found, kind="rule")
    assert (short["used"], short["gap_recovered"]) == (5 / 9, 0.0)
    assert (long["used"], long["gap_recovered"]) == (6 / 9, 1.0)


def test_equal_models_have_no_gap(pool: RewardPool) -> None:
    found = sampled(pool, models=(MODELS[0], markov.chain(TOKENIZER)), rule="entropy", epsilon=0.5)
    for row in found.rows:
        assert row["effective"] == 0.0
        assert row["gap_recovered"] is None
    assert "forward: the gap's interval holds 0, so no share of it can be given" in found.notes


def test_without_a_single_reward_there_is_no_gap(tmp_path: Path) -> None:
    silent = RewardFunction(lambda completions, **_: [None] * len(completions), name="silent", trusted=True)
    with RewardPool([silent]) as pool:
        found = sampled(pool, epsilon=0.1, directions=["forward"], samples=1)
    assert [row["scored"] for row in found.rows] == [0] * 4
    problem = "no answer of the primary and the intervention has a reward, and there is no gap"
    assert found.notes == [f"forward: {problem}, so no share of it can be given"]
    found.write(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["arms"][0]["reward"] is None


def test_an_arm_is_never_taken_for_a_control(monkeypatch: pytest.MonkeyPatch) -> None:
    def control(sampler: Any, arm: Arm, place: int, swapped: bool) -> Arm:
        """One that chance has made replace what the next threshold does."""
        decoding = replace(arm.decoding, epsilon=0.5)
        return Arm(arm.direction, "control", decoding, sampler.run(decoding, swapped=swapped), ["control"], of=place)

    monkeypatch.setattr(cross_sampling, "_control", control)
    found = sampled(None, rule="entropy", epsilon=[0.1, 0.5], directions=["forward"], samples=1)
    assert [row["asked"] for row in rows(found, kind="rule")] == ["ε 0.1", "ε 0.5"]
    assert found.arms[3].same_answers(found.arms[4])


def test_fingerprint_is_that_of_weights_and_settings(tmp_path: Path) -> None:
    model = MODELS[0]
    here, there = (type(model).from_pretrained(markov.save(model, TOKENIZER, tmp_path / name)) for name in "ab")
    assert here.config._name_or_path != there.config._name_or_path
    assert fingerprint(here) == fingerprint(there), "wherever it lies"
    there.config.rms_norm_eps = 1e-5
    assert fingerprint(here) != fingerprint(there)
    seen = set()
    for alpha in (8, 16):
        torch.manual_seed(0)
        adapted = get_peft_model(
            copy.deepcopy(model), LoraConfig(r=2, lora_alpha=alpha, target_modules=["q_proj", "v_proj"])
        )
        seen.add(fingerprint(adapted))
    assert len(seen) == 2


def test_page_shows_roles_and_the_spaces_of_tokens(result: CrossResult) -> None:
    prompt = [{"role": "user", "content": "p"}]
    problems = [replace(problem, prompt=prompt) for problem in result.problems]
    tokenizer = markov.letters_tokenizer()
    # As SentencePiece: the space is part of the token, and decoding one alone loses it.
    tokenizer.convert_ids_to_tokens = lambda token: f"▁{TOKENIZER.convert_ids_to_tokens(token)}"
    parts = (result.settings, result.rows, result.arms, problems, tokenizer, result.notes, result.tables())
    responses = page(Shown(*parts), "title").view.responses
    assert {response.prompt for response in responses} == {"user: p"}
    assert all(token.startswith(" ") for response in responses for token in response.tokens)


def test_same_seed_same_answers_and_another_seed_others(result: CrossResult, pool: RewardPool) -> None:
    assert sampled(pool, epsilon=0.1, batch_size=60).table.equals(result.table)
    assert not sampled(pool, epsilon=0.1, seed=1).table.equals(result.table)


def test_answers_are_kept_and_rewards_are_not(
    pool: RewardPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        "epsilon": 0.1,
        "rate": 0.2,
        "folder": tmp_path,
        "directions": ["forward"],
        "batch_size": 64,
    }
    first = sampled(pool, **settings)
    calls: list[int] = []
    decode = cross_samples.cross_decode

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(len(arguments[2]))
        return decode(*arguments, **options)

    monkeypatch.setattr(cross_samples, "cross_decode", counted)
    quarter = RewardFunction(lambda completions, **_: [0.25] * len(completions), name="quarter", trusted=True)
    with RewardPool([quarter]) as other:
        again = sampled(other, **settings)
    assert calls == []
    assert {row["reward"] for row in again.rows} == {0.25}
    assert again.table.drop_columns("reward").equals(first.table.drop_columns("reward"))
    # What was interrupted begins again with the parts that are missing.
    sorted(tmp_path.glob("*.parquet"))[0].unlink()
    assert sampled(pool, **settings).rows == first.rows
    assert calls == [64]
    # Another model, another answer.
    sampled(pool, models=(MODELS[0], markov.chain(TOKENIZER, d={"G": 0.5, "B": 0.5})), **settings)
    assert len(calls) > 1


def test_labels_tell_consequence_from_divergence(pool: RewardPool) -> None:
    # Entropy above 0.1 flags the four places with a choice; the models agree in three of them.
    found = sampled(pool, rule="entropy", epsilon=0.1, labels=1000, directions=["forward"])
    by = {row["label"]: row for row in found.summary()["labels"]}
    assert sum(row["positions"] for row in by.values()) == 4 * 48 * 4
    assert {label.position for label in found.labels if label.label == "divergent"} == {markov.DECISION}
    assert all(label.change == 1.0 for label in found.labels if label.label == "divergent")
    # The decisions that a draw makes alike are identical.
    arm = found.arms[0]
    differing = sum(t.primary[markov.DECISION] != t.intervention[markov.DECISION] for a in arm.traces for t in a)
    assert by["divergent"]["positions"] == differing
    assert by["neutral"]["positions"] == 0
    assert len(sampled(pool, rule="entropy", epsilon=0.1, labels=50, directions=["forward"]).labels) == 50


def test_a_harmless_difference_is_neutral(pool: RewardPool) -> None:
    other = markov.chain(TOKENIZER, s={"x": 0.1, "y": 0.9})
    found = sampled(pool, models=(MODELS[0], other), epsilon=0.01, labels=1000, directions=["forward"])
    assert {label.label for label in found.labels} == {"identical", "neutral"}
    assert {label.position for label in found.labels} == {1}


def test_files(result: CrossResult, tmp_path: Path) -> None:
    files = result.write(tmp_path / "out")
    assert [file.name for file in files] == ["summary.json", "samples.parquet", "cross_sample.html"]
    summary = json.loads(files[0].read_text())
    assert summary["arms"][0]["epsilon"] == "inf"
    assert summary["settings"]["temperature"] == 1.0
    assert summary["settings"]["rewards"] == ["says_good"]
    table = pq.read_table(files[1])
    assert table.num_rows == 2 * 4 * 48 * 4
    assert set(table["kind"].to_pylist()) == {"primary", "intervention", "rule", "control"}
    page = files[2].read_text()
    assert "forward: reward" in page
    assert "gap recovered" in page


def test_table_says_what_was_asked(result: CrossResult) -> None:
    table = arm_table(result.rows)
    line = dict(zip(table.head, table.rows[2], strict=False))
    assert (line["direction"], line["arm"], line["ε"], line["used"]) == ("forward", "js (ε 0.1)", "0.1", "11.1 %")
    assert table.rows[3][1] == "random"
    assert "gap recovered" not in arm_table(sampled(None, epsilon=0.1).rows).head


def test_threshold_of_a_rate() -> None:
    scores = [0.4, 0.1, 0.3, 0.2]
    assert [quantile(scores, rate) for rate in (0.25, 0.5, 0.99)] == [0.3, 0.2, 0.1]
    assert quantile([0.0] * 9 + [1.0], 0.5) == 0.0  # ties stay below the rate
    assert quantile(scores, 1.0) == -math.inf


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": ()}, "epsilon: is missing; give a threshold or a rate"),
        ({"rate": 1.5}, "rate: 1.5 is no share of the tokens"),
        ({"epsilon": 0.1, "rule": "jensen"}, "rule: no rule 'jensen'"),
        ({"epsilon": 0.1, "samples": 0}, "samples: 0 is too few"),
        ({"epsilon": 0.1, "directions": ["back"]}, "directions: .'back'."),
        ({"epsilon": 0.1, "labels": 5, "reward": None}, "labels: there is no reward"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sampled(None, **changes)


def test_wrong_prompts(pool: RewardPool) -> None:
    for prompts, message in [
        ([], "prompts: there are none"),
        ([{"question": "p"}], "row 0 has no `prompt` but question"),
        ([[{"role": "user", "content": "p"}]], "no chat template"),
        (["p", ""], "row 1: is empty"),
        (["p", {"prompt": None}], "prompts row 1: None is no prompt; give a text or chat messages"),
        ([["p"]], "is no prompt"),
    ]:
        with pytest.raises(InputError, match=message):
            cross_sample(*MODELS, TOKENIZER, prompts, epsilon=0.1)
