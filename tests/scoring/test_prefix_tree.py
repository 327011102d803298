"""Sequences merged into trees: every distinct prefix is there once, and each row sees its own prefix only."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model
from transformers import PreTrainedModel

from tests.scoring.conftest import CONFIGS, VOCAB
from tokencredit.scoring import sequence_logps
from tokencredit.scoring.prefix_tree import grouped, lexical_order, prefix_tree
from tokencredit.scoring.shared_forward import SUPPORTED, refusal

# Few different tokens, so that prefixes meet.
FORESTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=9)
NO_SDPA = ("gemma2", "sdpa")
ALL = ("log_probs", "entropy", "is_top1")


@settings(max_examples=300, deadline=None)
@given(FORESTS)
def test_rows_see_their_prefix_and_nothing_else(sequences: list[list[int]]) -> None:
    tree = prefix_tree(sequences)
    used = set()
    for sequence, places in zip(sequences, tree.places, strict=True):
        assert len(places) == len(sequence) - 1
        for depth, place in enumerate(places.tolist()):
            used.add(place)
            row = tree.heads[place]
            assert (tree.positions[row], tree.labels[place]) == (depth, sequence[depth + 1])
            seen = [key for key in range(row + 1) if row < tree.ends[key]]
            assert tree.tokens[seen].tolist() == sequence[: depth + 1]
            assert tree.positions[seen].tolist() == list(range(depth + 1))
    assert used == set(range(len(tree.heads))), "no prediction is without use"
    assert set(tree.heads.tolist()) == set(range(len(tree))), "no row is without use"
    # One row for each distinct prefix that predicts something, one prediction for each distinct (prefix, next token).
    prefixes = {tuple(sequence[:n]) for sequence in sequences for n in range(1, len(sequence))}
    assert len(tree) == len(prefixes)
    predictions = {tuple(sequence[: n + 1]) for sequence in sequences for n in range(1, len(sequence))}
    assert len(tree.heads) == len(predictions)


@given(FORESTS, st.integers(1, 64), st.integers(1, 30))
@settings(deadline=None)
def test_groups_hold_each_sequence_once_and_cost_no_more(
    sequences: list[list[int]], hidden_size: int, max_rows: int
) -> None:
    groups = grouped(sequences, hidden_size=hidden_size, max_rows=max_rows)
    assert sorted(row for group in groups for row in group) == list(range(len(sequences)))
    for group in groups:
        rows = len(prefix_tree([sequences[row] for row in group]))
        assert len(group) == 1 or rows <= max_rows

        def cost(rows: int) -> float:
            return rows * (1 + rows / (6 * hidden_size))

        alone = sum(cost(len(sequences[row]) - 1) for row in group)
        assert cost(rows) <= alone + 1e-9


def test_a_short_common_prefix_is_not_worth_a_long_line() -> None:
    answers = [[1, *([answer] * 400)] for answer in range(2, 6)]
    assert len(grouped(answers, hidden_size=64, max_rows=4096)) == 4
    prompts = [[*range(400), answer, 7] for answer in range(4)]
    assert grouped(prompts, hidden_size=64, max_rows=4096) == [[0, 1, 2, 3]]
    assert len(grouped(prompts, hidden_size=64, max_rows=300)) == 4
    assert lexical_order([[2], [1, 5], [1]]) == [2, 1, 0]


def scores_and_gradients(
    model: PreTrainedModel, sequences: list[list[int]], share: bool
) -> tuple[list[tuple[torch.Tensor, ...]], list[torch.Tensor]]:
    model.zero_grad()
    scores = sequence_logps(model, sequences, share_prefixes=share, outputs=ALL)
    sum((s[0] * torch.linspace(-1, 2, len(s[0]))).sum() for s in scores).backward()
    return scores, [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    ("family", "attention"),
    # Transformers has no sdpa for Gemma-2, whose scores are soft-capped.
    [(family, attention) for family in CONFIGS for attention in ("sdpa", "eager") if (family, attention) != NO_SDPA],
)
def test_numbers_and_gradients_equal_the_padded_forward(
    family: str, attention: str, tiny: Callable[..., PreTrainedModel]
) -> None:
    """Within 1e-5: sums in another order. Gradients are compared relative to their largest entry."""
    model = tiny(family, attn_implementation=attention)
    forwards: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(lambda _, args, kw: forwards.append(tuple(kw["input_ids"].shape)), with_kwargs=True)

    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
    @given(FORESTS.filter(lambda forest: any(len(sequence) > 1 for sequence in forest)))
    def check(sequences: list[list[int]]) -> None:
        padded, plain = scores_and_gradients(model, sequences, share=False)
        shared, gradients = scores_and_gradients(model, sequences, share=True)
        for one, other in zip(shared, padded, strict=True):
            for a, b in zip(one[:2], other[:2], strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        for a, b in zip(gradients, plain, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5 * max(1.0, b.abs().max().item()), rtol=0)

    check()
    # The prompt of 20 tokens is computed once for three answers.
    prompt = [token % VOCAB for token in range(20)]
    forwards.clear()
    sequence_logps(model, [[*prompt, 1, 2], [*prompt, 3], [*prompt, 1, 4]])
    assert forwards == [(1, 21)]


def test_an_adapter_is_seen(tiny: Callable[..., PreTrainedModel]) -> None:
    model = get_peft_model(tiny(), LoraConfig(task_type=TaskType.CAUSAL_LM, init_lora_weights=False)).eval()
    sequences = [[5, 6, 7, 8, 9, 1], [5, 6, 7, 8, 9, 2, 3]]
    shared, padded = (sequence_logps(model, sequences, share_prefixes=share) for share in (True, False))
    with model.disable_adapter():
        base = sequence_logps(model, sequences)
    for one, other, without in zip(shared, padded, base, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(one, without, atol=1e-3)


def test_what_cannot_share_says_so_and_runs_padded(tiny: Callable[..., PreTrainedModel]) -> None:
    prompting = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3)
    model = get_peft_model(tiny(), prompting).eval()
    sequences = [[5, 6, 7, 8, 9, 1], [5, 6, 7, 8, 9, 2, 3]]
    with pytest.warns(UserWarning, match="virtual tokens"):
        shared = sequence_logps(model, sequences)
    for one, other in zip(shared, sequence_logps(model, sequences, share_prefixes=False), strict=True):
        torch.testing.assert_close(one, other)
    config = tiny().config
    assert refusal(torch.nn.Module(), config) is None
    for name, value, says in [
        ("_attn_implementation", "flash_attention_2", "flash_attention_2"),
        ("layer_types", ["full_attention", "linear_attention"], "linear_attention"),
        ("model_type", "mamba", "mamba"),
    ]:
        kept = getattr(config, name, None)
        setattr(config, name, value)
        assert says in str(refusal(torch.nn.Module(), config))
        setattr(config, name, kept)


def test_every_supported_architecture_is_compared() -> None:
    assert {config_class.model_type for config_class, _ in CONFIGS.values()} == set(SUPPORTED)
