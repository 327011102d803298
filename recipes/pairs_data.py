"""What a pairs recipe works on: documents, the split that confusions are counted on, ontology, expert pairs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokencredit.data import records
from tokencredit.data.loading import load_split, split_expression
from tokencredit.data.negatives import Confusion, Ontology, text_pair
from tokencredit.data.pairs import Document, canonical
from tokencredit.data.records import RecordFields, parse_records
from tokencredit.data.serialise import to_json
from tokencredit.errors import InputError
from tokencredit.recipes.data import check_types, with_own_columns
from tokencredit.recipes.files import load_yaml
from tokencredit.recipes.pairs_confusion import check_read, read_confusion
from tokencredit.recipes.pairs_schema import RECORD_F1, PairsRecipe
from tokencredit.recipes.schema import OwnKeys
from tokencredit.trainers.task_metric import answer_text


@dataclass(frozen=True)
class PairsData:
    """What a pairs recipe works on.

    Args:
        training: The documents that get pairs.
        counting: The documents on which confusions are counted; empty where none are.
        ontology: Label → allowed sub-labels; empty where it plays no part.
        experts: Pairs that are there already.
        confusion: Counts from a file, where the recipe names one.
        notes: Lines for the user.
    """

    training: list[Document]
    counting: list[Document]
    ontology: Ontology
    experts: list[dict[str, Any]]
    confusion: Confusion | None = None
    notes: list[str] = field(default_factory=list)


def load_pairs_data(recipe: PairsRecipe) -> PairsData:
    """Load and check everything a pairs recipe reads besides the model.

    Raises:
        InputError: When something is missing, malformed or empty, a gold answer has no records where they are needed
            or one outside the ontology, or confusions would be counted on documents that get negatives.
    """
    table = recipe.confusion_table
    confusion = None if table is None else read_confusion(table)
    if recipe.measures:
        _refuse_shared_rows(recipe)
    training = _documents(recipe, recipe.dataset_train_split, "training")
    second = [] if recipe.test_split is None else _documents(recipe, recipe.test_split, "counting")
    notes = _check_apart(training, second) if recipe.measures else []
    allowed: Ontology = {}
    if recipe.source == "confusions":
        allowed = _ontology(recipe, [*training, *second])
        for part, documents in (("training", training), ("counting", second)):
            _check_names(documents, allowed, recipe.record_fields, part)
        other = sum(document.gold != to_json(list(document.records)) for document in training)
        if other:
            form = "are in another form than in the pairs, where JSON has no spaces"
            notes.append(f"{other} of {len(training)} gold answers {form}")
    if confusion is not None and table is not None:
        notes += check_read(confusion, table, allowed)
    experts = _experts(recipe, isinstance(training[0].prompt, list)) if recipe.expert_pairs else []
    return PairsData(training, second if recipe.measures else [], allowed, experts, confusion, notes)


def rows_of(recipe: PairsRecipe, split: str) -> Any:
    """The rows of a split as they are.

    Raises:
        InputError: There is no such data or split.
    """
    return load_split(recipe.dataset_name, split, config=recipe.dataset_config)


def _documents(recipe: PairsRecipe, split: str, part: str) -> list[Document]:
    dataset = rows_of(recipe, split)
    if not len(dataset):
        raise InputError("dataset_name", f"the {part} split {split!r} has no rows", "name a split with rows")
    # Prompts and answers are made as a training recipe makes them, so that the model is asked what it was taught.
    own = OwnKeys(trainer="", prompt_template=recipe.prompt_template, completion_column=recipe.completion_column)
    dataset = with_own_columns(own, part, dataset)
    needed = {"prompt": "set prompt_template", "completion": "set completion_column"}
    if recipe.source == "confusions":
        needed[recipe.text_column] = "set text_column to the column with the document"
    for column, remedy in needed.items():
        if column not in dataset.column_names:
            problem = f"the {part} data has columns {', '.join(sorted(dataset.column_names))}, but no {column!r}"
            raise InputError("text_column" if column == recipe.text_column else "dataset_name", problem, remedy)
    check_types(part, dataset, {"prompt"})
    return [_document(recipe, row, index, part) for index, row in enumerate(dataset)]


def _document(recipe: PairsRecipe, row: dict[str, Any], index: int, part: str) -> Document:
    place = f"row {index} of the {part} data"
    answer, text = row["completion"], row.get(recipe.text_column)
    if recipe.source == "confusions" and not isinstance(text, str):
        raise InputError("text_column", f"{place} holds {text!r} in column {recipe.text_column!r}", "give text")
    if not isinstance(answer, str) and not (answer and "content" in answer[-1]):
        problem = f"{place} holds {answer!r} as completion"
        raise InputError("dataset_name", problem, "name the column with the records in completion_column")
    gold = answer_text(answer)
    found: Sequence[records.Record] = ()
    if recipe.source == "confusions" or recipe.score_function == RECORD_F1:
        found = _records(gold, recipe.record_fields, place)
    return Document(index, row["prompt"], gold, found, text if isinstance(text, str) else "")


def _records(gold: str, fields: RecordFields, place: str) -> Sequence[records.Record]:
    found = parse_records(gold, fields)
    if found is not None and gold.lstrip().startswith("["):
        return found
    remedy = f"give a list of objects with {', '.join(fields.names)} as text, or name your keys in fields"
    try:
        value = json.loads(gold)
    except ValueError as error:
        raise InputError("dataset_name", f"the answer of {place} is not JSON ({error})", remedy) from None
    if not isinstance(value, list):
        raise InputError("dataset_name", f"the answer of {place} is no list: {gold[:80]!r}", remedy)
    for number, item in enumerate(value):
        for name in fields.names:
            if not isinstance(item, dict) or not isinstance(item.get(name), str):
                problem = f"record {number} of {place} has no text under {name!r}: {str(item)[:80]}"
                raise InputError("dataset_name", problem, remedy)
    raise InputError("dataset_name", f"the answer of {place} cannot be read: {gold[:80]!r}", remedy)


def _refuse_shared_rows(recipe: PairsRecipe) -> None:
    """Two parts of one split may be told apart, but a row may not be in both."""
    where, remedy = "dataset_test_split", "count confusions on a validation split, which the model was not trained on"
    train, test = recipe.dataset_train_split, str(recipe.dataset_test_split)
    try:
        (train_name, train_rows), (test_name, test_rows) = split_expression(train), split_expression(test)
    except ValueError as error:
        raise InputError(where, str(error), "name one split for each") from None
    if train_name != test_name:
        return
    if train != test:
        total = len(rows_of(recipe, train_name))
        if not set(train_rows(total)) & set(test_rows(total)):
            return
    problem = f"{test!r} shares rows with the training split {train!r}"
    raise InputError(where, problem, remedy)


def _check_apart(training: list[Document], counting: list[Document]) -> list[str]:
    known = {to_json([document.prompt, document.gold]) for document in training}
    shared = sum(to_json([document.prompt, document.gold]) in known for document in counting)
    if shared == len(counting):
        problem = "every document of the counting split is in the training split too"
        raise InputError("dataset_test_split", problem, "count confusions on documents that are not trained on")
    return [f"{shared} of {len(counting)} counting documents are in the training split too"] if shared else []


def _ontology(recipe: PairsRecipe, documents: list[Document]) -> Ontology:
    given = recipe.ontology
    if given == "data":
        return records.ontology((document.records for document in documents), recipe.record_fields)
    if isinstance(given, str):
        return _check_ontology(_ontology_file(Path(given)), given)
    return _check_ontology(given, "ontology")


def _ontology_file(path: Path) -> Any:
    if not path.is_file():
        problem = f"no file {str(path)!r}"
        raise InputError("ontology", problem, "give `data`, a JSON or YAML file, or label: [sub-labels]")
    if path.suffix != ".json":
        return load_yaml(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError("ontology", f"{str(path)!r} cannot be read ({error})", "correct the file") from None


def _check_ontology(given: Any, where: str) -> Ontology:
    if not isinstance(given, dict) or not given:
        raise InputError(where, f"{str(given)[:80]!r} is no mapping", "write label: [sub-label, …] lines")
    for label, names in given.items():
        if not isinstance(label, str):
            raise InputError(where, f"label {label!r} is not text", "put it in quotes")
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            problem = f"{names!r} under {label!r} is no list of sub-labels"
            raise InputError(where, problem, "write label: [sub-label, …], with quotes around names such as no or 1")
    return {label: list(dict.fromkeys(names)) for label, names in given.items()}


def _check_names(documents: list[Document], allowed: Ontology, fields: RecordFields, part: str) -> None:
    for document in documents:
        for label, sublabel, _ in map(fields.triple, document.records):
            if sublabel not in allowed.get(label, ()):
                problem = f"holds no {label!r} with {sublabel!r}, as row {document.row} of the {part} data has it"
                raise InputError("ontology", problem, "add the names, or correct the row")


def _experts(recipe: PairsRecipe, chat: bool) -> list[dict[str, Any]]:
    """The pairs of a file, written as those that are made."""
    where, rows = "expert_pairs", []
    assert recipe.expert_pairs is not None
    try:
        dataset: Any = load_split(recipe.expert_pairs, "train")
    except InputError as error:
        own = where if error.where == "dataset_name" else error.where
        raise InputError(own, error.problem, error.remedy) from None
    columns = ("prompt", "chosen", "rejected")
    for name in columns:
        if name not in dataset.column_names:
            problem = f"the file has columns {', '.join(sorted(dataset.column_names))}, but no {name!r}"
            raise InputError(where, problem, "give prompt, chosen and rejected")
    for index, row in enumerate(dataset):
        for name in columns:
            if not isinstance(row[name], list if chat else str) or not row[name]:
                problem = f"row {index} holds {row[name]!r} as {name}"
                raise InputError(where, problem, f"give {'chat messages' if chat else 'text'}, as the prompts here are")
        chosen, rejected = (canonical(answer_text(row[side])) for side in columns[1:])
        if chosen == rejected:
            raise InputError(where, f"chosen and rejected of row {index} are the same", "correct or drop the row")
        rows.append(text_pair(row["prompt"], chosen, rejected, "expert", fields=recipe.record_fields))
    return rows
