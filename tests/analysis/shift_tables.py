"""Comparisons made up without a model, for what shows them."""

import math
from typing import Any

import numpy as np
import torch

from tokencredit.analysis.shift import ShiftResult, result
from tokencredit.analysis.shift_table import rows
from tokencredit.analysis.trajectories import Trajectory
from tokencredit.scoring.measures import measures


def made_up(lengths: list[int], texts: list[str], *, seed: int = 0, scale: float = 1.0, **options: Any) -> ShiftResult:
    """Responses over a vocabulary with these texts, and two models that differ by noise of a scale."""
    generator = torch.Generator().manual_seed(seed)
    size = len(texts)
    trajectories = [
        Trajectory(
            n // 2, [0], torch.randint(size, (length,), generator=generator).tolist(), "tuned", f"prompt {n // 2}"
        )
        for n, length in enumerate(lengths)
    ]
    found = []
    for item in trajectories:
        base = torch.randn(len(item.ids), size, generator=generator) * 3
        tuned = base + scale * torch.randn(len(item.ids), size, generator=generator)
        found.append(measures(base, tuned, torch.tensor(item.ids, dtype=torch.long), **options) if item.ids else None)
    blank = measures(torch.zeros(1, size), torch.zeros(1, size), torch.zeros(1, dtype=torch.long), **options)
    kept = [part or {name: value[:0] for name, value in blank.items()} for part in found]
    table = rows("tuned", trajectories, 0, kept, texts.__getitem__)
    made = result([table], trajectories, texts.__getitem__)
    return ShiftResult(made.table, made.prompts, made.texts, {"base": "before", "tuned": "after"})


def large(responses: int, tokens: int, vocabulary: int) -> ShiftResult:
    """Many positions, most of which hardly differ, with frequent and rare tokens as in text."""
    generator = np.random.default_rng(0)
    count, size = responses * tokens, 10

    def drawn(*shape: int) -> Any:
        return np.minimum(vocabulary - 1, (vocabulary ** generator.random(shape) - 1)).astype(np.int64)

    base_ids = drawn(count, size)
    tuned_ids = base_ids.copy()
    swapped = generator.random((count, size)) < 0.1
    tuned_ids[swapped] = drawn(int(swapped.sum()))
    base = np.sort(-generator.exponential(3, (count, size)))[:, ::-1] - 0.05
    js = np.minimum(math.log(2) * 0.999, generator.lognormal(-8, 3, count))
    tuned = base - generator.normal(0, 1, (count, size)) * np.sqrt(js)[:, None]
    written = np.where(generator.random(count) < 0.8, tuned_ids[:, 0], drawn(count))
    figures = {"js": js, "tv": np.sqrt(js / 2), "kl_tuned_base": 4 * js}
    figures |= {"base_entropy": generator.gamma(1, 1, count), "tuned_entropy": generator.gamma(1, 1, count)}
    figures |= {"base_logp": base[:, 0], "tuned_logp": tuned[:, 0], "delta_logp": tuned[:, 0] - base[:, 0]}
    figures |= {"kl_base_tuned": 4 * js, "half_jeffreys": 4 * js}
    figures |= {"tuned_top1_base_logp": base[:, 0], "base_top1_tuned_logp": tuned[:, 0]}
    ranks = {name: np.ones(count) for name in ("tuned_top1_base_rank", "base_top1_tuned_rank", "top_overlap")}
    lists = {"base_top_ids": base_ids, "base_top_logps": base, "base_top_tuned_logps": tuned}
    lists |= {"tuned_top_ids": tuned_ids, "tuned_top_logps": np.minimum(tuned, 0), "tuned_top_base_logps": base}
    everything = {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in (figures | ranks | lists).items()}
    trajectories = [
        Trajectory(n, [0], written[n * tokens : (n + 1) * tokens].tolist(), "tuned", f"prompt {n}")
        for n in range(responses)
    ]
    pieces = [
        {name: value[n * tokens : (n + 1) * tokens] for name, value in everything.items()} for n in range(responses)
    ]
    texts = [f" w{n:x}" for n in range(vocabulary)]
    return result([rows("tuned", trajectories, 0, pieces, texts.__getitem__)], trajectories, texts.__getitem__)
