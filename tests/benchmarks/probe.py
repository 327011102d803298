"""SPAE's forced probe: against its distinct tokens, against sampled answers, and its memory."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, LlamaConfig, LlamaForCausalLM

from tests.benchmarks.memory import free_at_once, peak
from tests.benchmarks.pairs import Ratio, alternate, alternate_all, cpu_seconds
from tokencredit.scoring import ProbeTask, probe_steps, sequence_logps
from tokencredit.scoring.shared_forward import layer_masks, run_rows
from tokencredit.scoring.trl_compat import fused_lm_head

STEP, PROMPT, TEMPLATE, ANSWER, SAMPLES, DRAWN = 16, 32, 8, 2, 5, 10
VOCABULARY = 8_000
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 8192,
}


def task(steps: int) -> ProbeTask:
    """A response of so many steps of 16 tokens after a prompt of 32."""
    generator = torch.Generator().manual_seed(steps)
    ids = torch.randint(VOCABULARY, (PROMPT + STEP * steps + TEMPLATE + ANSWER,), generator=generator).tolist()
    trunk, rest = ids[: PROMPT + STEP * steps], ids[PROMPT + STEP * steps :]
    places = [PROMPT + STEP * (step + 1) for step in range(steps)]
    return ProbeTask(trunk, places, rest[:TEMPLATE], [rest[TEMPLATE:]])


def floor(model: Any, probed: ProbeTask) -> None:
    """One causal forward over as many tokens as are distinct, with numbers for as many as answers have."""
    scored = len(probed.places) * ANSWER
    count = probed.places[-1] + len(probed.places) * (TEMPLATE + ANSWER - 1)
    ids = torch.arange(count) % VOCABULARY
    heads = torch.arange(count - scored, count) if scored < count else torch.arange(count)
    with torch.no_grad(), fused_lm_head(model, outputs=("log_probs", "entropy")) as base:
        run_rows(model, base, {"input_ids": ids[None]}, heads, ids[heads])


def sampled(model: Any, probed: ProbeTask) -> None:
    """One answer after each step, all in one batch, each context from its beginning; then its entropies."""
    contexts = [[*probed.trunk[:place], *probed.template] for place in probed.places]
    width = max(map(len, contexts))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in contexts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in contexts])
    config = GenerationConfig(
        do_sample=True, temperature=0.6, max_new_tokens=DRAWN, min_new_tokens=DRAWN, pad_token_id=0, eos_token_id=1
    )
    with torch.no_grad():
        written = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, width:].tolist()
        whole = [[*context, *row] for context, row in zip(contexts, written, strict=True)]
        sequence_logps(model, whole, share_prefixes=False, outputs=("log_probs", "entropy"))


def sampled_shared(model: Any, probed: ProbeTask) -> None:
    """Five answers after each step in lockstep off one trunk, whose entropies come with them."""
    rows = len(probed.places) * SAMPLES
    starts = torch.tensor(probed.places).repeat_interleave(SAMPLES)
    known = probed.places[-1]
    cache = DynamicCache()
    with torch.no_grad():
        model(input_ids=torch.tensor([probed.trunk[:known]]), past_key_values=cache, logits_to_keep=1)
        before = torch.arange(known)[None] < starts[:, None]
        tokens, own = torch.full((rows,), probed.template[0]), torch.eye(rows, dtype=torch.bool)
        for turn in range(TEMPLATE + DRAWN - 1):
            seen = torch.cat([before, own.repeat(1, turn + 1)], dim=1)[None]
            mask = layer_masks(seen, torch.zeros_like(seen), model.config, model.dtype)
            depths = (starts + turn)[None]
            logits = model(
                input_ids=tokens[None], position_ids=depths, attention_mask=mask, past_key_values=cache
            ).logits[0]
            drawn = torch.multinomial((logits / 0.6).softmax(-1), 1)[:, 0]
            -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
            fixed = turn + 1 < TEMPLATE
            tokens = torch.full((rows,), probed.template[turn + 1]) if fixed else drawn


def run() -> Iterator[Ratio]:
    """Seconds at 8, 32 and 100 steps; memory of 400 steps' probes on one trunk against that of 100."""
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=True, **SIZES)).eval()

    def timed(work: Callable[..., None], probed: ProbeTask) -> Callable[[], float]:
        return lambda: cpu_seconds(lambda: work(model, probed))

    def forced(model: Any, probed: ProbeTask) -> None:
        probe_steps(model, [probed])

    for steps in (8, 32, 100):
        probed = task(steps)
        yield alternate(f"{steps} steps / distinct tokens", timed(floor, probed), timed(forced, probed), repeats=7)
        shared = {f"{steps} steps / 5 samples, shared prefixes": timed(sampled_shared, probed)}
        yield from alternate_all(shared, timed(forced, probed), repeats=3)
        alone = {f"{steps} steps / 1 sample, batched": timed(sampled, probed)}
        yield from alternate_all(alone, timed(forced, probed), repeats=1 if steps == 100 else 3)
    free_at_once()
    trunk = task(400)

    def memory(count: int) -> Callable[[], float]:
        few = ProbeTask(trunk.trunk, trunk.places[-1 :: -400 // count][::-1], trunk.template, trunk.answers)
        return lambda: peak(lambda: forced(model, few))

    for count in (32, 100, 400):
        name = f"memory of {count} steps / of 8, same response"
        yield from alternate_all({name: memory(8)}, memory(count), repeats=3, unit="MiB")
