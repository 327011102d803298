"""Where two models really differ: `compare` and what it found."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch import nn

from tokencredit.analysis.models import check_positions, positions
from tokencredit.analysis.shift_summary import Summary, summary
from tokencredit.analysis.shift_table import listed_texts, metadata, rows
from tokencredit.analysis.token_texts import token_texts
from tokencredit.analysis.trajectories import Generation, Trajectory, check_lengths, generate, prompt_ids
from tokencredit.analysis.whole_files import write_table, write_text
from tokencredit.errors import InputError
from tokencredit.scoring.shift import Side, shift_measures, sides
from tokencredit.scoring.trl_compat import bare_model

TABLE, ABOUT, PARTS = "shift.parquet", "shift.json", "parts"
LEADS = ("tuned", "base", "both")
SHARD = 64
"""Responses that are scored and kept at a time."""

_FINGERPRINT = "fingerprint"


@dataclass(frozen=True)
class Scoring:
    """How positions are compared.

    Args:
        mode: `exact`, `top_p` or `top_k`, see `tokencredit.scoring.measures.measures`.
        top_p: For the mode `top_p`; the paper's 0.7 [N].
        top_n: Most likely tokens that are kept of both models.
        shard: Responses that are scored and kept at a time.
        batch_tokens: Padded tokens of one forward.
    """

    mode: str = "exact"
    top_p: float = 0.7
    top_n: int = 10
    shard: int = SHARD
    batch_tokens: int = 4096

    def __post_init__(self) -> None:
        for name in ("top_n", "shard", "batch_tokens"):
            if getattr(self, name) < 1:
                raise InputError(name, f"{getattr(self, name)} is none", "use at least 1")


@dataclass(frozen=True)
class ShiftResult:
    """A comparison.

    Args:
        table: One row a position (`tokencredit.analysis.shift_table.rows`).
        prompts: Text of each problem.
        texts: Token id → text, of all tokens in the table.
        about: What was compared and how, name → text.
    """

    table: pa.Table
    prompts: list[str] = field(default_factory=list)
    texts: dict[int, str] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)

    def summary(self) -> Summary:
        """The figures; `print` shows them as text."""
        return self._summary

    @cached_property
    def _summary(self) -> Summary:
        return summary(self.table)

    def to_html(self, path: Path | str) -> Path:
        """Write the report as one page that loads nothing."""
        from tokencredit.analysis.shift_page import write_page

        return write_page(self, Path(path))

    def to_markdown(self) -> str:
        """The report without its tokens."""
        from tokencredit.analysis.shift_page import markdown

        return markdown(self)

    def save(self, folder: Path) -> None:
        """Write table, texts and figures into a folder that `load` reads without the models."""
        folder.mkdir(parents=True, exist_ok=True)
        write_table(self.table, folder / TABLE)
        known = {"about": self.about, "prompts": self.prompts, "texts": {str(k): v for k, v in self.texts.items()}}
        text = json.dumps(known | {"summary": self.summary().as_dict()}, indent=1)
        write_text(text + "\n", folder / ABOUT)

    @staticmethod
    def load(folder: Path) -> "ShiftResult":
        """Read what `save` wrote.

        Raises:
            InputError: There is no comparison in the folder.
        """
        try:
            known = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            table = pq.read_table(folder / TABLE)
        except (OSError, ValueError) as error:
            raise InputError(
                str(folder), f"holds no comparison ({error})", "name a folder that `shift` wrote"
            ) from None
        return ShiftResult(table, known["prompts"], {int(k): v for k, v in known["texts"].items()}, known["about"])


def compare(
    base: nn.Module | None,
    tuned: nn.Module,
    tokenizer: Any,
    prompts_or_trajectories: Sequence[Any],
    *,
    name: str = "tuned",
    lead: str = "tuned",
    generation: Generation | None = None,
    scoring: Scoring | None = None,
    folder: Path | None = None,
    identity: str | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> ShiftResult:
    """Compare two models at every position of responses that one of them wrote.

    "Sparse but Critical", arXiv 2603.22446 [N] compares on the tuned model's own responses; those of the base, and
    given ones, are ours [O].

    Args:
        base: The model that was tuned; None takes `tuned` with its adapter off.
        tuned: The tuned model; with LoRA the adapter on.
        tokenizer: Of both.
        prompts_or_trajectories: Texts or chats that the models respond to, or `Trajectory` items as they are.
        name: Of the tuned model in table and report.
        lead: Who responds: `tuned`, `base` or `both`.
        generation: How responses are drawn.
        scoring: How they are compared.
        folder: Where finished shards are kept, so that a comparison that was broken off goes on; None keeps none.
        identity: What tells the two models from others in `folder`; needed with it.
        progress: Called with a line on what is being done.

    Returns:
        Table, texts, and what was compared.

    Raises:
        InputError: Nothing to compare, an unknown `lead`, a folder without an identity, what `responded`
            and `check_lengths` refuse, or as `shift_measures`.
    """
    if folder is not None and not identity:
        raise InputError("identity", "there is none, and `folder` may hold shards of other models", "name these two")
    both, scoring = sides(base, tuned), scoring or Scoring()
    trajectories = responded(
        both, tokenizer, prompts_or_trajectories, lead=lead, generation=generation or Generation(), progress=progress
    )
    check_lengths(trajectories, _rooms(both))
    texts = token_texts(tokenizer)
    tables = []
    for first, part in shards(trajectories, scoring.shard):
        progress(f"{name}: {first} of {len(trajectories)} responses compared")
        mark = None if folder is None else fingerprint(part, first, scoring, name, identity or "")
        path = None if folder is None else folder / PARTS / f"{mark}.parquet"
        tables.append(kept(path) or keep(score(both, part, first, texts, name=name, scoring=scoring), path))
    return result(tables, trajectories, texts)


def responded(
    both: tuple[Side, Side],
    tokenizer: Any,
    given: Sequence[Any],
    *,
    lead: str,
    generation: Generation,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Trajectory]:
    """Trajectories as they are, or those that the models write to prompts.

    Raises:
        InputError: Nothing is given, an unknown `lead`, a prompt that cannot be used, or responses that may become
            longer than one of the models can take.
    """
    if lead not in LEADS:
        raise InputError("lead", f"{lead!r} is unknown", f"use one of {', '.join(LEADS)}")
    if not len(given):
        raise InputError("prompts", "there are none", "give at least one")
    if isinstance(given[0], Trajectory):
        return list(given)
    longest = max(map(len, prompt_ids(tokenizer, given)))
    for name, room in _rooms(both):
        check_positions(name, room, longest, generation.max_new_tokens)
    found = []
    # The tuned model's first: they are what the paper looks at.
    for side, led in zip(reversed(both), ("tuned", "base"), strict=True):
        if lead in (led, "both"):
            progress(f"responses of the {led} model")
            found += generate(side, tokenizer, given, generation, led=led)
    return found


def _rooms(both: tuple[Side, Side]) -> list[tuple[str, int | None]]:
    """A name of each model, and how many tokens it takes."""
    configs = [bare_model(side.model).config for side in both]
    return [(config.name_or_path or config.model_type, positions(config)) for config in configs]


def shards(trajectories: Sequence[Trajectory], size: int) -> Iterator[tuple[int, list[Trajectory]]]:
    """Trajectories in pieces, each with the number of its first."""
    for first in range(0, len(trajectories), size):
        yield first, list(trajectories[first : first + size])


def score(
    both: tuple[Side, Side],
    part: Sequence[Trajectory],
    first: int,
    texts: Any,
    *,
    name: str,
    scoring: Scoring,
) -> pa.Table:
    """The rows of one shard."""
    sequences = [item.prompt_ids + item.ids for item in part]
    found = shift_measures(
        *both,
        sequences,
        [len(item.prompt_ids) for item in part],
        mode=scoring.mode,
        top_p=scoring.top_p,
        top_n=scoring.top_n,
        batch_tokens=scoring.batch_tokens,
    )
    return rows(name, part, first, found, texts)


def fingerprint(part: Sequence[Trajectory], first: int, scoring: Scoring, name: str, identity: str) -> str:
    """What a shard's rows depend on, so that they are taken again only for the same."""
    key = [identity, name, first, scoring.mode, scoring.top_p, scoring.top_n, [item.as_dict() for item in part]]
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]


def keep(table: pa.Table, path: Path | None) -> pa.Table:
    """Keep the rows of a shard, and take them as they will be read again, so that a table is the same either way."""
    if path is None:
        return table
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(metadata(table, {_FINGERPRINT: path.stem}), path)
    return kept(path)


def kept(path: Path | None) -> pa.Table | None:
    """The rows of a shard that was finished before; a file of another name that was put there does not count."""
    if path is None or not path.is_file():
        return None
    table = pq.read_table(path)
    mark = (table.schema.metadata or {}).get(_FINGERPRINT.encode(), b"").decode()
    return table.replace_schema_metadata(None) if mark == path.stem else None


def result(tables: Sequence[pa.Table], trajectories: Sequence[Trajectory], texts: Any) -> ShiftResult:
    """The shards as one comparison."""
    table = pa.concat_tables(tables).combine_chunks()
    prompts = {item.prompt: item.text for item in trajectories}
    listed = [prompts.get(number, "") for number in range(max(prompts, default=-1) + 1)]
    return ShiftResult(table, listed, listed_texts(table, texts))


def joined(results: Sequence[ShiftResult], about: dict[str, str]) -> ShiftResult:
    """Several tuned models against one base as one comparison; their prompts are the same."""
    texts = {token: text for found in results for token, text in found.texts.items()}
    prompts = max((found.prompts for found in results), key=len)
    return ShiftResult(pa.concat_tables([found.table for found in results]).combine_chunks(), prompts, texts, about)
