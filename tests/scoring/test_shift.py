"""Two models at the same positions: golden values, the naive formulas, bounds, and what must be exactly zero."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedModel

from tests.scoring.conftest import VOCAB
from tokencredit.errors import InputError
from tokencredit.scoring.measures import js_bounds, measures
from tokencredit.scoring.shift import Side, shift_measures, sides

BASE, TUNED = (0.5, 0.3, 0.1, 0.06, 0.04), (0.2, 0.7, 0.05, 0.03, 0.02)
Tiny = Callable[..., PreTrainedModel]


def compared(base: Tensor, tuned: Tensor, **options: Any) -> dict[str, Tensor]:
    return measures(base.clone(), tuned.clone(), torch.zeros(len(base), dtype=torch.long), **options)


def naive(base: Tensor, tuned: Tensor) -> dict[str, Tensor]:
    """The definitions in float64, on whole logits."""
    log_p, log_q = base.double().log_softmax(-1), tuned.double().log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    log_m = ((p + q) / 2).log()
    forward, backward = (q * (log_q - log_p)).sum(-1), (p * (log_p - log_q)).sum(-1)
    first_p, first_q = log_p.argmax(-1, keepdim=True), log_q.argmax(-1, keepdim=True)
    return {
        "js": ((p * (log_p - log_m)).sum(-1) + (q * (log_q - log_m)).sum(-1)) / 2,
        "kl_tuned_base": forward,
        "kl_base_tuned": backward,
        "half_jeffreys": (forward + backward) / 2,
        "tv": (p - q).abs().sum(-1) / 2,
        "base_entropy": -(p * log_p).sum(-1),
        "tuned_entropy": -(q * log_q).sum(-1),
        "tuned_top1_base_logp": log_p.gather(-1, first_q)[..., 0],
        "base_top1_tuned_logp": log_q.gather(-1, first_p)[..., 0],
        "tuned_top1_base_rank": (log_p > log_p.gather(-1, first_q)).sum(-1) + 1,
        "base_top1_tuned_rank": (log_q > log_q.gather(-1, first_p)).sum(-1) + 1,
    }


def test_golden_values() -> None:
    base, tuned = torch.tensor([BASE]).log(), torch.tensor([TUNED]).log()
    found = compared(base, tuned)
    expected = {
        "js": 0.0828435,
        "kl_tuned_base": 0.3405356,
        "kl_base_tuned": 0.3425854,
        "half_jeffreys": 0.3415606,
        "tv": 0.4,
        "base_entropy": 1.2355836,
        "tuned_entropy": 0.9047839,
        "delta_logp": math.log(0.2 / 0.5),
        "tuned_top1_base_logp": math.log(0.3),
        "tuned_top1_base_rank": 2,
        "base_top1_tuned_rank": 2,
        "top_overlap": 5,
    }
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, abs=2e-7), name
    assert found["tuned_top_ids"].tolist() == [[1, 0, 2, 3, 4]]
    for top_p, js in ((0.65, 0.2903048), (0.93, 0.1041094)):
        assert compared(base, tuned, mode="top_p", top_p=top_p)["js"].item() == pytest.approx(js, abs=2e-7)
        assert compared(base, tuned, mode="top_p", top_p=top_p)["tv"].item() == pytest.approx(0.4), "the rest is whole"


# Log-probabilities in float32 are good to 5e-7 here, which is much of a distance that is small itself.
RELATIVE = {1e-4: 5e-3, 1e-3: 4e-4, 1e-2: 6e-5, 0.1: 1e-5, 1.0: 6e-6, 8.0: 6e-6}


@pytest.mark.parametrize("scale", RELATIVE)
def test_small_and_large_divergences_keep_their_digits(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(70, 3001, generator=generator) * 4
    tuned = base + torch.randn(70, 3001, generator=generator) * scale
    found, wanted = compared(base, tuned), naive(base, tuned)
    # Entropies and single log-probabilities do not vanish with the distance, and TV only as its root does.
    large = {"tv", "base_entropy", "tuned_entropy", "tuned_top1_base_logp", "base_top1_tuned_logp"}
    for name, value in wanted.items():
        # float32 sums over 3,001 terms are good to 6e-6 of the value.
        rtol, atol = (6e-6, 3e-6) if name in large else (RELATIVE[scale], 0.0)
        torch.testing.assert_close(found[name].double(), value.double(), rtol=rtol, atol=atol)
    top = base.log_softmax(-1).topk(10)
    assert torch.equal(found["base_top_logps"], top.values)
    assert torch.equal(found["base_top_ids"], top.indices)


def test_equal_logits_give_exactly_zero() -> None:
    logits = torch.randn(9, 501, generator=torch.Generator().manual_seed(1)) * 5
    found = compared(logits, logits)
    for name in ("js", "kl_tuned_base", "kl_base_tuned", "half_jeffreys", "tv", "delta_logp"):
        assert found[name].eq(0).all(), name
    assert found["tuned_top1_base_rank"].eq(1).all()
    assert compared(logits, logits + 3.0)["js"].max() < 1e-12, "a constant changes no distribution"


DISTRIBUTIONS = st.lists(st.floats(-30, 30, width=32), min_size=12, max_size=12)


@settings(max_examples=150, deadline=None)
@given(DISTRIBUTIONS, DISTRIBUTIONS, st.integers(1, 12))
def test_js_is_bounded_and_the_bounds_of_top_k_hold(a: list[float], b: list[float], k: int) -> None:
    base, tuned = torch.tensor([a]), torch.tensor([b])
    exact = naive(base, tuned)["js"].nan_to_num(0.0).item()
    found = compared(base, tuned)
    assert 0 <= found["js"].item() <= math.log(2)
    # float32 log-probabilities are off by 1e-6 of a logit of 30, and the smaller a logit, the less.
    assert found["js"].item() == pytest.approx(exact, abs=4e-6)
    bounds = compared(base, tuned, mode="top_k", top_n=k)
    assert "js" not in bounds, "a number that is not known is not given"

    assert bounds["js_lower"].item() - 4e-6 <= exact <= bounds["js_upper"].item() + 4e-6
    if k == 12:
        assert bounds["js_lower"].item() == pytest.approx(bounds["js_upper"].item(), abs=4e-6)


def test_bounds_of_lists_that_share_nothing() -> None:
    one, other = torch.tensor([[1, 2]]), torch.tensor([[3, 4]])
    logps = torch.tensor([[0.5, 0.25]]).log()
    lower, upper = js_bounds(one, logps, other, logps)
    assert lower.item() == 0, "all of it may be the same tail"
    assert upper.item() == pytest.approx(math.log(2))


SEQUENCES = [[5, 9, 3, 60, 2, 7], [8, 4], list(range(1, 40)), [11, 12, 13]]
STARTS = [3, 2, 5, 0]


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
def test_models_give_what_their_whole_logits_give(family: str, tiny: Tiny) -> None:
    base, tuned = tiny(family), tiny(family)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    found = shift_measures(*sides(base, tuned), SEQUENCES, STARTS, cells=4 * VOCAB)
    for ids, start, values in zip(SEQUENCES, STARTS, found, strict=True):
        with torch.no_grad():
            logits = [model(torch.tensor([ids])).logits[0, max(start, 1) - 1 : -1] for model in (base, tuned)]
        assert len(values["js"]) == len(ids) - max(start, 1)
        for name, wanted in naive(*logits).items():
            # Padding and the size of a chunk change float32 products by rounding.
            torch.testing.assert_close(values[name].double(), wanted.double(), rtol=1e-4, atol=2e-5)
        targets = torch.tensor(ids[max(start, 1) :])[:, None]
        change = [side.double().log_softmax(-1).gather(1, targets)[:, 0] for side in logits]
        torch.testing.assert_close(values["delta_logp"].double(), change[1] - change[0], atol=2e-5, rtol=1e-4)
    whole = shift_measures(*sides(base, tuned), SEQUENCES, STARTS)
    torch.testing.assert_close(whole[2]["js"], found[2]["js"], atol=1e-6, rtol=1e-5)
    again = shift_measures(*sides(base, tuned), SEQUENCES, STARTS)
    assert all(torch.equal(a[name], b[name]) for a, b in zip(whole, again, strict=True) for name in a)


def test_an_adapter_is_compared_with_itself_switched_off(tiny: Tiny) -> None:
    base = tiny()
    adapted = get_peft_model(tiny(), LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=True))
    found = shift_measures(*sides(None, adapted), SEQUENCES, STARTS)
    assert all(values["js"].eq(0).all() and values["delta_logp"].eq(0).all() for values in found), "B is zero at first"
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter += 0.3 * torch.randn_like(parameter)
    alone = shift_measures(*sides(None, adapted), SEQUENCES, STARTS)
    against = shift_measures(*sides(base, adapted), SEQUENCES, STARTS)
    assert alone[2]["js"].max() > 1e-3
    torch.testing.assert_close(alone[2]["js"], against[2]["js"], atol=1e-6, rtol=1e-4)
    assert adapted.active_adapter == "default", "left as found"
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            module.scaling["default"] = 0.0
    zero = shift_measures(*sides(None, adapted), SEQUENCES, STARTS)
    assert all(values["js"].eq(0).all() for values in zero)


def test_bf16_models_are_compared_in_float32(tiny: Tiny) -> None:
    """A LoRA copy of a bf16 model, every measure again from its whole logits."""
    tuned = get_peft_model(tiny().bfloat16(), LoraConfig(r=4, init_lora_weights=False)).bfloat16()
    found = shift_measures(*sides(None, tuned), [SEQUENCES[2]], [1])[0]
    ids = torch.tensor([SEQUENCES[2]])
    with torch.no_grad():
        after = tuned(ids).logits[0, :-1]
        with tuned.disable_adapter():
            before = tuned(ids).logits[0, :-1]
    assert before.dtype == torch.bfloat16
    assert found["js"].max() > 1e-3, "they must differ, or equal numbers prove nothing"
    for name, wanted in naive(before, after).items():
        torch.testing.assert_close(found[name].double(), wanted.double(), rtol=1e-4, atol=2e-5)
    assert found["js"].dtype == torch.float32


def test_padded_vocabularies_are_compared_on_what_they_share(tiny: Tiny) -> None:
    base, tuned = tiny(), tiny()
    tuned.resize_token_embeddings(VOCAB + 31, mean_resizing=False)
    with torch.no_grad():
        tuned.lm_head.weight[VOCAB:] = 9.0
    found = shift_measures(Side(base), Side(tuned), SEQUENCES, STARTS)
    assert found[2]["js"].max() < 1e-9
    with pytest.raises(InputError, match="outside the model's vocabulary of 97"):
        shift_measures(Side(base), Side(tuned), [[1, VOCAB + 1]], [0])


def test_wrong_input_is_refused(tiny: Tiny) -> None:
    model = tiny()
    with pytest.raises(InputError, match="TUNED is no adapter"):
        sides(None, model)
    with pytest.raises(InputError, match="'half' is unknown"):
        shift_measures(Side(model), Side(model), SEQUENCES, STARTS, mode="half")
    with pytest.raises(InputError, match="2 is no share"):
        shift_measures(Side(model), Side(model), SEQUENCES, STARTS, top_p=2)
    model.config.logit_scale = 3.0
    with pytest.raises(InputError, match="llama makes its logits in a way of its own"):
        shift_measures(Side(model), Side(model), SEQUENCES, STARTS)
