"""What runs in a worker process of the pool."""

import faulthandler
import logging
import os
import pickle
import runpy
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from tokencredit.rewards.call import Outcome, call, failed
from tokencredit.rewards.functions import Callee, load
from tokencredit.rewards.processes import IN_WORKER, die_with, forget_the_trainer, limit_memory

TEMPORARY = "tmp"
"""Where in the pool's folder temporary files of its functions go."""

OUT_OF_MEMORY = 87
"""Exit code of a worker that reached its limit: what leaked stays leaked, so it makes room for a new one."""

_CALLER = f'"{load.__code__.co_filename}"'

_LOADING = b"loading"

_callees: list[Callee | str] = []
_trace = -1
_folder = Path()


def start(
    parent: int, specs: list[bytes], folder: str, path: list[str], gigabytes: float, main: tuple[str, bool] | None
) -> None:
    """Prepare this process: on its own, limited, with all functions loaded.

    A function that cannot be loaded fails at each call instead: a process that fails here would be started again and
    again.

    Args:
        parent: Process id of the pool's.
        specs: Pickled `RewardFunction`s.
        folder: Where traces go.
        path: Where modules are found, as in the pool's process.
        gigabytes: Limit of the address space.
        main: The main script, if a function belongs to it: its path, or its name if it was started as a module, and
            whether it was.
    """
    global _trace, _folder
    _folder = Path(folder)
    os.setsid()
    die_with(parent)
    forget_the_trainer()
    limit_memory(gigabytes)
    logging.basicConfig(level=logging.WARNING)
    os.environ[IN_WORKER] = "1"
    # What a killed call leaves behind goes with the pool.
    tempfile.tempdir = os.environ["TMPDIR"] = str(Path(folder) / TEMPORARY)
    sys.path[:] = path
    _trace = os.open(Path(folder) / str(os.getpid()), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    faulthandler.enable(file=_trace)
    for place, spec in enumerate(specs):
        _note(b"%s %d\n" % (_LOADING, place))
        if main is not None and not place:
            trouble = _run_main(*main)
            if trouble:
                _callees[:] = [trouble] * len(specs)
                break
        _callees.append(_load(spec) if spec else "")
    _note(b"")


def _run_main(place: str, is_module: bool) -> str:
    """Run the main script as a module under which its functions are found; say what went wrong, if anything."""
    module = ModuleType("__mp_main__")
    try:
        run_it = runpy.run_module if is_module else runpy.run_path
        module.__dict__.update(run_it(place, run_name="__mp_main__"))
    except BaseException:
        return traceback.format_exc()
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
    return ""


def _load(spec: bytes) -> Callee | str:
    try:
        return load(pickle.loads(spec), check=False)
    except BaseException:
        return traceback.format_exc()


def ready() -> list[str]:
    """Say that a worker is there, and per function why it could not be loaded, or ""."""
    return [callee if isinstance(callee, str) else "" for callee in _callees]


TOGETHER_SECONDS = 0.2
"""After so long a worker begins no further call of a task: the pool gives what is left to others."""


def run(task: int, function: int, calls: list[bytes], rows: list[int], deadline: float, end: float) -> list[bytes]:
    """Call a function with parts of a batch, one after the other.

    Args:
        task: Number of the task, which its trace begins with.
        function: Place of the function.
        calls: The pickled columns of each call, or its outcome if they could not be pickled.
        rows: Completions of each call.
        deadline: Seconds after which the process will be killed; a little before, where it stands is written down.
        end: Point in time (monotonic) at which the batch ends.

    Returns:
        The pickled outcomes, of the first calls if they took long: no object of the user's is pickled where it could
        break the pool.
    """
    begin = time.monotonic()
    faulthandler.dump_traceback_later(max(0.01, 0.9 * min(deadline, end - begin)), file=_trace)
    try:
        outcomes: list[bytes] = []
        for place, (columns, count) in enumerate(zip(calls, rows, strict=True)):
            if place and time.monotonic() - begin > TOGETHER_SECONDS:
                break
            _begin_trace(task, place)
            outcomes.append(_outcome(function, columns, count))
            if len(calls) > 1:
                _keep(task, outcomes[-1])
        return outcomes
    except MemoryError as error:
        os.write(_trace, "".join(traceback.format_exception(error)).encode())
        os._exit(OUT_OF_MEMORY)
    finally:
        faulthandler.cancel_dump_traceback_later()
        _made_file(_folder, task).unlink(missing_ok=True)


def _outcome(function: int, pickled: bytes, count: int) -> bytes:
    callee = _callees[function]
    try:
        columns = pickle.loads(pickled)
    except MemoryError:
        raise
    except BaseException:
        return pickle.dumps(failed(count, "error", "UnpicklingError", traceback.format_exc()))
    if isinstance(columns, Outcome):  # they could not be sent
        return pickled
    if isinstance(callee, str):
        return pickle.dumps(failed(count, "error", "ImportError", callee))
    outcome = call(callee, columns)
    try:
        return pickle.dumps(outcome)
    except Exception as error:
        problem = f"what it logged cannot be sent to another process ({type(error).__name__}: {error})"
        return pickle.dumps(failed(count, "error", type(error).__name__, problem, outcome.seconds))


def _made_file(folder: Path, task: int) -> Path:
    return folder / f"{task}.made"


def _keep(task: int, outcome: bytes) -> None:
    """Write an outcome down, so that it is not lost if a later call of the task is stuck or crashes."""
    with _made_file(_folder, task).open("ab") as file:
        file.write(len(outcome).to_bytes(8, "big") + outcome)


def read_made(folder: Path, task: int) -> list[bytes]:
    """The outcomes that the worker of an unfinished task wrote down; the file is removed."""
    file = _made_file(folder, task)
    content = file.read_bytes() if file.is_file() else b""
    file.unlink(missing_ok=True)
    found = []
    while content:
        size = int.from_bytes(content[:8], "big")
        if len(content) < 8 + size:  # it died while it wrote
            break
        found.append(content[8 : 8 + size])
        content = content[8 + size :]
    return found


def _begin_trace(task: int, place: int) -> None:
    _note(b"%d %d %f\n" % (task, place, time.monotonic()))


def _note(line: bytes) -> None:
    """Write down what this process is about to do, instead of what it did before."""
    os.ftruncate(_trace, 0)
    os.lseek(_trace, 0, os.SEEK_SET)
    os.write(_trace, line)


def read_fall(folder: Path, pid: int) -> int | None:
    """Place of the function that a worker was loading when it ended; -1 if it had not begun; None if it was ready."""
    file = folder / str(pid)
    if not file.is_file():
        return -1
    words = file.read_bytes().split(maxsplit=2)
    return int(words[1]) if words[:1] == [_LOADING] else None


@dataclass(frozen=True)
class Trace:
    """Where a worker stood: place of the call that it was making, the time at which that began, and the stack."""

    place: int
    begun: float
    stack: str


def read_trace(folder: Path, task: int, *, remove: bool = True) -> Trace | None:
    """What the worker that had a task wrote about where it stood, if it came to that."""
    for file in folder.iterdir():
        if file.name.isdecimal():
            head, _, rest = file.read_text(encoding="utf-8", errors="replace").partition("\n")
            words = head.split()
            if len(words) == 3 and words[0] == str(task):
                if remove:
                    file.unlink()
                return Trace(int(words[1]), float(words[2]), _of_the_user(rest).strip())
    return None


def _of_the_user(stack: str) -> str:
    """A stack without the frames below the call of the function."""
    kept, ours = [], False
    for line in stack.splitlines():
        ours = line.startswith("  File") and (ours or _CALLER in line)
        if not ours:
            kept.append(line)
    return "\n".join(kept)
