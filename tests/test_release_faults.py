"""The faults of TAB-PO's released code, one test each: the faulty way is written out and must give something else."""

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import accumulate, permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from tests.conftest import SHORT_RUN, preferences, write_jsonl
from tokencredit.data.alignment import differing_tokens
from tokencredit.data.negatives import STRATEGY_MIX, count_confusion, make_negative, pair
from tokencredit.data.serialise import to_json
from tokencredit.data.spans import Offsets, token_offsets
from tokencredit.data.tokenizers import build_tokenizer
from tokencredit.data.weighters import TAB_PO_WEIGHTS, Alarms, from_recipe
from tokencredit.errors import InputError
from tokencredit.losses import tab_po_loss
from tokencredit.recipes.data import load_data
from tokencredit.recipes.schema import parse_recipe
from tokencredit.trainers.tab_po import TABPOConfig, TABPOTrainer

Places = Iterable[tuple[int, int]]

TEXTS = ['[{"code":"Street","subcode":"Name","span":"Huer Huero"}]', "the quick Street 🙂"] * 3
SPECIAL = ["<bos>", "<eos>", "<pad>"]


def wrapped(**options: Any) -> Any:
    core = build_tokenizer(TEXTS, special=SPECIAL, **options)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")


FAST = {"characters": wrapped(kind="characters"), "bpe": wrapped(kind="bpe", vocab_size=330)}
tokenizers = pytest.mark.parametrize("tokenizer", FAST.values(), ids=FAST)

ALLOWED = {"Street": ["Name", "Type", "Direction"], "Box": ["Number", "Type"]}
GOLD = [
    {"code": "Street", "subcode": "Name", "span": 'Größe "B" 🙂'},
    {"code": "Box", "subcode": "Number", "span": "7"},
]
TEXT = 'Größe "B" 🙂 at 7'
NOTHING: dict[str, Any] = {"labels": {}, "sublabels": {}}


def weights_of(spec: Mapping[str, Any], text: str, offsets: Offsets, **columns: Any) -> list[float]:
    example = {"side": "chosen", "response_ids": [0] * len(offsets)} | columns
    return list(from_recipe(spec, alarms=Alarms())(example, text, offsets))


def unmark(marked: str) -> tuple[str, list[tuple[int, int]]]:
    """A text without its «», and the places that stood between them."""
    pieces = re.split("[«»]", marked)
    ends = list(accumulate(map(len, pieces)))
    return "".join(pieces), list(zip(ends[:-1:2], ends[1::2], strict=True))


def on(offsets: Offsets, places: Places) -> list[float]:
    """2 on the tokens that overlap one of the places, else 1."""
    covered = {index for start, end in places for index in range(start, end)}
    return [2.0 if covered & set(range(*token)) else 1.0 for token in offsets]


def weigh_and_compare(tokenizer: Any, pattern: str, marked: str, faulty: Places) -> None:
    """The weighted tokens are those that overlap what is marked, and not those at the faulty places."""
    text, places = unmark(marked)
    _, offsets = token_offsets(tokenizer, text)
    weights = weights_of({"json": {pattern: 2.0}}, text, offsets)
    assert weights == on(offsets, places)
    assert weights != on(offsets, faulty)


# what a pair is made of


@tokenizers
def test_one_serialiser_writes_both_sides(tokenizer: Any) -> None:
    """Chosen and rejected are serialised by different code, so that white space differs everywhere."""
    wrong = make_negative(
        GOLD,
        ontology=ALLOWED,
        labels={},
        sublabels={"Name": {"Type": 1}},
        rng=random.Random(0),
        mix={"sublabel": 1.0},
    )
    assert wrong is not None
    row = pair("", GOLD, wrong)
    assert row["rejected"] == row["chosen"].replace('"Name"', '"Type"')
    ours, theirs = (
        differing_tokens(*(token_offsets(tokenizer, side)[0] for side in (chosen, row["rejected"])))[0]
        for chosen in (row["chosen"], json.dumps(GOLD))
    )
    assert sum(ours) <= len("Name")
    assert sum(theirs) > 3 * len("Name")


@pytest.mark.parametrize("strategy", STRATEGY_MIX)
def test_every_negative_and_the_sft_answer_use_that_serialiser(strategy: str, tmp_path: Path) -> None:
    """The answers of supervised training, or the negatives of some strategy, are written in another way."""
    wrong = make_negative(GOLD, ontology=ALLOWED, **NOTHING, rng=random.Random(0), text=TEXT, mix={strategy: 1.0})
    assert wrong is not None
    row = pair("", GOLD, wrong)
    for side in (row["chosen"], row["rejected"]):
        assert to_json(json.loads(side)) == side != json.dumps(json.loads(side))
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": TEXT, "results": GOLD}])
    keys = {"dataset_name": str(path), "prompt_template": "{text}", "completion_column": "results"}
    data = load_data(parse_recipe({"trainer": "sft", "output_dir": str(tmp_path / "run")} | keys))
    assert data.train[0]["completion"] == row["chosen"]


@pytest.mark.parametrize("strategy", ["sublabel", "both"])
def test_counted_sublabel_confusions_are_drawn_from(strategy: str) -> None:
    """The confusion table is read under a misspelt header, and no sub-label confusion is ever used."""
    gold = [[{"code": "Street", "subcode": name, "span": "s"}] for name in ("Name", "Type")]
    predicted = [[{"code": "Street", "subcode": "Direction", "span": "s"}], gold[1]]
    allowed = {label: ["Name", "Type", "Direction"] for label in ("Street", "Box")}
    table = json.loads(json.dumps(count_confusion(predicted, gold)))
    assert table["sublabels"] == {"Name": {"Direction": 1}}

    def drawn(**confusion: Any) -> set[str]:
        made = (
            make_negative(gold[0], ontology=allowed, **confusion, rng=random.Random(seed), mix={strategy: 1.0})
            for seed in range(30)
        )
        return {negative.records[0]["subcode"] for negative in made if negative is not None}

    assert drawn(**table) == {"Direction"}
    assert drawn(labels=table["labels"], sublabels=table.get("subcodes", {})) == {"Type", "Direction"}
    for misspelt in ("subcodes", "sub_labels", "sublabel"):
        with pytest.raises(TypeError, match=misspelt):
            drawn(labels=table["labels"], **{misspelt: table["sublabels"]})
    with pytest.raises(TypeError, match="sublabels"):
        drawn(labels=table["labels"])


# which tokens differ


@tokenizers
def test_differing_tokens_are_aligned(tokenizer: Any) -> None:
    """Differing tokens are found by position: after one inserted record everything differs."""
    added = {"code": "Street", "subcode": "Type", "span": "at"}
    (ids, offsets), (other, other_offsets) = (
        token_offsets(tokenizer, to_json(records)) for records in ([added, *GOLD], GOLD)
    )
    more = weights_of({"differing": 1.2}, "", offsets, response_ids=ids, other_ids=other)
    less = weights_of({"differing": 1.2}, "", other_offsets, side="rejected", response_ids=other, other_ids=ids)
    assert Counter(less) == {1.0: len(other)}
    assert Counter(more) == {1.0: len(other), 1.2: len(ids) - len(other)}
    by_position = [1.0 if a == b else 1.2 for a, b in zip(other, ids, strict=False)]
    assert Counter(by_position)[1.0] < len(other) / 2


# where a field stands


@tokenizers
def test_label_words_weigh_only_as_labels(tokenizer: Any) -> None:
    """Label words are weighted wherever they occur as substrings."""
    marked = '[{"code":"«Street»","subcode":"Name","span":"Street of \\"code\\":\\"Street\\", Streets"}]'
    text, _ = unmark(marked)
    weigh_and_compare(tokenizer, "[].code", marked, (match.span() for match in re.finditer("Street", text)))


@tokenizers
def test_escaped_quotes_are_inside_the_value(tokenizer: Any) -> None:
    """Values are extracted by a regular expression that escaped quotes break."""
    marked = '[{"span":"«the \\"old\\" road \\\\»","code":"Street"},{"span":"«\\",\\"span\\":\\"x»"}]'
    text, _ = unmark(marked)
    faulty = [match.span(1) for match in re.finditer(r'"span":"([^"]*)"', text)]
    weigh_and_compare(tokenizer, "[].span", marked, faulty)


@tokenizers
def test_each_repeated_value_has_its_own_place(tokenizer: Any) -> None:
    """Values are searched for in the text, which finds the first place where the same characters stand."""
    marked = '[{"code":"Main","span":"«Main»"},{"code":"Main","span":"«Main»"},{"span":"«a»"}]'
    text, _ = unmark(marked)
    faulty = [(text.find(value), text.find(value) + len(value)) for value in ("Main", "Main", "a")]
    weigh_and_compare(tokenizer, "[].span", marked, faulty)


@tokenizers
def test_escapes_count_as_they_are_written(tokenizer: Any) -> None:
    r"""A value's length is taken after parsing, where \u00df is one character and \ud83d\ude42 another."""
    marked = r'[{"span":"«Gr\u00f6\u00dfe \ud83d\ude42\t7»","code":"Street"},{"span":"«\n»"}]'
    text, places = unmark(marked)
    values = [record["span"] for record in json.loads(text)]
    assert values == ["Größe 🙂\t7", "\n"]
    faulty = [(start, start + len(value)) for (start, _), value in zip(places, values, strict=True)]
    weigh_and_compare(tokenizer, "[].span", marked, faulty)


@tokenizers
def test_emoji_do_not_shift_what_follows(tokenizer: Any) -> None:
    """Places are counted in bytes, or by decoding token after token, which an emoji of four bytes shifts."""
    marked = '[{"span":"🙂🏽 e\u0301\u00a0ß","code":"«Street»"},{"span":"👩‍👩‍👧","code":"«Box»"}]'
    text, places = unmark(marked)
    weigh_and_compare(
        tokenizer, "[].code", marked, [tuple(len(text[:at].encode()) for at in place) for place in places]
    )
    ids, offsets = token_offsets(tokenizer, text)
    ends = list(accumulate(len(tokenizer.decode([token])) for token in ids))
    assert on(list(zip([0, *ends], ends, strict=False)), places) != on(offsets, places)


# tokens that several fields share


def test_a_token_across_two_fields_has_the_larger_weight() -> None:
    """A token belongs to a value only if it lies inside it, or to the value of its first character."""
    tokenizer = wrapped(kind="characters", pieces=['eet","subcode":"Na'])
    text = '[{"code":"Street","subcode":"Name"}]'
    _, offsets = token_offsets(tokenizer, text)
    code, subcode = (10, 16), (29, 33)
    assert [text[slice(*place)] for place in (code, subcode)] == ["Street", "Name"]
    shared = offsets.index((13, 31))
    for paths in permutations({"[].code": 1.1, "[].subcode": 1.2}.items()):
        weights = weights_of({"json": dict(paths)}, text, offsets)
        assert weights[shared - 3 : shared + 3] == [1.1, 1.1, 1.1, 1.2, 1.2, 1.2]
        assert Counter(weights) == {1.0: len(offsets) - 6, 1.1: 3, 1.2: 3}
    start, end = offsets[shared]
    inside = [place for place in (code, subcode) if place[0] <= start and end <= place[1]]
    first = next(weight for place, weight in ((code, 1.1), (subcode, 1.2)) if place[0] <= start < place[1])
    assert (inside, first) == ([], 1.1)


@tokenizers
def test_several_fields_on_one_token_do_not_multiply(tokenizer: Any) -> None:
    """Where several fields cover a token their weights are multiplied, or the one named last wins."""
    text, [(start, end)] = unmark('[{"code":"«Street»","span":"s"}]')
    ids, offsets = token_offsets(tokenizer, text)
    code, record = on(offsets, [(start, end)]), on(offsets, [(1, len(text) - 1)])
    expected = [1.4 if a == 2 else 1.2 if b == 2 else 1.0 for a, b in zip(code, record, strict=True)]
    for paths in permutations({"[].code": 1.1, "[0].code": 1.4, "[]": 1.2}.items()):
        assert weights_of({"json": dict(paths)}, text, offsets) == expected
    # Only the factor of differing tokens multiplies.
    spec = {"json": {"[].code": 1.1, "[0].code": 1.4}, "differing": 1.5}
    weights = weights_of(spec, text, offsets, response_ids=ids, other_ids=[])
    assert weights == [1.4 * 1.5 if inside == 2 else 1.5 for inside in code]


# what reaches the model, and what comes back


RUN: dict[str, Any] = SHORT_RUN | {"use_cpu": True, "bf16": False, "disable_tqdm": True}
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}[assistant] {% endif %}"
ANSWERS = {"chosen": '[{"code":"Street"}]', "rejected": '[{"code":"Box"}]'}


def with_beginning() -> Any:
    """A tokenizer that puts a beginning-of-text token before every text, as that of Llama 3 does."""
    tokenizer = wrapped(kind="characters")
    beginning = ("<bos>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[beginning]
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def prepared(tokenizer: Any, model: Path, run: Path, row: dict[str, Any]) -> dict[str, Any]:
    """A row as it goes into the trainer's batches."""
    args = TABPOConfig(output_dir=str(run), token_weights=TAB_PO_WEIGHTS, **RUN)
    trainer = TABPOTrainer(str(model), args=args, train_dataset=Dataset.from_list([row]), processing_class=tokenizer)
    return dict(trainer.train_dataset[0])


def messages(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
def test_a_text_begins_once(chat: bool, tiny_model: Path, tmp_path: Path) -> None:
    """The beginning-of-text token is doubled: by the template and the tokenizer, or before the response again."""
    tokenizer = with_beginning()
    prompt: Any = messages("user", "Main St") if chat else "Main St\n"
    answers: dict[str, Any] = {side: messages("assistant", text) if chat else text for side, text in ANSWERS.items()}
    row = prepared(tokenizer, tiny_model, tmp_path, {"prompt": prompt} | answers)
    bos = tokenizer.bos_token_id
    for side, word in (("chosen", "Street"), ("rejected", "Box")):
        ids, weights = row[f"{side}_ids"], row[f"{side}_weights"]
        assert (row["prompt_ids"] + ids).count(bos) == 1
        assert row["prompt_ids"][0] == bos
        inside = [token for token, weight in zip(ids, weights, strict=True) if weight > 1]
        assert tokenizer.decode(inside) == word
    rendered = tokenizer.apply_chat_template(messages("user", "Main St"), tokenize=False)
    assert tokenizer(rendered)["input_ids"].count(bos) == 2
    assert tokenizer(ANSWERS["chosen"])["input_ids"][0] == bos


def test_a_prompt_that_holds_the_beginning_is_not_given_another(tiny_model: Path, tmp_path: Path) -> None:
    """The beginning-of-text token is doubled where the prompt's text, rendered earlier, begins with it."""
    tokenizer = with_beginning()
    prompt = tokenizer.apply_chat_template(messages("user", "Main St"), tokenize=False, add_generation_prompt=True)
    assert prompt.startswith("<bos>")
    with pytest.raises(InputError, match="begin with '<bos>', which the tokenizer puts there again"):
        prepared(tokenizer, tiny_model, tmp_path, {"prompt": prompt} | ANSWERS)


def test_the_loss_sees_float32_log_probs_of_a_bfloat16_model(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log-probabilities are taken in bfloat16, which keeps two to three digits of them."""
    seen: dict[str, torch.Tensor] = {}

    def spy(**given: Any) -> Any:
        seen.update({name: value for name, value in given.items() if name.endswith("_logps")})
        return tab_po_loss(**given)

    monkeypatch.setattr(TABPOConfig, "default_loss", staticmethod(spy))
    args = TABPOConfig(output_dir=str(tmp_path), model_init_kwargs={"dtype": "bfloat16"}, **RUN)
    trainer = TABPOTrainer(str(tiny_model), args=args, train_dataset=Dataset.from_list(preferences(8)))
    batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))
    model: Any = trainer.model.eval()
    with torch.no_grad():
        trainer.compute_loss(model, batch)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    assert logits.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in seen.values()} == {torch.float32}
    labels, mask = batch["input_ids"][:, 1:, None], batch["completion_mask"][:, 1:].bool()
    exact, faulty = (scores.log_softmax(-1).gather(-1, labels)[..., 0][mask] for scores in (logits.float(), logits))
    # The logits themselves are bfloat16, and near 0.1 round at 0.0005; log-probabilities near −6 would at 0.03.
    for prefix in ("", "ref_"):
        ours = torch.cat([seen[f"{prefix}chosen_logps"], seen[f"{prefix}rejected_logps"]])[mask]
        torch.testing.assert_close(ours, exact, atol=2e-3, rtol=0)
    assert (faulty.float() - exact).abs().max() > 5e-3
