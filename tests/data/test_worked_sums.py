"""Worked sums: right, repeatable, and each problem in one split; boxed answers."""

import re

import pytest
from transformers import AutoModelForCausalLM

from tokencredit.data.boxed import OPEN, boxed, last_boxed
from tokencredit.data.loading import load_split
from tokencredit.data.steps import DELIMITER, THINK_END
from tokencredit.data.tokenizers import build_tokenizer
from tokencredit.data.worked_sums import CHECK, SPLITS, worked_sums
from tokencredit.errors import InputError
from tokencredit.recipes.files import read_recipe
from tokencredit.recipes.init_model import model_config
from tokencredit.recipes.schema import Recipe, parse_recipe
from tokencredit.rewards.math_answers import math

STEP = re.compile(r"(-?\d+)([+-]\d)=(-?\d+)")


@pytest.mark.parametrize("split", ["validation", "test"])
def test_every_solution_is_right(split: str) -> None:
    rows = worked_sums(split)
    assert len(rows) == SPLITS[split]
    for row in rows:
        thinking, boxed_answer = row["completion"].split("</think>")
        assert boxed_answer == f"\\boxed{{{row['answer']}}}"
        *parts, rest = thinking.split(".\n\n")
        assert rest == ""
        steps = [part for part in parts if not part.startswith("check ")]
        terms = re.findall(r"[+-]?\d", row["prompt"])
        assert 3 <= len(terms) == len(steps) + 1 <= 5
        total = int(terms[0])
        for term, step in zip(terms[1:], steps, strict=True):
            match = STEP.fullmatch(step)
            assert match is not None
            assert (int(match[1]), match[2]) == (total, term)
            total += int(term)
            assert int(match[3]) == total
        assert str(total) == row["answer"]
        checks = parts[len(steps) :]
        assert len(checks) == row["checks"]
        assert {check.removeprefix("check ") for check in checks} <= set(steps)


def test_rows_are_the_same_every_time_and_problems_differ_between_splits() -> None:
    rows = {split: worked_sums(split) for split in SPLITS}
    assert rows["test"] == worked_sums("test")
    problems = {split: {row["prompt"] for row in found} for split, found in rows.items()}
    assert not problems["train"] & problems["test"]
    assert not problems["train"] & problems["validation"]
    assert not problems["validation"] & problems["test"]
    # Each number of re-checks in a fifth of the rows: 4,000 ± 4 standard deviations of 57.
    for count in range(5):
        assert abs(sum(row["checks"] == count for row in rows["train"]) - 4000) < 228


def test_loaded_by_name() -> None:
    assert list(load_split("worked_sums", "test[10:20]")) == worked_sums("test")[10:20]
    for split, config in (("dev", None), ("test", "hard")):
        with pytest.raises(InputError, match=config or "dev"):
            load_split("worked_sums", split, config=config)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{-3}", "-3"),
        ("\\boxed{1} no, \\boxed{ 2 }.", "2"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{4} and \\boxed{5", "4"),
        ("4", None),
        ("", None),
    ],
)
def test_last_boxed(text: str, answer: str | None) -> None:
    assert last_boxed(text) == answer


def test_boxed_counts_right_answers() -> None:
    predictions = ["\\boxed{1}", "\\boxed{2}", "3", "\\boxed{4"]
    assert boxed(predictions, ["1", "\\boxed{3}", "3", "4"]) == {"accuracy": 0.25, "boxed": 0.5}


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return parse_recipe(read_recipe("sft/sums", []))


def test_the_recipe_writes_and_reads_every_text_and_ends_steps_with_one_token(recipe: Recipe) -> None:
    rows = worked_sums("test")
    assert recipe.own.init is not None
    pieces = recipe.own.init.tokenizer.pieces
    tokenizer = build_tokenizer(
        (row["prompt"] + row["completion"] for row in rows), kind="characters", pieces=pieces, special=["<eos>"]
    )
    for row in rows[:100]:
        tokens = tokenizer.encode(row["completion"]).tokens
        assert "".join(tokens) == row["completion"]
        assert tokens.count(DELIMITER) == row["completion"].count(DELIMITER)
        assert tokens.count(THINK_END) == tokens.count(OPEN) == 1
        assert tokens.count(CHECK) == row["checks"]


def test_the_recipe_fits_its_model(recipe: Recipe) -> None:
    assert recipe.own.init is not None
    parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(model_config(recipe.own.init)).parameters())
    # Without the 32,000 rows of the default vocabulary; the data's own has 283.
    assert abs(parameters - 32_000 * 128 + 283 * 128 - 650_000) < 20_000
    longest = max(len(row["prompt"] + row["completion"]) for split in SPLITS for row in worked_sums(split))
    assert longest < recipe.own.init.config["max_position_embeddings"]


def test_a_right_solution_is_rewarded() -> None:
    rows = worked_sums("test")[:20]
    answers = [row["answer"] for row in rows]
    assert math([row["completion"] for row in rows], answers) == [1.0] * 20
    wrong = [row["completion"].replace("boxed{", "boxed{1") for row in rows]
    assert not any(math(wrong, answers))
