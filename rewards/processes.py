"""Processes that reward functions run in: started clean, killed at once, gone with the process that started them."""

import contextlib
import os
import signal
import sys
import threading
from multiprocessing import spawn
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

# Ranks and accelerators belong to the process that trains. A worker that saw them would take its place among the
# ranks, or a share of the accelerator's memory.
_RANK = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "ACCELERATE_", "DEEPSPEED_")
_CLUSTER = ("RAY_", "NCCL_", "FSDP_", "OMPI_", "PMI_", "PMIX_")
_DEVICES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")


def forget_the_trainer() -> None:
    """Take out of the environment what makes a process a rank, a Ray worker or the owner of an accelerator."""
    for name in list(os.environ):
        if name.startswith(_RANK + _CLUSTER):
            del os.environ[name]
    for name in _DEVICES:
        os.environ[name] = ""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def die_with(parent: int) -> None:
    """End this process when the one that started it is gone, however it went (Linux only)."""
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)


def limit_memory(gigabytes: float) -> None:
    """Refuse this process and each of its children more address space than this (Linux only)."""
    if sys.platform != "linux":
        return
    import resource

    size = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def kill_group(pid: int) -> None:
    """Kill what is left of the process group that a process led."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


LEFT = 256
"""Stands for exit code 0, which the pool takes for the end of its own; no process can end with it."""

IN_WORKER = "TOKENCREDIT_REWARD_WORKER"
"""Environment variable of a worker and of all it starts."""

_launch = threading.local()
_preparation_data = spawn.get_preparation_data


def _without_main(name: str) -> dict[str, Any]:
    """What a new process is told; nothing about the main module if this thread is starting a worker."""
    data = _preparation_data(name)
    if getattr(_launch, "without_main", False):
        data.pop("init_main_from_name", None)
        data.pop("init_main_from_path", None)
    return data


# A new process runs the main script again: in training that imports torch and more, for seconds, in every worker.
spawn.get_preparation_data = _without_main


class Worker(SpawnProcess):
    """A process that knows nothing of the main script, and whose end is a kill of it and its children."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802
        _launch.without_main = True
        try:
            return SpawnProcess._Popen(process_obj)
        finally:
            _launch.without_main = False

    @property
    def exitcode(self) -> int | None:
        """As always, but a worker never ends well by itself: a function that leaves with 0 has failed too."""
        code = super().exitcode
        return LEFT if code == 0 else code

    def terminate(self) -> None:
        """Kill. A request to end would wait for code that does not listen."""
        assert self.pid is not None
        kill_group(self.pid)
        self.kill()


class Context(SpawnContext):
    """Starts `Worker`s."""

    Process = Worker
