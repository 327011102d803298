"""Two models writing together, against one sequence at a time without caches, and the identities."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from tokencredit.errors import InputError
from tokencredit.losses.divergence import js_divergence
from tokencredit.scoring.counter_random import uniforms
from tokencredit.scoring.cross_decode import Decoding, Row, Trace, cross_decode

Build = Callable[..., PreTrainedModel]
STOP = (5, 6, 7, 8)
# Prompts of different lengths, longer and shorter than the windows of 4 tokens; two answers each.
PROMPTS = [[11, 12, 13, 14, 15, 16, 17], [21, 22], [31, 32, 33, 34, 35]]
ROWS = [Row(ids, prompt, sample) for prompt, ids in enumerate(PROMPTS) for sample in range(2)]


def near(model: PreTrainedModel, scale: float = 0.25) -> Any:
    """Another model with weights not far from those of the first."""
    other = type(model)(model.config).eval()
    other.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(1)
    for weight in other.parameters():
        weight.data += scale * weight.data.std() * torch.randn(weight.shape, generator=generator)
    return other


def naive(primary: Any, intervention: Any, row: Row, decoding: Decoding) -> Trace:
    """One answer, the whole prefix anew at each step, with a draw of its own making in NumPy."""
    trace = Trace()
    ids = list(row.ids)
    for place in range(row.start, row.start + decoding.max_new_tokens):
        with torch.no_grad():
            logits = [model(input_ids=torch.tensor([ids])).logits[0, -1] for model in (primary, intervention)]
        number = float(uniforms(decoding.seed, row.prompt, row.sample, place, 0))
        own, other = (draw(found / decoding.temperature, number, decoding.top_p) for found in logits)
        scores = js_divergence(*(found / decoding.temperature for found in logits), top_p=decoding.score_top_p)
        trace.scores.append(float(scores))
        trace.flagged.append(float(scores) > decoding.threshold)
        budget = math.inf if decoding.budget is None else decoding.budget
        trace.used.append(trace.flagged[-1] and sum(trace.used) < budget)
        trace.primary.append(own)
        trace.intervention.append(other)
        trace.tokens.append(other if trace.used[-1] else own)
        ids.append(trace.tokens[-1])
        if ids[-1] in decoding.stop_ids:
            trace.ended = True
            break
    return trace


def draw(logits: torch.Tensor, number: float, top_p: float) -> int:
    p = np.exp(logits.double().numpy() - logits.double().logsumexp(-1).numpy())
    order = np.argsort(-p)
    kept = order[: int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1]
    p = np.where(np.isin(np.arange(len(p)), kept), p, 0.0)
    return int(np.searchsorted(np.cumsum(p) / p.sum(), number, side="right"))


def choices(trace: Trace) -> tuple[Any, ...]:
    return (trace.tokens, trace.primary, trace.intervention, trace.flagged, trace.used, trace.ended)


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gemma2"])
@pytest.mark.parametrize(
    "changes",
    [{"epsilon": 0.03}, {"epsilon": 0.03, "budget": 2, "temperature": 0.7, "top_p": 0.9, "score_top_p": 0.7}],
    ids=["plain", "cut"],
)
def test_equals_one_sequence_at_a_time(tiny: Build, family: str, changes: dict[str, Any]) -> None:
    primary = tiny(family)
    intervention = near(primary)
    decoding = Decoding(max_new_tokens=12, stop_ids=STOP, seed=3, **changes)
    expected = [naive(primary, intervention, row, decoding) for row in ROWS]
    assert len({len(trace.tokens) for trace in expected}) > 1, "answers must leave the batch at different times"
    assert any(trace.used != trace.flagged for trace in expected) == ("budget" in changes)
    assert any(any(trace.effective) for trace in expected)
    for size in (1, 4, 6):
        found = cross_decode(primary, intervention, ROWS, decoding, batch_size=size)
        assert [choices(trace) for trace in found] == [choices(trace) for trace in expected]
        for ours, theirs in zip(found, expected, strict=True):
            # Keys computed in other batches differ in the last digits of float32.
            assert ours.scores == pytest.approx(theirs.scores, abs=2e-5)


@pytest.fixture
def pair(tiny: Build) -> tuple[Any, Any]:
    primary = tiny()
    return primary, near(primary)


def decode(pair: tuple[Any, Any], rule: str = "js", rows: list[Row] = ROWS, **changes: Any) -> list[Trace]:
    return cross_decode(*pair, rows, Decoding(rule, stop_ids=STOP, **{"max_new_tokens": 20} | changes))


def tokens(traces: list[Trace]) -> list[list[int]]:
    return [trace.tokens for trace in traces]


def test_above_the_largest_divergence_the_primary_writes_alone(pair: tuple[Any, Any]) -> None:
    alone = decode((pair[0], pair[0]), epsilon=0.0)
    for epsilon in (math.log(2), math.inf):
        found = decode(pair, epsilon=epsilon)
        assert tokens(found) == tokens(alone)
        assert not any(flag for trace in found for flag in trace.flagged + trace.used)
    assert tokens(decode(pair, epsilon=0.0)) != tokens(alone)


def test_below_zero_the_intervention_writes_alone(pair: tuple[Any, Any]) -> None:
    alone = decode((pair[1], pair[1]), epsilon=0.0)
    found = decode(pair, epsilon=-1e-9)
    assert tokens(found) == tokens(alone)
    assert all(trace.intervention == trace.tokens and all(trace.used) for trace in found)
    assert tokens(decode((pair[1], pair[0]), epsilon=math.inf)) == tokens(alone)


@pytest.mark.parametrize("copied", [True, False], ids=["an equal one", "itself"])
def test_equal_models_have_no_effective_intervention(pair: tuple[Any, Any], copied: bool) -> None:
    primary = pair[0]
    twin = near(primary, 0.0) if copied else primary
    for rule, epsilon in (("js", -1.0), ("random", 0.5), ("entropy", 1.0)):
        found = decode((primary, twin), rule, epsilon=epsilon)
        assert any(any(trace.used) for trace in found)
        assert not any(any(trace.effective) for trace in found)


def test_budget_and_first_tokens_are_exact(pair: tuple[Any, Any]) -> None:
    for budget in (0, 1, 3):
        for trace in decode(pair, epsilon=0.01, budget=budget):
            assert sum(trace.used) == min(budget, sum(trace.flagged))
            assert [at for at, used in enumerate(trace.used) if used] == [
                at for at, flag in enumerate(trace.flagged) if flag
            ][:budget]
        for trace in decode(pair, "first_k", budget=budget):
            assert trace.used == [at < budget for at in range(len(trace.tokens))]


def test_random_rule_takes_its_share(pair: tuple[Any, Any]) -> None:
    used = [flag for trace in decode(pair, "random", epsilon=0.7, max_new_tokens=100) for flag in trace.used]
    # Five standard deviations of a share.
    assert abs(sum(used) / len(used) - 0.3) < 5 * math.sqrt(0.21 / len(used))


def test_an_answer_goes_on_where_it_was_cut(pair: tuple[Any, Any]) -> None:
    whole = decode(pair, epsilon=0.02)
    rows = [
        Row([*row.ids, *trace.tokens[:3]], row.prompt, row.sample, 3) for row, trace in zip(ROWS, whole, strict=True)
    ]
    rest = [at for at, trace in enumerate(whole) if len(trace.tokens) > 3]
    found = decode(pair, rows=[rows[at] for at in rest], epsilon=0.02)
    assert tokens(found) == [whole[at].tokens[3:] for at in rest]


def test_greedy(pair: tuple[Any, Any]) -> None:
    found = decode(pair, epsilon=math.inf, temperature=0.0, rows=ROWS[:1])[0]
    prompt = torch.tensor([PROMPTS[0]])
    theirs = pair[0].generate(prompt, do_sample=False, max_new_tokens=20, eos_token_id=list(STOP), pad_token_id=0)
    assert found.tokens == theirs[0, prompt.shape[1] :].tolist()


def test_models_are_left_as_found(pair: tuple[Any, Any]) -> None:
    pair[0].train()
    decode(pair, epsilon=0.0, max_new_tokens=1)
    assert pair[0].training
    assert not pair[1].training


@pytest.mark.parametrize("padded", [0, 1])
def test_padding_of_a_vocabulary_takes_no_part(pair: tuple[Any, Any], tiny: Build, padded: int) -> None:
    wide = tiny(vocab_size=112)
    wide.load_state_dict(
        {
            # Padding that would always win.
            name: torch.cat([value, 9 * value[:15]]) if value.shape[0] == 97 else value
            for name, value in pair[padded].state_dict().items()
        }
    )
    models = (wide, pair[1]) if padded == 0 else (pair[0], wide)
    found, expected = (decode(both, epsilon=0.02, score_top_p=0.7) for both in (models, pair))
    assert [choices(trace) for trace in found] == [choices(trace) for trace in expected]
    assert tokens(decode(models, epsilon=0.0, temperature=0.0)) == tokens(decode(pair, epsilon=0.0, temperature=0.0))


def test_wrong_input(pair: tuple[Any, Any], tiny: Build) -> None:
    with pytest.raises(InputError, match="token id 67 is outside the model's vocabulary of 50"):
        decode((pair[0], tiny(vocab_size=50)), rows=[Row([67], 0, 0)], epsilon=0.0)
    with pytest.raises(InputError, match="token id 97 is outside"):
        decode(pair, rows=[Row([97], 0, 0)], epsilon=0.0)
    pair[1].lm_head.weight.data[3] = math.nan
    with pytest.raises(InputError, match="predictions are not finite"):
        decode(pair, epsilon=0.0)
    for changes, message in [
        ({"temperature": -1.0}, "-1.0 is no temperature"),
        ({"max_new_tokens": 0}, "0 is too few"),
        ({"budget": -1}, "-1 is negative"),
        ({"top_p": 1.5}, "1.5 is no share"),
        ({"epsilon": math.nan}, "is not a number"),
    ]:
        with pytest.raises(InputError, match=message):
            Decoding(**{"epsilon": 0.0} | changes)
