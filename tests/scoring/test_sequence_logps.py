"""`sequence_logps` against the plain definition, one sequence at a time, without padding.

Tolerance 1e-5: in float32 the padded, tiled computation adds up in another order than the plain one; 97 logits of size
10 round at about 1e-6 each. A wrong position, mask, window or soft-cap is off by 0.01 and more in these models.
"""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokencredit.errors import InputError
from tokencredit.scoring import sequence_logps

VOCAB = 97
ALL = ("is_top1", "log_probs", "mean_logits", "entropy", "log_sum_sq_probs")
FAMILIES = ["llama", "qwen2", "mistral", "gemma2", "gemma3"]
# Longer than the sliding windows (4), of one token, equal ones, and one with a common prefix.
SEQUENCES = [
    [5, 3, 8, 13, 21, 34, 55, 89, 1, 2, 3],
    [7],
    [0, 96],
    [5, 3, 8, 13, 90, 91],
    [1, 2, 3, 4],
    [1, 2, 3, 4],
]


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def plain_logits(model, sequence: list[int]) -> Tensor:
    return model(input_ids=torch.tensor([sequence])).logits[0, :-1].float()


def naive(model, sequence: list[int], temperature: float = 1.0) -> Tensor:
    log_p = (plain_logits(model, sequence) / temperature).log_softmax(-1)
    return log_p.gather(1, torch.tensor(sequence[1:])[:, None])[:, 0]


@pytest.mark.parametrize("share_prefixes", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_definition(tiny, family: str, share_prefixes: bool) -> None:
    model = tiny(family)
    scores = sequence_logps(model, SEQUENCES, share_prefixes=share_prefixes)
    assert [len(s) for s in scores] == [len(s) - 1 for s in SEQUENCES]
    for sequence, score in zip(SEQUENCES, scores, strict=True):
        assert score.dtype == torch.float32
        if len(sequence) > 1:
            close(score, naive(model, sequence))


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3"])
def test_the_window_and_the_softcap_matter_here(tiny, family: str) -> None:
    score = sequence_logps(tiny(family), SEQUENCES[:1])[0]
    assert not torch.allclose(score, sequence_logps(tiny(family, sliding_window=64), SEQUENCES[:1])[0], atol=1e-2)
    if family != "mistral":
        uncapped = tiny(family, final_logit_softcapping=None)
        assert not torch.allclose(score, sequence_logps(uncapped, SEQUENCES[:1])[0], atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_equals_that_of_the_definition(tiny, family: str) -> None:
    weights = [torch.linspace(-1, 2, len(s) - 1) for s in SEQUENCES]
    fused, plain = tiny(family), tiny(family)
    scores = sequence_logps(fused, SEQUENCES, batch_tokens=24)
    sum((score * w).sum() for score, w in zip(scores, weights, strict=True)).backward()
    sum((naive(plain, s) * w).sum() for s, w in zip(SEQUENCES, weights, strict=True) if len(s) > 1).backward()
    for (name, one), other in zip(fused.named_parameters(), plain.parameters(), strict=True):
        # Relative to the largest entry: gradients of these models reach 10².
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5 * other.grad.abs().max().item(), rtol=0, msg=name)


def test_no_graph_without_gradients(tiny) -> None:
    model = tiny()
    with torch.no_grad():
        assert not sequence_logps(model, SEQUENCES)[0].requires_grad
    assert sequence_logps(model, SEQUENCES)[0].requires_grad


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_temperature_divides_the_logits(tiny, family: str, temperature: float) -> None:
    model = tiny(family)
    close(sequence_logps(model, SEQUENCES, temperature=temperature)[0], naive(model, SEQUENCES[0], temperature))


def test_several_outputs_come_in_the_order_asked_for(tiny) -> None:
    model = tiny()
    results = sequence_logps(model, SEQUENCES, outputs=ALL)
    for sequence, result in zip(SEQUENCES, results, strict=True):
        got = dict(zip(ALL, result, strict=True))
        if len(sequence) == 1:
            assert [value.numel() for value in result] == [0] * len(ALL)
            continue
        logits = plain_logits(model, sequence)
        log_p = logits.log_softmax(-1)
        close(got["log_probs"], naive(model, sequence))
        close(got["entropy"], -(log_p.exp() * log_p).sum(-1))
        close(got["log_sum_sq_probs"], (2 * log_p).logsumexp(-1))
        close(got["mean_logits"], logits.mean(-1))
        assert got["is_top1"].tolist() == (logits.argmax(-1) == torch.tensor(sequence[1:])).tolist()
    assert {value.dtype for result in results for value in result} == {torch.float32, torch.bool}


def test_one_output_needs_no_tuple(tiny) -> None:
    (entropy,) = sequence_logps(tiny(), [[1, 2, 3]], outputs=("entropy",))
    assert entropy.shape == (2,)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sequences=st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12), max_size=6),
    batch_tokens=st.sampled_from([1, 13, 40, 16384]),
)
def test_any_list_of_sequences(tiny, sequences: list[list[int]], batch_tokens: int) -> None:
    model = tiny("mistral")
    with torch.no_grad():
        scores = sequence_logps(model, sequences, batch_tokens=batch_tokens)
        assert len(scores) == len(sequences)
        for sequence, score in zip(sequences, scores, strict=True):
            close(score, naive(model, sequence) if len(sequence) > 1 else torch.empty(0))


def test_order_does_not_matter(tiny) -> None:
    model = tiny()
    forwards, backwards = sequence_logps(model, SEQUENCES), sequence_logps(model, SEQUENCES[::-1])
    for one, other in zip(forwards, reversed(backwards), strict=True):
        close(one, other)


@pytest.mark.parametrize(
    ("batch_tokens", "batches"),
    [
        (1, [(1, 11), (1, 6), (1, 4), (1, 4), (1, 2)]),
        (22, [(2, 11), (3, 4)]),
        (16384, [(5, 11)]),
    ],
)
def test_batches_hold_the_token_budget(tiny, batch_tokens: int, batches: list[tuple[int, int]]) -> None:
    model, seen = tiny(), []
    hook = model.register_forward_pre_hook(
        lambda _, args, kw: seen.append(tuple(kw["input_ids"].shape)), with_kwargs=True
    )
    expected = sequence_logps(model, SEQUENCES)
    seen.clear()
    scores = sequence_logps(model, SEQUENCES, share_prefixes=False, batch_tokens=batch_tokens)
    hook.remove()
    assert seen == batches
    for one, other in zip(scores, expected, strict=True):
        close(one, other)


def test_bfloat16_model_gives_float32_log_probabilities(tiny) -> None:
    model = tiny().bfloat16()
    score = sequence_logps(model, SEQUENCES[:1])[0]
    assert score.dtype == torch.float32
    # The logits themselves are bfloat16; what must not happen is a log-softmax in bfloat16.
    torch.testing.assert_close(score, naive(model, SEQUENCES[0]), atol=1e-4, rtol=0)
    assert not torch.equal(score, score.bfloat16().float())


def test_nothing_to_score(tiny) -> None:
    model = tiny()
    assert sequence_logps(model, []) == []
    assert [s.shape for s in sequence_logps(model, [[3], [4]])] == [(0,), (0,)]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_found(tiny, training: bool) -> None:
    model = tiny().train(training)
    attributes, config = dict(vars(model)), model.config.to_dict()
    sequence_logps(model, SEQUENCES, temperature=0.7, outputs=("log_probs", "entropy"))
    with pytest.raises(InputError):
        sequence_logps(model, [[]])
    assert vars(model) == attributes
    assert model.config.to_dict() == config
    assert all(module.training is training for module in model.modules())


def test_the_model_is_left_as_found_when_the_forward_fails(tiny) -> None:
    model = tiny()
    hook = model.model.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sequence_logps(model, SEQUENCES)
    hook.remove()
    assert "forward" not in vars(model)
    close(sequence_logps(model, SEQUENCES)[0], naive(model, SEQUENCES[0]))


def test_wrong_input_is_named(tiny) -> None:
    model = tiny()
    cases = [
        ([[1, 2], []], {}, r"sequences\[1\]: is empty"),
        ([[1, 2], [3, 97]], {}, r"sequences\[1\]\[1\]: token id 97 is outside the model's vocabulary of 97"),
        ([[1, -100, 2]], {}, r"sequences\[0\]\[1\]: token id -100 is outside"),
        (
            [[1, 2]],
            {"outputs": ("log_probs", "logits")},
            r"outputs: cannot compute \['logits'\]; use a tuple of log_probs",
        ),
        ([[1, 2]], {"outputs": ()}, "outputs: cannot compute nothing"),
        ([[1, 2]], {"temperature": 0.0}, r"temperature: 0\.0 is not positive"),
    ]
    for sequences, options, message in cases:
        with pytest.raises(ValueError, match=message):
            sequence_logps(model, sequences, **options)


def test_a_uniform_model_gives_log_vocabulary(tiny) -> None:
    model = tiny()
    model.lm_head.weight.data.zero_()
    log_probs, entropy = sequence_logps(model, [[1, 2, 3]], outputs=("log_probs", "entropy"))[0]
    assert log_probs.tolist() == pytest.approx([-math.log(VOCAB)] * 2, abs=1e-5)
    assert entropy.tolist() == pytest.approx([math.log(VOCAB)] * 2, abs=1e-5)
