"""`tokencredit shift`: one base, one or several tuned models, responses written or stored; kept as it goes."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from tokencredit.analysis.model_pair import ModelPair, identity
from tokencredit.analysis.models import free, max_positions
from tokencredit.analysis.shift import (
    LEADS,
    PARTS,
    Scoring,
    ShiftResult,
    fingerprint,
    joined,
    keep,
    kept,
    responded,
    result,
    score,
    shards,
)
from tokencredit.analysis.token_texts import token_texts
from tokencredit.analysis.trajectories import Generation, Trajectory, check_lengths, prompt_ids
from tokencredit.analysis.whole_files import write_text
from tokencredit.errors import InputError
from tokencredit.scoring.shift import sides

RESPONSES = "responses"


@dataclass(frozen=True)
class Request:
    """What is compared.

    Args:
        base: Folder or hub name.
        tuned: Name → folder or hub name, in the order of the report.
        given: Prompts, or trajectories.
        lead: Who responds to prompts: `tuned`, `base` or `both`.
        same_responses: Of several tuned models, all are compared on the responses of the last, as checkpoints of one
            run have to be for their overlap to be known.
        generation: How responses are drawn.
        scoring: How positions are compared.
        dtype: Of the models.
        folder: Of table and report; what is finished in it is not computed again.
    """

    base: str
    tuned: Mapping[str, str]
    given: Sequence[Any]
    folder: Path
    lead: str = "tuned"
    same_responses: bool = False
    generation: Generation = field(default_factory=Generation)
    scoring: Scoring = field(default_factory=Scoring)
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if self.lead not in LEADS:
            raise InputError("--lead", f"{self.lead!r} is unknown", f"use one of {', '.join(LEADS)}")
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError("--output", f"{self.folder} is a file", "name a folder")
        if not self.tuned:
            raise InputError("TUNED", "there is none", "name at least one tuned model")


@dataclass(frozen=True)
class Shard:
    """Responses that are scored together, and where their rows are kept."""

    first: int
    part: list[Trajectory]
    path: Path


Scorer = Callable[[Request, str, list[Shard]], Iterator[pa.Table]]
"""From a request, the name of a tuned model and what is missing of it to the rows of each, in order."""


def run(
    request: Request,
    tokenizer: Any,
    *,
    scorer: Scorer | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> ShiftResult:
    """Compare, and keep table and figures in the request's folder.

    Args:
        request: What.
        tokenizer: Of all models.
        scorer: Scores the shards elsewhere; None does it here.
        progress: Called with a line on what is being done.

    Raises:
        InputError: A model cannot be loaded or compared.
    """
    request.folder.mkdir(parents=True, exist_ok=True)
    pair = ModelPair(request.base, request.dtype)
    texts = token_texts(tokenizer)
    shared = list(request.given) if isinstance(request.given[0], Trajectory) else None
    if request.same_responses and shared is None:
        shared = _responses(request, pair, tokenizer, list(request.tuned)[-1], progress)
    if shared is not None:
        check_lengths(shared, _rooms(request.base, *request.tuned.values()))
    found = []
    for name in request.tuned:
        trajectories = shared if shared is not None else _responses(request, pair, tokenizer, name, progress)
        both = identity(request.base) + identity(request.tuned[name]) + request.dtype
        pieces = []
        for first, part in shards(trajectories, request.scoring.shard):
            mark = fingerprint(part, first, request.scoring, name, both)
            pieces.append(Shard(first, part, request.folder / PARTS / f"{mark}.parquet"))
        tables = {piece.first: kept(piece.path) for piece in pieces}
        missing = [piece for piece in pieces if tables[piece.first] is None]
        scored = iter(()) if not missing else (scorer or _here(pair, texts))(request, name, missing)
        for done, (piece, table) in enumerate(zip(missing, scored, strict=True), len(pieces) - len(missing) + 1):
            tables[piece.first] = keep(table, piece.path)
            progress(f"{name}: {done} of {len(pieces)} shards of {request.scoring.shard} responses")
        found.append(result([tables[piece.first] for piece in pieces], trajectories, texts))
    whole = joined(found, _about(request))
    whole.save(request.folder)
    return whole


def _here(pair: ModelPair, texts: Any) -> Scorer:
    def scorer(request: Request, name: str, missing: list[Shard]) -> Iterator[pa.Table]:
        with pair.against(request.tuned[name]) as models:
            for piece in missing:
                yield score(sides(*models), piece.part, piece.first, texts, name=name, scoring=request.scoring)
        del models
        free()

    return scorer


def _responses(
    request: Request, pair: ModelPair, tokenizer: Any, name: str, progress: Callable[[str], None]
) -> list[Trajectory]:
    """What the models write to the prompts; what they wrote to the same ones before is taken again."""
    models = [identity(request.base) if request.lead != "tuned" else "", ""]
    models[1] = identity(request.tuned[name]) if request.lead != "base" else ""
    # The tokens tell templates apart that another model of the comparison has.
    asked = [list(request.given), prompt_ids(tokenizer, request.given)]
    key = json.dumps([models, request.lead, asdict(request.generation), asked, request.dtype])
    path = request.folder / RESPONSES / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.jsonl"
    if path.is_file():
        found = [Trajectory(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        check_lengths(found, _rooms(request.base, request.tuned[name]))
        return found
    with pair.against(request.tuned[name]) as (base, tuned):
        found = responded(
            sides(base, tuned),
            tokenizer,
            request.given,
            lead=request.lead,
            generation=request.generation,
            progress=lambda text: progress(f"{name}: {text}"),
        )
    del base, tuned
    free()
    path.parent.mkdir(exist_ok=True)
    write_text("".join(json.dumps(item.as_dict()) + "\n" for item in found), path)
    return found


def _rooms(*models: str) -> list[tuple[str, int | None]]:
    return [(model, max_positions(model)) for model in models]


def _about(request: Request) -> dict[str, str]:
    scoring, generation = request.scoring, request.generation
    written = not isinstance(request.given[0], Trajectory)
    facts = {"base": Path(request.base).name or request.base}
    facts |= {"tuned": ", ".join(request.tuned)}
    facts |= {"mode": scoring.mode if scoring.mode != "top_p" else f"top_p {scoring.top_p:g}"}
    if written:
        facts["responses"] = (
            f"{request.lead}-led, {generation.num_samples} a prompt, temperature {generation.temperature:g}"
        )
    else:
        facts["responses"] = "given"
    if request.dtype != "auto":
        facts["dtype"] = request.dtype
    return facts
