"""The fused head comes and goes without a trace, whatever the model is wrapped in."""

from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn
from trl.trainer.utils import add_fused_lm_head

from tokencredit.errors import InputError
from tokencredit.scoring import sequence_logps
from tokencredit.scoring.trl_compat import fused_lm_head

SEQUENCES = [[5, 3, 8, 13, 21, 34], [1, 2, 3], [90, 17, 4, 4]]
IDS = torch.tensor([[5, 3, 8, 13, 21, 34]])


def test_forward_is_absent_again(tiny) -> None:
    model = tiny()
    with fused_lm_head(model) as base:
        assert base is model
        assert "forward" in vars(model)
    assert "forward" not in vars(model)


def test_forward_is_absent_again_after_an_exception(tiny) -> None:
    model = tiny()
    with pytest.raises(RuntimeError, match="inside"), fused_lm_head(model):
        raise RuntimeError("inside")
    assert "forward" not in vars(model)


def test_a_trainers_own_head_is_the_same_object_after(tiny) -> None:
    model = tiny()
    add_fused_lm_head(model, temperature=0.5, outputs=("log_probs", "entropy"))
    own = vars(model)["forward"]
    before = model(input_ids=IDS, labels=IDS, fused_lm_head=True)
    with fused_lm_head(model, temperature=1.0):
        inside = model(input_ids=IDS, labels=IDS, fused_lm_head=True)
    after = model(input_ids=IDS, labels=IDS, fused_lm_head=True)
    assert vars(model)["forward"] is own
    assert torch.equal(before.log_probs, after.log_probs)
    assert torch.equal(before.entropy, after.entropy)
    assert inside.entropy is None
    untempered = model(input_ids=IDS).logits[0, :-1].log_softmax(-1).gather(1, IDS[0, 1:, None])[:, 0]
    torch.testing.assert_close(inside.log_probs[0], untempered, atol=1e-5, rtol=0)


def test_nested_use_counts_the_innermost_and_unwinds(tiny) -> None:
    model = tiny()
    with fused_lm_head(model, temperature=0.5):
        outer = vars(model)["forward"]
        first = model(input_ids=IDS, labels=IDS, fused_lm_head=True).log_probs
        with fused_lm_head(model, temperature=1.0):
            inner = model(input_ids=IDS, labels=IDS, fused_lm_head=True).log_probs
        assert vars(model)["forward"] is outer
        assert torch.equal(model(input_ids=IDS, labels=IDS, fused_lm_head=True).log_probs, first)
        assert not torch.allclose(inner, first)
    assert "forward" not in vars(model)


def test_logits_are_still_to_be_had_inside(tiny) -> None:
    model = tiny()
    expected = model(input_ids=IDS).logits
    with fused_lm_head(model):
        assert torch.equal(model(input_ids=IDS).logits, expected)


def test_lora_carries_the_head_on_its_base_model(tiny) -> None:
    model = get_peft_model(tiny(), LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)).eval()
    with fused_lm_head(model) as base:
        assert base is model.get_base_model()
        assert "forward" not in vars(model)
    assert "forward" not in vars(base)


def test_lora_adapter_counts_and_can_be_disabled(tiny) -> None:
    plain = sequence_logps(tiny(), SEQUENCES)
    model = get_peft_model(tiny(), LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)).eval()
    adapted = sequence_logps(model, SEQUENCES)
    for sequence, scores in zip(SEQUENCES, adapted, strict=True):
        ids = torch.tensor([sequence])
        naive = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        torch.testing.assert_close(scores, naive, atol=1e-5, rtol=0)
    assert not torch.allclose(adapted[0], plain[0], atol=1e-3)
    with model.disable_adapter():
        for expected, scores in zip(plain, sequence_logps(model, SEQUENCES), strict=True):
            torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)


def test_an_adapter_on_the_head_is_refused(tiny) -> None:
    model = get_peft_model(tiny(), LoraConfig(target_modules=["q_proj", "lm_head"]))
    with pytest.raises(InputError, match="leave the head out of target_modules"):
        sequence_logps(model, SEQUENCES)
    assert "forward" not in vars(model.get_base_model())


def test_a_head_that_is_trained_whole_counts(tiny) -> None:
    model = get_peft_model(tiny(), LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])).eval()
    model.get_output_embeddings().weight.data.mul_(2.0)
    naive = model(input_ids=IDS).logits[0, :-1].log_softmax(-1).gather(1, IDS[0, 1:, None])[:, 0]
    torch.testing.assert_close(sequence_logps(model, IDS.tolist())[0], naive, atol=1e-5, rtol=0)


def test_prompt_tuning_drops_the_virtual_tokens(tiny) -> None:
    model = get_peft_model(tiny(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    for sequence, scores in zip(SEQUENCES, sequence_logps(model, SEQUENCES), strict=True):
        ids = torch.tensor([sequence])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 3:-1]
        naive = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        torch.testing.assert_close(scores, naive, atol=1e-5, rtol=0)


@pytest.fixture
def one_process(tmp_path) -> Iterator[None]:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_ddp_is_called_as_a_whole(tiny) -> None:
    plain = tiny()
    expected = sequence_logps(plain, SEQUENCES)
    model = nn.parallel.DistributedDataParallel(get_peft_model(plain, LoraConfig(target_modules=["q_proj"])).eval())
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    scores = sequence_logps(model, SEQUENCES)
    assert len(calls) == 1
    assert "forward" not in vars(plain)
    for one, other in zip(scores, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    torch.cat(scores).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True, mixed_precision="bf16")
    AcceleratorState._reset_state(reset_partial_state=True)


def test_mixed_precision_of_accelerate_is_kept(tiny, accelerator: Accelerator) -> None:
    model = tiny()
    full_precision = sequence_logps(model, SEQUENCES[:1])[0]
    add_fused_lm_head(model)
    model = accelerator.prepare_model(model)
    prepared = vars(model)["forward"]
    stock = model(input_ids=IDS, labels=IDS, fused_lm_head=True).log_probs[0]
    assert not torch.allclose(stock, full_precision, atol=1e-4)
    assert torch.equal(sequence_logps(model, SEQUENCES[:1])[0], stock)
    assert vars(model)["forward"] is prepared
