"""Several tuned models beside each other: checkpoints of one run, or RL against SFT, on one axis."""

from typing import Any

import numpy as np
import pyarrow as pa

from tokencredit.analysis.shift_figures import HIGH, band
from tokencredit.analysis.shift_table import column, parts


def jaccard(a: pa.Table, b: pa.Table, threshold: float = HIGH) -> float:
    """Overlap of the positions above the threshold, |A ∩ B| / |A ∪ B|, of two models on the same responses.

    Returns:
        NaN where both sets are empty, the two have no position in common, or a token of these differs: places in
        responses that each model wrote for itself have nothing to do with each other.
    """
    keys, others = (column(table, "response").astype(np.int64) << 32 | column(table, "position") for table in (a, b))
    _, here, there = np.intersect1d(keys, others, assume_unique=True, return_indices=True)
    if (column(a, "token_id")[here] != column(b, "token_id")[there]).any():
        return float("nan")
    first, second = column(a, "js")[here] > threshold, column(b, "js")[there] > threshold
    union = int((first | second).sum())
    return float((first & second).sum() / union) if union else float("nan")


def evolution(table: pa.Table, threshold: float = HIGH) -> list[dict[str, Any]]:
    """A line for each tuned model, in their order: how much it differs from the base, and whether where the others do.

    Args:
        table: Of several models; overlaps are known where they are on the same responses.
        threshold: Above it a position counts as changed.

    Returns:
        `model`, `led`, `mean` and `above` (with intervals over problems), `delta_logp`, and
        `jaccard_before` and `jaccard_last`, with the model before and with the last one (NaN as in `jaccard`).
    """
    found = []
    by_led: dict[str, list[tuple[str, pa.Table]]] = {}
    for (model, led), part in parts(table).items():
        by_led.setdefault(led, []).append((model, part))
    for led, models in by_led.items():
        for number, (model, part) in enumerate(models):
            problems, js = column(part, "prompt"), column(part, "js")
            found.append(
                {
                    "model": model,
                    "led": led,
                    "mean": band(js, problems),
                    "above": band(js > threshold, problems),
                    "delta_logp": band(column(part, "delta_logp"), problems),
                    "jaccard_before": jaccard(models[number - 1][1], part, threshold) if number else float("nan"),
                    "jaccard_last": jaccard(part, models[-1][1], threshold),
                }
            )
    return found
