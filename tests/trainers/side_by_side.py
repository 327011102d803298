"""A test's program in several processes, as PyTorch's launcher starts it, without importing the libraries each time."""

import os
from importlib import import_module

from torch.multiprocessing import get_context, start_processes

from tests.cluster.ray_nodes import free_port
from tokencredit.cluster.processes import leave

_LOADED_ONCE = ["trl", "deepspeed", "tokencredit.trainers", "tests.trainers.test_parity", "tests.trainers.grpo_runs"]


def run_processes(module: str, *arguments: str, processes: int = 2) -> None:
    """Run the `main` of a module with some arguments, in processes forked from one that has everything imported.

    Raises:
        torch.multiprocessing.ProcessException: With the traceback of the first process that failed.
    """
    get_context("forkserver").set_forkserver_preload(_LOADED_ONCE)
    start_processes(_start, (module, arguments, processes, free_port()), nprocs=processes, start_method="forkserver")


def _start(rank: int, module: str, arguments: tuple[str, ...], processes: int, port: int) -> None:
    if processes > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        names |= {"MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}
    import_module(module).main(*arguments)
    leave(0)
