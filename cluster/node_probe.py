"""What a node of a cluster is asked before a run. It runs there, so it imports nothing heavy before it is needed."""

import os
import platform
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from tokencredit.data.functions import load_function
from tokencredit.errors import InputError

MARKER = ".tokencredit-check-"
"""What the names of files begin with that nodes leave for each other while they are checked."""

_MOST_FILES = 1000


@dataclass(frozen=True)
class Question:
    """What a node has to have.

    Args:
        folder: The working directory of the command.
        environment: Environment variables of the workers.
        versions: Of the libraries, where the command runs.
        files: Local files and folders, as `(key, path, sizes)` with the sizes they have where the command runs.
        hub: Names on the hub, as `(key, kind, name, revision or configuration)`, the kind `model` or `dataset`.
        functions: `(key, module:function)`.
        storage: Folders that all nodes have to share, by key, with the file that the command has left there.
        uris: Other places that every node has to be able to write to, by key.
    """

    folder: str
    environment: Mapping[str, str]
    versions: Mapping[str, str]
    files: tuple[tuple[str, str, Mapping[str, int]], ...] = ()
    hub: tuple[tuple[str, str, str, str | None], ...] = ()
    functions: tuple[tuple[str, str], ...] = ()
    storage: Mapping[str, str] = field(default_factory=dict)
    uris: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What a node says.

    Args:
        host: Its name.
        memory: Bytes of its main memory.
        accelerators: Bytes of each of its accelerators, empty where they cannot be asked.
        problems: By check; empty lists where all is well. `{host}` in them stands for the name of the node.
        written: Files it has left on shared storage.
    """

    host: str
    memory: float
    accelerators: list[float]
    problems: dict[str, list[InputError]]
    written: dict[str, str]


def listing(path: Path) -> dict[str, int] | None:
    """Sizes of a file, or of a folder's first files, by name; −1 if one cannot be read; None if nothing is there."""
    if path.is_file():
        return {path.name: _size(path)}
    if not path.is_dir():
        return None
    files = (file for file in _walk(path) if not file.name.startswith(MARKER))
    return {file.relative_to(path).as_posix(): _size(file) for file in islice(files, _MOST_FILES)}


def _walk(folder: Path) -> Iterator[Path]:
    """All files below a folder, in the same order on every node."""
    for root, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(root) / name for name in sorted(names))


def _size(file: Path) -> int:
    return file.stat().st_size if os.access(file, os.R_OK) else -1


def python_version() -> str:
    """What has to be the same everywhere of Python's own version."""
    return ".".join(platform.python_version_tuple()[:2])


def answer(question: Question, node: str) -> Answer:
    """Look at this node.

    Args:
        question: From the command.
        node: The node's id, for the names of files.
    """
    from tokencredit.cluster.devices import accelerator_bytes, memory_bytes

    os.environ.update(question.environment)
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "3")
    enter(question.folder)
    written: dict[str, str] = {}
    checks = {
        "versions": _versions(question),
        "storage": _storage(question, node, written),
        "files": _files(question),
        "functions": _functions(question),
    }
    problems = {name: list(found) for name, found in checks.items()}
    return Answer(socket.gethostname(), memory_bytes(), accelerator_bytes(), problems, written)


def enter(folder: str, shipped: bool = False) -> None:
    """Be where the command is: in its folder, with its functions importable after everything that is installed.

    Args:
        folder: The command's working directory.
        shipped: Whether a job brought its working directory, and this process stands in it already.
    """
    if not shipped and Path(folder).is_dir():
        os.chdir(folder)
    # Ray puts the command's folder first, where a file of the user's named like a library would replace it.
    here = {folder, os.getcwd()}
    sys.path[:] = [path for path in sys.path if path not in here] + sorted(here)


def _versions(question: Question) -> Iterator[InputError]:
    from tokencredit.recipes.versions import versions

    here = versions() | {"python": python_version()}
    for name, wanted in question.versions.items():
        found = here.get(name)
        # What follows a plus names the build, for accelerators or without: the head of a cluster may have none.
        if found is None or found.partition("+")[0] != wanted.partition("+")[0]:
            problem = f"{{host}} has {name} {found or 'not at all'}, the node of the command {wanted}"
            yield InputError("launch.ray", problem, "install the same versions on all nodes, or use --runtime-env")


def _storage(question: Question, node: str, written: dict[str, str]) -> Iterator[InputError]:
    remedy = "name a folder on storage that all nodes share"
    for key, marker in question.storage.items():
        path = Path(marker)
        if not path.is_file():
            yield InputError(key, f"{str(path.parent)!r} is another folder on {{host}}", remedy)
            continue
        own = path.with_name(f"{path.name}-{node}")
        try:
            own.write_bytes(b"")
        except OSError as error:
            yield InputError(key, f"{{host}} cannot write to {str(path.parent)!r} ({error.strerror})", remedy)
        else:
            written[key] = str(own)
    for key, uri in question.uris.items():
        from pyarrow.fs import FileSystem

        from tokencredit.recipes.schema import without_secrets

        try:
            system, inside = FileSystem.from_uri(uri)
            with system.open_output_stream(f"{inside}/{MARKER}{node}") as stream:
                stream.write(b"")
            system.delete_file(f"{inside}/{MARKER}{node}")
        except Exception as error:  # the file systems raise what they like
            reason = " ".join(str(error).split())[:200]
            problem = f"{{host}} cannot write to {without_secrets(uri)!r} ({reason})"
            yield InputError(key, problem, "correct it, or its credentials there")


def _files(question: Question) -> Iterator[InputError]:
    for key, name, wanted in question.files:
        found = listing(Path(name))
        if found is None:
            yield InputError(key, f"{name!r} is not on {{host}}", "put it on storage that all nodes share")
        elif found != wanted:
            other = min(set(found.items()) ^ set(wanted.items()))[0]
            problem = f"{other!r} of {name!r} is another file on {{host}}, unreadable, or missing in one place"
            yield InputError(key, problem, "give all nodes the same files, best on shared storage")
    for key, kind, name, part in question.hub:
        try:
            (_fetch_model if kind == "model" else _fetch_dataset)(name, part)
        except Exception as error:  # whatever network, hub and cache make the libraries raise
            reason = " ".join(str(error).split())[:200]
            yield InputError(
                key, f"{{host}} cannot load {name!r} ({reason})", "put it into the node's cache, or on disk"
            )


def _fetch_model(name: str, revision: str | None) -> None:
    from huggingface_hub import hf_hub_download

    for file in ("config.json", "tokenizer_config.json"):
        hf_hub_download(name, file, revision=revision)


def _fetch_dataset(name: str, config: str | None) -> None:
    from datasets import load_dataset_builder

    load_dataset_builder(name, config)


def _functions(question: Question) -> Iterator[InputError]:
    for key, dotted in question.functions:
        try:
            load_function(dotted, key)
        except InputError as error:
            yield InputError(key, f"{error.problem} on {{host}}", "install it there, or use `tokencredit submit`")
