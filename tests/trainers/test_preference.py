"""Any pair loss by name: what it is given, what is logged and saved of its tokens."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from trl import DPOConfig, DPOTrainer

from tests.conftest import SHORT_RUN, preferences
from tokencredit.data.loading import load_split
from tokencredit.errors import InputError
from tokencredit.losses import dpo_loss, tab_po_loss
from tokencredit.trainers.preference import PreferenceConfig, PreferenceTrainer
from tokencredit.trainers.tab_po import TABPOConfig, TABPOTrainer

pytestmark = pytest.mark.slow

COMMON: dict[str, Any] = SHORT_RUN | {"use_cpu": True, "bf16": False, "disable_tqdm": True, "beta": 0.5}
CLASSES = ("scaffold", "code", "subcode", "span")
WEIGHTS = {"json": {"[].code": 1.1, "[].subcode": 1.2, "[].span": 1.1}, "differing": 1.2}


def squared(
    chosen_logps: Tensor, rejected_logps: Tensor, chosen_mask: Tensor, rejected_mask: Tensor, *, target: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """A reference-free loss with a metric per pair and one per token."""
    margin = (chosen_logps * chosen_mask).sum(-1) - (rejected_logps * rejected_mask).sum(-1)
    # "margin" is also a name of the trainer's own sums.
    return (margin - target) ** 2, {
        "my/margin": margin.detach(),
        "surprise": -chosen_logps,
        "margin": 7 + 0 * chosen_logps,
    }


def takes_all(**tensors: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss of everything there is."""
    assert len(tensors) == 9
    assert tensors["beta"] == 0.5
    assert torch.equal(tensors["chosen_weights"], torch.ones_like(tensors["chosen_logps"]))
    assert tensors["chosen_logps"].dtype == tensors["ref_rejected_logps"].dtype == torch.float32
    wanted = {name: value for name, value in tensors.items() if not name.endswith("weights")}
    return dpo_loss(**wanted)


def needs_more(chosen_logps: Tensor, *, temperature: float) -> Any:
    return chosen_logps.sum(-1), {}


def scalar(chosen_logps: Tensor) -> Any:
    return chosen_logps.sum(), {}


def wrong_metric(chosen_logps: Tensor) -> Any:
    return chosen_logps.sum(-1), {"x": torch.zeros(3)}


def number_as_metric(chosen_logps: Tensor) -> Any:
    return chosen_logps.sum(-1), {"x": 1.0}


def constant(chosen_logps: Tensor) -> Any:
    return torch.zeros(len(chosen_logps)), {}


def unnamed(chosen_logps: Tensor, /) -> Any:
    return chosen_logps.sum(-1), {}


def bare(chosen_logps: Tensor) -> Any:
    return chosen_logps.sum(-1)


def build(model: Path, run: Path, kind: Any = PreferenceTrainer, config: Any = PreferenceConfig, **keys: Any) -> Any:
    rows = keys.pop("rows", None) or Dataset.from_list(preferences(32))
    args = config(output_dir=str(run), **(COMMON | keys))
    return kind(str(model), args=args, train_dataset=rows)


def curve(trainer: Any, name: str = "loss") -> list[float]:
    trainer.train()
    return [line[name] for line in trainer.state.log_history if name in line]


@pytest.mark.parametrize("loss", ["tokencredit.losses:dpo_loss", f"{__name__}:takes_all"])
def test_a_loss_by_name_gets_the_tensors_it_names(loss: str, tiny_model: Path, tmp_path: Path) -> None:
    stock = build(tiny_model, tmp_path, DPOTrainer, DPOConfig)
    assert curve(build(tiny_model, tmp_path, loss=loss)) == pytest.approx(curve(stock), abs=1e-6)


def test_a_loss_without_reference_runs_without_one(tiny_model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    trainer = build(tiny_model, tmp_path, loss="tokencredit.losses:simpo_loss", loss_kwargs={"gamma": 0.5})
    assert trainer.ref_model is None
    assert len(trainer.accelerator._models) == 0, "no second model was prepared"
    assert not trainer.args.precompute_ref_log_probs
    monkeypatch.setattr(PreferenceTrainer, "_reference_logps", None)
    found = curve(trainer)
    assert found[-1] < found[0]
    assert "logps_change" not in trainer.state.log_history[0]


def test_metrics_of_a_loss_are_logged_per_pair_and_per_token(tiny_model: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"loss": f"{__name__}:squared", "loss_kwargs": {"target": 1.0}, "max_steps": 1}
    trainer = build(tiny_model, tmp_path, rows=Dataset.from_list(preferences(8)), **keys)
    with torch.no_grad():
        batch = trainer.data_collator(list(trainer.train_dataset))
        policy = trainer.model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            labels=batch["input_ids"],
            fused_lm_head=True,
        ).log_probs
    chosen, rejected = (policy * batch["completion_mask"][:, 1:]).chunk(2)
    trainer.train()
    line = trainer.state.log_history[0]
    assert line["my/margin"] == pytest.approx((chosen.sum(-1) - rejected.sum(-1)).mean().item(), abs=1e-5)
    tokens = batch["completion_mask"][:8, 1:].sum()
    assert line["margin"] == pytest.approx(7.0)
    assert line["surprise"] == pytest.approx((-chosen.sum() / tokens).item(), abs=1e-5)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "loss: is missing"),
        ({"loss": "nowhere:loss"}, "loss: 'nowhere:loss' cannot be imported"),
        ({"loss": "math:pi"}, "loss: 'math:pi' is not a function"),
        ({"loss": f"{__name__}:needs_more"}, "needs 'temperature'; give it under loss_kwargs"),
        ({"loss": f"{__name__}:squared", "loss_kwargs": {"taget": 1}}, r"loss_kwargs.taget: .*it takes target"),
        ({"loss": f"{__name__}:squared", "loss_kwargs": {"chosen_mask": 1}}, "loss_kwargs.chosen_mask"),
        ({"loss": f"{__name__}:scalar"}, r"scalar returned a loss of shape \[\] for 8 pairs"),
        ({"loss": f"{__name__}:wrong_metric"}, r"wrong_metric returned the metric 'x' of shape \[3\]"),
        ({"loss": f"{__name__}:number_as_metric"}, "returned the metric 'x' of shape float"),
        ({"loss": f"{__name__}:constant"}, "constant does not depend on the policy"),
        ({"loss": f"{__name__}:unnamed"}, "unnamed takes parameters without a name"),
        ({"loss": "builtins:max"}, "max does not say its parameters"),
        (
            {"loss": "tokencredit.losses:simpo_loss", "loss_kwargs": {"gamma": 1}, "precompute_ref_log_probs": True},
            "no ref",
        ),
        ({"loss": f"{__name__}:bare"}, "bare returned Tensor"),
    ],
)
def test_a_loss_that_cannot_be_used_is_named(keys: Any, message: str, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        build(tiny_model, tmp_path, **keys).train()


@pytest.mark.parametrize("keys", [{"token_samples_steps": 0}, {"loss_type": ["ipo"]}, {"label_smoothing": 0.1}])
def test_settings_without_meaning_are_refused(keys: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=next(iter(keys))):
        PreferenceConfig(output_dir=str(tmp_path), **(COMMON | keys))


def tab_po(model: Path, run: Path, **keys: Any) -> Any:
    rows = load_split("us_addresses", "validation[:16]", config="pairs")
    return build(model, run, TABPOTrainer, TABPOConfig, **({"rows": rows, "token_weights": WEIGHTS} | keys))


def by_hand(trainer: Any) -> dict[str, float]:
    """The metrics per class of all training pairs, from full logits and one pair at a time."""
    sums: dict[str, dict[str, float]] = {}
    for example in trainer.train_dataset:
        batch = trainer.data_collator([example])
        mask, weights = batch["completion_mask"][:, 1:], batch["token_weights"][:, 1:]
        logps = []
        for model in (trainer.model, trainer.ref_model):
            with torch.no_grad():
                logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
            logps.append(logits.float().log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0])
        policy = logps[0].requires_grad_()
        halves = [x.chunk(2) for x in (policy, logps[1], mask, weights)]
        loss, metrics = tab_po_loss(*(half for pair in halves for half in pair))
        (gradient,) = torch.autograd.grad(loss.sum(), policy)
        change = (policy - logps[1]).detach()
        for side, row in (("chosen", 0), ("rejected", 1)):
            classes = [None] * (len(example["prompt_ids"]) - 1) + example[f"{side}_classes"]
            for place, name in enumerate(classes):
                if name is None:
                    continue
                total = sums.setdefault(
                    name, dict.fromkeys(("mass", "n", "change", "fell", "gated", "margin", "b", "p"), 0.0)
                )
                total["mass"] += abs(gradient[row, place].item())
                total["margin"] += change[row, place].item() * (1 if side == "chosen" else -1)
                if side == "chosen":
                    total["n"] += 1
                    total["change"] += change[row, place].item()
                    total["fell"] += float(change[row, place] < 0)
                    total["gated"] += metrics["gated"][0, place].item()
                    total["b"] += metrics["barrier_gradient"][0, place].item()
                    total["p"] += metrics["preference_gradient"][0, place].item()
    mass = sum(total["mass"] for total in sums.values())
    found: dict[str, float] = {}
    for name, total in sums.items():
        found[f"gradient_mass/{name}"] = total["mass"] / mass
        found[f"logps_change/{name}"] = total["change"] / total["n"]
        found[f"logps_fell/{name}"] = total["fell"] / total["n"]
        found[f"gated_fraction/{name}"] = total["gated"] / total["n"]
        found[f"barrier_to_preference/{name}"] = total["b"] / total["p"]
        found[f"margins/{name}"] = total["margin"] / len(trainer.train_dataset)
    return found


@pytest.mark.parametrize("batch", [16, 4])
def test_diagnostics_per_class_are_ratios_of_sums(batch: int, tiny_model: Path, tmp_path: Path) -> None:
    """One log line over all pairs, in one batch or four; 1e-4: full logits against the chunked head."""
    keys: dict[str, Any] = {"per_device_train_batch_size": batch, "logging_steps": 16 // batch}
    trainer = tab_po(tiny_model, tmp_path, max_steps=16 // batch, learning_rate=0.0, tau=0.66, **keys)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    trainer.train()
    line, expected = trainer.state.log_history[0], by_hand(trainer)
    assert {name.split("/")[1] for name in expected} == set(CLASSES)
    assert {name: line[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert sum(value for name, value in expected.items() if name.startswith("gradient_mass")) == pytest.approx(1)
    tokens = {name: sum(row["chosen_classes"].count(name) for row in trainer.train_dataset) for name in CLASSES}
    gated = sum(expected[f"gated_fraction/{name}"] * count for name, count in tokens.items())
    assert line["gated_fraction"] == pytest.approx(gated / sum(tokens.values()), rel=1e-4)


@pytest.mark.parametrize("evaluation", [False, True])
def test_short_last_batches_count_in_full(evaluation: bool, tiny_model: Path, tmp_path: Path) -> None:
    """TRL's own figures, with accumulation over batches of 4, 4 and 1."""
    lines = []
    for kind, config, extra in ((DPOTrainer, DPOConfig, {}), (TABPOTrainer, TABPOConfig, {"form": "sum", "lam": 0.0})):
        keys: dict[str, Any] = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3, "max_steps": 1}
        trainer = build(tiny_model, tmp_path, kind, config, rows=Dataset.from_list(preferences(9)), **keys, **extra)
        trainer.train()
        lines.append(trainer.evaluate(trainer.train_dataset) if evaluation else trainer.state.log_history[0])
    prefix = "eval_" if evaluation else ""
    for name in ("num_tokens", "loss", "rewards/margins", "logps/chosen", "logps/rejected", "rewards/accuracies"):
        assert lines[1][prefix + name] == pytest.approx(lines[0][prefix + name], rel=1e-5, abs=1e-6), name


def test_samples_can_be_read_without_the_model(tiny_model: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"token_samples_steps": 2, "num_token_samples": 3, "gradient_accumulation_steps": 2}
    trainer = tab_po(tiny_model, tmp_path, max_steps=3, per_device_train_batch_size=4, **keys)
    trainer.train()
    files = sorted((tmp_path / "token_samples").iterdir())
    assert [file.name for file in files] == ["step-00000000.jsonl", "step-00000002.jsonl"]
    lines = [json.loads(line) for line in files[1].read_text().splitlines()]
    assert [(line["pair"], line["side"]) for line in lines] == [
        (p, s) for p in range(3) for s in ("chosen", "rejected")
    ]
    rows = {row["prompt"]: row for row in trainer.train_dataset}
    for line in lines:
        row, side = rows[line["prompt"]], line["side"]
        assert "".join(line["tokens"]) == row[side]
        assert (line["ids"], line["classes"]) == (row[f"{side}_ids"], row[f"{side}_classes"])
        assert line["weights"] == pytest.approx(row[f"{side}_weights"])
        for name in ("logps", "ref_logps", "gradient"):
            assert len(line[name]) == len(line["ids"])
        assert ("gated" in line) == (side == "chosen")
    assert lines[0]["logps"] != lines[0]["ref_logps"]


def test_samples_can_be_switched_off(tiny_model: Path, tmp_path: Path) -> None:
    tab_po(tiny_model, tmp_path, max_steps=1, token_samples_steps=None).train()
    assert not (tmp_path / "token_samples").exists()


def test_padding_and_order_of_a_batch_do_not_matter(tiny_model: Path, tmp_path: Path) -> None:
    """1e-6: float32 sums in another order."""
    trainer = tab_po(tiny_model, tmp_path)
    trainer.model.eval()
    examples = [trainer.train_dataset[i] for i in range(4)]
    collator = trainer.data_collator

    def loss(examples: list[Any], multiple: int | None = None) -> float:
        collator.pad_to_multiple_of = multiple
        with torch.no_grad():
            return float(trainer.compute_loss(trainer.model, collator(examples)))

    expected = loss(examples)
    assert loss(examples[::-1]) == pytest.approx(expected, abs=1e-6)
    assert loss(examples, multiple=128) == pytest.approx(expected, abs=1e-6)
    alone = sum(loss([example]) for example in examples) / 4
    assert alone == pytest.approx(expected, abs=1e-6)


def test_the_barrier_can_be_kept_to_weighted_tokens(tiny_model: Path, tmp_path: Path) -> None:
    weights = {"json": {"[].code": 2.0}}
    keys: dict[str, Any] = {"token_weights": weights, "tau": 1.0, "max_steps": 1, "learning_rate": 0.0}
    lines = []
    for scope in ("all", "weighted"):
        trainer = tab_po(tiny_model, tmp_path, barrier_scope=scope, **keys)
        trainer.train()
        lines.append(trainer.state.log_history[0])
    assert [lines[0][f"gated_fraction/{name}"] for name in CLASSES] == [1, 1, 1, 1]
    assert [lines[1][f"gated_fraction/{name}"] for name in CLASSES] == [0, 1, 0, 0]
    assert lines[0]["pref_loss"] == pytest.approx(lines[1]["pref_loss"])
