"""What a table of shifts says: how sparse, where, on which tokens, and how probability was moved.

Plain functions over NumPy arrays and Arrow tables. "Sparse but Critical", arXiv 2603.22446 [N] asks these questions;
cut-offs, bins and intervals are our choice [O]. Intervals are bootstrapped over problems, as positions of one
response are no independent draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokencredit.analysis.shift_table import column
from tokencredit.analysis.statistics import percentile_interval, resampled_totals

Array = NDArray[Any]

THRESHOLDS = (1e-4, 1e-3, 1e-2, 0.1, 0.3)
PERCENTILES = (50, 75, 90, 95, 99, 99.9, 100)
TOP_SHARES = (0.01, 0.05, 0.1)
JS_EDGES = (0.0, 1e-4, 1e-3, 1e-2, 0.1, 0.3, 0.7)
RANK_BUCKETS = ((1, 1), (2, 3), (4, 10))
TAILS = (0.1, 0.01, 0.001)
HIGH = 0.1
"""JS from which a position counts as changed."""
RESAMPLES = 1000
_OF_RESPONSES = ("base_entropy", "tuned_entropy", "base_logp", "tuned_logp")


@dataclass(frozen=True)
class Band:
    """A figure with its 95 % interval over problems."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def band(values: Array, problems: Array, *, where: Array | None = None, resamples: int = RESAMPLES) -> Band:
    """The mean of values over positions, with its interval.

    Args:
        values: `[N]`, or booleans, whose mean is a share.
        problems: Which problem each belongs to, `[N]`.
        where: Positions that count; None are all.
        resamples: How many times the problems are drawn anew.

    Returns:
        NaN where nothing counts.
    """
    counts = np.ones(len(values)) if where is None else where.astype(float)
    _, owner = np.unique(problems, return_inverse=True)
    size = int(owner.max()) + 1 if len(owner) else 0
    if not counts.sum():
        return Band(float("nan"), float("nan"), float("nan"))
    sums = np.stack([np.bincount(owner, weights * counts, size) for weights in (values.astype(float), 1.0)], 1)
    totals = resampled_totals(sums, resamples=resamples)
    ratios = totals[:, 0] / np.where(totals[:, 1] > 0, totals[:, 1], np.nan)
    low, high = percentile_interval(ratios[~np.isnan(ratios)])
    total = sums.sum(0)
    return Band(float(total[0] / total[1]), float(low), float(high))


def gini(values: Array) -> float:
    """Gini coefficient: 0 where all positions differ alike or none does, near 1 where a few hold everything."""
    ordered = np.sort(values.astype(float))
    total = ordered.sum()
    if not total:
        return 0.0
    ranks = np.arange(1, len(ordered) + 1)
    return float((2 * ranks - len(ordered) - 1) @ ordered / (len(ordered) * total))


def top_share(values: Array, share: float) -> float:
    """How much of the sum lies in the largest `share` of the values."""
    total = values.sum(dtype=float)
    count = max(1, round(share * len(values)))
    return float(np.sort(values)[::-1][:count].sum(dtype=float) / total) if total else 0.0


def sparsity(js: Array, problems: Array) -> dict[str, Any]:
    """How many positions differ, and how unevenly."""
    return {
        "positions": len(js),
        "problems": len(np.unique(problems)),
        "mean": band(js, problems),
        "above": {threshold: band(js > threshold, problems) for threshold in THRESHOLDS},
        "percentiles": {q: float(np.percentile(js, q)) if len(js) else float("nan") for q in PERCENTILES},
        "gini": gini(js),
        "top_share": {share: top_share(js, share) for share in TOP_SHARES} if len(js) else {},
    }


def profile(values: Array, problems: Array, places: Array, edges: Array | Sequence[float]) -> list[tuple[float, Band]]:
    """Mean of the values by place: the left edge of each bin that holds any, and the mean in it."""
    bins = np.digitize(places, edges) - 1
    found = []
    for number in range(len(edges) - 1):
        inside = bins == number
        if inside.any():
            found.append((float(edges[number]), band(values, problems, where=inside, resamples=200)))
    return found


def position_profiles(table: pa.Table, measure: str = "js") -> dict[str, list[tuple[float, Band]]]:
    """The measure by place in the response: relative in twenty parts, from the start, and from the end."""
    values, problems = column(table, measure), column(table, "prompt")
    position, length = column(table, "position"), column(table, "length")
    longest = int(length.max()) if len(length) else 1
    width = max(1, -(-longest // 40))
    edges = np.arange(0, longest + width, width)
    parts = position * 20 // np.maximum(length, 1)  # in whole numbers: a twentieth is no binary fraction
    return {
        "relative": [(part / 20, mean) for part, mean in profile(values, problems, parts, range(21))],
        "from start": profile(values, problems, position, edges),
        "from end": profile(values, problems, length - 1 - position, edges),
    }


def entropy_by_js(table: pa.Table) -> list[dict[str, float]]:
    """Mean entropies of both models in each bin of JS."""
    js = column(table, "js")
    bins = np.clip(np.digitize(js, JS_EDGES) - 1, 0, len(JS_EDGES) - 2)
    found = []
    for number in range(len(JS_EDGES) - 1):
        inside = bins == number
        means = {
            name: float(column(table, name)[inside].mean()) if inside.any() else float("nan")
            for name in ("base_entropy", "tuned_entropy")
        }
        found.append({"from": JS_EDGES[number], "to": JS_EDGES[number + 1], "count": int(inside.sum())} | means)
    return found


def histogram(table: pa.Table, x: str = "base_entropy", y: str = "js", bins: int = 20) -> tuple[Array, Array, Array]:
    """Counts by two measures: `[bins, bins]`, and the edges of both."""
    return np.histogram2d(column(table, x), column(table, y), bins=bins)


def wilson(hits: Array, counts: Array, z: float = 1.96) -> tuple[Array, Array]:
    """Wilson's interval of shares, `hits` of `counts`."""
    share = hits / counts
    centre = (share + z**2 / (2 * counts)) / (1 + z**2 / counts)
    half = z / (1 + z**2 / counts) * np.sqrt(share * (1 - share) / counts + z**2 / (4 * counts**2))
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


def token_table(
    table: pa.Table, *, measure: str = "js", threshold: float = HIGH, minimum: int = 1
) -> list[dict[str, Any]]:
    """What happened to each token of the vocabulary, the most moved first.

    `moved` is Σ (p_tuned − p_base) of the token over all positions at which it is among the most likely of either
    model: probability that tuning gave to it, whether or not it was then written. The rest is about the positions at
    which it was written: how many, the share above the threshold with Wilson's interval, means of JS and of Δ log p.

    Args:
        table: Of one model.
        measure: JS, or a bound of it.
        threshold: Above it a position counts as changed.
        minimum: Tokens written less often are left out, unless probability was moved to or from them.
    """
    moved = moved_mass(table)
    ids, js, delta = column(table, "token_id"), column(table, measure), column(table, "delta_logp")
    size = int(max([*ids.tolist(), *moved, 0])) + 1
    counts, hits = np.bincount(ids, minlength=size), np.bincount(ids, js > threshold, size)
    means = [np.bincount(ids, values, size) / np.maximum(counts, 1) for values in (js, delta)]
    low, high = wilson(hits, np.maximum(counts, 1))
    found = [
        {
            "token_id": token,
            "moved": moved.get(token, 0.0),
            "count": int(counts[token]),
            "above": float(hits[token] / counts[token]) if counts[token] else float("nan"),
            "low": float(low[token]),
            "high": float(high[token]),
            "js": float(means[0][token]),
            "delta_logp": float(means[1][token]),
        }
        for token in sorted(set(moved) | set(np.flatnonzero(counts >= minimum).tolist()))
    ]
    return sorted(found, key=lambda row: (-abs(row["moved"]), row["token_id"]))


def moved_mass(table: pa.Table) -> dict[int, float]:
    """Token id → Σ (p_tuned − p_base) over the positions at which it is among the most likely of either model."""
    if "base_top_tuned_logps" not in table.column_names:
        return {}
    base, tuned = column(table, "base_top_ids"), column(table, "tuned_top_ids")
    gained = np.exp(column(table, "base_top_tuned_logps")) - np.exp(column(table, "base_top_logps"))
    extra = np.exp(column(table, "tuned_top_logps")) - np.exp(column(table, "tuned_top_base_logps"))
    extra[(tuned[:, :, None] == base[:, None, :]).any(-1)] = 0.0
    ids = np.concatenate([base.ravel(), tuned.ravel()])
    names, place = np.unique(ids, return_inverse=True)
    sums = np.bincount(place, np.concatenate([gained.ravel(), extra.ravel()]).astype(float), len(names))
    return dict(zip(names.tolist(), sums.tolist(), strict=True))


def reallocation(table: pa.Table, *, measure: str = "js", threshold: float = HIGH) -> dict[str, Any]:
    """How probability was moved at positions above the threshold; every figure is NaN where there is none.

    `tuned_in_base` and `base_in_tuned` are shares of positions at which the most likely token of the one has rank 1, 2
    to 3, 4 to 10 or beyond with the other. `tail` is how often the base gave the tuned model's first choice less than
    that. `moved` is the mean mass that went to (or from) the tokens of each rank of the base, as
    far as the table lists them; `beyond` is the rest.
    """
    high, problems = column(table, measure) > threshold, column(table, "prompt")
    promoted = np.exp(column(table, "tuned_top1_base_logp"))
    size = column(table, "base_top_ids").shape[1]
    found = {
        "positions": int(high.sum()),
        "overlap": band(column(table, "top_overlap") / size, problems, where=high),
        "in_top3": band(column(table, "tuned_top1_base_rank") <= 3, problems, where=high),
        "tuned_in_base": _buckets(column(table, "tuned_top1_base_rank"), problems, high),
        "base_in_tuned": _buckets(column(table, "base_top1_tuned_rank"), problems, high),
        "tail": {tail: band(promoted < tail, problems, where=high) for tail in TAILS},
    }
    if "base_top_tuned_logps" in table.column_names:
        change = np.exp(column(table, "base_top_tuned_logps")) - np.exp(column(table, "base_top_logps"))
        parts = {_name(a, min(b, size)): change[:, a - 1 : b].sum(1) for a, b in RANK_BUCKETS if a <= size}
        parts["beyond"] = -sum(parts.values())
        found["moved"] = {name: band(values, problems, where=high) for name, values in parts.items()}
    return found


def _name(first: int, last: int) -> str:
    return str(first) if first == last else f"{first} to {last}"


def _buckets(ranks: Array, problems: Array, where: Array) -> dict[str, Band]:
    found = {_name(a, b): band((ranks >= a) & (ranks <= b), problems, where=where) for a, b in RANK_BUCKETS}
    return found | {"beyond": band(ranks > RANK_BUCKETS[-1][1], problems, where=where)}


def taxonomy(table: pa.Table, cuts: tuple[int, int] = (1, 3)) -> dict[str, Band]:
    """Shares of positions by the base's rank of the tuned model's first choice: `unshifted` up to the first cut,
    `marginal` up to the second, `shifted` beyond; cuts (1, 3) or (1, 5)."""
    ranks, problems = column(table, "tuned_top1_base_rank"), column(table, "prompt")
    return {
        "unshifted": band(ranks <= cuts[0], problems),
        "marginal": band((ranks > cuts[0]) & (ranks <= cuts[1]), problems),
        "shifted": band(ranks > cuts[1], problems),
    }


def responses(table: pa.Table, quantiles: Sequence[float] = (0.1, 0.5, 0.9)) -> list[dict[str, float]]:
    """Per response and model the entropy production rate, Σ H_t / T in nats a token, and quantiles of log p [O]."""
    numbers = column(table, "response")
    order, starts = np.argsort(numbers, kind="stable"), np.unique(numbers)
    bounds = np.searchsorted(numbers[order], starts)
    columns = {name: column(table, name) for name in _OF_RESPONSES if name in table.column_names}
    found = []
    for number, rows in zip(starts.tolist(), np.split(order, bounds[1:]), strict=True):
        line: dict[str, float] = {"response": number, "tokens": len(rows)}
        for model in ("base", "tuned"):
            if f"{model}_entropy" in columns:
                line[f"{model}_entropy_rate"] = float(columns[f"{model}_entropy"][rows].mean())
            at = np.quantile(columns[f"{model}_logp"][rows], quantiles)
            line |= {f"{model}_logp_q{q:g}": float(value) for q, value in zip(quantiles, at, strict=True)}
        found.append(line)
    return found
