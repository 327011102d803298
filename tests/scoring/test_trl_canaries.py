"""One test per private TRL name that `scoring/trl_compat.py` relies on: when one fails, TRL changed under us."""

import dataclasses
import inspect

import torch
from trl.trainer import utils

from tokencredit.scoring.trl_compat import OUTPUTS

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


def test_canary_fused_causal_lm_output_fields() -> None:
    assert hasattr(utils, "FusedCausalLMOutput"), f"trl.trainer.utils.FusedCausalLMOutput is gone. {ADVICE}"
    fields = {field.name for field in dataclasses.fields(utils.FusedCausalLMOutput)}
    expected = {*OUTPUTS, "loss", "label_mask", "aux_loss"}
    assert fields == expected, f"trl.trainer.utils.FusedCausalLMOutput has other fields. {ADVICE}"
