"""Figures of probed responses, by hand; and the command on a tiny model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.trainers.spae_runs import write_model
from tokencredit.analysis.probe import (
    FIGURES,
    Exit,
    ProbedResponse,
    agreements,
    checked_pattern,
    compare,
    counts,
    rank_agreement,
)
from tokencredit.analysis.probe_models import judged
from tokencredit.cli import app
from tokencredit.data.worked_sums import worked_sums
from tokencredit.errors import InputError


def response(right: bool = True, acc: tuple[float, ...] = (0.1, 0.99, 0.99), **changes: Any) -> ProbedResponse:
    """Three steps of two tokens, one token of tail, and two after the thinking."""
    given: dict[str, Any] = {
        "prompt": "1+1=",
        "answers": ["2"],
        "answer_tokens": 1,
        "tokens": ["1", ".", "2", ".", "check ", ".", "x", "</think>", "2"],
        "ended": True,
        "right": right,
        "ends": [2, 4, 6],
        "thinking": 7,
        "acc": list(acc),
        "conf": [0.99] * 3,
    }
    return ProbedResponse(**given | changes)


def figures(found: ProbedResponse) -> dict[str, tuple[float, float]]:
    return {name: tuple(pair) for name, pair in zip(FIGURES, counts(found, 0.9).tolist(), strict=True)}


def test_a_right_response() -> None:
    """Φ = 1.5·.99·.99 + .5·.99 − .99 = .975 from the second step on; four tokens solve, three check."""
    found = figures(response(exit=Exit(1, 6, True)))
    assert found["accuracy"] == (1, 1)
    assert found["tokens"] == (9, 1)
    assert found["solving"] == (4, 1)
    assert found["checking"] == (3, 1)
    assert found["right_to_wrong"] == (0, 1)
    assert found["saturated"] == (1, 1)
    assert found["reflection"] == (1, 1)
    assert found["exit_tokens"] == (6, 1)
    assert found["exit_accuracy"] == (1, 1)
    assert found["conf_exit_tokens"] == (9, 1)


def test_a_response_that_went_wrong() -> None:
    found = figures(response(right=False))
    assert found["right_to_wrong"] == (1, 1)
    assert found["solving"] == found["checking"] == (0, 0)


def test_a_right_response_that_is_never_saturated_only_solves() -> None:
    found = figures(response(acc=(0.1, 0.1, 0.1)))
    assert (found["solving"], found["checking"], found["saturated"]) == ((7, 1), (0, 1), (0, 1))


def test_a_response_without_steps() -> None:
    found = figures(response(ends=[], acc=(), conf=[], thinking=0))
    assert found["steps"] == (0, 1)
    assert found["checking"] == (0, 1)


def test_arms_are_paired_over_problems_and_runs() -> None:
    """The second arm has one token less on every problem: whatever is drawn, the difference is −1."""
    lengths = [5, 9, 2, 7]
    base = np.stack([counts(response(tokens=["x"] * (n + 7)), 0.9) for n in lengths])
    less = np.stack([counts(response(tokens=["x"] * (n + 6)), 0.9) for n in lengths])
    arms = {"a": [base, base], "b": [less, less]}
    first, second = compare(arms, ["a"], resamples=200, seed=0, confidence=0.95).values()
    assert first.differences == {}
    assert first.values["tokens"] == 12.75
    assert first.intervals["tokens"][0] < 12.75 < first.intervals["tokens"][1]
    assert second.differences["a"]["tokens"] == pytest.approx((-1, -1, -1))
    assert second.spread is not None
    assert second.spread["tokens"] == 0


def test_seeds_are_drawn_too() -> None:
    """Runs that differ widen the interval of the difference to what either pair has."""
    base = np.stack([counts(response(), 0.9)] * 4)
    longer = np.stack([counts(response(tokens=["x"] * 19), 0.9)] * 4)
    arms = {"a": [base, base], "b": [base, longer]}
    found = compare(arms, ["a", "b"], resamples=500, seed=0, confidence=0.95)
    value, low, high = found["b"].differences["a"]["tokens"]
    assert found["a"].differences["b"]["tokens"] == (-value, -high, -low)
    assert (value, low, high) == (5, 0, 10)


def test_ranks() -> None:
    assert rank_agreement([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert rank_agreement([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / √(4.5 · 5).
    assert rank_agreement([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert rank_agreement([1, 1], [1, 2]) is None
    assert rank_agreement([], []) is None


def test_agreement_is_told_apart_by_the_tokens_of_answers() -> None:
    one = response(conf=[0.1, 0.2, 0.3], sampled_conf=[0.1, 0.2, 0.3])
    several = response(answer_tokens=2, conf=[0.1, 0.2, 0.3], sampled_conf=[0.3, 0.2, 0.1])
    found = {item.answers: item for item in agreements([one, several, response()])}
    assert found["all"].steps == 6
    assert found["one token"].conf == pytest.approx(1)
    assert found["several tokens"].conf == pytest.approx(-1)


def test_answers_are_judged_word_for_word_and_as_mathematics() -> None:
    pairs = [("\\boxed{2}", ["2"]), ("\\boxed{0.5}", ["1/2"]), ("\\boxed{3}", ["2", "4"]), ("2", ["2"])]
    assert judged(pairs) == [True, True, False, False]


def test_a_wrong_pattern() -> None:
    with pytest.raises(InputError, match="--reflection"):
        checked_pattern("(")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("probe") / "model")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["probe", *arguments])


def test_the_command(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On responses that the tiny model is made to give: it writes none with steps by itself."""
    from tokencredit.trainers.task_metric import Answer, greedy

    def written(loaded: Any, tokenizer: Any, prompts: list[list[int]], **options: Any) -> list[Answer]:
        texts = {tuple(tokenizer(row["prompt"])["input_ids"]): row["completion"] for row in worked_sums("test")}
        found = []
        for ids in prompts:
            text = texts.get(tuple(ids))
            ids_of_text = [*tokenizer(text or "")["input_ids"], tokenizer.eos_token_id]
            answer = None if text is None else Answer(text, True, ids_of_text)
            found.append(answer or greedy(loaded, tokenizer, [ids], **options)[0])
        return found

    monkeypatch.setattr("tokencredit.analysis.probe_models.greedy", written)
    files = ["--output", str(tmp_path / "probe.json"), "--html", str(tmp_path / "probe.html")]
    options = [
        "--recipe",
        "spae/sums",
        "--max-new-tokens",
        "8",
        "--limit",
        "4",
        "--mode",
        "sampled",
        "--num-samples",
        "2",
        "--show",
        "1",
    ]
    done = run(f"a={model}", f"b={model}/../model", "worked_sums", *options, "--resamples", "50", *files)
    assert done.exit_code == 0, done.output
    for text in ("right_to_wrong", "exit_accuracy", "Difference from a", "step 1", "several tokens", "check"):
        assert text in done.stdout
    saved = json.loads((tmp_path / "probe.json").read_text())
    assert [item["label"] for item in saved["models"]] == ["a", "b"]
    first = saved["models"][0]["responses"][0]
    row = worked_sums("test")[0]
    assert "".join(first["tokens"]) == row["completion"]
    assert first["right"]
    assert len(first["acc"]) == len(first["phi"]) == row["completion"].count(".\n\n")
    assert saved["arms"]["a"]["values"]["accuracy"] == 1.0
    assert saved["arms"]["b"]["differences"]["a"]["tokens"] == [0, 0, 0]
    page = (tmp_path / "probe.html").read_text()
    assert "delta_phi" in page
    assert "http" not in page.split("</style>")[1].split("<script")[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["only_a_model"], "PROBLEMS: are missing"),
        (["{model}", "worked_sums", "--mode", "guess"], "--mode: unknown value 'guess'"),
        (["{model}", "worked_sums", "--limit", "0"], "--limit: 0 is too small"),
        (["{model}", "{model}", "worked_sums"], "MODEL: two models are called"),
        (["a={model}", "a={model}", "worked_sums"], "MODEL: a model is given twice"),
        (["a={model}", "worked_sums", "--against", "b"], "--against: no model is called 'b'"),
        (["{model}", "us_addresses"], "DATA: the columns are"),
        (["{model}", "worked_sums", "--answer-column", "gold"], "answer_column: column 'gold' holds None"),
        (["{model}", "worked_sums", "--reflection", "("], "--reflection: '(' is no pattern"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], says: str, model: Path) -> None:
    done = run(*[text.format(model=model) for text in arguments])
    assert done.exit_code == 2
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("error")]
    assert says in line
