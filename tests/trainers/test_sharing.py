"""Common prefixes of pairs computed once: losses, gradients and everything logged are those of the padded run.

Tolerance 1e-6 absolute and relative, as in `test_parity.py`, which holds the same against TRL's own trainer and over
several processes.
"""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, MixtralConfig, Qwen3MoeConfig

from tests.conftest import preferences
from tests.trainers.test_weighted import moved, ones
from tests.trainers.two_steps import COMMON, DPO, OURS, load
from tokencredit.errors import InputError
from tokencredit.recipes.schema import parse_recipe
from tokencredit.scoring.tree_batch import batch_trees
from tokencredit.trainers import METHODS
from tokencredit.trainers.sharing import TREES
from tokencredit.trainers.weighted import WeightedDPOConfig

pytestmark = pytest.mark.slow

LOSSES = METHODS["dpo"].choices["loss_type"]
CLOSE = {"atol": 1e-6, "rtol": 1e-6}
RISING = {"function": "tests.trainers.test_weighted:rising"}
TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def build(model: Any, run: Path, share: Any, classes: Any = DPO, *, peft: Any = None, **keys: Any) -> Any:
    trainer_class, config_class = map(load, classes)
    rows = keys.pop("rows", None) or preferences(16)
    tokenizer = keys.pop("tokenizer", None)
    args = config_class(output_dir=str(run), **(COMMON | {"share_prefixes": share} | keys))
    torch.manual_seed(0)
    return trainer_class(
        model,
        args=args,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows[:5]),
        peft_config=peft,
        processing_class=tokenizer,
    )


def batch_of(trainer: Any) -> dict[str, Any]:
    return next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))


def loss_and_gradients(trainer: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    moved(trainer.model)
    loss = trainer.compute_loss(trainer.model, batch_of(trainer))
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}


def same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found[0], expected[0], atol=1e-6, rtol=4e-6)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        # Weighted log-probabilities sum to about 60 nats a response here: that sum rounds at 4e-6.
        torch.testing.assert_close(found[1][name], gradient, atol=4e-6 * max(1, gradient.abs().max()), rtol=1e-6)


@pytest.mark.parametrize("loss_type", LOSSES)
def test_every_dpo_loss(loss_type: str, tiny_model: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"loss_type": [loss_type]}
    if loss_type in ("exo_pair", "robust"):
        keys["label_smoothing"] = 0.1
    # Token weights multiply what the trees gave; WPO has a further number of the head.
    keys |= {"use_weighting": True} if loss_type == "sigmoid" else {"token_weights": RISING}
    found = [loss_and_gradients(build(str(tiny_model), tmp_path, share, **keys)) for share in ("on", "off")]
    same(*found)


LOGGED: dict[str, tuple[Any, dict[str, Any]]] = {
    "dpo": (DPO, {"loss_type": ["sigmoid"]}),
    "dpo, weights": (DPO, {"token_weights": RISING, "ld_alpha": 0.5}),
    "dpo, precomputed": (DPO, {"precompute_ref_log_probs": True}),
    "tab_po": (OURS, {"form": "weighted", "token_weights": RISING}),
    "tab_po, lora": (OURS, {"form": "sum", "peft": LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")}),
    "tab_po, truncated": (OURS, {"form": "sum", "max_length": 14, "truncation_mode": "keep_end"}),
}


@pytest.mark.parametrize("kind", LOGGED)
def test_everything_logged_is_the_same(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    classes, keys = LOGGED[kind]
    logs = []
    for share in ("on", "auto", "off"):
        trainer = build(str(tiny_model), tmp_path / share, share, classes, eval_strategy="epoch", **keys)
        calls: list[int] = []
        trainer.model.get_input_embeddings().register_forward_hook(lambda *_, c=calls: c.append(1))
        trainer.train()
        found = {key: value for line in trainer.state.log_history for key, value in line.items()}
        logs.append({key: value for key, value in found.items() if not key.endswith(("_runtime", "_per_second"))})
        logs[-1]["forwards"] = len(calls)
    on, auto, off = logs
    assert on["shared_prefix/used"] == on["eval_shared_prefix/used"] == 1
    assert 0 < on["shared_prefix/token_ratio"] < 1
    assert on["shared_prefix/token_ratio"] == pytest.approx(auto["shared_prefix/token_ratio"])
    assert len(off) > 20
    for log in (on, auto):
        assert {key for key in log if "shared_prefix/" not in key} == off.keys()
        for key, value in off.items():
            # Whether a log-probability fell is a matter of rounding where it has hardly moved. The barrier's gradient
            # is divided by one that is nearly 0 here.
            if not key.endswith("logps_fell"):
                assert log[key] == pytest.approx(value, abs=2e-6, rel=1e-5), key


def test_one_forward_whatever_the_batch(tiny_model: Path, tmp_path: Path) -> None:
    """Processes that shard parameters run in step only if a batch is one forward, be it trees or padded."""
    trainer = build(str(tiny_model), tmp_path, "auto", OURS, form="sum")
    batch = batch_of(trainer)
    assert "tokens" in batch[TREES]
    forwards: list[tuple[int, ...]] = []
    trainer.model.model.register_forward_pre_hook(
        lambda _, args, kw: forwards.append(tuple(kw["input_ids"].shape)), with_kwargs=True
    )
    trainer.compute_loss(trainer.model, batch)
    trainer.compute_loss(trainer.model, batch | {TREES: {"counts": batch[TREES]["counts"]}})
    assert forwards == [tuple(batch[TREES]["tokens"].shape), tuple(batch["input_ids"].shape)]
    assert trainer.model(input_ids=batch["input_ids"], prefix_trees=batch[TREES]).logits.dim() == 3


def test_nothing_shared(tiny_model: Path, tmp_path: Path) -> None:
    """Pairs cut at the front to what differs: `on` lays out one response a line, `auto` pads."""
    rows = [{"prompt": "Ada asks: ", "chosen": "Grace" * 8, "rejected": "tony!" * 8} for _ in range(8)]
    keys: dict[str, Any] = {"rows": rows, "max_length": 40, "truncation_mode": "keep_end"}
    trainers = {share: build(str(tiny_model), tmp_path, share, **keys) for share in ("on", "auto", "off")}
    # The same pair eight times would be shared across pairs.
    batches = {share: trainer.data_collator([trainer.train_dataset[0]]) for share, trainer in trainers.items()}
    assert batches["on"][TREES]["counts"].tolist() == [78, 78, 1]
    assert batches["auto"][TREES]["counts"].tolist() == [78, 78, 0]
    assert "ends" not in batches["on"][TREES], "the attention is a causal one"
    assert TREES not in batches["off"]
    losses = [trainer.compute_loss(moved(trainer.model), batches[share]) for share, trainer in trainers.items()]
    torch.testing.assert_close(losses[0], losses[2], **CLOSE)
    assert torch.equal(losses[1], losses[2])


def test_pairs_of_one_prompt_are_one_tree(tiny_model: Path, tmp_path: Path) -> None:
    prompt = "Ada asks of everybody: "
    rows = [{"prompt": prompt, "chosen": f"Grace {i}", "rejected": f"Alan {i}"} for i in range(4)]
    trainers = [build(str(tiny_model), tmp_path, share, rows=rows) for share in ("on", "off")]
    trees = trainers[0].data_collator([*trainers[0].train_dataset])[TREES]
    assert len(trees["tokens"]) == 1
    length = len(trainers[0].train_dataset[0]["prompt_ids"])
    assert trees["counts"][0] < 2 * length
    same(*map(loss_and_gradients, trainers))


def test_trees_fill_lines() -> None:
    """Four pairs, three of them short: two lines, no longer than the longest tree."""
    lengths = [40, 10, 10, 10]
    ids = torch.zeros(8, 40, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for pair, length in enumerate(lengths):
        for row in (pair, pair + 4):
            ids[row, :length] = torch.arange(length) + 50 * pair
            ids[row, length - 1] = row
            mask[row, :length] = 1
    trees = batch_trees(ids, mask, mask, hidden_size=64)
    assert trees["tokens"].shape == (2, 39)
    assert trees["counts"].tolist() == [39 + 3 * 9, 2 * (39 + 3 * 9), 1]
    assert batch_trees(ids, mask, mask, hidden_size=64, multiple_of=8)["tokens"].shape == (2, 40)


@pytest.mark.parametrize("share", [True, False, "on", "off", "auto"])
def test_yaml_booleans_are_the_words(share: Any, recipe_text: dict[str, Any], tmp_path: Path) -> None:
    word = {True: "on", False: "off"}.get(share, share)
    for trainer in ("dpo", "tab_po"):
        recipe = parse_recipe(recipe_text | {"trainer": trainer, "share_prefixes": share})
        assert recipe.training["share_prefixes"] == word
    assert WeightedDPOConfig(output_dir=str(tmp_path), share_prefixes=share, **COMMON).share_prefixes == word


def test_an_unknown_word_is_refused(recipe_text: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="share_prefixes: unknown value 'yes'"):
        parse_recipe(recipe_text | {"trainer": "dpo", "share_prefixes": "yes"})
    with pytest.raises(InputError, match="share_prefixes: unknown value 'yes'"):
        WeightedDPOConfig(output_dir=str(tmp_path), share_prefixes="yes", **COMMON)


def prompt_tuning(model: Path) -> Any:
    return str(model), {"peft": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)}


def compiled(model: Path) -> Any:
    return str(model), {"torch_compile": True}


@pytest.mark.parametrize(
    ("make", "says"),
    [(prompt_tuning, "virtual tokens"), (compiled, "torch_compile")],
)
def test_what_cannot_share_is_named(
    make: Any, says: str, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, keys = make(tiny_model)
    with pytest.raises(InputError, match=f"share_prefixes: .*{says}"):
        build(model, tmp_path, "on", **keys)
    model, keys = make(tiny_model)
    with caplog.at_level(logging.WARNING, logger="tokencredit"):
        trainer = build(model, tmp_path, "auto", **keys)
    assert [record.getMessage() for record in caplog.records if says in record.getMessage()] != []
    assert TREES not in trainer.data_collator([trainer.train_dataset[0]])


EXPERTS = {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2}
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "mistral": (MistralConfig, {"sliding_window": 6}),
    "mixtral": (MixtralConfig, {"num_local_experts": 4, "router_aux_loss_coef": 0.5}),
    "qwen3_moe": (Qwen3MoeConfig, EXPERTS | {"router_aux_loss_coef": 0.5, "output_router_logits": True}),
}


@pytest.mark.parametrize("classes", [DPO, OURS], ids=["dpo", "tab_po"])
@pytest.mark.parametrize("kind", MODELS)
def test_windows_and_experts(kind: str, classes: Any, tiny_model: Path, tmp_path: Path) -> None:
    """A window shorter than the prompts; the load of experts, in which a shared token counts as often as it is used."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config, settings = MODELS[kind]
    found, loads = [], []
    for share in ("on", "off"):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            config(vocab_size=len(tokenizer), num_key_value_heads=1, **(TINY | settings))
        )
        trainer = build(model, tmp_path, share, classes, tokenizer=tokenizer, precompute_ref_log_probs=True)
        found.append(loss_and_gradients(trainer))
        loads.append(trainer._metrics["train"].get("aux_loss"))
    same(*found)
    assert (loads[0] is not None) == (kind != "mistral")
    assert loads[0] == (pytest.approx(loads[1], abs=1e-6) if loads[1] else None)


def test_weights_of_one_change_nothing(tiny_model: Path, tmp_path: Path) -> None:
    weights = {"function": f"{ones.__module__}:ones"}
    found = [
        loss_and_gradients(build(str(tiny_model), tmp_path, "on", token_weights=given)) for given in (None, weights)
    ]
    same(*found)
