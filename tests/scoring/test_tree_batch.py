"""A padded batch as trees: what a fused head returns is what it returns for the batch, in one forward."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from tests.scoring.conftest import CONFIGS
from tokencredit.scoring.prefix_tree import packed
from tokencredit.scoring.shared_forward import share_prefixes
from tokencredit.scoring.tree_batch import batch_trees
from tokencredit.scoring.trl_compat import OUTPUTS, fused_lm_head

# Few different tokens, so that prefixes meet; each sequence with how many of its tokens are a prompt.
SEQUENCES = st.lists(
    st.tuples(st.lists(st.integers(0, 2), min_size=2, max_size=9), st.integers(0, 8)), min_size=1, max_size=6
)


def batch(sequences: list[tuple[list[int], int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask, and 1 on what is scored: at least the last token."""
    width = max(len(tokens) for tokens, _ in sequences)
    ids, mask, scored = (torch.zeros(len(sequences), width, dtype=torch.long) for _ in range(3))
    for row, (tokens, prompt) in enumerate(sequences):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
        scored[row, min(prompt, len(tokens) - 1) : len(tokens)] = 1
    return ids, mask, scored


def scores_and_gradients(model: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    model.zero_grad()
    outputs = model(**inputs, fused_lm_head=True, use_cache=False)
    weights = torch.linspace(-1, 2, outputs.log_probs.numel()).view_as(outputs.log_probs)
    loss = (weights * outputs.log_probs).sum() + outputs.entropy.sum()
    if outputs.aux_loss is not None:
        loss = loss + outputs.aux_loss
    loss.backward()
    return outputs, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", CONFIGS)
def test_numbers_and_gradients_are_those_of_the_padded_batch(family: str, tiny: Callable[..., PreTrainedModel]) -> None:
    """Within 1e-5, gradients relative to their largest entry, as in `test_prefix_tree.py`."""
    model = tiny(family, attn_implementation="eager" if family == "gemma2" else "sdpa")
    router = {"output_router_logits": True} if hasattr(model.config, "output_router_logits") else {}

    @settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
    @given(SEQUENCES, st.sampled_from([None, 8]))
    def check(sequences: list[tuple[list[int], int]], multiple_of: int | None) -> None:
        ids, mask, scored = batch(sequences)
        inputs = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(scored == 0, -100)} | router
        trees = batch_trees(ids, mask, scored, hidden_size=32, always=True, whole=bool(router), multiple_of=multiple_of)
        padded, plain = scores_and_gradients(model, inputs)
        shared, gradients = scores_and_gradients(model, inputs | {"prefix_trees": trees})
        for name in OUTPUTS:
            one, other = getattr(shared, name).float(), getattr(padded, name).float()
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5, msg=name)
        assert torch.equal(shared.label_mask, padded.label_mask)
        torch.testing.assert_close(shared.loss, padded.loss, atol=1e-5, rtol=1e-5)
        if router:
            torch.testing.assert_close(shared.aux_loss, padded.aux_loss, atol=1e-5, rtol=1e-5)
        assert gradients.keys() == plain.keys()
        for name, gradient in plain.items():
            atol = 1e-5 * max(1.0, gradient.abs().max().item())
            torch.testing.assert_close(gradients[name], gradient, atol=atol, rtol=0, msg=name)

    with fused_lm_head(model, outputs=OUTPUTS):
        share_prefixes(model)
        check()


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 40))
def test_lines_hold_each_tree_once_and_keep_to_the_budget(lengths: list[int], budget: int) -> None:
    lines = packed(lengths, budget)
    assert sorted(place for line in lines for place in line) == list(range(len(lengths)))
    for line in lines:
        assert len(line) == 1 or sum(lengths[place] for place in line) <= budget


def test_bfloat16_and_autocast(tiny: Callable[..., PreTrainedModel]) -> None:
    """The mask is of the type that the queries are; numbers agree as far as bfloat16 goes."""
    ids, mask, scored = batch([([0, 1, 2, 0, 1], 2), ([0, 1, 2, 2], 2)])
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(scored == 0, -100)}
    trees = {"prefix_trees": batch_trees(ids, mask, scored, hidden_size=32, always=True)}
    half = tiny().bfloat16()
    with torch.no_grad(), fused_lm_head(half):
        share_prefixes(half)
        shared, padded = (half(**inputs, **more, fused_lm_head=True).log_probs for more in (trees, {}))
        torch.testing.assert_close(shared, padded, atol=0.1, rtol=0.02)
    model = tiny()
    with torch.no_grad(), fused_lm_head(model), torch.autocast("cpu", torch.bfloat16):
        share_prefixes(model)
        shared, padded = (model(**inputs, **more, fused_lm_head=True).log_probs for more in (trees, {}))
        torch.testing.assert_close(shared, padded, atol=0.1, rtol=0.02)
