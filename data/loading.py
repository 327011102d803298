"""Datasets by name: a file, a folder, a hub name, or one that ships with the package."""

import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokencredit.data.builtin import US_ADDRESSES
from tokencredit.data.worked_sums import worked_sums
from tokencredit.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_FILE_BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}

BUILTIN = {"us_addresses", "worked_sums"}

CONFUSION_SUFFIX = ".confusion.json"
"""Ends the name of what `tokencredit pairs` writes beside its pairs, which is no data to train on."""


def builtin_folder(name: str) -> Path:
    """Where a built-in dataset's `<split>.jsonl` files lie."""
    return Path(str(files("tokencredit.data"))) / name


def load_split(
    name: str, split: str, *, config: str | None = None, streaming: bool = False
) -> "Dataset | IterableDataset":
    """One split of a dataset.

    Args:
        name: Path of a .json, .jsonl, .csv or .parquet file (its split is `train`), of a folder with one such
            file per split or saved with `save_to_disk`, a built-in name, or a name on the hub.
        split: Name of the split; `train[:100]` and `train[10%:]` take a part.
        config: Configuration of the dataset. `us_addresses` has those of `tokencredit.data.builtin.US_ADDRESSES`.
        streaming: Load lazily.

    Raises:
        InputError: When there is no such dataset, split or configuration, or a file is malformed or empty.
    """
    import datasets

    try:
        if name in BUILTIN:
            dataset = _load_builtin(name, split, config)
        elif Path(name).is_absolute():
            dataset = _load_local(Path(name), split, config, streaming)
        else:
            dataset = datasets.load_dataset(name, config, split=split, streaming=streaming)
    except InputError:
        raise
    except (FileNotFoundError, ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
        remedy = f"give a file, a folder, a hub name that can be reached, or a built-in ({', '.join(sorted(BUILTIN))})"
        raise InputError("dataset_name", f"{name!r} cannot be loaded ({_first_line(error)})", remedy) from None
    except ValueError as error:
        raise InputError(
            "dataset_name", f"{name!r}: {_first_line(error)}", "correct the split or configuration"
        ) from None
    except Exception as error:  # Arrow and the readers raise whatever the content makes them raise
        raise _malformed(Path(name), error) from None
    return dataset


def _load_local(path: Path, split: str, config: str | None, streaming: bool) -> Any:
    import datasets

    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return _slice_saved(datasets.load_from_disk(str(path)), split)
        if any(path.glob(f"*{CONFUSION_SUFFIX}")):
            # The library would take `train.jsonl.confusion.json` for a part of the split `train`.
            pairs = {file.stem: str(file) for file in sorted(path.glob("*.jsonl"))}
            return datasets.load_dataset("json", data_files=pairs, split=split, streaming=streaming)
        return datasets.load_dataset(str(path), config, split=split, streaming=streaming)
    if not path.is_file():
        raise InputError("dataset_name", f"no file or folder {str(path)!r}", "give a path that exists")
    builder = _FILE_BUILDERS.get(path.suffix)
    if builder is None:
        raise InputError("dataset_name", f"{path.name!r} has an unknown format", f"give {', '.join(_FILE_BUILDERS)}")
    if path.stat().st_size == 0:
        raise InputError("dataset_name", f"{str(path)!r} is empty", "give a file with at least one row")
    return datasets.load_dataset(builder, data_files={"train": str(path)}, split=split, streaming=streaming)


def _slice_saved(saved: Any, split: str) -> Any:
    import datasets

    name, part = split_expression(split)
    if isinstance(saved, datasets.DatasetDict):
        if name not in saved:
            raise ValueError(f"Unknown split {name!r}. Should be one of {list(saved)}.")
        saved = saved[name]
    return saved.select(part(len(saved)))


def _load_builtin(name: str, split: str, config: str | None) -> Any:
    import datasets

    if name == "worked_sums":
        if config is not None:
            raise ValueError(f"unknown configuration {config!r}, it has none")
        split_name, part = split_expression(split)
        rows = worked_sums(split_name)
        return datasets.Dataset.from_list([rows[index] for index in part(len(rows))])
    folder = builtin_folder(name)
    splits = {path.stem: str(path) for path in sorted(folder.glob("*.jsonl"))}
    labelled = datasets.load_dataset("json", data_files=splits, split=split if config is None else None)
    if config is None:
        return labelled
    if config not in US_ADDRESSES:
        raise ValueError(f"unknown configuration {config!r}, should be one of {[*US_ADDRESSES]} or none")
    split_name, part = split_expression(split)
    if split_name not in splits:
        raise ValueError(f"Unknown split {split_name!r}. Should be one of {list(splits)}.")
    made = datasets.Dataset.from_list(US_ADDRESSES[config](list(labelled[split_name]), list(labelled["train"])))
    return made.select(part(len(made)))


def split_expression(split: str) -> tuple[str, Callable[[int], range]]:
    """Read `name`, `name[a:b]` or `name[a%:b%]`: the name, and the rows it takes of so many."""
    match = re.fullmatch(r"([\w.-]+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", split)
    if match is None:
        raise ValueError(f"{split!r} is not a split; write train, train[:100] or train[10%:20%]")
    name, first, last = match.groups()

    def rows(total: int) -> range:
        def bound(text: str | None) -> int | None:
            if text is None:
                return None
            return round(total * int(text[:-1]) / 100) if text.endswith("%") else int(text)

        return range(total)[bound(first) : bound(last)]

    return name, rows


def _malformed(path: Path, error: Exception) -> InputError:
    """Name the line of a JSON-lines file that cannot be read; what Arrow says counts blocks, not lines."""
    import json

    if path.suffix == ".jsonl" and path.is_file():
        with path.open(encoding="utf-8", errors="replace") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    row = json.loads(line) if line.strip() else {}
                except ValueError as reason:
                    return InputError(f"{path} line {number}", f"not valid JSON ({reason})", "correct the line")
                if not isinstance(row, dict):
                    return InputError(f"{path} line {number}", "not a JSON object", "write one object a line")
    cause = error.__cause__ or error
    return InputError("dataset_name", f"{str(path)!r} cannot be read ({_first_line(cause)})", "correct the file")


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
