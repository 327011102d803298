"""One test per private TRL name that `scoring/trl_compat.py` relies on: when one fails, TRL changed under us."""

import dataclasses
import inspect

import pytest
import torch
from trl import DPOTrainer, GRPOTrainer, SFTTrainer
from trl.trainer import utils

from tokencredit.scoring.trl_compat import OUTPUTS, DataCollatorForLanguageModeling, DataCollatorForPreference

ADVICE = "TRL changed; adapt scoring/trl_compat.py and narrow or move the range of trl in pyproject.toml"


def test_canary_add_fused_lm_head_signature() -> None:
    assert hasattr(utils, "add_fused_lm_head"), f"trl.trainer.utils.add_fused_lm_head is gone. {ADVICE}"
    parameters = {n: p.default for n, p in inspect.signature(utils.add_fused_lm_head).parameters.items()}
    expected = {
        "model": inspect.Parameter.empty,
        "temperature": 1.0,
        "cast_lm_head_to_fp32": False,
        "outputs": ("log_probs",),
    }
    assert parameters == expected, f"trl.trainer.utils.add_fused_lm_head has another signature. {ADVICE}"


def test_canary_add_fused_lm_head_sets_forward_on_the_instance_and_nothing_else(tiny) -> None:
    model = tiny()
    before = dict(vars(model))
    assert utils.add_fused_lm_head(model) is None, f"add_fused_lm_head returns something now. {ADVICE}"
    after = dict(vars(model))
    assert after.pop("forward", None) is not None, f"add_fused_lm_head no longer sets model.forward. {ADVICE}"
    assert after == before, f"add_fused_lm_head changes more of the model than its forward. {ADVICE}"


def test_canary_add_fused_lm_head_shapes_and_dtypes(tiny) -> None:
    model = tiny().bfloat16()
    utils.add_fused_lm_head(model, outputs=OUTPUTS)
    ids = torch.arange(10).view(2, 5)
    labels = ids.masked_fill(ids == 9, -100)
    shifted = model(input_ids=ids, labels=labels, fused_lm_head=True)
    aligned = model(input_ids=ids, shift_labels=labels, fused_lm_head=True)
    for name in OUTPUTS:
        assert getattr(shifted, name).shape == (2, 4), f"{name} with labels= is not [B, T−1]. {ADVICE}"
        assert getattr(aligned, name).shape == (2, 5), f"{name} with shift_labels= is not [B, T]. {ADVICE}"
        assert getattr(shifted, name)[1, -1] == 0, f"{name} is not 0 where the label is −100. {ADVICE}"
        dtype = torch.bool if name == "is_top1" else torch.float32
        assert getattr(shifted, name).dtype == dtype, f"{name} is not {dtype}. {ADVICE}"


def test_canary_the_head_reads_what_the_layers_hand_on(tiny) -> None:
    """`scoring/shared_forward.py` chooses rows, and takes the router's logits away, between layers and head."""
    model = tiny("mixtral", output_router_logits=True)
    utils.add_fused_lm_head(model)
    ids = torch.arange(5)[None]
    every = model(input_ids=ids, shift_labels=ids, fused_lm_head=True)
    assert every.aux_loss > 0, f"the head computes no auxiliary loss. {ADVICE}"

    def choose(_module, _arguments, outputs) -> None:
        outputs.last_hidden_state, outputs.router_logits = outputs.last_hidden_state[:, [3, 1]], None

    model.base_model.register_forward_hook(choose)
    two = model(input_ids=ids, shift_labels=ids[:, [3, 1]], fused_lm_head=True)
    assert two.log_probs.shape == (1, 2), f"the head does not read last_hidden_state of base_model. {ADVICE}"
    torch.testing.assert_close(two.log_probs, every.log_probs[:, [3, 1]])
    assert two.aux_loss == 0, f"the head needs the router's logits. {ADVICE}"


def test_canary_use_triton_decides_which_positions_are_projected() -> None:
    """`tests/benchmarks/shared_prefix.py` patches it."""
    assert "compact = _use_triton(" in inspect.getsource(utils.add_fused_lm_head), ADVICE


def test_canary_fused_causal_lm_output_fields() -> None:
    assert hasattr(utils, "FusedCausalLMOutput"), f"trl.trainer.utils.FusedCausalLMOutput is gone. {ADVICE}"
    fields = {field.name for field in dataclasses.fields(utils.FusedCausalLMOutput)}
    expected = {*OUTPUTS, "loss", "label_mask", "aux_loss"}
    assert fields == expected, f"trl.trainer.utils.FusedCausalLMOutput has other fields. {ADVICE}"


OVERRIDDEN = [
    (DPOTrainer, "_prepare_dataset", ["self", "dataset", "processing_class", "args", "dataset_name"]),
    (DPOTrainer, "_set_signature_columns_if_needed", ["self"]),
    (DPOTrainer, "_compute_loss", ["self", "model", "inputs", "return_outputs"]),
    (DPOTrainer, "_precompute_ref_logps", ["self", "dataset", "name", "batch_size"]),
    (GRPOTrainer, "_generate", ["self", "prompts"]),
    (GRPOTrainer, "_calculate_rewards", ["self", "inputs", "prompts", "completions", "completion_ids_list"]),
    (GRPOTrainer, "_generate_and_score_completions", ["self", "inputs"]),
    (GRPOTrainer, "_prepare_inputs", ["self", "generation_batch"]),
    (GRPOTrainer, "_compute_loss", ["self", "model", "inputs"]),
    (
        GRPOTrainer,
        "_get_per_token_logps_and_entropies",
        [
            "self",
            "model",
            "input_ids",
            "attention_mask",
            "logits_to_keep",
            "batch_size",
            "compute_entropy",
            "compute_aux_loss",
            "pixel_values",
            "image_grid_thw",
            "num_images",
            "pixel_attention_mask",
            "spatial_shapes",
            "num_tiles",
            "image_sizes",
            "token_type_ids",
            "mm_token_type_ids",
            "image_position_ids",
        ],
    ),
    (
        SFTTrainer,
        "_prepare_dataset",
        ["self", "dataset", "processing_class", "args", "packing", "formatting_func", "dataset_name"],
    ),
    (SFTTrainer, "_set_signature_columns_if_needed", ["self"]),
]


@pytest.mark.parametrize(("trainer", "name", "parameters"), OVERRIDDEN)
def test_canary_overridden_methods(trainer: type, name: str, parameters: list[str]) -> None:
    found = list(inspect.signature(getattr(trainer, name)).parameters)
    assert found == parameters, f"trl.{trainer.__name__}.{name} takes {found} now. {ADVICE}"


@pytest.mark.parametrize(
    "name",
    [
        "_metrics",
        "_total_train_tokens",
        "_tokenizer",
        "_tp_size",
        "_precompute_engine",
        "aux_loss_enabled",
        "router_aux_loss_coef",
    ],
)
def test_canary_attributes_read(name: str) -> None:
    assert f"self.{name} " in inspect.getsource(DPOTrainer.__init__), f"trl.DPOTrainer sets no {name} now. {ADVICE}"


@pytest.mark.parametrize(
    "name",
    ["_buffered_inputs", "_step", "_metrics", "_tokenizer", "_log_completion_extra", "_log_metric"],
)
def test_canary_attributes_of_grpo_read(name: str) -> None:
    assert f"self.{name}" in inspect.getsource(GRPOTrainer), f"trl.GRPOTrainer has no {name} now. {ADVICE}"


def test_canary_prepare_deepspeed_signature() -> None:
    from trl.models import prepare_deepspeed

    assert list(inspect.signature(prepare_deepspeed).parameters) == ["model", "accelerator"], ADVICE


def test_canary_sft_collator_pads_on_the_right() -> None:
    collator = DataCollatorForLanguageModeling(pad_token_id=0)
    batch = collator([{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4], "labels": [4]}])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 0, 0]], ADVICE
    assert batch["labels"].tolist() == [[-100, 2, 3], [4, -100, -100]], ADVICE


def test_pair_collator_is_cut_and_padded_as_ours_expects() -> None:
    collator = DataCollatorForPreference(pad_token_id=0, max_length=3)
    batch = collator([{"prompt_ids": [1, 2], "chosen_ids": [3, 4], "rejected_ids": [5]}])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [1, 2, 5]]
    assert batch["completion_mask"].tolist() == [[0, 0, 1], [0, 0, 1]]
