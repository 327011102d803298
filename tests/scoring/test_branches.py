"""Branches off a trunk: every number is that of the whole sequence, in few and bounded forwards."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import PreTrainedModel

from tests.scoring.conftest import CONFIGS
from tokencredit.errors import InputError
from tokencredit.scoring import branch_forwards, branch_logps, sequence_logps

TRUNK = [5, 3, 8, 13, 21, 34, 55, 89, 1, 2, 3, 90]
BRANCHES = [(4, [7, 8, 9]), (12, [1]), (1, [2, 2]), (4, [7, 8, 1, 1]), (9, [6] * 7), (12, [1, 4]), (4, [7, 8, 9])]
Tiny = Callable[..., PreTrainedModel]


def whole(model: torch.nn.Module, branches: list[tuple[int, list[int]]], **options: object) -> list[torch.Tensor]:
    sequences = [[*TRUNK[:place], *tokens] for place, tokens in branches]
    scores = sequence_logps(model, sequences, share_prefixes=False, **options)  # type: ignore[call-overload]
    return [score[-len(tokens) :] for score, (_, tokens) in zip(scores, branches, strict=True)]


def close(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "attention"),
    [(family, "eager" if family == "gemma2" else "sdpa") for family in CONFIGS] + [("gemma3", "eager")],
)
def test_numbers_are_those_of_the_whole_sequences(family: str, attention: str, tiny: Tiny) -> None:
    """Within 1e-5, as for trees; most of these models have a window of 4 tokens, shorter than trunk and branches."""
    model = tiny(family, attn_implementation=attention)

    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.lists(
            st.tuples(st.integers(1, len(TRUNK)), st.lists(st.integers(0, 2), min_size=1, max_size=6)), max_size=12
        ),
        st.sampled_from([1, 5, 64]),
    )
    def check(branches: list[tuple[int, list[int]]], chunk_rows: int) -> None:
        close(branch_logps(model, TRUNK, branches, chunk_rows=chunk_rows), whole(model, branches))

    check()
    close(branch_logps(model, TRUNK, BRANCHES, temperature=0.5), whole(model, BRANCHES, temperature=0.5))
    longer = [(place, [3, 1, *tokens]) for place, tokens in BRANCHES]
    for count in (1, 2):
        expected = [score[count:] for score in whole(model, longer)]
        for chunk_rows in (5, 64):
            close(branch_logps(model, TRUNK, longer, chunk_rows=chunk_rows, unscored_tokens=count), expected)


def test_the_trunk_runs_once_and_chunks_hold_their_rows(tiny: Tiny) -> None:
    model, seen = tiny(), []
    model.model.register_forward_pre_hook(
        lambda _, args, kw: seen.append(tuple(kw["input_ids"].shape)), with_kwargs=True
    )
    branch_logps(model, TRUNK, BRANCHES)
    # 7, 8 and their root once for three branches; the others 1 (twice the same, one row each), 2 and 7 rows.
    assert seen == [(1, 11), (1, 4 + 2 + 2 + 7)]
    seen.clear()
    branch_logps(model, TRUNK, BRANCHES, chunk_rows=10, forwards=6)
    assert [rows for _, rows in seen[:1]] == [11]
    assert all(rows <= 10 for _, rows in seen[1:])
    assert len(seen) == 6 > branch_forwards(BRANCHES, chunk_rows=10)
    assert seen[-1] == (1, 1)


def test_several_outputs_and_a_process_without_branches(tiny: Tiny) -> None:
    model = tiny()
    found = branch_logps(model, TRUNK, BRANCHES, outputs=("log_probs", "is_top1"))
    close([score[0] for score in found], whole(model, BRANCHES))
    assert {score[1].dtype for score in found} == {torch.bool}
    assert branch_forwards([]) == 0
    forwards: list[int] = []
    model.register_forward_pre_hook(lambda *_: forwards.append(1))
    assert branch_logps(model, TRUNK, [], forwards=3) == []
    assert len(forwards) == 3


def test_the_model_is_left_as_found(tiny: Tiny) -> None:
    """In training mode gradient checkpointing would drop keys and values, and dropout would change the numbers."""
    model = tiny(attention_dropout=0.5)
    expected = whole(model, BRANCHES)
    model.gradient_checkpointing_enable()
    model.train()
    model.model.layers[0].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    close(branch_logps(model, TRUNK, BRANCHES), expected)
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert "forward" not in vars(model)
    assert not branch_logps(model, TRUNK, BRANCHES)[0].requires_grad


def test_an_adapter_is_seen(tiny: Tiny) -> None:
    model = get_peft_model(tiny(), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)).eval()
    close(branch_logps(model, TRUNK, BRANCHES), whole(model, BRANCHES))


def test_what_cannot_share_its_trunk_says_so(tiny: Tiny) -> None:
    model = get_peft_model(tiny(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    with pytest.warns(UserWarning, match="virtual tokens"):
        found = branch_logps(model, TRUNK, BRANCHES)
    close(found, whole(model, BRANCHES))
    with pytest.raises(InputError, match="virtual tokens"):
        branch_logps(model, TRUNK, BRANCHES, forwards=9)


@pytest.mark.parametrize(
    ("trunk", "branches", "options", "message"),
    [
        ([], [(1, [1])], {}, "trunk: is empty"),
        (TRUNK, [(13, [1])], {}, r"branches\[0\]: place 13 is outside the trunk of 12 tokens"),
        (TRUNK, [(1, [1, 2]), (2, [1])], {"unscored_tokens": 1}, r"1 leave none of the 1 tokens of branches\[1\]"),
        (TRUNK, [(1, [1]), (0, [1])], {}, r"branches\[1\]: place 0"),
        (TRUNK, [(1, [])], {}, r"branches\[0\]: has no token"),
        (TRUNK, [(1, [97])], {}, "token id 97 is outside the model's vocabulary of 97"),
        (TRUNK, [(1, [1])], {"forwards": 1}, "forwards: 1 are too few; give 2 or more"),
        (TRUNK, [(1, [1])], {"temperature": 0.0}, "temperature"),
    ],
)
def test_wrong_input_is_named(trunk: list[int], branches: list, options: dict, message: str, tiny: Tiny) -> None:
    with pytest.raises(InputError, match=message):
        branch_logps(tiny(), trunk, branches, **options)
