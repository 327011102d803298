"""What memory this machine has, found without touching an accelerator."""

import subprocess
from pathlib import Path
from shutil import which

_MIB = 2**20
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def accelerator_bytes() -> list[float]:
    """Bytes of memory of each NVIDIA accelerator; empty where they cannot be asked.

    (PyTorch would take a few hundred MiB of each for itself to answer this.)
    """
    program = which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        return [float(line) * _MIB for line in done.stdout.split()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []


def memory_bytes() -> float:
    """Bytes of main memory that processes here may use: the machine's, or less in a container."""
    import psutil

    found = [float(psutil.virtual_memory().total)]
    for name in _LIMITS:
        try:
            text = Path(name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            found.append(float(text))
    return min(found)
