"""Groups of responses to one prompt, as in GRPO: trees against the padded forward and the `prefix-grouper` package.

The package brings no attention for SDPA, so it is given one here: what it shares is the prompt. Head and labelled
positions are the same for all three.
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM

from tests.benchmarks.pairs import Ratio, alternate_all, cpu_seconds
from tests.benchmarks.shared_prefix import SIZES
from tokencredit.scoring.prefix_tree import prefix_tree
from tokencredit.scoring.shared_forward import run_rows, run_trees
from tokencredit.scoring.tree_batch import lay_out
from tokencredit.scoring.trl_compat import fused_lm_head

GROUP = 8
PROMPT, RESPONSE, VOCABULARY = 256, 128, 32_000


def grouped_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, *, prefix_grouper: Any, **_: Any
) -> tuple[Tensor, None]:
    """The package's way through a layer, with SDPA for its two parts; all responses have one length here."""
    from prefix_grouper.forward import AttentionForward

    def attend(q: Tensor, k: Tensor, v: Tensor, _mask: Any) -> Tensor:
        below = k.size(2) - q.size(2)
        seen = None if not below else torch.ones(q.size(2), k.size(2), dtype=torch.bool).tril(below)
        found = scaled_dot_product_attention(q, k, v, seen, is_causal=seen is None, enable_gqa=True)
        return found.transpose(1, 2)

    return AttentionForward(attend)(prefix_grouper, query, key, value), None


def run() -> Iterator[Ratio]:
    """Forwards and backwards of one group."""
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=True, **SIZES))
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(VOCABULARY, (PROMPT,), generator=generator)
    responses = torch.randint(VOCABULARY, (GROUP, RESPONSE), generator=generator)
    whole = torch.cat([prompt.expand(GROUP, -1), responses], dim=1)
    length, labels = whole.size(1), responses.flatten()
    # The last token of a prompt and all but the last of a response predict the response.
    heads = torch.arange(PROMPT - 1, length - 1) + torch.arange(GROUP)[:, None] * length

    def padded(base: Any) -> Tensor:
        found: Tensor = run_rows(model, base, {"input_ids": whole}, heads.flatten(), labels).log_probs
        return found

    def trees(base: Any) -> Tensor:
        tree = prefix_tree(whole.tolist())
        lines = lay_out([tree])
        places = torch.stack([torch.from_numpy(own[PROMPT - 1 :]) for own in tree.places]).flatten()
        lines["heads"], lines["labels"] = lines["heads"][places], lines["labels"][places]
        found: Tensor = run_trees(model, base, lines).log_probs
        return found

    def package(base: Any) -> Tensor:
        from prefix_grouper import PrefixGrouper

        grouper = PrefixGrouper([[PROMPT, *[RESPONSE] * GROUP]])
        inputs = {
            "input_ids": torch.cat([prompt, responses.flatten()])[None],
            "position_ids": torch.cat([torch.arange(PROMPT), torch.arange(PROMPT, length).repeat(GROUP)])[None],
        }
        rows = torch.arange(GROUP)[:, None] * RESPONSE + PROMPT + torch.arange(-1, RESPONSE - 1)
        rows[:, 0] = PROMPT - 1
        model.config._attn_implementation = "grouped"
        try:
            found: Tensor = run_rows(model, base, inputs, rows.flatten(), labels, prefix_grouper=grouper).log_probs
        finally:
            model.config._attn_implementation = "sdpa"
        return found

    AttentionInterface.register("grouped", grouped_attention)
    with fused_lm_head(model) as base:

        def seconds(score: Callable[[Any], Tensor]) -> float:
            def step() -> None:
                score(base).sum().backward()
                model.zero_grad()

            return cpu_seconds(step)

        ratio = (PROMPT + GROUP * RESPONSE) / (GROUP * length)
        label = f"group of {GROUP}, {PROMPT} + {RESPONSE} (distinct {ratio:.3f})"
        baselines = {f"{label} / padded": lambda: seconds(padded)}
        if find_spec("prefix_grouper"):
            with torch.no_grad():
                torch.testing.assert_close(trees(base), package(base), atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(trees(base), padded(base), atol=1e-4, rtol=1e-4)
            baselines[f"{label} / prefix-grouper"] = lambda: seconds(package)
        yield from alternate_all(baselines, lambda: seconds(trees), repeats=5)
