"""Without barrier and weights TAB-PO is TRL's DPO: every loss and every gradient, however the model is trained.

Common prefixes are computed once here, as they are for `trainer: dpo`, which is TRL's DPO by itself. Tolerance 1e-6,
absolute and relative: gradients are of order 0.01 to 1 and float32 sums are taken in another order. The second step
starts from parameters that the first has moved, so that the policy differs from the reference.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import answers
from tests.trainers.side_by_side import run_processes
from tests.trainers.two_steps import DPO, OURS, STOCK, run
from tokencredit.recipes.init_model import write_initial_model
from tokencredit.recipes.schema import Init

pytestmark = pytest.mark.slow

TOLERANCE = 1e-6
FORMS = {"sum": "sigmoid", "weighted": "sigmoid_norm"}
REPOSITORY = Path(__file__).parents[2]

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def other_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference that is not the policy's start."""
    config = json.loads((tiny_model / "config.json").read_text())
    sizes = {name: config[name] for name in ("hidden_size", "intermediate_size", "max_position_embeddings")}
    sizes |= {name: config[name] for name in ("num_hidden_layers", "num_attention_heads")}
    folder = tmp_path_factory.mktemp("other") / "model"
    write_initial_model(Init(model_type="llama", config=sizes), answers(64), folder, seed=7)
    return folder


@pytest.fixture(scope="module")
def stock(tiny_model: Path, other_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """TRL's own run, once per kind: `stock(form, lora=…, reference=…)`."""
    known: dict[tuple[str, bool, bool], Tensors] = {}

    def find(form: str, lora: bool = False, reference: bool = False) -> Tensors:
        key = form, lora, reference
        if key not in known:
            options = {"lora": lora, "reference": str(other_model) if reference else None}
            output = str(tmp_path_factory.mktemp("stock"))
            known[key] = run(str(tiny_model), output, STOCK, {"loss_type": [FORMS[form]]}, **options).found
            check_moved(known[key])
        return known[key]

    return find


def check_moved(found: Tensors) -> None:
    first, second = found["losses"].tolist()
    assert abs(first - second) > 1e-3, "the model must move, or equal runs prove nothing"


def compare(ours: Tensors, theirs: Tensors) -> None:
    names = [name for name in theirs if name != "sharded"]
    assert len(names) > 10
    assert {name for name in ours if name != "sharded"} == set(names)
    for name in names:
        torch.testing.assert_close(
            ours[name], theirs[name], atol=TOLERANCE, rtol=TOLERANCE, msg=lambda m, n=name: f"{n}: {m}"
        )


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "full": ({}, {}),
    "lora": ({}, {"lora": True}),
    "separate reference": ({}, {"reference": True}),
    "precomputed": ({"precompute_ref_log_probs": True}, {}),
    "precomputed, separate reference": ({"precompute_ref_log_probs": True}, {"reference": True}),
    "precomputed, lora": ({"precompute_ref_log_probs": True}, {"lora": True}),
    "accumulation": ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}, {}),
    "gradient checkpointing": ({"gradient_checkpointing": True}, {}),
    "gradient checkpointing, lora": ({"gradient_checkpointing": True}, {"lora": True}),
    "padded": ({"share_prefixes": "off"}, {}),
}
SHARED = {"share_prefixes": "on"}


def ours(form: str) -> tuple[tuple[str, str], dict[str, Any]]:
    """The trainer's classes and its settings; the form "dpo" is TRL's own loss."""
    if form == "dpo":
        return DPO, SHARED | {"loss_type": ["sigmoid"]}
    return OURS, SHARED | {"form": form, "lam": 0.0}


@pytest.mark.parametrize("form", [*FORMS, "dpo"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_process(form: str, kind: str, stock: Any, tiny_model: Path, other_model: Path, tmp_path: Path) -> None:
    keys, options = KINDS[kind]
    options = options | {"reference": str(other_model) if options.get("reference") else None}
    classes, settings = ours(form)
    found = run(str(tiny_model), str(tmp_path), classes, settings | keys, **options).found
    compare(found, stock(stock_form(form), bool(options.get("lora")), bool(options["reference"])))


def stock_form(form: str) -> str:
    return "sum" if form == "dpo" else form


def zero(stage: int) -> dict[str, Any]:
    settings = json.loads((REPOSITORY / "cluster" / "configs" / f"zero{stage}.json").read_text())
    settings["zero_allow_untested_optimizer"] = True  # plain gradient descent
    if stage == 3:
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # nothing is too small to be sharded
    return settings


SPREADS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ddp": ({}, {}),
    "zero2": ({"deepspeed": zero(2)}, {}),
    "zero3": ({"deepspeed": zero(3)}, {}),
    "zero3, precomputed": ({"deepspeed": zero(3), "precompute_ref_log_probs": True}, {}),
    "zero3, lora": ({"deepspeed": zero(3)}, {"lora": True}),
}


@pytest.mark.distributed
@pytest.mark.parametrize("spread", SPREADS)
def test_two_processes(spread: str, stock: Any, tiny_model: Path, tmp_path: Path) -> None:
    keys, options = SPREADS[spread]
    # TRL's precomputed sums lie in the dataset's cache folder, of which each process has one for data in memory.
    forms = [*FORMS] if "precompute_ref_log_probs" in keys else [*FORMS, "dpo"]
    runs = {
        form: {
            "model": str(tiny_model),
            "output_dir": str(tmp_path / form),
            "classes": ours(form)[0],
            "keys": ours(form)[1] | {"per_device_train_batch_size": 4, **keys},
            **options,
        }
        for form in forms
    }
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    run_processes("tests.trainers.two_steps", str(tmp_path / "runs.json"), str(tmp_path / "found.safetensors"))
    found = load_file(tmp_path / "found.safetensors")
    for form in runs:
        part = {name.removeprefix(f"{form}/"): v for name, v in found.items() if name.startswith(f"{form}/")}
        if "zero3" in spread:
            assert part["sharded"].all(), "every parameter must be sharded, or this is ZeRO-2"
        compare(part, stock(stock_form(form), bool(options.get("lora"))))
