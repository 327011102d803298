"""Stock-equivalent DPO with common prefixes computed once against TRL's DPO: a pair forwards and backwards."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from datasets import Dataset, disable_progress_bars
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import DPOConfig, DPOTrainer

from tests.benchmarks.memory import free_at_once, peak
from tests.benchmarks.pairs import Ratio, alternate_all, cpu_seconds
from tokencredit.recipes.init_model import write_initial_model
from tokencredit.recipes.schema import Init
from tokencredit.trainers.weighted import WeightedDPOConfig, WeightedDPOTrainer

PROMPT = RESPONSE = 256
VOCABULARIES = 32_000, 151_936
DIFFERING = 0.1, 0.5, 1.0
LENGTHS = 256, 1024, 4096
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
}
REFERENCE = {"ref_chosen_logps": -1.0, "ref_rejected_logps": -1.0}
Example = dict[str, Any]


def pair(prompt: int, response: int, differing: float, vocabulary: int) -> Example:
    """Ids of a pair whose responses differ from some place on; without `prompt` in common if it is 0."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (prompt + 2 * response,), generator=generator).tolist()
    chosen, other = ids[prompt : prompt + response], ids[prompt + response :]
    shared = round((1 - differing) * response)
    rejected = chosen[:shared] + other[shared:]
    return {"prompt_ids": ids[:prompt], "chosen_ids": chosen, "rejected_ids": rejected} | REFERENCE


def unshared(vocabulary: int) -> Example:
    """As long as the others, but nothing is shared beyond the first token."""
    return pair(1, PROMPT + RESPONSE - 1, 1.0, vocabulary)


class Bench:
    """TRL's trainer and ours on equal models, and what a pair costs in each."""

    def __init__(self, folder: Path, vocabulary: int, **sizes: Any) -> None:
        config = LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=True, **(SIZES | sizes))
        row = {"prompt": "a", "chosen": "b", "rejected": "c"}
        common: dict[str, Any] = {"output_dir": str(folder / "run"), "use_cpu": True, "bf16": False}
        common |= {"gradient_checkpointing": False, "report_to": "none", "max_length": None}
        common |= {"precompute_ref_log_probs": True}

        def build(kind: Any, settings: Any, **keys: Any) -> Any:
            return kind(
                LlamaForCausalLM(config),
                args=settings(**common, **keys),
                processing_class=AutoTokenizer.from_pretrained(folder / "model"),
                train_dataset=Dataset.from_list([row]),
            )

        self.stock = build(DPOTrainer, DPOConfig)
        self.ours = build(WeightedDPOTrainer, WeightedDPOConfig, share_prefixes="on")

    def step(self, trainer: Any, example: Example) -> Callable[[], None]:
        """The batch, forwards and backwards."""

        def run() -> None:
            loss = trainer.compute_loss(trainer.model, trainer.data_collator([example]))
            loss.backward()
            trainer.model.zero_grad()

        return run

    def ratio(self, example: Example) -> str:
        """Distinct (prefix, token) among all, and among those that are scored: the floors of layers and head."""
        batch = self.ours.data_collator([example])
        distinct, alone, _ = batch["prefix_trees"]["counts"].tolist()
        scored = len(batch["prefix_trees"]["heads"]) / int(batch["completion_mask"][:, 1:].sum())
        return f"distinct {distinct / alone:.3f}, scored {scored:.3f}"


@contextmanager
def compact() -> Iterator[None]:
    """TRL's head projects the labelled positions only, as it does on a GPU."""
    with mock.patch("trl.trainer.utils._use_triton", return_value=True):
        yield


def compare(bench: Bench, example: Example, name: str, *, as_it_is: bool = True) -> list[Ratio]:
    """Seconds, against TRL's compact head and against what it does on a CPU."""
    stock, ours = bench.step(bench.stock, example), bench.step(bench.ours, example)

    def compacted() -> float:
        with compact():
            return cpu_seconds(stock)

    label = f"{name} ({bench.ratio(example)})"
    baselines = {f"{label} / compact": compacted}
    if as_it_is:
        baselines[f"{label} / as it is"] = lambda: cpu_seconds(stock)
    return alternate_all(baselines, lambda: cpu_seconds(ours), repeats=5)


def mebibytes(bench: Bench, example: Example, name: str) -> list[Ratio]:
    """Memory at its highest, above what lives between steps and the gradients; it hardly differs between repeats."""
    gradients = sum(p.numel() * p.element_size() for p in bench.ours.model.parameters()) / 2**20
    stock, ours = bench.step(bench.stock, example), bench.step(bench.ours, example)

    def compacted() -> float:
        with compact():
            return peak(stock) - gradients

    label = f"{name}, memory ({bench.ratio(example)}) / compact"
    return alternate_all({label: compacted}, lambda: peak(ours) - gradients, repeats=3, unit="MiB")


def run() -> Iterator[Ratio]:
    """Time first; then memory, for which freed tensors go back to the system at once."""
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prompts = [{"prompt": "a", "completion": "b"}]
        small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        write_initial_model(Init(model_type="llama", config=small), prompts, folder / "model", seed=0)
        benches = {vocabulary: Bench(folder, vocabulary) for vocabulary in VOCABULARIES}
        for vocabulary, bench in benches.items():
            title = f"DPO, {vocabulary // 1000}k"
            for differing in DIFFERING:
                example = pair(PROMPT, RESPONSE, differing, vocabulary)
                yield from compare(bench, example, f"{title}, last {differing:.0%} differ")
        smallest = VOCABULARIES[0]
        title = f"DPO, {smallest // 1000}k, nothing shared"
        yield from compare(benches[smallest], unshared(smallest), title, as_it_is=False)
        long = Bench(folder, 1000, num_hidden_layers=2)
        pairs = {length: pair(length // 2, length // 2, DIFFERING[0], 1000) for length in LENGTHS}
        for length, example in pairs.items():
            yield from compare(long, example, f"DPO, 2 layers, {length} tokens, 10%", as_it_is=False)
        free_at_once()
        for vocabulary, bench in benches.items():
            example = pair(PROMPT, RESPONSE, DIFFERING[0], vocabulary)
            yield from mebibytes(bench, example, f"DPO, {vocabulary // 1000}k, last 10% differ")
        for length, example in pairs.items():
            yield from mebibytes(long, example, f"DPO, 2 layers, {length} tokens, 10%")
