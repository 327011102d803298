"""A pretrained model in bfloat16 against a LoRA-tuned copy: every measure again from whole logits."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.scoring.test_shift import naive
from tokencredit.recipes.gguf import import_gguf
from tokencredit.scoring.shift import shift_measures, sides

TEXT = 'Corner of 5th Ave and Main St, Springfield IL 62701\n[{"code":"Number","subcode":"Main","span":"5th"}]'


@pytest.mark.slow
def test_every_measure_of_smollm2_and_a_tuned_copy(smollm2_file: Path, tmp_path: Path) -> None:
    import_gguf(smollm2_file, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    ids = tokenizer(TEXT)["input_ids"]
    tuned = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
    optimizer = torch.optim.AdamW((p for p in tuned.parameters() if p.requires_grad), lr=1e-3)
    for _ in range(4):
        tuned(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    tuned.eval()
    (found,) = shift_measures(*sides(None, tuned), [ids], [1])
    with torch.no_grad():
        after = tuned(torch.tensor([ids])).logits[0, :-1]
        with tuned.disable_adapter():
            before = tuned(torch.tensor([ids])).logits[0, :-1]
    assert before.dtype == torch.bfloat16
    assert found["js"].max() > 0.01, "they must differ, or equal numbers prove nothing"
    for name, wanted in naive(before, after).items():
        # Ranks count logits, many of which are equal in bfloat16; the rest is float32 over 49,152 terms.
        torch.testing.assert_close(found[name].double(), wanted.double(), rtol=1e-4, atol=2e-5, msg=name)
