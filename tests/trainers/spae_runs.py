"""What tests of SPAE share: a tiny model of worked sums, and runs on fixed answers with steps, right and wrong ones."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset

from tests.trainers.grpo_runs import SETTINGS, trusted, watched
from tokencredit.data.boxed import last_boxed
from tokencredit.data.worked_sums import worked_sums
from tokencredit.recipes.init_model import write_initial_model
from tokencredit.recipes.schema import Init, TokenizerSpec
from tokencredit.trainers import SPAEConfig, SPAETrainer

PIECES = [".\n\n", "check ", "</think>", "\\boxed{"]
TEMPLATE = "</think>\\boxed{"
SPAE: dict[str, Any] = {"probe_template": TEMPLATE, "max_completion_length": 64, "num_generations": 4}


def write_model(folder: Path) -> Path:
    """32 wide, two layers; ten times the usual scale, so that potentials differ."""
    config = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
    }
    init = Init(model_type="llama", config=config, tokenizer=TokenizerSpec(pieces=PIECES))
    write_initial_model(init, worked_sums("test"), folder, seed=0)
    return folder


def rows(count: int = 16) -> list[dict[str, Any]]:
    return worked_sums("validation")[:count]


def boxed_right(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
    return [float(last_boxed(text) == gold) for text, gold in zip(completions, answer, strict=True)]


def answers(row: int) -> str:
    """Right, wrong, cut, empty, of one step, and without an answer: every edge is in a batch of eight."""
    rng = random.Random(row)
    text = rng.choice(worked_sums("test")[:50])["completion"]
    return [text, text.replace(".\n\n", "", 1), text.split("</think>")[0], "", "1+1=2.\n\n", "no", text, text][row % 8]


def fixed(trainer_class: Any, given: Callable[[int], str] = answers) -> Any:
    """The class, with answers that depend on the row alone; every second one is right where it can be."""

    class Fixed(watched(trainer_class)):  # type: ignore[misc]
        def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
            first = self.accelerator.process_index * len(prompt_ids)
            gold = {row["prompt"]: row["answer"] for row in rows()}
            written = []
            for place, ids in enumerate(prompt_ids):
                text, row = given(first + place), first + place
                prompt = self._tokenizer.decode(ids)
                if row % 2 == 0 and "\\boxed{" in text:
                    text = text.split("\\boxed{")[0] + f"\\boxed{{{gold[prompt]}}}"
                written.append([*self._tokenizer(text)["input_ids"], self._tokenizer.eos_token_id])
            return written, None

    return Fixed


def spae_settings(folder: Path, **changes: Any) -> dict[str, Any]:
    return {**SETTINGS, **SPAE, "output_dir": str(folder), **changes}


def spae(model: Path, folder: Path, *, data: Any = None, given: Callable[[int], str] = answers, **changes: Any) -> Any:
    """A trainer on fixed answers."""
    return fixed(SPAETrainer, given)(
        model=str(model),
        reward_funcs=[trusted(boxed_right)],
        args=SPAEConfig(**spae_settings(folder, **changes)),
        train_dataset=Dataset.from_list(rows()) if data is None else data,
    )
