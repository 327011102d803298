"""A Ray cluster of several nodes on this machine, each at an address of its own, and nothing left of it."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray reads and keeps these once in a process, so they are those of all its clusters.
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(16),
    "RAY_worker_niceness": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # How soon the loss of a node is noticed: 4 times in a row without an answer, 500 ms apart.
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "4",
}


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Nodes:
    """The nodes of one cluster; the first one is its head."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tc-", dir="/tmp"))
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.started = 0
        self.address = f"127.0.0.2:{free_port()}"
        self.job_server = f"http://127.0.0.1:{free_port()}"

    def add(
        self,
        resources: dict[str, float] | None = None,
        environment: dict[str, str] | None = None,
        hides: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a node, and wait until it is there.

        Args:
            resources: What it has; one CPU by default.
            environment: Of its processes.
            hides: A folder of which the node sees one of its own, as when storage is not shared.
        """
        resources = dict(resources or {"CPU": 1})
        self.started += 1
        number = self.started + 1
        head = ["--head", f"--port={self.address.rpartition(':')[2]}"]
        head += ["--dashboard-host=127.0.0.1", f"--dashboard-port={self.job_server.rpartition(':')[2]}"]
        head += [f"--ray-client-server-port={free_port()}"]
        options = [f"--address={self.address}"] if self.nodes else head
        options += [
            f"--node-ip-address=127.0.0.{number}",
            f"--num-cpus={resources.pop('CPU', 0):g}",
            "--object-store-memory=100000000",
        ]
        # A folder of its own, as on a machine of its own: Ray unpacks the working directory of a job there.
        options += [f"--temp-dir={self.folder / str(number)}"]
        options += [f"--dashboard-agent-listen-port={free_port()}", "--disable-usage-stats", "--block"]
        options += [f"--resources={json.dumps(resources)}"] if resources else []
        log = (self.folder / f"node-{number}.log").open("wb")
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options]
        if hides is not None:
            script = f'mount -t tmpfs none "{hides}" && exec "$@"'
            command = ["unshare", "--mount", "sh", "-c", script, "sh", *command]
        variables = os.environ | (environment or {})
        node = subprocess.Popen(command, env=variables, stdout=log, stderr=log, start_new_session=True)
        self.nodes.append(node)
        self._wait_for(number, node)
        return node

    def _wait_for(self, number: int, node: subprocess.Popen[bytes]) -> None:
        log = self.folder / f"node-{number}.log"
        deadline = time.monotonic() + 120
        while b"Ray runtime started" not in log.read_bytes():
            assert node.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)

    def lose(self, node: subprocess.Popen[bytes]) -> None:
        """Kill a node with everything on it at once, as when its machine loses power."""
        for process in [node.pid, *descendants(node.pid)]:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        node.wait()
        self.nodes.remove(node)

    def stop(self) -> None:
        """End all nodes and remove what they wrote."""
        for node in self.nodes[::-1]:
            if node.poll() is None:
                self.lose(node)
        shutil.rmtree(self.folder, ignore_errors=True)


def descendants(process: int) -> list[int]:
    """All processes below one, nearest first."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = [tuple(map(int, line.split())) for line in listed.splitlines()]
    found, row = [], [process]
    while row:
        row = [child for child, parent in parents if parent in row]
        found += row
    return found


def processes_with(text: str) -> list[str]:
    """Command lines of running processes that hold a text in them or in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                command, environment = ((folder / name).read_bytes() for name in ("cmdline", "environ"))
            except OSError:
                continue
            if text.encode() in command + environment:
                found.append(command.replace(b"\0", b" ").decode())
    return found


def wait_until(condition: Callable[[], object], seconds: float = 240) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.05)
