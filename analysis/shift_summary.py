"""What a comparison found, in numbers and as a block of text in the manner of llama.cpp's KL statistics."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tokencredit.analysis import shift_figures as figures
from tokencredit.analysis.shift_evolution import evolution
from tokencredit.analysis.shift_figures import Band
from tokencredit.analysis.shift_table import column, parts

LABELS = {"js": "JS", "js_lower": "JS, lower bound", "js_upper": "JS, upper bound"}
"""Names of the measures that sparsity can be asked of: JS, or its bounds where only they are known."""
_MEASURES = (
    ("kl_tuned_base", "KL(tuned ‖ base)"),
    ("kl_base_tuned", "KL(base ‖ tuned)"),
    ("half_jeffreys", "half-Jeffreys"),
    ("tv", "total variation"),
    ("base_entropy", "entropy, base"),
    ("tuned_entropy", "entropy, tuned"),
    ("delta_logp", "Δ log p of the token"),
)


def measures_of(table: pa.Table) -> list[str]:
    """Those of `LABELS` that a table has."""
    return [name for name in LABELS if name in table.column_names]


@dataclass(frozen=True)
class Summary:
    """Figures of each tuned model and each kind of trajectory.

    Args:
        figures: (model, led) → sections; every leaf is a number or a `Band`.
        evolution: A line per model, where there are several (`shift_evolution.evolution`).
    """

    figures: dict[tuple[str, str], dict[str, Any]]
    evolution: list[dict[str, Any]]

    def headline(self, model: str, led: str) -> str:
        """The comparison in one sentence of numbers."""
        found = self.figures[(model, led)]
        measure = next(iter(found["sparsity"]))
        sparse = found["sparsity"][measure]
        above, near = sparse["above"][figures.HIGH], sparse["above"][1e-3]
        if not sparse["positions"]:
            return f"{model}: no position to compare"
        on = f" on {led}-led responses" if len(self.figures) > 1 else ""
        said = f"{model} differs from its base{on} (JS > {figures.HIGH:g}) at {_percent(above)} of "
        said += f"{sparse['positions']:,} positions"
        if measure != "js":
            upper = found["sparsity"]["js_upper"]["above"][figures.HIGH]
            return f"{said} at least, at {_percent(upper)} at most: only the most likely tokens were compared"
        share = sparse["top_share"][0.05]
        said += f" and hardly (JS < 0.001) at {100 * (1 - near.value):.1f} %"
        said += f"; the top 5 % of positions hold {100 * share:.0f} % of the divergence"
        moved = found["reallocation"]
        if moved["positions"]:
            said += (
                f"; where it differs, its first choice was among the base's first three in {_percent(moved['in_top3'])}"
            )
        return said

    def __str__(self) -> str:
        if not self.figures:
            return "There is no position to compare."
        blocks = [_block(model, led, found) for (model, led), found in self.figures.items()]
        return "\n\n".join([*blocks, *([_evolution(self.evolution)] if self.evolution else [])])

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        found = [{"model": m, "led": led} | _plain(value) for (m, led), value in self.figures.items()]
        return {"models": found, "evolution": _plain(self.evolution)}


def summary(table: pa.Table) -> Summary:
    """The figures of a table, for each tuned model and kind of trajectory."""
    found = {key: _figures(part) for key, part in parts(table).items()}
    several = len({model for model, _ in found}) > 1 and "js" in table.column_names
    return Summary(found, evolution(table) if several else [])


def _figures(table: pa.Table) -> dict[str, Any]:
    problems = column(table, "prompt")
    named = measures_of(table)
    found: dict[str, Any] = {
        "responses": len(np.unique(column(table, "response"))),
        "sparsity": {name: figures.sparsity(column(table, name), problems) for name in named},
        "means": {
            name: figures.band(column(table, name), problems) for name, _ in _MEASURES if name in table.column_names
        },
        "same_top1": figures.band(column(table, "tuned_top1_base_rank") == 1, problems),
        "taxonomy": {f"{cuts[0]}, {cuts[1]}": figures.taxonomy(table, cuts) for cuts in ((1, 3), (1, 5))},
        "reallocation": figures.reallocation(table, measure=named[0]),
    }
    delta = np.exp(column(table, "tuned_logp")) - np.exp(column(table, "base_logp"))
    found["delta_p"] = {"mean": figures.band(delta, problems), "rms": float(np.sqrt((delta**2).mean()))}
    found["responses_mean"] = _response_means(table)
    return found


def _response_means(table: pa.Table) -> dict[str, float]:
    """Entropy production rate and quantiles of log p, averaged over responses."""
    lines = figures.responses(table)
    names = [name for name in (lines[0] if lines else {}) if name not in ("response", "tokens")]
    return {name: float(np.mean([line[name] for line in lines])) for name in names}


def _percent(found: Band) -> str:
    return f"{100 * found.value:.1f} % [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _block(model: str, led: str, found: dict[str, Any]) -> str:
    measure, sparse = next(iter(found["sparsity"].items()))
    lines = [
        f"====== {model}: shift from the base, {led} trajectories ======",
        *_rows(("positions", f"{sparse['positions']:,}"), ("responses", f"{found['responses']:,}")),
        *_rows(("problems (intervals are over these)", f"{sparse['problems']:,}")),
    ]
    if not sparse["positions"]:
        return "\n".join(lines)
    for name, part in found["sparsity"].items():
        lines += ["", f"====== {LABELS[name]} (nats, 0 to 0.6931) ======", *_rows(("Mean", part["mean"]))]
        named = [
            ("Maximum" if q == 100 else "Median" if q == 50 else f"{q:.1f} %", v)
            for q, v in part["percentiles"].items()
        ]
        lines += _rows(*((name, f"{value:.6f}") for name, value in reversed(named)))
        lines += _rows(*((f"above {threshold:g}", _percent(share)) for threshold, share in part["above"].items()))
        lines += _rows(("Gini", f"{part['gini']:.4f}"))
        lines += _rows(*((f"held by the top {100 * s:g} %", f"{100 * v:.1f} %") for s, v in part["top_share"].items()))
    lines += ["", "====== Other measures, mean ======"]
    lines += _rows(*((label, found["means"][name]) for name, label in _MEASURES if name in found["means"]))
    lines += ["", "====== Token probabilities ======"]
    lines += _rows(("Mean Δp", found["delta_p"]["mean"]), ("RMS Δp", f"{found['delta_p']['rms']:.4f}"))
    lines += _rows(("Same first choice", _percent(found["same_top1"])))
    for cuts, shares in found["taxonomy"].items():
        lines += _rows(*((f"{name} (cuts {cuts})", _percent(share)) for name, share in shares.items()))
    lines += _rows(*((name.replace("_", " "), f"{value:.4f}") for name, value in found["responses_mean"].items()))
    return "\n".join([*lines, "", *_moved(found["reallocation"], measure)])


def _moved(found: dict[str, Any], measure: str) -> list[str]:
    lines = [f"====== Where {measure} > {figures.HIGH:g}: {found['positions']:,} positions ======"]
    if not found["positions"]:
        return lines
    lines += _rows(("shared among the most likely", _percent(found["overlap"])))
    for name, label in (
        ("tuned_in_base", "tuned first choice, rank in base"),
        ("base_in_tuned", "base first choice, rank in tuned"),
    ):
        lines += _rows(*((f"{label} {rank}", _percent(share)) for rank, share in found[name].items()))
    lines += _rows(
        *((f"tuned first choice had p < {tail:g}", _percent(share)) for tail, share in found["tail"].items())
    )
    return lines + _rows(*((f"mass moved to rank {rank}", mass) for rank, mass in found.get("moved", {}).items()))


def _evolution(lines: list[dict[str, Any]]) -> str:
    rows = ["====== Models on one axis ======"]
    rows.append(f"{'model':20} {'led':6} {'mean JS':>30} {'above 0.1':>24} {'Jaccard before':>15} {'with last':>10}")
    for line in lines:
        scores = " ".join(
            f"{value:>{width}.3f}" if np.isfinite(value) else f"{'–':>{width}}"
            for value, width in ((line["jaccard_before"], 15), (line["jaccard_last"], 10))
        )
        rows.append(f"{line['model']:20} {line['led']:6} {line['mean']!s:>30} {_percent(line['above']):>24} {scores}")
    return "\n".join(rows)


def _rows(*pairs: tuple[str, Any]) -> list[str]:
    return [f"{name:<38}: {value!s:>12}" for name, value in pairs]


def _plain(value: Any) -> Any:
    if isinstance(value, Band):
        return [_plain(value.value), _plain(value.low), _plain(value.high)]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value
