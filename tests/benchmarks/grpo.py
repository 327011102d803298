"""TokenGRPO's steps against TRL's, on groups of one prompt: log-probabilities before training, and training itself.

Real steps of both trainers: two groups of eight answers a generation batch, a group a micro-batch, an update each, so
that log-probabilities are computed before training too. Only the sampling of answers is left out: they are given.
"""

import statistics
import tempfile
import time
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import GRPOConfig, GRPOTrainer

from tests.benchmarks.pairs import Ratio
from tests.benchmarks.shared_prefix import SIZES, compact
from tokencredit.recipes.init_model import write_initial_model
from tokencredit.recipes.schema import Init
from tokencredit.trainers import TokenGRPOConfig, TokenGRPOTrainer

PROMPT, ANSWER, GROUP, VOCABULARY = 512, 128, 8, 32_000
REPEATS = 3
CREDIT = ["outcome", "reward_spans"]
POOL, STEP = ("reward",), ("reward", "score", "train")
COMMON: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": [],
    "disable_tqdm": True,
    "max_steps": 2,
    "per_device_train_batch_size": GROUP,
    "steps_per_generation": 2,
    "num_generations": GROUP,
    "max_completion_length": ANSWER,
    "logging_steps": 1,
    "save_strategy": "no",
}


def different(completions: list[str], **columns: Any) -> list[Any]:
    """Rewards that differ within a group, with a span each."""
    return [
        {"score": len(text) % 7, "spans": [{"start": 0, "end": 1, "value": -1.0}] if text else []}
        for text in completions
    ]


def scalar(completions: list[str], **columns: Any) -> list[float]:
    """The same without spans, for TRL."""
    return [float(len(text) % 7) for text in completions]


def timed(trainer_class: Any) -> Any:
    """The class, with given answers, and the processor time of its parts in `spent`."""

    class Timed(trainer_class):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.spent: Counter[str] = Counter()
            super().__init__(*args, **kwargs)

        def _add(self, part: str, start: float) -> None:
            self.spent[part] += time.process_time() - start  # type: ignore[assignment]

        def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
            generator = torch.Generator().manual_seed(len(prompt_ids))
            return torch.randint(5, VOCABULARY, (len(prompt_ids), ANSWER), generator=generator).tolist(), None

        def _tokenize_prompts(self, prompts: list[Any]) -> Any:
            # The prompts are numbers: what is measured needs ids, not text.
            found = []
            for prompt in prompts:
                generator = torch.Generator().manual_seed(int(prompt))
                found.append(torch.randint(5, VOCABULARY, (PROMPT,), generator=generator).tolist())
            return found, None, {}

        def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
            if not torch.is_grad_enabled():
                self._add("before", start)
            return found

        def _generate_and_score_completions(self, *args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            found = super()._generate_and_score_completions(*args, **kwargs)
            self._add("rollouts", start)
            return found

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            loss = super().training_step(*args, **kwargs)
            self._add("steps", start)
            return loss

    return Timed


def build(folder: Path, kind: Any, settings: Any, rewards: Any, **keys: Any) -> Any:
    """A trainer whose model is too large for the tokenizer: ids are given."""
    config = LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=True, **SIZES)
    torch.manual_seed(0)
    return timed(kind)(
        LlamaForCausalLM(config),
        reward_funcs=rewards,
        args=settings(output_dir=str(folder / "run"), **COMMON, **keys),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        train_dataset=Dataset.from_list([{"prompt": str(number)} for number in range(8)]),
    )


def parts(trainer: Any, context: AbstractContextManager[None]) -> dict[str, float]:
    """Seconds of two steps: log-probabilities before, forwards and backwards, all, and the rest of making rollouts."""
    trainer.spent.clear()
    with context:
        trainer.train()
    spent = trainer.spent
    found = {"before": spent["before"], "training": spent["steps"] - spent["rollouts"], "step": spent["steps"]}
    return found | {"rest": spent["rollouts"] - spent["before"]}


def run() -> list[Ratio]:
    """Against TRL's compact head, as a GPU has it; and what rewards and credit take of a step."""
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        row = {"prompt": "0123456789", "completion": "0123456789"}
        write_initial_model(Init(model_type="llama", config=SIZES), [row], folder / "model", seed=0)
        stock = build(folder, GRPOTrainer, GRPOConfig, [scalar])
        ours = build(folder, TokenGRPOTrainer, TokenGRPOConfig, [different], credit=CREDIT, reward_pool={"workers": 1})
        both = [(parts(stock, compact()), parts(ours, nullcontext())) for _ in range(REPEATS + 1)][1:]
        lines = [line for line in ours.state.log_history if "loss" in line]
        ours.reward_pool.close()
    ratio = statistics.mean(line["shared_prefix/token_ratio"] for line in lines)
    names = {"before": "log-probs before training", "training": "forwards, backwards", "step": "whole step"}
    found = []
    for part, name in names.items():
        theirs, mine = ([pair[side][part] for pair in both] for side in (0, 1))
        pairs = [b / a for a, b in zip(theirs, mine, strict=True)]
        medians = statistics.median(theirs), statistics.median(mine)
        label = f"group of {GROUP}, {PROMPT} + {ANSWER}: {name} (distinct {ratio:.3f})"
        found.append(Ratio(label, *medians, (min(pairs), max(pairs)), REPEATS))
    pool, clock = (sum(line[f"time/{part}"] for line in lines for part in names) for names in (POOL, STEP))
    found.append(Ratio("reward pool in a worker, share of the step", clock, pool, (pool / clock,) * 2, 1))
    whole, rest = (statistics.median(mine[part] for _, mine in both) for part in ("step", "rest"))
    shares = [mine["rest"] / mine["step"] for _, mine in both]
    found.append(Ratio("credit and samples, share of the step", whole, rest, (min(shares), max(shares)), REPEATS))
    return found
