"""Rewards of given completions, for a person to look at: values, pieces in colour, times and failures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokencredit.analysis.terminal import show, visible
from tokencredit.analysis.token_view import Column, Response, TokenView, short
from tokencredit.data.pieces import offsets_within, sampled_offsets, span_values
from tokencredit.data.responses import prompt_text
from tokencredit.data.spans import token_offsets
from tokencredit.errors import InputError, plain
from tokencredit.rewards import Reward, RewardBatch, RewardPool
from tokencredit.rewards.batch import joined
from tokencredit.rewards.contract import text_of
from tokencredit.rewards.pool import describe

Row = dict[str, Any]
_BATCH = 64


@dataclass
class Checked:
    """Rows with their rewards.

    Args:
        rows: The data.
        batch: Their rewards.
        pieces: Per row the text of its tokens, or its whole text if there is no tokenizer.
        metrics: What functions logged, name → values.
    """

    rows: Sequence[Row]
    batch: RewardBatch
    pieces: list[list[str]] = field(default_factory=list)
    metrics: dict[str, list[float]] = field(default_factory=dict)


def check_rewards(
    pool: RewardPool, rows: Sequence[Row], tokenizer: Any = None, progress: Callable[[str], None] | None = None
) -> Checked:
    """Score rows as training would, batch by batch.

    Args:
        pool: The pool.
        rows: Mappings with `completion`, `prompt` if there is one, and the columns that the functions take.
        tokenizer: Gives `completion_ids` where the rows have none; without it those are not there.
        progress: Is told how far it is.

    Raises:
        InputError: A row has no completion, rows differ in their keys, or a function lacks a column.
    """
    rows = [_with_ids(row, tokenizer) for row in rows]
    _check_rows(rows)
    checked = Checked(rows, RewardBatch(pool.names))
    batches = []
    for start in range(0, len(rows), _BATCH):
        part = rows[start : start + _BATCH]
        columns: dict[str, Any] = {_PLURAL.get(name, name): [row[name] for row in part] for name in part[0]}
        batches.append(
            pool.score(
                columns.pop("completions"),
                log_metric=lambda name, value: checked.metrics.setdefault(name, []).append(value),
                **columns,
            )
        )
        if progress is not None:
            progress(f"{start + len(part)} of {len(rows)} scored")
    checked.batch = joined(batches)
    checked.pieces = [_pieces(row, tokenizer) for row in rows]
    return checked


_PLURAL = {"completion": "completions", "prompt": "prompts"}


def print_check(
    checked: Checked,
    console: Console,
    *,
    samples: int,
    weights: Sequence[float] | None = None,
    column: str | None = None,
) -> None:
    """Print the first samples with their pieces in colour, a summary of each function, and the first failures."""
    if samples:
        show(_view(checked, samples, weights), console, column)
        console.print()
    console.print(_summary(checked))
    for name, values in checked.metrics.items():
        console.print(f"logged {plain(name)}: {short(sum(values) / len(values))}", markup=False)
    slowest = ", ".join(f"{name}[{row}] {seconds:.3f} s" for name, row, seconds in checked.batch.slowest())
    console.print(f"slowest: {plain(slowest)}", markup=False)
    for failure in checked.batch.first_failures():
        console.print()
        console.print(Text(describe(failure)))


def _view(checked: Checked, samples: int, weights: Sequence[float] | None) -> TokenView:
    responses = []
    totals = checked.batch.combined(weights)
    for index, row in enumerate(checked.rows[:samples]):
        rewards = dict(zip(checked.batch.names, checked.batch.rewards[index], strict=True))
        tokens, offsets = _cut(checked.pieces[index], list(rewards.values()))
        columns = {
            name: _values(reward, offsets, checked.pieces[index])
            for name, reward in rewards.items()
            if reward is not None and (reward.spans or reward.tokens)
        }
        responses.append(
            Response(
                _title(checked.batch, index, totals[index]), tokens, columns, prompt=prompt_text(row.get("prompt"))
            )
        )
    names = [Column(name, "what each piece adds to the reward", diverging=True) for name in checked.batch.names]
    return TokenView(responses, names)


def _cut(pieces: list[str], rewards: list[Reward | None]) -> tuple[list[str], list[tuple[int, int]]]:
    """The tokens, or without a tokenizer the text cut where a span begins or ends."""
    ends = {0}
    for piece in pieces:
        ends.add(max(ends) + len(piece))
    if len(pieces) == 1:
        spans = [span for reward in rewards if reward is not None for span in reward.spans or ()]
        ends |= {span[side] for span in spans for side in ("start", "end")}
        cuts = sorted(ends)
        offsets = list(pairwise(cuts))
        return [pieces[0][start:end] for start, end in offsets], offsets
    offsets, at = [], 0
    for piece in pieces:
        offsets.append((at, at + len(piece)))
        at += len(piece)
    return pieces, offsets


def _values(reward: Reward, offsets: list[tuple[int, int]], pieces: list[str]) -> list[float]:
    if reward.tokens is not None:
        # Without a tokenizer there is one piece for all of them.
        return reward.tokens if len(reward.tokens) == len(pieces) else [reward.value] * len(offsets)
    return span_values(offsets, reward.spans or ())


def _title(batch: RewardBatch, index: int, total: float | None) -> str:
    entries = []
    for name, value, status in zip(batch.names, batch.values[index], batch.status[index], strict=True):
        entries.append(f"{name} {status if value is None else short(value)}")
    if len(entries) > 1:
        entries.append(f"together {'nothing' if total is None else short(total)}")
    return f"sample {index} · {' · '.join(entries)}"


def _summary(checked: Checked) -> Table:
    batch, metrics = checked.batch, checked.batch.metrics()
    heads = ("reward", "mean", "std", "ok", "abstain", "timeout", "error", "s/sample", "p95")
    table = Table(*heads, box=None)
    for place, name in enumerate(batch.names):
        statuses = [row[place] for row in batch.status]
        counts = [str(statuses.count(status)) for status in ("ok", "abstain", "timeout", "error")]
        seconds = sum(row[place] for row in batch.seconds) / max(1, len(batch.seconds))
        figures = [metrics.get(f"rewards/{name}/{figure}") for figure in ("mean", "std")]
        cells = ["–" if figure is None else str(short(figure)) for figure in figures]
        p95 = metrics[f"rewards/{name}/seconds_p95"]
        table.add_row(visible(name, spaces=False), *cells, *counts, f"{seconds:.4f}", f"{p95:.4f}")
    return table


def _with_ids(row: Row, tokenizer: Any) -> Row:
    if tokenizer is None or "completion_ids" in row or "completion" not in row:
        return row
    return row | {"completion_ids": token_offsets(tokenizer, text_of(row["completion"]))[0]}


def _check_rows(rows: Sequence[Row]) -> None:
    if not rows:
        raise InputError("samples", "there are none", "give at least one row")
    for index, row in enumerate(rows):
        if "completion" not in row:
            problem = f"row {index} has no completion but {', '.join(row)}"
            raise InputError("samples", problem, "give the answers to be scored as `completion`")
        if set(row) != set(rows[0]):
            other = ", ".join(sorted(set(row) ^ set(rows[0])))
            raise InputError("samples", f"row {index} and the first differ in {other}", "give all rows the same keys")


def _pieces(row: Row, tokenizer: Any) -> list[str]:
    """The text of each token: what characters it wrote; of several that share one, the first has it."""
    text = text_of(row["completion"])
    if tokenizer is None:
        return [text]
    decoded, offsets = sampled_offsets(tokenizer, row["completion_ids"])
    inside = offsets_within(decoded, offsets, text)
    if inside is None:
        return [text]
    pieces, at = [], 0
    for _, end in inside:
        pieces.append(text[at : max(at, end)])
        at = max(at, end)
    return pieces if at == len(text) and len(pieces) > 1 else [text]
