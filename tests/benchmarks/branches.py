"""Short branches off one trunk, without gradient: against whole sequences and against trees that hold the trunk."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.benchmarks.memory import free_at_once, peak
from tests.benchmarks.pairs import Ratio, alternate_all, cpu_seconds
from tests.benchmarks.shared_prefix import SIZES
from tokencredit.scoring import branch_logps, sequence_logps

TRUNK, BRANCH, VOCABULARY = 512, 12, 32_000


def probes(count: int) -> tuple[list[int], list[tuple[int, list[int]]]]:
    """A trunk, and branches that leave it at even distances."""
    ids = torch.randint(VOCABULARY, (TRUNK + count * BRANCH,), generator=torch.Generator().manual_seed(0)).tolist()
    places = [1 + i * (TRUNK - 1) // count for i in range(count)]
    return ids[:TRUNK], [(p, ids[TRUNK + i * BRANCH :][:BRANCH]) for i, p in enumerate(places)]


def run() -> Iterator[Ratio]:
    """Seconds for 32 branches; memory of 512 against that of 128, two chunks."""
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=True, **SIZES)).eval()

    def branches(count: int) -> Callable[[], None]:
        trunk, found = probes(count)
        return lambda: void(branch_logps(model, trunk, found))

    def whole(count: int, share: bool) -> Callable[[], None]:
        trunk, found = probes(count)
        sequences = [[*trunk[:place], *tokens] for place, tokens in found]
        return lambda: void(sequence_logps(model, sequences, share_prefixes=share))

    def void(_: Any) -> None: ...

    with torch.no_grad():
        label = f"32 branches of {BRANCH} off {TRUNK}"
        padded, trees, ours = whole(32, False), whole(32, True), branches(32)
        baselines = {f"{label} / whole": lambda: cpu_seconds(padded), f"{label} / trees": lambda: cpu_seconds(trees)}
        yield from alternate_all(baselines, lambda: cpu_seconds(ours), repeats=5)
        free_at_once()
        few, many = branches(128), branches(512)
        name = "memory of 512 branches / of 128"
        yield from alternate_all({name: lambda: peak(few)}, lambda: peak(many), repeats=5, unit="MiB")
