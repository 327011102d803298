"""TAB-PO through the whole trainer: its reductions to TRL's DPO, and weights that stay with their tokens."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer

from tests.conftest import SHORT_RUN, preferences
from tokencredit.data.loading import load_split
from tokencredit.errors import InputError
from tokencredit.losses import tab_po_loss
from tokencredit.trainers.tab_po import TABPOConfig, TABPOTrainer

pytestmark = pytest.mark.slow

COMMON: dict[str, Any] = SHORT_RUN | {"max_steps": 3, "use_cpu": True, "bf16": False, "beta": 0.5, "disable_tqdm": True}
WEIGHTS = {"json": {"[].code": 1.1, "[].subcode": 1.2, "[].span": 1.1}, "differing": 1.2}


def train(trainer_class: Any, config_class: Any, model: Path, run: Path, rows: Any, lora: bool, **keys: Any) -> Any:
    peft = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM") if lora else None
    args = config_class(output_dir=str(run), **(COMMON | keys))
    trainer = trainer_class(str(model), args=args, train_dataset=rows, peft_config=peft)
    trainer.train()
    return trainer


def curve(trainer: Any) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(("form", "stock"), [("sum", "sigmoid"), ("weighted", "sigmoid_norm")])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_without_barrier_and_weights_it_is_dpo(
    form: str, stock: str, lora: bool, accumulation: int, tiny_model: Path, tmp_path: Path
) -> None:
    """Same losses and same weights after three steps. Tolerance 1e-6: float32, sums taken in another order."""
    rows = Dataset.from_list(preferences(64))
    keys: dict[str, Any] = {
        "per_device_train_batch_size": 8 // accumulation,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": 1e-2 if lora else 1e-3,
    }
    theirs = train(DPOTrainer, DPOConfig, tiny_model, tmp_path, rows, lora, loss_type=[stock], **keys)
    ours = train(TABPOTrainer, TABPOConfig, tiny_model, tmp_path, rows, lora, form=form, lam=0.0, **keys)
    assert curve(ours) == pytest.approx(curve(theirs), abs=1e-6)
    assert abs(curve(ours)[0] - curve(ours)[-1]) > 1e-3, "the model must move, or equal curves prove nothing"
    mine, other = (dict(trainer.model.named_parameters()) for trainer in (ours, theirs))
    for name, value in mine.items():
        # Adam divides by the gradient's size: where that is near zero, a last-bit difference shows in the update.
        torch.testing.assert_close(value, other[name], atol=2e-5, rtol=0)


@pytest.fixture(scope="module")
def address_batch(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Any], Any]:
    """A trainer over real address pairs, one of its batches, and the rows of that batch."""
    rows = load_split("us_addresses", "validation[:8]", config="pairs")
    args = TABPOConfig(output_dir=str(tmp_path_factory.mktemp("run")), token_weights=WEIGHTS, max_length=None, **COMMON)
    trainer = TABPOTrainer(str(tiny_model), args=args, train_dataset=rows)
    batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))
    return trainer, batch, rows


def test_weights_stand_on_their_tokens(address_batch: tuple[Any, dict[str, Any], Any], tiny_model: Path) -> None:
    _, batch, rows = address_batch
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for place, row in enumerate(rows):
        ids, weights, mask = (batch[name][place] for name in ("input_ids", "token_weights", "completion_mask"))
        inside = mask.bool()
        assert (weights[~inside] == 1).all(), "prompt and padding"
        # The tiny model's tokens are characters and the pieces are not: every character has its own weight.
        text = row["chosen"]
        assert tokenizer.decode(ids[inside], skip_special_tokens=True) == text
        wanted = torch.ones(len(text))
        for span in row["chosen_spans"]:
            wanted[span["start"] : span["end"]] = {"code": 1.1, "subcode": 1.2, "span": 1.1}[span["label"]]
        found = weights[inside][: len(text)]
        base = torch.where(found > wanted + 1e-3, found / 1.2, found)
        torch.testing.assert_close(base, wanted, atol=1e-5, rtol=0)


def test_loss_of_a_batch_is_the_function_of_its_log_probs(address_batch: tuple[Any, dict[str, Any], Any]) -> None:
    trainer, batch, _ = address_batch
    model = trainer.model.eval()
    with torch.no_grad():
        loss = trainer.compute_loss(model, batch)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].float()
    logps = logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    pieces = [tensor.chunk(2) for tensor in (logps, batch["completion_mask"][:, 1:], batch["token_weights"][:, 1:])]
    (chosen, rejected), masks, weights = pieces
    expected, _ = tab_po_loss(chosen, rejected, chosen, rejected, *masks, *weights)
    torch.testing.assert_close(loss, expected.mean(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_truncation_keeps_weights_with_their_tokens(mode: str, address_batch: tuple[Any, dict[str, Any], Any]) -> None:
    trainer, batch, _ = address_batch
    examples = list(trainer.train_dataset)
    collator = trainer.data_collator
    collator.max_length, collator.truncation_mode = 40, mode
    cut = collator(examples)
    collator.max_length = None
    assert cut["input_ids"].shape[1] == 40 == cut["token_weights"].shape[1]
    for place in range(len(cut["input_ids"])):
        length = int(batch["attention_mask"][place].sum())
        kept = slice(0, 40) if mode == "keep_start" else slice(length - 40, length)
        assert torch.equal(cut["input_ids"][place], batch["input_ids"][place][kept])
        assert torch.equal(cut["token_weights"][place], batch["token_weights"][place][kept])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"form": "sum", "token_weights": WEIGHTS}, "token_weights: the sum form has no token weights"),
        ({"barrier_scope": "weighted", "form": "sum"}, "barrier_scope: 'weighted' needs token weights"),
        ({"lam": -1.0}, "lam: -1.0 is negative"),
        ({"beta": 0.0}, "beta: 0.0 is not positive"),
        ({"loss_kwargs": {"tau": 2}}, "loss_kwargs.tau: is a setting of the trainer"),
        ({"token_weights": {}}, "token_weights: {} names no weight"),
        ({"token_weights": {"json": {}}}, "token_weights.json: is empty"),
        ({"loss": "tokencredit.losses:dpo_loss", "token_weights": WEIGHTS}, "dpo_loss uses no token weights"),
        ({"num_token_samples": 0}, "num_token_samples: 0 is too small"),
        ({"f_alpha_divergence_coef": 0.7}, "f_alpha_divergence_coef: 0.7 has no effect"),
        ({"tau": 1.5}, "tau: 1.5 is no probability"),
        ({"loss_type": ["ipo"]}, r"loss_type: \['ipo'\] has no effect with this loss"),
        ({"use_weighting": True}, "use_weighting: True has no effect"),
    ],
)
def test_settings_without_meaning_are_refused(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        TABPOConfig(output_dir=str(tmp_path), **(COMMON | keys))


def test_same_answers_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    rows = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "b"}])
    args = TABPOConfig(output_dir=str(tmp_path), token_weights={"differing": 1.2}, **COMMON)
    with pytest.raises(InputError, match="chosen and rejected of row 0 are the same"):
        TABPOTrainer(str(tiny_model), args=args, train_dataset=rows)
