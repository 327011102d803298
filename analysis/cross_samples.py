"""Answers of two models writing together, in parts of a few problems each, which are kept as they are made."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tokencredit.analysis.trajectories import prompt_tokens
from tokencredit.analysis.whole_files import write_table
from tokencredit.errors import InputError
from tokencredit.scoring.cross_decode import Decoding, Row, Trace, cross_decode

PART = 64
"""Answers in a part: what an interruption costs, and the least that goes to a worker."""

_ORIGIN = ("_name_or_path", "base_model_name_or_path", "transformers_version", "peft_version")

TRACE = pa.schema(
    [
        ("tokens", pa.list_(pa.int32())),
        ("primary", pa.list_(pa.int32())),
        ("intervention", pa.list_(pa.int32())),
        ("scores", pa.list_(pa.float32())),
        ("flagged", pa.list_(pa.bool_())),
        ("used", pa.list_(pa.bool_())),
        ("ended", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Problem:
    """One question.

    Args:
        prompt: Text or chat messages.
        ids: Its tokens.
        columns: What else is known of it; rewards get them.
    """

    prompt: Any
    ids: Sequence[int]
    columns: dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A part: some answers, and how they are written.

    Args:
        swapped: Whether the second model is the primary.
        decoding: How.
        rows: The answers.
    """

    swapped: bool
    decoding: Decoding
    rows: Sequence[Row]

    def key(self, models: str) -> str:
        """What its answers depend on, as a name for a file."""
        rows = [(list(row.ids), row.prompt, row.sample, row.start) for row in self.rows]
        text = json.dumps([models, self.swapped, asdict(self.decoding), rows], default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


Decode = Callable[[Sequence[Job]], Iterator[tuple[int, list[Trace]]]]
"""Runs jobs: the place of each with its traces, in any order."""


def decode_here(first: Any, second: Any, batch_size: int) -> Decode:
    """Run jobs in this process, one after the other."""

    def run(jobs: Sequence[Job]) -> Iterator[tuple[int, list[Trace]]]:
        for place, job in enumerate(jobs):
            models = (second, first) if job.swapped else (first, second)
            yield place, cross_decode(*models, job.rows, job.decoding, batch_size=batch_size)

    return run


@dataclass(frozen=True)
class Sampler:
    """Makes the answers to all problems, or takes those that are there.

    Args:
        problems: All of them.
        samples: Answers to each.
        decode: What runs the jobs.
        models: What stands for the two models in the names of kept parts.
        folder: Where parts are kept; None keeps none.
        part: Answers in a part, rounded down to whole problems.
        progress: Called with a line on what is being done.

    Raises:
        InputError: There is less than one answer to a problem.
    """

    problems: Sequence[Problem]
    samples: int
    decode: Decode
    models: str = ""
    folder: Path | None = None
    part: int = PART
    progress: Callable[[str], None] = lambda _: None

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise InputError("samples", f"{self.samples} is too few", "give 1 or more")

    def run(
        self, decoding: Decoding, *, swapped: bool = False, first: int | None = None, what: str = ""
    ) -> list[list[Trace]]:
        """Answers to the first so many problems, by problem.

        Args:
            decoding: How they are written.
            swapped: Whether the second model is the primary.
            first: How many problems; all by default.
            what: Name for the progress.
        """
        count = len(self.problems[:first])
        rows = [
            Row(self.problems[place].ids, place, sample) for place in range(count) for sample in range(self.samples)
        ]
        traces = self.run_rows(rows, decoding, swapped=swapped, what=what)
        return [traces[place * self.samples :][: self.samples] for place in range(count)]

    def run_rows(self, rows: Sequence[Row], decoding: Decoding, *, swapped: bool, what: str = "") -> list[Trace]:
        """Any answers, in the order of their rows."""
        size = max(1, self.part // self.samples) * self.samples
        jobs = [Job(swapped, decoding, rows[start : start + size]) for start in range(0, len(rows), size)]
        found = {place: traces for place, job in enumerate(jobs) if (traces := self._kept(job)) is not None}
        wanted = [place for place in range(len(jobs)) if place not in found]
        self.progress(f"{what}: part {len(found)} of {len(jobs)}")
        for place, traces in self.decode([jobs[place] for place in wanted]):
            found[wanted[place]] = traces
            self._keep(jobs[wanted[place]], traces)
            self.progress(f"{what}: part {len(found)} of {len(jobs)}")
        return [trace for place in range(len(jobs)) for trace in found[place]]

    def _path(self, job: Job) -> Path | None:
        return None if self.folder is None else self.folder / f"{job.key(self.models)}.parquet"

    def _kept(self, job: Job) -> list[Trace] | None:
        path = self._path(job)
        if path is None or not path.is_file():
            return None
        return [Trace(**row) for row in pq.read_table(path).to_pylist()]

    def _keep(self, job: Job, traces: Sequence[Trace]) -> None:
        path = self._path(job)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_table(trace_table(traces), path)


def trace_table(traces: Sequence[Trace]) -> pa.Table:
    """One row per answer."""
    return pa.table({field.name: [getattr(trace, field.name) for trace in traces] for field in fields(Trace)}, TRACE)


def read_problems(tokenizer: Any, prompts: Sequence[Any]) -> list[Problem]:
    """Prompts as problems.

    Args:
        tokenizer: Of both models.
        prompts: Texts, chat messages, or rows with `prompt` and the columns that rewards take.

    Raises:
        InputError: There are none, a row has none, or one cannot be used (`prompt_tokens`).
    """
    if not prompts:
        raise InputError("prompts", "there are none", "give at least one")
    problems = []
    for place, given in enumerate(prompts):
        row = dict(given) if isinstance(given, dict) else {"prompt": given}
        if "prompt" not in row:
            problem = f"row {place} has no `prompt` but {', '.join(row)}"
            raise InputError("prompts", problem, "name the column with the question `prompt`")
        prompt = row.pop("prompt")
        problems.append(Problem(prompt, prompt_tokens(tokenizer, prompt, f"prompts row {place}"), row))
    return problems


def fingerprint(*models: Any) -> str:
    """What stands for models, their settings and weights: equal only where every one of them is."""
    digest = hashlib.sha256()
    for model in models:
        adapters = {name: adapter.to_dict() for name, adapter in getattr(model, "peft_config", {}).items()}
        settings = [_settings(found) for found in (model.config.to_dict(), adapters)]
        digest.update(json.dumps([str(model.dtype), *settings]).encode())
        for name, value in sorted(model.state_dict().items()):
            digest.update(f"{name}{list(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _settings(value: Any) -> Any:
    """Settings in an order of their own, without where they were loaded from and by which version."""
    if isinstance(value, dict):
        found = {str(name): _settings(item) for name, item in value.items() if name not in _ORIGIN}
        return sorted(found.items())
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return [_settings(item) for item in value] if isinstance(value, list | tuple) else str(value)
