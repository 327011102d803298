"""Comparisons: their figures by hand, what is planted is found, what is interrupted goes on, what is stored is read."""

import copy
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.analysis.sample_runs import sample, write_run
from tests.analysis.shift_tables import made_up
from tests.conftest import answers
from tokencredit.analysis import shift as module
from tokencredit.analysis import shift_figures as figures
from tokencredit.analysis.model_pair import identity
from tokencredit.analysis.shift import Scoring, ShiftResult, compare
from tokencredit.analysis.shift_evolution import evolution, jaccard
from tokencredit.analysis.shift_page import build, charts
from tokencredit.analysis.shift_table import column
from tokencredit.analysis.token_texts import token_texts
from tokencredit.analysis.trajectories import Generation, Trajectory, read_trajectories
from tokencredit.errors import InputError

SHORT = Generation(max_new_tokens=12)
PROMPTS = [row["prompt"] for row in answers(6)]


@pytest.fixture(scope="module")
def models(tiny_model: Path) -> tuple[Any, Any, Any]:
    """A base, a tuned model that is biased towards one token, and the tokenizer."""
    base = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    tuned = copy.deepcopy(base)
    return base, tuned, AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def planted(models: tuple[Any, Any, Any]) -> tuple[int, ShiftResult]:
    """The token that the tuned model's head favours, and the comparison."""
    base, _, tokenizer = models
    tuned = copy.deepcopy(base)
    token = tokenizer.convert_tokens_to_ids("G")
    # A head without bias: a feature that is the same everywhere, read by this one row.
    tuned.lm_head = torch.nn.Linear(base.config.hidden_size, base.config.vocab_size, bias=True)
    with torch.no_grad():
        tuned.lm_head.weight.copy_(base.lm_head.weight)
        tuned.lm_head.bias.zero_()
        tuned.lm_head.bias[token] = 6.0
    return token, compare(base, tuned, tokenizer, PROMPTS, generation=SHORT)


def test_a_planted_shift_comes_first(planted: tuple[int, ShiftResult]) -> None:
    token, found = planted
    first = figures.token_table(found.table)[0]
    assert first["token_id"] == token
    # At every position the token is the tuned model's first, so all that it gained is counted.
    gained = np.exp(column(found.table, "tuned_top_logps")[:, 0]) - np.exp(
        column(found.table, "tuned_top_base_logps")[:, 0]
    )
    assert first["moved"] == pytest.approx(gained.sum(), rel=1e-5)
    tokens = next(table for table in build(found).tables if table.title == "Tokens")
    assert tokens.rows[0][0] == "G"
    summary = found.summary()
    moved = summary.figures[("tuned", "tuned")]["reallocation"]
    assert moved["positions"] == len(found.table), "it changes every position"
    assert "tuned differs from its base (JS > 0.1) at 100.0 %" in summary.headline("tuned", "tuned")
    assert "KL(tuned ‖ base)" in str(summary)
    json.dumps(summary.as_dict(), allow_nan=False)


def test_a_model_against_itself(models: tuple[Any, Any, Any]) -> None:
    base, tuned, tokenizer = models
    found = compare(base, tuned, tokenizer, PROMPTS, generation=SHORT, lead="both")
    for name in ("js", "kl_tuned_base", "tv", "delta_logp"):
        assert not column(found.table, name).any()
    assert set(found.table["led"].to_pylist()) == {"tuned", "base"}
    figures_of = found.summary().figures[("tuned", "tuned")]
    assert figures_of["sparsity"]["js"]["gini"] == 0
    assert figures_of["taxonomy"]["1, 3"]["unshifted"].value == 1


def test_the_same_comparison_has_the_same_hash(models: tuple[Any, Any, Any], planted: Any, tmp_path: Path) -> None:
    base, _, tokenizer = models
    hashes = set()
    for name in ("a", "b"):
        compare(base, base, tokenizer, PROMPTS, generation=SHORT).save(tmp_path / name)
        hashes.add(tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((tmp_path / name).iterdir())))
    assert len(hashes) == 1
    planted[1].save(tmp_path / "c")
    again = ShiftResult.load(tmp_path / "c")
    assert again.table.equals(planted[1].table)
    assert again.texts == planted[1].texts
    with pytest.raises(InputError, match="holds no comparison"):
        ShiftResult.load(tmp_path)


def test_what_was_broken_off_goes_on(models: tuple[Any, Any, Any], tmp_path: Path, monkeypatch: Any) -> None:
    base, tuned, tokenizer = models
    settings = {"generation": SHORT, "scoring": Scoring(shard=2), "folder": tmp_path, "identity": "these"}
    scored = module.score
    calls: list[int] = []

    def breaking(*arguments: Any, **keywords: Any) -> Any:
        calls.append(arguments[2])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return scored(*arguments, **keywords)

    monkeypatch.setattr(module, "score", breaking)
    with pytest.raises(KeyboardInterrupt):
        compare(base, tuned, tokenizer, PROMPTS, **settings)
    whole = compare(base, tuned, tokenizer, PROMPTS, **settings)
    assert calls == [0, 2, 4, 4], "only what was missing"
    again = compare(base, tuned, tokenizer, PROMPTS, generation=SHORT, scoring=Scoring(shard=2))
    assert whole.table.equals(again.table)
    compare(base, tuned, tokenizer, PROMPTS, **(settings | {"identity": "others"}))
    assert calls[-3:] == [0, 2, 4], "of other models nothing is taken"
    with pytest.raises(InputError, match="identity: there is none"):
        compare(base, base, tokenizer, PROMPTS, generation=SHORT, folder=tmp_path)


def test_figures_by_hand() -> None:
    js, problems = np.array([0.0, 0.0, 0.0, 0.4]), np.array([0, 0, 1, 1])
    assert figures.gini(js) == pytest.approx(0.75), "(n − 1) / n when one of n holds all"
    assert figures.gini(np.ones(5)) == 0
    assert figures.top_share(js, 0.25) == 1
    found = figures.sparsity(js, problems)
    assert found["above"][0.1].value == 0.25
    # Two problems with means 0 and 0.2: of the resamples a quarter has only the one or the other.
    assert (found["mean"].low, found["mean"].high) == (0, 0.2)
    low, high = figures.wilson(np.array([3.0]), np.array([10.0]))
    assert (low[0], high[0]) == (pytest.approx(0.1078, abs=1e-4), pytest.approx(0.6032, abs=1e-4))
    bins = figures.profile(js, problems, np.array([0, 1, 0, 1]), [0, 1, 2])
    assert [(edge, band.value) for edge, band in bins] == [(0, 0), (1, 0.2)]


def test_reallocation_and_taxonomy_by_hand() -> None:
    table = pa.table(
        {
            "prompt": pa.array([0, 0, 1], pa.int32()),
            "js": pa.array([0.0, 0.2, 0.3], pa.float32()),
            "tuned_top1_base_rank": pa.array([1, 2, 40], pa.int32()),
            "base_top1_tuned_rank": pa.array([1, 2, 5], pa.int32()),
            "top_overlap": pa.array([2, 2, 1], pa.int32()),
            "tuned_top1_base_logp": pa.array(np.log([0.9, 0.3, 0.005]).astype(np.float32)),
            "base_top_ids": pa.FixedSizeListArray.from_arrays(pa.array([1, 2] * 3, pa.int32()), 2),
        }
    )
    found = figures.reallocation(table)
    assert found["positions"] == 2
    assert found["overlap"].value == 0.75
    assert found["in_top3"].value == 0.5
    assert {name: band.value for name, band in found["tuned_in_base"].items()} == {
        "1": 0, "2 to 3": 0.5, "4 to 10": 0, "beyond": 0.5,
    }  # fmt: skip
    assert {tail: band.value for tail, band in found["tail"].items()} == {0.1: 0.5, 0.01: 0.5, 0.001: 0}
    shares = {name: band.value for name, band in figures.taxonomy(table).items()}
    assert shares == {name: pytest.approx(1 / 3) for name in ("unshifted", "marginal", "shifted")}


RANKS = ["1", "2 to 3", "4 to 10"]


@pytest.mark.parametrize(("top_n", "names"), [(2, ["1", "2"]), (7, ["1", "2 to 3", "4 to 7"]), (12, RANKS)])
def test_moved_mass_by_rank_of_the_base(top_n: int, names: list[str]) -> None:
    """Of twelve tokens; what lies beyond the listed ranks, or beyond ten, is the rest."""
    found = made_up([20, 20], list("abcdefghijkl"), top_n=top_n)
    moved = figures.reallocation(found.table, threshold=-1.0)["moved"]
    change = np.exp(column(found.table, "base_top_tuned_logps")) - np.exp(column(found.table, "base_top_logps"))
    ends = {"1": (0, 1), "2": (1, 2), "2 to 3": (1, 3), "4 to 7": (3, 7), "4 to 10": (3, 10)}
    assert list(moved) == [*names, "beyond"]
    for name in names:
        assert moved[name].value == pytest.approx(change[:, slice(*ends[name])].sum(1).mean(), abs=1e-6)
    assert sum(band.value for band in moved.values()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("length", [20, 40, 100])
def test_every_twentieth_of_a_round_length_holds_as_many_positions(length: int) -> None:
    found = made_up([length], list("abcdefghij"))
    table = found.table.set_column(
        found.table.column_names.index("js"), "js", pa.array(column(found.table, "position"), pa.float32())
    )
    relative = figures.position_profiles(table)["relative"]
    each = length // 20
    assert [place for place, _ in relative] == pytest.approx([part / 20 for part in range(20)])
    assert [band.value for _, band in relative] == [each * part + (each - 1) / 2 for part in range(20)]


def test_mass_is_moved_and_not_made() -> None:
    """Over a vocabulary that is listed whole, what some tokens gain the others lose."""
    found = made_up([20, 20], list("abcdefghij"))
    moved = figures.moved_mass(found.table)
    assert sum(moved.values()) == pytest.approx(0, abs=1e-4)
    p, q = (np.exp(column(found.table, name)) for name in ("base_top_logps", "tuned_top_logps"))
    for token in range(10):
        gained = (
            q[column(found.table, "tuned_top_ids") == token].sum()
            - p[column(found.table, "base_top_ids") == token].sum()
        )
        assert moved[token] == pytest.approx(gained, abs=1e-4)


def test_entropy_rate_and_quantiles_of_a_response() -> None:
    found = made_up([20, 7], list("abcdefghij"))
    line = figures.responses(found.table)[1]
    assert line["tokens"] == 7
    assert line["base_entropy_rate"] == pytest.approx(column(found.table, "base_entropy")[20:].mean())
    assert line["tuned_logp_q0.5"] == pytest.approx(np.median(column(found.table, "tuned_logp")[20:]))


def test_checkpoints_on_one_axis() -> None:
    parts = []
    for name, scale in (("early", 0.2), ("late", 2.0)):
        table = made_up([40, 40], list("abcdefghij"), scale=scale).table
        parts.append(table.set_column(0, "model", pa.array([name] * len(table))))
    whole = pa.concat_tables(parts)
    early, late = evolution(whole)
    assert early["mean"].value < late["mean"].value
    assert math.isnan(early["jaccard_before"])
    assert late["jaccard_last"] == 1
    above = [column(part, "js") > 0.1 for part in parts]
    expected = (above[0] & above[1]).sum() / (above[0] | above[1]).sum()
    assert late["jaccard_before"] == early["jaccard_last"] == pytest.approx(expected)
    assert math.isnan(jaccard(parts[0].slice(0, 0), parts[1]))
    assert "Models on one axis" in str(ShiftResult(whole).summary())


def test_responses_of_their_own_have_no_overlap() -> None:
    """The same places, but other tokens there."""
    parts = []
    for seed, name in enumerate(("rl", "sft")):
        table = made_up([40], list("abcdefghij"), seed=seed).table
        parts.append(table.set_column(0, "model", pa.array([name] * len(table))))
    assert math.isnan(jaccard(*parts))
    found = ShiftResult(pa.concat_tables(parts)).summary()
    line = next(line for line in str(found).split("\n") if line.startswith("sft "))
    assert line.split()[-2:] == ["–", "1.000"]
    assert found.as_dict()["evolution"][1]["jaccard_before"] is None


def test_bounds_are_said_to_be_bounds() -> None:
    found = made_up([30, 30], list("abcdefghijklmnop"), mode="top_k", top_n=4)
    assert "js" not in found.table.column_names
    assert "at most: only the most likely tokens were compared" in found.summary().headline("tuned", "tuned")
    assert "JS, upper bound" in str(found.summary())
    assert build(found).column == "js_lower"
    assert "JS, lower bound" in found.to_markdown()


def test_stored_responses(models: tuple[Any, Any, Any], tmp_path: Path) -> None:
    tokenizer = models[2]
    ids = tokenizer("Ada asks")["input_ids"]
    lines = [
        {"prompt": "Ada asks", "completion": " Alan"},
        {"prompt_ids": ids, "completion_ids": [5, 6]},
        {"prompt": "Tony asks", "ids": []},
        {"prompt": None, "prompt_ids": ids, "ids": [7], "led": "base"},
    ]
    path = tmp_path / "stored.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_trajectories(path, tokenizer)
    assert [item.prompt for item in found] == [0, 0, 1, 0], "the same prompt is the same problem"
    assert found[0].ids == tokenizer(" Alan", add_special_tokens=False)["input_ids"]
    assert found[1] == Trajectory(0, ids, [5, 6], "given", "Ada asks")
    assert found[3] == Trajectory(0, ids, [7], "base", "Ada asks")
    compared = compare(*models, found)
    assert column(compared.table, "response").tolist() == [0] * len(found[0].ids) + [1, 1, 3], "an empty one has none"
    for wrong, message in (
        ('{"prompt": "x"}', "line 1: has no response"),
        ('{"ids": [1]}', "line 1: has no `prompt`"),
        ('{"prompt": "x", "ids": ["y"]}', "`ids` is no list of token ids"),
        ("[]", "is no object"),
        ("{", "is not JSON"),
        ("", "holds no responses"),
        ('{"prompt": null, "ids": [1]}', "line 1: has no `prompt`"),
        ('{"prompt": 5, "ids": [1]}', "line 1: 5 is no prompt"),
        ('{"prompt": ["p"], "ids": [1]}', "is no prompt; give a text or chat messages"),
        ('{"prompt": "x", "completion": [5]}', "line 1: has no response"),
        ('{"prompt": "x", "ids": [true]}', "`ids` is no list of token ids"),
        ('{"prompt": "x", "ids": [1], "led": "<img>"}', "`led` is '<img>'; use one of tuned, base, given"),
    ):
        path.write_text(wrong)
        with pytest.raises(InputError, match=message):
            read_trajectories(path, tokenizer)


def test_token_samples_of_a_run_are_responses(models: tuple[Any, Any, Any], tmp_path: Path) -> None:
    tokenizer = models[2]
    run = write_run(tmp_path / "run", [sample(["A", "d"], ids=[7, 8]), sample(["B"], "rejected", ids=[9])])
    found = read_trajectories(run, tokenizer)
    prompt = tokenizer("prompt 0\n", add_special_tokens=False)["input_ids"]
    assert [(item.prompt, item.prompt_ids, item.ids) for item in found] == [(0, prompt, [7, 8]), (0, prompt, [9])]
    assert column(compare(*models, found).table, "token_id").tolist() == [7, 8, 9]


def test_bytes_of_a_character_have_names(models: tuple[Any, Any, Any]) -> None:
    tokenizer = models[2]
    text = token_texts(tokenizer)
    ids = tokenizer("€", add_special_tokens=False)["input_ids"]
    assert [text(token) for token in ids] == ["<0xE2>", "<0x82>", "<0xAC>"], "no three replacement characters"
    assert text(tokenizer.eos_token_id) == "<|end|>"
    assert text(tokenizer("A", add_special_tokens=False)["input_ids"][0]) == "A"


def test_nothing_but_empty_responses(models: tuple[Any, Any, Any]) -> None:
    found = compare(*models, [Trajectory(0, [1, 2], [], text="empty")])
    assert len(found.table) == 0
    assert str(found.summary()) == "There is no position to compare."
    assert build(found).view is None


def test_wrong_input_is_refused(models: tuple[Any, Any, Any]) -> None:
    with pytest.raises(InputError, match="'nobody' is unknown"):
        compare(*models, PROMPTS, lead="nobody")
    with pytest.raises(InputError, match="there are none"):
        compare(*models, [])
    with pytest.raises(InputError, match="no chat template"):
        compare(*models, [[{"role": "user", "content": "hi"}]])
    for temperature in (-1, math.nan, math.inf):
        with pytest.raises(InputError, match="temperature"):
            Generation(temperature=temperature)
    with pytest.raises(InputError, match="4 responses at temperature 0 would all be the same"):
        Generation(num_samples=4, temperature=0)
    with pytest.raises(InputError, match=r"max_new_tokens: 256 is too much.*has 128 positions"):
        compare(*models, PROMPTS)
    with pytest.raises(InputError, match="response 1: it has 129 tokens with its prompt"):
        compare(*models, [Trajectory(0, [1], [2] * length) for length in (127, 128)])


def test_every_model_has_a_line_whatever_its_name() -> None:
    table = made_up([20], list("abcdefghij")).table
    names = ["rl · 1", "rl · 2"]
    parts = [table.set_column(0, "model", pa.array([name] * len(table))) for name in names]
    drawn = charts(pa.concat_tables(parts))[0].charts
    assert all([line.label for line in chart.lines] == names for chart in drawn)


def test_names_stay_text_in_markdown() -> None:
    found = made_up([20, 20], list("abcdefghij"))
    name = "```` <img src=x> ["
    table = found.table.set_column(0, "model", pa.array([name] * len(found.table)))
    named = ShiftResult(table, found.prompts, found.texts, {"tuned": name, "base": "before"}).to_markdown()
    assert named.count("\n`````\n") == 2, "the fence is longer than what stands in it"
    outside = "".join(named.split("`````")[::2])
    assert re.search(r"(?<!\\)[<`\[]", outside) is None


def test_what_tells_models_apart(tmp_path: Path) -> None:
    """Weights, settings, tokenizer and template, and those of an adapter's base."""
    base, lora = tmp_path / "base", tmp_path / "lora"
    base.mkdir(), lora.mkdir()
    (lora / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    known = {identity(str(base))}
    adapters = {identity(str(lora))}
    for name in ("config.json", "model.safetensors", "generation_config.json", "tokenizer.json", "chat_template.jinja"):
        (base / name).write_text("{}")
        known.add(identity(str(base)))
        adapters.add(identity(str(lora)))
    assert (len(known), len(adapters)) == (6, 6)
    for text, message in (("{", "cannot be read"), ("{}", "names no base model"), ("[]", "names no base model")):
        (lora / "adapter_config.json").write_text(text)
        with pytest.raises(InputError, match=message):
            identity(str(lora))


def test_the_example_notebook_runs(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    made_up([20, 20], list("abcdefghij")).save(tmp_path / "shift")
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((Path(__file__).parents[2] / "docs/examples/shift.ipynb").read_text(encoding="utf-8"))
    known: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec("".join(cell["source"]), known)
    assert "written:" in capsys.readouterr().out
