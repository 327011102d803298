"""T-REG's token rewards: the numbers, what they do not depend on, and that none is computed twice."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokencredit.errors import InputError
from tokencredit.scoring import Draft, RewardStore, contrastive, contrastive_rewards, load_templates
from tokencredit.scoring.contrastive import Templates, check_vocabulary

TEMPLATES = Templates("own", "{prompt}\nDraft: {response}\nBetter: ", "{prompt}\nDraft: {response}\nMuch worse: ")


@pytest.fixture(scope="module")
def evaluator(tiny_chat_model: Path) -> tuple[Any, Any]:
    """A tiny model far from uniform, and its tokenizer with a chat template."""
    model = AutoModelForCausalLM.from_pretrained(tiny_chat_model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval(), AutoTokenizer.from_pretrained(tiny_chat_model)


def drafts(tokenizer: Any, count: int = 5) -> list[Draft]:
    """Responses of different lengths, with braces in them and an end-of-turn token behind."""
    found = []
    for i in range(count):
        text = f'{{"asks": {i}}}' + "!" * i
        ids = tokenizer(text)["input_ids"]
        found.append(Draft(f"Who {{asks}} {i}?", text, [*ids, tokenizer.eos_token_id], [True] * len(ids) + [False]))
    return found


def by_hand(model: Any, tokenizer: Any, draft: Draft, chat: bool) -> np.ndarray:
    """From full logits, one sequence at a time."""
    logps = []
    for template in (TEMPLATES.better, TEMPLATES.worse):
        request = template.replace("{prompt}", draft.prompt).replace("{response}", draft.response)
        if chat:
            # The template of the tests writes roles; outer white space of a turn is taken off.
            request = f"user: {request.strip()}<|end|>assistant: "
        prompt = tokenizer(request, add_special_tokens=not chat)["input_ids"]
        ids = torch.tensor([[*prompt, *draft.ids]])
        with torch.no_grad():
            table = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        logps.append(table.gather(-1, ids[0, 1:, None])[len(prompt) - 1 :, 0])
    return ((logps[0] - logps[1]).sigmoid() - 0.5).numpy() * np.array(draft.inside)


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("batch_tokens", [1, 200, 16384])
def test_the_rewards_are_those_of_the_full_logits(chat: bool, batch_tokens: int, evaluator: Any) -> None:
    """1e-5: full logits against the chunked head, and padding of another width."""
    model, tokenizer = evaluator
    template = tokenizer.chat_template
    try:
        tokenizer.chat_template = template if chat else None
        given = drafts(tokenizer)
        found = contrastive_rewards(model, tokenizer, given, TEMPLATES, batch_tokens=batch_tokens)
        for draft, rewards in zip(given, found, strict=True):
            assert rewards.dtype == np.float32
            assert rewards[-1] == 0, "end-of-turn"
            assert np.abs(rewards[:-1]).min() > 1e-6
            np.testing.assert_allclose(rewards, by_hand(model, tokenizer, draft, chat), atol=1e-5)
    finally:
        tokenizer.chat_template = template


def test_a_missing_chat_template_is_said_once(evaluator: Any, caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = evaluator
    template, tokenizer.chat_template = tokenizer.chat_template, None
    contrastive._say_once.cache_clear()
    try:
        for _ in range(2):
            contrastive_rewards(model, tokenizer, drafts(tokenizer, 1), TEMPLATES)
    finally:
        tokenizer.chat_template = template
    assert [record.message for record in caplog.records] == [
        "the evaluator has no chat template: requests are plain text"
    ]


def test_the_day_does_not_matter(evaluator: Any) -> None:
    """Of templates that write the date; else the rewards of yesterday would not be found."""
    _, tokenizer = evaluator
    template, tokenizer.chat_template = tokenizer.chat_template, "{{ strftime_now('%Y-%m-%d') }}{{ messages }}"
    try:
        ((better, _),) = contrastive.contrastive_ids(tokenizer, TEMPLATES, drafts(tokenizer, 1))
        assert tokenizer.decode(better).replace(" ", "").startswith("1January2025")
    finally:
        tokenizer.chat_template = template


def test_the_ids_are_used_unchanged_under_both_prompts(evaluator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids that no tokenizer would give for their text."""
    model, tokenizer = evaluator
    seen: list[list[int]] = []

    def watched(model: Any, sequences: list[list[int]], **options: Any) -> Any:
        seen.extend(sequences)
        return sequence_logps(model, sequences, **options)

    sequence_logps = contrastive.sequence_logps
    monkeypatch.setattr(contrastive, "sequence_logps", watched)
    ids = [70, 69, 2, 2, 71]
    contrastive_rewards(model, tokenizer, [Draft("a", "b", ids, [True] * 5)], TEMPLATES)
    assert [sequence[-5:] for sequence in seen] == [ids, ids]
    assert seen[0][:-5] != seen[1][:-5]


def test_equal_prompts_give_zero(evaluator: Any) -> None:
    model, tokenizer = evaluator
    same = Templates("same", TEMPLATES.better, TEMPLATES.better)
    for rewards in contrastive_rewards(model, tokenizer, drafts(tokenizer), same):
        assert not rewards.any()


def test_order_and_company_do_not_matter(evaluator: Any) -> None:
    model, tokenizer = evaluator
    given = drafts(tokenizer)
    expected = contrastive_rewards(model, tokenizer, given, TEMPLATES)
    backwards = contrastive_rewards(model, tokenizer, given[::-1], TEMPLATES)[::-1]
    alone = [contrastive_rewards(model, tokenizer, [draft], TEMPLATES)[0] for draft in given]
    for a, b, c in zip(expected, backwards, alone, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-6)
        np.testing.assert_allclose(c, a, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_found(training: bool, evaluator: Any) -> None:
    model, tokenizer = evaluator
    model.train(training)
    before = dict(vars(model))
    contrastive_rewards(model, tokenizer, drafts(tokenizer, 2), TEMPLATES)
    assert model.training == training
    assert vars(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()


def counted(monkeypatch: pytest.MonkeyPatch, fail_at: int | None = None) -> list[int]:
    """Drafts in each forward from now on; an interrupt at the forward of that number."""
    sizes: list[int] = []
    forward = contrastive._forward

    def watched(model: Any, sequences: Any, given: Any) -> Any:
        if len(sizes) == fail_at:
            raise KeyboardInterrupt
        sizes.append(len(given))
        return forward(model, sequences, given)

    monkeypatch.setattr(contrastive, "_forward", watched)
    return sizes


def test_nothing_is_computed_twice(evaluator: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = evaluator
    store, given = RewardStore(tmp_path / "store"), drafts(tokenizer)
    sizes = counted(monkeypatch)
    first = contrastive_rewards(model, tokenizer, [*given, given[0]], TEMPLATES, store=store)
    assert sum(sizes) == 5, "an equal response is scored once"
    assert [path.suffix for path in store.folder.iterdir()] == [".parquet"]
    second = contrastive_rewards(model, tokenizer, [*given[::-1], given[4]], TEMPLATES, store=store)
    assert sum(sizes) == 5
    for a, b in zip(first[:5], second[:5][::-1], strict=True):
        np.testing.assert_array_equal(a, b)
    contrastive_rewards(model, tokenizer, drafts(tokenizer, 7), TEMPLATES, store=store)
    assert sum(sizes) == 7, "only what is new"


@pytest.mark.parametrize("change", ["template", "ids", "end of turn", "chat template"])
def test_what_the_rewards_depend_on_recomputes(
    change: str, evaluator: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = evaluator
    store, (draft,), templates = RewardStore(tmp_path), drafts(tokenizer, 1), TEMPLATES
    contrastive_rewards(model, tokenizer, [draft], templates, store=store)
    sizes = counted(monkeypatch)
    if change == "template":
        templates = Templates("own", TEMPLATES.better + ".", TEMPLATES.worse)
    if change == "ids":
        draft = Draft(draft.prompt, draft.response, [*draft.ids[:-1], 5], draft.inside)
    if change == "end of turn":
        draft = Draft(draft.prompt, draft.response, draft.ids, [True] * len(draft.ids))
    template = tokenizer.chat_template
    if change == "chat template":
        tokenizer.chat_template = template.replace("assistant: ", "Assistant: ")
    try:
        contrastive_rewards(model, tokenizer, [draft], templates, store=store)
    finally:
        tokenizer.chat_template = template
    assert sizes == [1]


def test_an_interrupt_loses_one_batch(evaluator: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = evaluator
    store, given = RewardStore(tmp_path), drafts(tokenizer, 6)
    expected = contrastive_rewards(model, tokenizer, given, TEMPLATES, batch_tokens=1)
    with monkeypatch.context() as patched:
        counted(patched, fail_at=4)
        with pytest.raises(KeyboardInterrupt):
            contrastive_rewards(model, tokenizer, given, TEMPLATES, batch_tokens=1, store=store)
    sizes = counted(monkeypatch)
    found = contrastive_rewards(model, tokenizer, given, TEMPLATES, batch_tokens=1, store=store)
    assert sizes == [1, 1], "four of six were kept"
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert [path.suffix for path in store.folder.iterdir()] == [".parquet"], "what was left is part of the whole"


def test_too_long_for_the_evaluator(evaluator: Any) -> None:
    model, tokenizer = evaluator
    long = Draft("a" * 4000, "b" * 100, [5] * 100, [True] * 100, place="the chosen response of example 3")
    with pytest.raises(InputError, match=r"the chosen response of example 3 are 4\d\d\d tokens, .* takes 4096"):
        contrastive_rewards(model, tokenizer, [long], TEMPLATES)


def test_another_tokenizer_is_refused(evaluator: Any) -> None:
    _, tokenizer = evaluator
    given = drafts(tokenizer, 1)
    same = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    same.add_tokens(["<a token that no response has>"])
    check_vocabulary(tokenizer, same, given)

    class Other:
        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            return [f"<{token}>" for token in ids]

    with pytest.raises(InputError, match=r"evaluator: has another tokenizer: token \d+ is '<\d+>' and not"):
        check_vocabulary(tokenizer, Other(), given)


@pytest.mark.parametrize("name", ["general", "structured"])
def test_the_templates_that_ship(name: str) -> None:
    found = load_templates(name)
    assert (found.name, found.version) == (name, 1)
    for text in (found.better, found.worse):
        assert "{prompt}" in text
        assert "{response}" in text
    assert found.better != found.worse


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("better: '{prompt}'\n", r"own.yaml: has better; write better: and worse:"),
        ("better: '{prompt}'\nworse: '{prompt}'\nbest: x\n", "has better, worse, best"),
        ("- a\n", "has no keys"),
        ("better: [\n", "cannot be read"),
        ("better: Be good\nworse: '{prompt}'\n", r"better: has no placeholder \{prompt\}"),
        ("better: '{prompt}'\nworse: '{response}'\n", r"worse: has no placeholder \{prompt\}"),
        ("better: '{prompt} {answer}'\nworse: '{prompt}'\n", r"better: unknown placeholder \{answer\}"),
        ("better: 3\nworse: '{prompt}'\n", "better: 3 is no text"),
        ("version: new\nbetter: '{prompt}'\nworse: '{prompt}'\n", "version: 'new' is no whole number"),
    ],
)
def test_templates_that_cannot_be_used(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_templates(str(path))


def test_templates_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text('version: 3\nbetter: \'{"a": 1} {prompt}\'\nworse: "-{prompt}"\n')
    assert load_templates(str(path)) == Templates(str(path), '{"a": 1} {prompt}', "-{prompt}", 3)
    with pytest.raises(
        InputError,
        match="templates: no file 'genral'; give a YAML file or one of direct, general, steerable, structured",
    ):
        load_templates("genral")
