"""The forced and the sampled probe: numbers of whole sequences, and what a run must not notice."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from tokencredit.data.tokenizers import build_tokenizer
from tokencredit.errors import InputError
from tokencredit.losses import step_potential
from tokencredit.scoring import ProbeTask, draw_answers, probe_forwards, probe_steps
from tokencredit.scoring.probe import answer_ids, template_ids

Tiny = Callable[..., PreTrainedModel]
TEMPLATE = [90, 91, 92]


def tasks(count: int = 5, *, length: int = 40, seed: int = 0) -> list[ProbeTask]:
    """Responses of different lengths with up to six steps; answers of one to three tokens, some spelt in two ways."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        trunk = torch.randint(97, (length + 3 * number,), generator=generator).tolist()
        places = [8 + 5 * step for step in range(number % 7)]
        answers = [[7, 8, 9][: 1 + number % 3], *([[5, 5]] if number % 2 else [])]
        found.append(ProbeTask(trunk, places, TEMPLATE, answers))
    return found


def one_by_one(model: nn.Module, task: ProbeTask) -> tuple[list[float], list[float]]:
    """One padded forward per step and spelling, from the logits."""
    acc, conf = [], []
    for place in task.places:
        spelt = []
        for answer in task.answers:
            ids = [*task.trunk[:place], *task.template, *answer]
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -len(answer) - 1 : -1].float()
            logps = logits.log_softmax(-1)
            right = logps[torch.arange(len(answer)), torch.tensor(answer)].exp().mean().item()
            entropy = -(logps.exp() * logps).sum(-1).mean()
            spelt.append((right, (-entropy).exp().item()))
        best = max(spelt)
        acc.append(best[0])
        conf.append(best[1])
    return acc, conf


def close(found: list[tuple[Tensor, Tensor]], model: nn.Module, given: list[ProbeTask]) -> None:
    for (acc, conf), task in zip(found, given, strict=True):
        expected = one_by_one(model, task)
        assert acc.tolist() == pytest.approx(expected[0], abs=1e-5)
        assert conf.tolist() == pytest.approx(expected[1], abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_forced_is_one_padded_forward_per_step(family: str, tiny: Tiny) -> None:
    """Short responses share a forward, long ones have their own; 1e-5 as for branches (float32 rounding)."""
    model = tiny(family)
    given = tasks() + tasks(3, length=300, seed=1)
    for chunk_rows in (16, None):
        close(probe_steps(model, given, chunk_rows=chunk_rows), model, given)


def test_the_head_of_another_temperature_changes_nothing(tiny: Tiny) -> None:
    from trl.trainer.utils import add_fused_lm_head

    model, given = tiny(), tasks()
    plain = probe_steps(model, given)
    add_fused_lm_head(model, temperature=0.3)
    for (acc, conf), (acc2, conf2) in zip(plain, probe_steps(model, given), strict=True):
        assert torch.equal(acc, acc2)
        assert torch.equal(conf, conf2)


def test_a_run_does_not_notice_the_probe(tiny: Tiny) -> None:
    model = tiny(attention_dropout=0.5)
    given = tasks() + tasks(2, length=300)
    expected = probe_steps(model, given)
    model.train()
    model.gradient_checkpointing_enable()
    out = model(torch.tensor([[1, 2, 3]])).logits.sum()
    out.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    state = torch.get_rng_state()
    found = probe_steps(model, given)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, p.grad) for a, p in zip(gradients, model.parameters(), strict=True))
    assert model.training
    assert all(module.training for module in model.modules())
    assert not any(acc.requires_grad for acc, _ in found)
    for (acc, _), (acc2, _) in zip(expected, found, strict=True):
        torch.testing.assert_close(acc, acc2, atol=1e-6, rtol=0)


def test_forwards_are_counted_and_filled_up(tiny: Tiny) -> None:
    model, seen = tiny(), []
    model.model.register_forward_pre_hook(lambda _, args, kw: seen.append(kw["input_ids"].numel()), with_kwargs=True)
    given = tasks(7) + tasks(3, length=300, seed=1)
    for chunk_rows, forwards in ((16, None), (None, None), (1024, 20)):
        seen.clear()
        probe_steps(model, given, chunk_rows=chunk_rows, forwards=forwards)
        assert len(seen) == (forwards or probe_forwards(model, given, chunk_rows=chunk_rows))
    seen.clear()
    assert probe_steps(model, [], forwards=2) == []
    assert len(seen) == 2
    with pytest.raises(InputError, match="1 are too few"):
        probe_steps(model, given, chunk_rows=8, forwards=1)


def test_a_model_that_cannot_share_says_so(tiny: Tiny) -> None:
    from peft import PromptTuningConfig, get_peft_model

    model = get_peft_model(tiny(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    given = tasks(3)
    with pytest.warns(UserWarning, match="virtual tokens"):
        found = probe_steps(model, given)
    assert [len(acc) for acc, _ in found] == [0, 1, 2]
    with pytest.raises(InputError, match="virtual tokens"):
        probe_steps(model, given, forwards=9)


def test_an_answer_is_needed_where_there_is_a_step(tiny: Tiny) -> None:
    model = tiny()
    with pytest.raises(InputError, match=r"tasks\[0\]"):
        probe_steps(model, [ProbeTask([1, 2, 3], [2], TEMPLATE, [])])
    acc, conf = probe_steps(model, [ProbeTask([1, 2, 3], [], TEMPLATE, [])])[0]
    assert acc.shape == conf.shape == (0,)


def follows(after: int, answer: list[int], vocabulary: int = 97) -> LlamaForCausalLM:
    """A model that knows the answer once token `after` stands in its context, and before is sure of token 0.

    One layer of attention with hand-made weights: what a row predicts follows from its own token, and a feature that
    collects whether `after` was seen takes token 0 away.
    """
    size = 256
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=size,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        layer = model.model.layers[0]
        for norm in (model.model.norm, layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight.fill_(1.0)
        embedding = model.model.embed_tokens.weight
        embedding[torch.arange(vocabulary), torch.arange(vocabulary)] = 1.0
        # Queries and keys are zero, so attention is the mean over all tokens before: any share of `after` is found.
        layer.self_attn.v_proj.weight[0, after] = 1.0
        layer.self_attn.o_proj.weight[128, 0] = 1.0
        head = model.lm_head.weight
        for token, right in zip([TEMPLATE[-1], *answer[:-1]], answer, strict=True):
            head[right, token], head[0, token] = 1.5, 3.0
        head[0, 128] = -10.0
    return model


@pytest.mark.parametrize("answer", [[7], [7, 8, 9]])
def test_potential_saturates_exactly_at_the_step_from_which_the_answer_follows(answer: list[int]) -> None:
    """Also for an answer of three tokens: the released arithmetic gives 1.5/m² − 0.5/m there, and never 0.9."""
    model = follows(50, answer)
    trunk = [1, 2, 3, 4, 5, 6, 50, 10, 11, 12]
    (acc, conf) = probe_steps(model, [ProbeTask(trunk, [2, 4, 6, 7, 10], TEMPLATE, [answer])])[0]
    phi = step_potential(acc, conf)
    assert (phi > 0.9).tolist() == [False, False, False, True, True]
    assert phi.tolist() == pytest.approx([-1, -1, -1, 1, 1], abs=5e-3)


def test_perfect_answers_of_several_tokens_saturate() -> None:
    """[D]: Acc = Conf = 1 gives Φ = 1 for every length; the released script divides after exponentiating."""

    for m in (1, 2, 5):
        released = 1.5 / m**2 - 0.5 / m
        assert (released > 0.9) == (m == 1)
    model = sure_of([7, 8, 9, 10, 11])
    for m in (1, 2, 5):
        answer = [7, 8, 9, 10, 11][:m]
        acc, conf = probe_steps(model, [ProbeTask([1, 2], [1, 2], TEMPLATE, [answer])])[0]
        assert step_potential(acc, conf).tolist() == pytest.approx([1.0, 1.0], abs=1e-4)


def sure_of(answer: list[int]) -> LlamaForCausalLM:
    """A model in which each token of the answer follows the one before for certain."""
    model = follows(50, answer)
    with torch.no_grad():
        head = model.lm_head.weight
        head.zero_()
        for token, right in zip([TEMPLATE[-1], *answer[:-1]], answer, strict=True):
            head[right, token] = 50.0
    return model


# --- answers as tokens -------------------------------------------------------


def tokenizer(*pieces: str) -> PreTrainedTokenizerFast:
    core = build_tokenizer(["\\boxed{}/abcdefr0123456789 "], kind="characters", pieces=pieces, special=["<eos>"])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")


@pytest.mark.parametrize(
    ("pieces", "answer", "expected"),
    [
        ([], "12", ["1", "2"]),
        ([], " 12 ", ["1", "2"]),
        (["}}"], "\\frac{1}{2}", ["\\", "f", "r", "a", "c", "{", "1", "}", "{", "2", "}}"]),
        (["{1"], "12", ["1", "2"]),  # one token of template and answer: the template's ids stay
        (["12", "2}"], "12", ["12"]),
    ],
)
def test_answers_are_tokenised_as_after_the_template(pieces: list[str], answer: str, expected: list[str]) -> None:
    made = tokenizer(*pieces)
    ids = answer_ids(made, "\\boxed{", answer)
    assert made.convert_ids_to_tokens(ids) == expected


def test_a_token_with_the_closing_is_part_of_a_sampled_answer_too() -> None:
    made = tokenizer("2}")
    given = [ProbeTask([1, 2], [2], template_ids(made, "\\boxed{"), [made("12")["input_ids"]])]
    (task,) = draw_answers(given, lambda contexts: [made("12}3")["input_ids"]], made, num_samples=1)
    assert made.convert_ids_to_tokens(task.samples[0][0]) == ["1", "2}"]


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (ProbeTask([1, 2, 3], [2], [4], [[97]]), "token id 97 is outside"),
        (ProbeTask([1, 2, 3], [0], [4], [[5]]), "place 0 is outside the trunk of 3"),
        (ProbeTask([1, 2, 3], [2, 9], [4], [[5]]), "place 9 is outside the trunk of 3"),
    ],
)
def test_wrong_tasks_are_refused_however_short(tiny: Tiny, task: ProbeTask, said: str) -> None:
    with pytest.raises(InputError, match=said):
        probe_steps(tiny(), [task])


def test_answers_that_cannot_be_written_are_refused() -> None:
    with pytest.raises(InputError, match="answer: is empty"):
        answer_ids(tokenizer(), "\\boxed{", "  ")


# --- sampled ------------------------------------------------------------------


def test_sampled_answers_end_where_the_box_closes_and_conf_is_their_mean(tiny: Tiny) -> None:
    made = tokenizer()
    model = tiny()
    model.resize_token_embeddings(len(made))
    template = template_ids(made, "\\boxed{")
    written = ["12}", "{1}}2", "}", "1234"]
    asked: list[list[list[int]]] = []

    def generate(contexts: list[list[int]]) -> list[list[int]]:
        asked.append(contexts)
        return [made(written[i % 4])["input_ids"] for i in range(len(contexts))]

    given = [ProbeTask([1, 2, 3, 4], [2, 4], template, [made("12")["input_ids"]]), ProbeTask([5], [], template, [])]
    drawn = draw_answers(given, generate, made, num_samples=4)
    assert len(asked) == 1
    assert asked[0] == [[1, 2, *template]] * 4 + [[1, 2, 3, 4, *template]] * 4
    assert drawn[0].samples is not None
    assert [made.decode(ids) for ids in drawn[0].samples[0]] == ["12", "{1}", "}", "1234"]

    (acc, conf), (none, _) = probe_steps(model, drawn)
    forced = probe_steps(model, given)[0][0]
    torch.testing.assert_close(acc, forced, atol=1e-6, rtol=0)
    assert none.shape == (0,)
    for step in range(2):
        each: list[Any] = [
            one_by_one(model, replace(given[0], places=[given[0].places[step]], answers=[ids]))[1][0]
            for ids in drawn[0].samples[step]
        ]
        assert conf[step].item() == pytest.approx(sum(each) / 4, abs=1e-5)
