"""Several models on the same documents, one after the other: greedy answers, scores, differences from the first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from tokencredit.analysis.models import check_positions, free, load_model, load_tokenizer, max_positions
from tokencredit.analysis.scores import Answers, Evaluation, Settings, score
from tokencredit.data.metrics import parse_references
from tokencredit.errors import InputError
from tokencredit.trainers.task_metric import greedy, question


@dataclass(frozen=True)
class Candidate:
    """A model to evaluate, and the documents as it is asked about them.

    Args:
        label: Name of its arm in tables; candidates of one label are runs of one arm, one for each training seed.
        model: Folder or hub name.
        prompts: Text or chat messages, one per document.
        references: Gold answers as text, one per document.
        recipe: File or built-in name of the recipe that made the prompts, or None.
    """

    label: str
    model: str
    prompts: Sequence[Any]
    references: Sequence[str]
    recipe: str | None = None


@dataclass(frozen=True)
class _Prepared:
    """A candidate with its tokenizer and its prompts as token ids."""

    candidate: Candidate
    tokenizer: PreTrainedTokenizerBase
    ids: list[list[int]]


def evaluate(
    candidates: Sequence[Candidate],
    settings: Settings,
    *,
    versions: dict[str, str] | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """Let every model answer greedily and score the answers.

    One model is in memory at a time. Everything that can be known beforehand is checked for all of them first.

    Args:
        candidates: At least one; the other arms are compared with that of the first.
        settings: How long answers may be, how many prompts go together, and how intervals are made.
        versions: Of the software, kept in the result.
        progress: Called with a line on what is being done.

    Returns:
        Answers, counts, scores, intervals and differences.

    Raises:
        InputError: There is no candidate or no document, an arm has the same model twice, two candidates have
            different gold answers, a gold answer is no records, a model cannot be loaded, or a prompt leaves it no
            room.
    """
    _check(candidates)
    prepared = [_prepare(candidate, settings.max_new_tokens) for candidate in candidates]
    answers = []
    for number, item in enumerate(prepared, start=1):
        progress(f"answers of {item.candidate.label} ({number} of {len(prepared)})")
        answers.append(_answers(item, settings))
    progress("scores and intervals")
    references = list(candidates[0].references)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    return Evaluation(
        settings=settings,
        versions=(versions or {}) | {"device": device.type},
        references=references,
        models=score(answers, references, settings),
    )


def _check(candidates: Sequence[Candidate]) -> None:
    if not candidates or not candidates[0].references:
        raise InputError("DATA", "nothing to evaluate", "give at least one model and one document")
    seen: set[tuple[str, str | Path]] = set()
    for candidate in candidates:
        place = Path(candidate.model)
        run = candidate.label, place.resolve() if place.exists() else candidate.model
        if run in seen:
            problem = f"{candidate.label!r} has {candidate.model!r} twice, and a run cannot differ from itself"
            raise InputError("MODEL", problem, "give every training seed its own folder")
        seen.add(run)
    gold = parse_references(candidates[0].references, where="DATA")
    for candidate in candidates[1:]:
        if parse_references(candidate.references, where="DATA") != gold:
            # The folder and not the label, which several runs may share.
            problem = f"{candidate.model!r} and {candidates[0].model!r} have different gold answers"
            raise InputError("MODEL", problem, "give one recipe for all models with --recipe")


def _prepare(candidate: Candidate, max_new_tokens: int) -> _Prepared:
    tokenizer = load_tokenizer(candidate.model)
    if tokenizer.chat_template is None and any(not isinstance(prompt, str) for prompt in candidate.prompts):
        problem = f"the prompts are chat messages and {candidate.model!r} has no chat template"
        raise InputError("MODEL", problem, "use an instruction-tuned model, or plain-text prompts")
    ids = [question(tokenizer, prompt, "").prompt_ids for prompt in candidate.prompts]
    if not all(ids):
        raise InputError("DATA", f"document {ids.index([])} has an empty prompt", "drop it, or give it a prompt")
    check_positions(candidate.model, max_positions(candidate.model), max(map(len, ids)), max_new_tokens)
    return _Prepared(candidate, tokenizer, ids)


def _answers(prepared: _Prepared, settings: Settings) -> Answers:
    candidate = prepared.candidate
    model = load_model(candidate.model)
    found = greedy(
        model,
        prepared.tokenizer,
        prepared.ids,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
    )
    del model
    free()  # the next model needs the room
    return Answers(
        candidate.label,
        candidate.model,
        candidate.recipe,
        candidate.prompts,
        [answer.text for answer in found],
        [answer.ended for answer in found],
    )
