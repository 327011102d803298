"""Two models compared at every position: against their bare forwards, and against whole logits; memory by length."""

from collections.abc import Callable, Iterator

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.benchmarks.memory import free_at_once, peak
from tests.benchmarks.pairs import Ratio, alternate_all, cpu_seconds
from tokencredit.scoring.shift import Side, shift_measures

VOCABULARY = 49_152
# SmolLM2-135M.
SHAPE = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
SHAPE |= {"num_attention_heads": 9, "num_key_value_heads": 3}
THIN = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
LENGTH = 384


def pair(vocabulary: int, **shape: int) -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """A model and one near it."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=True, max_position_embeddings=8192, **shape)
    base, tuned = LlamaForCausalLM(config).eval(), LlamaForCausalLM(config).eval()
    tuned.load_state_dict(base.state_dict())
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 0.001 * torch.randn_like(parameter)
    return base, tuned


def ids(length: int) -> list[int]:
    return torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(0)).tolist()


def bare(base: LlamaForCausalLM, tuned: LlamaForCausalLM, length: int) -> Callable[[], None]:
    """Both models' logits and nothing else."""
    tokens = torch.tensor([ids(length)])

    def work() -> None:
        for model in (base, tuned):
            model(tokens, use_cache=False)

    return work


def naive(base: LlamaForCausalLM, tuned: LlamaForCausalLM, length: int) -> Callable[[], None]:
    """The same measures by their definitions, on the logits of the whole response."""
    tokens = torch.tensor([ids(length)])

    def work() -> None:
        log_p, log_q = (model(tokens, use_cache=False).logits[0, :-1].log_softmax(-1) for model in (base, tuned))
        p, q = log_p.exp(), log_q.exp()
        log_m = ((p + q) / 2).log()
        ((p * (log_p - log_m)).sum(-1) + (q * (log_q - log_m)).sum(-1)) / 2
        (q * (log_q - log_p)).sum(-1), (p * (log_p - log_q)).sum(-1), (p - q).abs().sum(-1) / 2
        (p * log_p).sum(-1), (q * log_q).sum(-1)
        for own, other in ((log_p, log_q), (log_q, log_p)):
            top = own.topk(10)
            (other > other.gather(1, top.indices[:, :1])).sum(-1), other.gather(1, top.indices)

    return work


def ours(base: LlamaForCausalLM, tuned: LlamaForCausalLM, length: int) -> Callable[[], None]:
    def work() -> None:
        shift_measures(Side(base), Side(tuned), [ids(length)], [1])

    work()  # the head of each model is checked once
    return work


def seconds() -> Iterator[Ratio]:
    """Processor time of a comparison against that of the forwards it needs, and of the naive way."""
    models = pair(VOCABULARY, **SHAPE)
    found = ours(*models, LENGTH)
    baselines = {
        "seconds of a comparison / both forwards": lambda: cpu_seconds(bare(*models, LENGTH)),
        "seconds of a comparison / naive": lambda: cpu_seconds(naive(*models, LENGTH)),
    }
    yield from alternate_all(baselines, lambda: cpu_seconds(found), repeats=5)


def memory() -> Iterator[Ratio]:
    """Four times as many positions, and whole logits."""
    models = pair(VOCABULARY, **THIN)
    short, long = ours(*models, 512), ours(*models, 2048)
    baselines = {
        "memory of 2,048 positions / of 512": lambda: peak(short),
        "memory of 2,048 positions / naive with 512": lambda: peak(naive(*models, 512)),
    }
    yield from alternate_all(baselines, lambda: peak(long), repeats=2, unit="MiB")


def run() -> Iterator[Ratio]:
    """Seconds and memory at vocabulary 49,152."""
    with torch.no_grad():
        yield from seconds()
        free_at_once()
        yield from memory()
