"""What came out of cross-sampling: figures, every answer, files and a page."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tokencredit.analysis.cross_arms import Arm
from tokencredit.analysis.cross_labels import OUTCOMES, Label
from tokencredit.analysis.cross_page import Shown, page
from tokencredit.analysis.cross_samples import TRACE, Problem, trace_table
from tokencredit.analysis.page import Table, write
from tokencredit.analysis.whole_files import write_table, write_text

_ENDS = ("primary", "intervention")
SAMPLES, LABELS, SUMMARY, PAGE = "samples.parquet", "labels.parquet", "summary.json", "cross_sample.html"


@dataclass
class CrossResult:
    """Arms of a cross-sampling sweep.

    Args:
        settings: What all arms have in common.
        rows: One per arm: direction, kind, threshold, shares of the tokens, mean reward, share of the gap, intervals.
        arms: The answers, in the order of the rows.
        problems: What was asked.
        tokenizer: Turns tokens into text.
        labels: Of flagged positions, where they were asked for.
        notes: What the reader has to know.
    """

    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    arms: list[Arm]
    problems: list[Problem]
    tokenizer: Any
    labels: list[Label] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for row in self.rows:
            if row["rate_matched"] is False:
                problem = f"{row['used']:.4f} of its tokens, asked for {self.rows[row['of']]['used']:.4f}"
                self.notes.append(f"{row['direction']}: the {row['asked']} replaced {problem}")
            if row.get("reward") is not None and row["kind"] == "primary" and row["gap_recovered"] is None:
                self.notes.append(f"{row['direction']}: {self._why_no_gap(row)}, so no share of it can be given")

    def _why_no_gap(self, primary: Mapping[str, Any]) -> str:
        ends = [row for row in self.rows if row["direction"] == primary["direction"] and row["kind"] in _ENDS]
        silent = [row["kind"] for row in ends if not row["scored"]]
        if silent:
            return f"no answer of the {' and the '.join(silent)} has a reward, and there is no gap"
        return "the gap's interval holds 0"

    @property
    def table(self) -> pa.Table:
        """One row per answer of each arm: tokens of both models, scores, what was flagged and used, reward, text."""
        parts = []
        for arm, row in zip(self.arms, self.rows, strict=True):
            traces = [trace for answers in arm.traces for trace in answers]
            places = [(place, n) for place, answers in enumerate(arm.traces) for n in range(len(answers))]
            rewards = [value for values in arm.rewards for value in values] if arm.rewards else [None] * len(traces)
            texts = self.tokenizer.batch_decode([trace.tokens for trace in traces], skip_special_tokens=True)
            about = {
                "direction": pa.array([arm.direction] * len(traces), pa.string()),
                "kind": pa.array([arm.kind] * len(traces), pa.string()),
                "rule": pa.array([arm.decoding.rule] * len(traces), pa.string()),
                "epsilon": pa.array([row["epsilon"]] * len(traces), pa.float64()),
                "budget": pa.array([row["budget"]] * len(traces), pa.int64()),
                "problem": pa.array([place for place, _ in places], pa.int64()),
                "sample": pa.array([n for _, n in places], pa.int64()),
                "reward": pa.array(rewards, pa.float64()),
                "text": pa.array(texts, pa.string()),
            }
            made = trace_table(traces)
            parts.append(pa.table(about | {name: made[name] for name in TRACE.names}))
        return pa.concat_tables(parts)

    def summary(self) -> dict[str, Any]:
        """Settings, a row per arm, what became of the labelled positions, and notes."""
        found: dict[str, Any] = {"settings": self.settings, "arms": self.rows, "notes": self.notes}
        return found | ({"labels": label_rows(self.labels)} if self.labels else {})

    def tables(self) -> list[Table]:
        """The arms, the labels and the settings as text."""
        found = [arm_table(self.rows)]
        if self.labels:
            head = ("direction", "outcome", "positions", "share", "mean score", "median score", "mean change")
            rows = [
                [row["direction"], row["label"], str(row["positions"]), _percent(row["share"])]
                + [_number(row[name]) for name in ("mean_score", "median_score", "mean_change")]
                for row in label_rows(self.labels)
            ]
            found.append(Table("What flagged positions lead to", head, rows))
        settings = [
            (name, ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value))
            for name, value in self.settings.items()
        ]
        return [*found, Table("Settings", (), settings)]

    def to_html(self, path: Path, title: str = "Cross-sampling") -> None:
        """Write the page: the curve, the table, and answers side by side with the replaced tokens marked."""
        parts = (self.settings, self.rows, self.arms, self.problems, self.tokenizer, self.notes, self.tables())
        write(page(Shown(*parts), title), path)

    def write(self, folder: Path, title: str = "Cross-sampling") -> list[Path]:
        """Write the answers (Parquet), the figures (JSON), the labels, and the page.

        Returns:
            The files.
        """
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / SUMMARY, folder / SAMPLES, folder / PAGE]
        write_text(json.dumps(_plain(self.summary()), indent=1, allow_nan=False) + "\n", files[0])
        write_table(self.table, files[1])
        self.to_html(files[2], title)
        if self.labels:
            files.append(folder / LABELS)
            write_table(pa.Table.from_pylist([asdict(label) for label in self.labels]), files[-1])
        return files


def arm_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One line per arm; in brackets are intervals."""
    head = ["direction", "arm", "ε", "flagged", "used", "effective"]
    scored = any("reward" in row for row in rows)
    head += ["reward", "gap recovered", "over random"] if scored else []
    lines = []
    for row in rows:
        name = row["kind"] if row["kind"] != "rule" else row["rule"]
        asked = f" ({row['asked']})" if row["asked"] else ""
        line = [row["direction"], "random" if row["kind"] == "control" else name + asked, _number(row["epsilon"])]
        line += [_percent(row[part]) for part in ("flagged", "used", "effective")]
        if scored:
            for name in ("reward", "gap_recovered", "over_control"):
                line.append(_number(row.get(name)) + _bounds(row.get(f"{name}_interval")))
        lines.append(line)
    return Table("Arms", head, lines)


def label_rows(labels: Sequence[Label]) -> list[dict[str, Any]]:
    """Of each direction and outcome: positions, their share, scores, and the mean change of the reward."""
    rows = []
    for direction in dict.fromkeys(label.direction for label in labels):
        of_direction = [label for label in labels if label.direction == direction]
        for outcome in OUTCOMES:
            part = [label for label in of_direction if label.label == outcome]
            scores = np.array([label.score for label in part])
            rows.append(
                {
                    "direction": direction,
                    "label": outcome,
                    "positions": len(part),
                    "share": len(part) / len(of_direction),
                    "mean_score": float(scores.mean()) if len(part) else None,
                    "median_score": float(np.median(scores)) if len(part) else None,
                    "mean_change": sum(label.change for label in part) / len(part) if part else None,
                }
            )
    return rows


def _plain(value: Any) -> Any:
    """For JSON, which has no word for what is not finite: `"inf"`, `"-inf"`, and null for what is no number."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return ("∞" if value > 0 else "−∞") if math.isinf(value) else f"{value + 0.0:.3g}".replace("-", "−")


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _bounds(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" [{_number(interval[0])}, {_number(interval[1])}]"
