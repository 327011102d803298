"""Response offsets against the ids that TRL's own preparation produces."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from trl.data_utils import _tokenize, common_prefix_length

from tokencredit.data.responses import response_offsets
from tokencredit.data.tokenizers import build_tokenizer
from tokencredit.errors import InputError

TEXTS = ['[{"code":"A","span":"Größe 🙂"}]', 'say "\\"Street\\""', "tab\tand\u00a0space", "x"]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<assistant>{% endif %}"


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    found = AutoTokenizer.from_pretrained(tiny_model)
    found.chat_template = TEMPLATE
    return found


def split(tokenizer: Any, prompt: Any, response: Any) -> list[int]:
    """Ids of the response, as TRL's DPO cuts them."""
    asked = _tokenize(tokenizer, prompt, **({} if isinstance(prompt, str) else {"add_generation_prompt": True}))
    whole = _tokenize(tokenizer, prompt + response)["input_ids"]
    cut = common_prefix_length(asked["input_ids"], whole)
    return list(whole[cut:])


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("prompt", ["", "Ada asks: ", "ends in a emoji 🙂"])
def test_plain_text(tokenizer: Any, prompt: str, text: str) -> None:
    ids = split(tokenizer, prompt, text + tokenizer.eos_token)
    found, offsets = response_offsets(tokenizer, prompt, text + tokenizer.eos_token, ids)
    assert found == text
    assert len(offsets) == len(ids)
    assert offsets[-1] == (len(text), len(text)), "the end-of-text token has no width"
    covered = {index for start, end in offsets for index in range(start, end)}
    assert covered == set(range(len(text)))
    for (start, end), token in zip(offsets, ids, strict=True):
        piece = tokenizer.decode([token])
        if end - start == 1 and "\ufffd" not in piece and token != tokenizer.eos_token_id:
            assert text[start:end] == piece


BUILT = {
    name: PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>", chat_template=TEMPLATE)
    for name, core in {
        "characters": build_tokenizer(TEXTS, kind="characters", pieces=['"code":"']),
        "bpe": build_tokenizer([*TEXTS, "the span of the span "] * 5, kind="bpe", vocab_size=320),
    }.items()
}
HOSTILE = st.lists(
    st.sampled_from([*TEXTS, '[[{"a":"\\""}]]', '"code":"', "🙂", "\t", "\u00a0", " ", "the span "])
    | st.text(max_size=4),
    max_size=5,
).map("".join)


@pytest.mark.parametrize("name", BUILT)
@settings(max_examples=100, deadline=None)
@given(prompt=HOSTILE, text=HOSTILE)
@example(prompt="the sp", text="an of the span")  # in one token across the border
def test_any_text_after_any_prompt_is_covered_in_order(name: str, prompt: str, text: str) -> None:
    built: Any = BUILT[name]
    plain = prompt, text + "<eos>"
    chat = [{"role": "user", "content": prompt}], [{"role": "assistant", "content": text}]
    for asked, answer in (plain, chat):
        ids = split(built, asked, answer)
        found, offsets = response_offsets(built, asked, answer, ids)
        assert found == text
        assert len(offsets) == len(ids)
        assert offsets == sorted(offsets)
        assert {index for start, end in offsets for index in range(start, end)} == set(range(len(text)))


@pytest.mark.parametrize("text", TEXTS)
def test_chat(tokenizer: Any, text: str) -> None:
    prompt = [{"role": "system", "content": text}, {"role": "user", "content": "the same text again: " + text}]
    response = [{"role": "assistant", "content": text}]
    ids = split(tokenizer, prompt, response)
    found, offsets = response_offsets(tokenizer, prompt, response, ids)
    assert found == text
    covered = [index for start, end in offsets for index in range(start, end)]
    assert sorted(set(covered)) == list(range(len(text)))
    closing = len(tokenizer("</s>")["input_ids"])
    assert all(start == end for start, end in offsets[-closing:]), "the template's own tokens have no width"


@pytest.mark.parametrize("answer", ["k", "yes", "think", "</s>"])
def test_words_of_the_template_or_an_earlier_turn_are_not_the_answer(tokenizer: Any, answer: str) -> None:
    """The answer's characters also stand in a thinking block, in the tags and in an earlier answer."""
    thinking = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    block = "{% if m.role == 'assistant' %}<think>k</think>{% endif %}{{ m.content }}"
    thinking.chat_template = TEMPLATE.replace("{{ m.content }}", block)
    prompt = [{"role": "user", "content": "yes?"}]
    turns = [answer, "sure?", answer]
    response = [{"role": r, "content": c} for r, c in zip(("assistant", "user", "assistant"), turns, strict=True)]
    ids = split(thinking, prompt, response)
    text, offsets = response_offsets(thinking, prompt, response, ids)
    assert text == answer
    inside = [token for token, (start, end) in zip(ids, offsets, strict=True) if start < end]
    after = thinking.apply_chat_template([*prompt, *response], tokenize=False)
    assert after.endswith(f"</think>{answer}</s>")
    last = max(place for place, (start, end) in enumerate(offsets) if start < end)
    assert thinking.decode(ids[last + 1 :]) == "</s>"
    assert len(inside) <= len(answer)


def test_content_that_is_no_text_is_refused(tokenizer: Any) -> None:
    response = [{"role": "assistant", "content": None}]
    with pytest.raises(InputError, match="the response 'None' is no text"):
        response_offsets(tokenizer, [{"role": "user", "content": "q"}], response, [])


def test_template_that_changes_the_text_is_refused(tokenizer: Any) -> None:
    trimming = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    trimming.chat_template = TEMPLATE.replace("m.content", "m.content | trim | upper")
    prompt, response = [{"role": "user", "content": "q"}], [{"role": "assistant", "content": "answer"}]
    ids = split(trimming, prompt, response)
    with pytest.raises(InputError, match="the chat template changes the response 'answer'"):
        response_offsets(trimming, prompt, response, ids)


def test_ids_of_another_text_are_refused(tokenizer: Any) -> None:
    ids = split(tokenizer, "q: ", "answer")
    with pytest.raises(InputError, match="not those of its text"):
        response_offsets(tokenizer, "q: ", "answes", ids)


def test_a_template_that_writes_the_date(tokenizer: Any) -> None:
    """What was tokenised yesterday is found again today."""
    dated = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    dated.chat_template = "{{ strftime_now('%d %B %Y') }}" + TEMPLATE
    prompt, response = [{"role": "user", "content": "q"}], [{"role": "assistant", "content": "answer"}]
    yesterday = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    yesterday.chat_template = "7 May 2025" + TEMPLATE
    ids = split(yesterday, prompt, response)
    text, offsets = response_offsets(dated, prompt, response, ids)
    assert text == "answer"
    assert "".join(text[start:end] for start, end in offsets) == "answer"


def test_real_addresses(tokenizer: Any) -> None:
    from tokencredit.data.loading import load_split

    for row in load_split("us_addresses", "validation[:20]", config="pairs"):
        for side in ("chosen", "rejected"):
            ids = split(tokenizer, row["prompt"], row[side])
            text, offsets = response_offsets(tokenizer, row["prompt"], row[side], ids)
            assert json.loads(text) is not None
            assert "".join(text[start:end] for start, end in offsets) == text
