"""`tokencredit pairs`: preference pairs from labelled data and a model, as a JSON-lines file.

TAB-PO (arXiv 2603.00025): the model's greedy answers to a validation split say which names it confuses, and gold
answers of the training split are rewritten by these confusions [C, P]; expert pairs may be mixed in [P]. Drawing
several samples and setting the best against the worst [O] is the other way.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tokencredit.analysis.models import load_model, load_tokenizer, max_positions
from tokencredit.data.functions import load_function
from tokencredit.data.loading import BUILTIN
from tokencredit.data.negatives import Confusion, count_confusion, uniform_confusion
from tokencredit.data.pairs import (
    Pairs,
    Sample,
    best_against_worst,
    canonical,
    negative_pairs,
    record_f1,
)
from tokencredit.data.records import parse_records
from tokencredit.data.serialise import to_json
from tokencredit.errors import InputError
from tokencredit.recipes.pairs_confusion import confusion_file, confusion_record, uniform_notes, without_counts
from tokencredit.recipes.pairs_data import PairsData, load_pairs_data, rows_of
from tokencredit.recipes.pairs_schema import RECORD_F1, PairsRecipe
from tokencredit.trainers.callbacks import write_whole
from tokencredit.trainers.sampling import sampled
from tokencredit.trainers.task_metric import greedy_answers, question

ScoreFunction = Callable[[list[str], list[str]], Sequence[float]]


@dataclass(frozen=True)
class Prepared:
    """A pairs recipe that has been checked.

    Args:
        recipe: The recipe.
        data: What it works on, or None when that is not on this machine (dry run only).
        tokenizer: The model's, or None when none is needed or it is not on this machine (dry run only).
        prompts: Token ids of what the model is going to be asked.
        notes: Lines for the user.
    """

    recipe: PairsRecipe
    data: PairsData | None
    tokenizer: Any = None
    prompts: list[list[int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Made:
    """What a pairs recipe made.

    Args:
        pairs: The pairs and what could not be made.
        confusion: The counts of a model's confusions, measured now or read from a file.
        invalid: How many of the answers to the counting split were not JSON with records.
        counted: How many answers there were.
        notes: Lines for the user.
        files: Where it was written.
    """

    pairs: Pairs
    confusion: Confusion | None = None
    invalid: int = 0
    counted: int = 0
    notes: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


def prepare(recipe: PairsRecipe, *, dry_run: bool = False) -> Prepared:
    """Check everything that can be known before a model answers anything.

    Args:
        recipe: From `parse_pairs_recipe`.
        dry_run: Note what is not on this machine instead of refusing it.

    Returns:
        The recipe with its data and tokenizer.

    Raises:
        InputError: Naming the first thing that cannot work.
    """
    notes: list[str] = []
    _check_output(recipe)

    def here(load: Callable[[], Any], name: str | None) -> Any:
        """What is loaded, or None for what a dry run does not find on the hub."""
        try:
            return load()
        except InputError as error:
            if not dry_run or name in BUILTIN or Path(str(name)).is_absolute():
                raise
            notes.append(f"not available locally: {error}")
            return None

    found = here(partial(rows_of, recipe, recipe.dataset_train_split), recipe.dataset_name)
    tokenizer = None
    if recipe.generates:
        tokenizer = here(partial(_model_part, load_tokenizer, recipe), recipe.model_name_or_path)
    elif recipe.model_name_or_path is not None:
        source = "confusion: uniform needs" if recipe.confusion_table is None else "counts from a file need"
        notes.append(f"{source} no model: model_name_or_path is not used")
    if found is None:
        return Prepared(recipe, None, tokenizer, notes=notes)
    data = load_pairs_data(recipe)
    if recipe.source == "samples":
        gold = [document.gold for document in data.training]
        _scores(recipe, gold, gold)  # a function that cannot be used shows before the model has worked for hours
    prompts = [] if tokenizer is None else _prompts(recipe, data, tokenizer)
    return Prepared(recipe, data, tokenizer, prompts, notes + data.notes)


def make(prepared: Prepared) -> Made:
    """Let the model answer, and make the pairs.

    Args:
        prepared: From `prepare`, without `dry_run`.

    Returns:
        The pairs, expert pairs last.

    Raises:
        InputError: The model cannot be loaded or confused nothing, the score function fails, or no pair could be made.
    """
    recipe, data = prepared.recipe, prepared.data
    assert data is not None
    made = _from_samples(prepared, data) if recipe.source == "samples" else _from_confusions(prepared, data)
    if not made.pairs.rows:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in made.pairs.dropped.most_common())
        raise InputError("from", f"no pair could be made: {reasons}", "change the recipe or the data")
    made.pairs.rows += data.experts
    return made


def make_and_save(prepared: Prepared) -> Made:
    """What `make` does, with everything written once all of it is made.

    Raises:
        InputError: As `make`; then nothing is written.
    """
    made = make(prepared)
    made.files = save(prepared.recipe, made)
    return made


def save(recipe: PairsRecipe, made: Made) -> list[Path]:
    """Write the pairs, and beside them the confusions if they were counted, each file in one step.

    Args:
        recipe: The recipe.
        made: From `make`.

    Returns:
        The files.
    """
    output = Path(recipe.output_file)
    output.parent.mkdir(parents=True, exist_ok=True)
    written = []
    if made.confusion is not None and recipe.measures:
        written.append(confusion_file(recipe))
        record = confusion_record(recipe, made.confusion, made.counted, made.invalid)
        write_whole(written[0], to_json(record) + "\n")
    write_whole(output, "".join(to_json(row) + "\n" for row in made.pairs.rows))
    return [output, *written]


def _from_confusions(prepared: Prepared, data: PairsData) -> Made:
    recipe, fields = prepared.recipe, prepared.recipe.record_fields
    made = Made(Pairs(), data.confusion)
    if recipe.measures:
        answers = greedy_answers(
            _model_part(load_model, recipe),
            prepared.tokenizer,
            prepared.prompts,
            max_new_tokens=recipe.max_new_tokens,
            batch_size=recipe.batch_size,
        )
        predictions = [parse_records(answer, fields) for answer in answers]
        made.confusion = count_confusion(predictions, [document.records for document in data.counting], fields=fields)
        made.counted, made.invalid = len(predictions), predictions.count(None)
        made.notes = _check_counts(made, made.confusion, data)
    made.pairs = negative_pairs(
        data.training,
        ontology=data.ontology,
        confusion=made.confusion or uniform_confusion(data.ontology),
        seed=recipe.seed,
        mix=recipe.mix,
        per_document=recipe.negatives_per_example,
        span_perturbation=recipe.span_perturbation,
        fields=fields,
    )
    return made


def _check_counts(made: Made, confusion: Confusion, data: PairsData) -> list[str]:
    empty = without_counts(confusion, data.ontology)
    if len(empty) == 2:
        problem = (
            f"the model confused no names of the ontology in {made.counted} answers, of which {made.invalid} were not "
            "valid JSON"
        )
        remedy = "name a trained model that errs or a larger split, or set confusion: uniform, which needs no model"
        raise InputError("confusion", problem, remedy)
    return uniform_notes(empty)


def _from_samples(prepared: Prepared, data: PairsData) -> Made:
    recipe = prepared.recipe
    keys = ("num_samples", "temperature", "top_p", "seed", "max_new_tokens", "batch_size")
    options = {key: getattr(recipe, key) for key in keys}
    answers = sampled(_model_part(load_model, recipe), prepared.tokenizer, prepared.prompts, **options)
    texts = [[canonical(answer.text) for answer in found] for found in answers]
    references = [document.gold for document in data.training for _ in range(recipe.num_samples)]
    scores = iter(_scores(recipe, [text for found in texts for text in found], references))
    samples = [
        [Sample(text, next(scores), answer.ended) for text, answer in zip(found, given, strict=True)]
        for found, given in zip(texts, answers, strict=True)
    ]
    made = Made(best_against_worst(data.training, samples, fields=recipe.record_fields))
    cut = sum(not sample.ended for found in samples for sample in found)
    if cut:
        made.notes.append(f"{cut} of {len(references)} samples were cut off at max_new_tokens: never chosen")
    return made


def _scores(recipe: PairsRecipe, predictions: list[str], references: list[str]) -> list[float]:
    """The scores of answers; a function of the user's own is held to what it has to return."""
    where, name = "score_function", recipe.score_function
    if name == RECORD_F1:
        return record_f1(predictions, references, fields=recipe.record_fields)
    if ":" not in name:
        raise InputError(where, f"unknown function {name!r}", f"give {RECORD_F1} or module:function")
    function: ScoreFunction = load_function(name, where)
    try:
        values = [float(value) for value in function(predictions, references)]
    except InputError:
        raise
    except Exception as error:  # the user's own function may raise anything
        problem, remedy = f"{name} failed ({error!r})", "let it return one number per prediction"
        raise InputError(where, problem, remedy) from error
    if len(values) != len(predictions):
        problem = f"{name} returned {len(values)} scores for {len(predictions)} predictions"
        raise InputError(where, problem, "return one number per prediction")
    wrong = next((value for value in values if not math.isfinite(value)), None)
    if wrong is not None:
        raise InputError(where, f"{name} returned {wrong}", "return finite numbers")
    return values


def _model_part(load: Callable[[str], Any], recipe: PairsRecipe) -> Any:
    """What a loader gives, its errors under the recipe's name for the model."""
    try:
        return load(str(recipe.model_name_or_path))
    except InputError as error:
        raise InputError("model_name_or_path", error.problem, error.remedy) from None


def _prompts(recipe: PairsRecipe, data: PairsData, tokenizer: Any) -> list[list[int]]:
    """The documents that the model is asked about, as tokens."""
    documents = data.counting if recipe.measures else data.training
    if isinstance(documents[0].prompt, list) and tokenizer.chat_template is None:
        problem = "the prompts are chat messages and this model's tokenizer has no chat template"
        raise InputError("model_name_or_path", problem, "use an instruction-tuned model, or plain-text prompts")
    ids = [question(tokenizer, document.prompt, document.gold).prompt_ids for document in documents]
    if not all(ids):
        raise InputError("dataset_name", f"row {ids.index([])} has an empty prompt", "drop it, or give it a prompt")
    longest, room = max(map(len, ids)), _model_part(max_positions, recipe)
    if room is not None and longest + recipe.max_new_tokens > room:
        problem = f"{recipe.max_new_tokens} after {longest} tokens of prompt is more than the model's {room} positions"
        remedy = f"give {room - longest} or less" if longest < room else "shorten the prompts"
        raise InputError("max_new_tokens", problem, remedy)
    return ids


def _check_output(recipe: PairsRecipe) -> None:
    output = Path(recipe.output_file)
    files = [output, confusion_file(recipe)] if recipe.measures else [output]
    try:
        for path in files:
            if path.is_dir():
                raise InputError("output_file", f"{str(path)!r} is a folder", "name a file")
            if path.exists() and not recipe.overwrite:
                raise InputError("output_file", f"{str(path)!r} exists", "name another file, or set overwrite: true")
        existing = next(path for path in output.parents if path.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        problem = f"cannot write to {str(output)!r} ({reason})"
        raise InputError("output_file", problem, "name a writable place") from None
