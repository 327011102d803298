"""Several answers to a prompt: the right distribution, and random numbers that follow from place and seed alone."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokencredit.trainers.sampling import _Gumbel, _stream, sampled
from tokencredit.trainers.task_metric import greedy_answers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(tiny_model).eval(), AutoTokenizer.from_pretrained(tiny_model)


TEXTS = ("a", "Grace asks very much: ", "Alan", "b c d e f")


def draw(model: tuple[Any, Any], texts: tuple[str, ...] = TEXTS, **options: Any) -> Any:
    settings = {"num_samples": 3, "temperature": 1.0, "top_p": 1.0, "seed": 0, "max_new_tokens": 6, "batch_size": 4}
    prompts = [model[1](text)["input_ids"] for text in texts]
    return sampled(*model, prompts, **(settings | options))


def test_draws_follow_the_softmax() -> None:
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4]).log() + 7
    count = 8000
    chosen = _Gumbel([_stream(0, row, 0) for row in range(count)])(torch.empty(0), scores.expand(count, 4)).argmax(-1)
    for token, probability in enumerate((0.1, 0.2, 0.3, 0.4)):
        # the standard error of a share is at most sqrt(.24 / 8000) = 0.0055
        assert (chosen == token).float().mean().item() == pytest.approx(probability, abs=0.02)


def test_what_is_ruled_out_is_never_drawn() -> None:
    scores = torch.tensor([0.0, -torch.inf]).expand(500, 2)
    assert not _Gumbel([_stream(1, row, 0) for row in range(500)])(torch.empty(0), scores).argmax(-1).any()


def test_samples_do_not_depend_on_the_batch(model: tuple[Any, Any]) -> None:
    together = draw(model, batch_size=12)
    assert draw(model, batch_size=1) == together
    assert draw(model, batch_size=5) == together
    assert draw(model, TEXTS[:2]) == together[:2]
    assert [found[:2] for found in together] == draw(model, num_samples=2)


def test_samples_differ_by_seed_place_and_number(model: tuple[Any, Any]) -> None:
    # Most tokens are single bytes, which decode to the same sign: long answers still differ.
    found = draw(model, ("a", "a"), max_new_tokens=24)
    assert len({answer.text for answers in found for answer in answers}) == 6
    assert draw(model, ("a", "a"), max_new_tokens=24, seed=1) != found


def test_the_global_random_state_is_left_alone(model: tuple[Any, Any]) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    draw(model)
    assert torch.rand(1) == expected


@pytest.mark.parametrize("options", [{"temperature": 1e-4}, {"top_p": 1e-6}])
def test_next_to_no_randomness_is_greedy(model: tuple[Any, Any], options: dict[str, float]) -> None:
    prompts = [model[1](text)["input_ids"] for text in TEXTS]
    greedy = greedy_answers(*model, prompts, max_new_tokens=6, batch_size=4)
    assert [Counter(answer.text for answer in found) for found in draw(model, **options)] == [
        {text: 3} for text in greedy
    ]


def test_an_answer_says_whether_it_ended(model: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    stops = list(range(0, len(model[1]), 2))
    monkeypatch.setattr(model[0].generation_config, "eos_token_id", stops)
    found = [answer for answers in draw(model, max_new_tokens=2, num_samples=8) for answer in answers]
    # Every second token ends the answer: three quarters end within two tokens.
    assert 0.5 < sum(answer.ended for answer in found) / len(found) < 1
