"""The Ray cluster of a run: settings, reaching it, what it has, and leaving nothing behind."""

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from tokencredit.cluster.plan import cpu_count
from tokencredit.cluster.ray_plan import Cluster, Resources, this_machine
from tokencredit.errors import InputError

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Workers keep the working directory they have, and `print`.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # How soon a dead worker is noticed, in seconds.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
}
# The only node is not taken away with notice; the process that would watch for that takes seconds to start.
_ON_ONE_NODE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
_OBJECT_STORE_BYTES = 100 * 2**20  # nothing of a run is put there
_TEMPORARY = "tokencredit-ray-"
_LONGEST_TEMPORARY = 45  # Ray adds 60 characters, and the path of a socket has at most 107


def require_ray() -> None:
    """Refuse when Ray is not installed.

    Raises:
        InputError: Naming the extra.
    """
    if find_spec("ray") is None:
        raise InputError("launch.ray", "needs Ray", "pip install 'tokencredit[ray]'")


def check_address(address: str) -> None:
    """Refuse what cannot be the address of a cluster.

    Raises:
        InputError: Saying what would be one.
    """
    where = "launch.ray.address"
    if address in ("local", "auto"):
        return
    if address.startswith(("http://", "https://")):
        raise InputError(where, f"{address!r} is a job server", f"tokencredit submit RECIPE --address {address}")
    if "://" in address:
        raise InputError(
            where,
            f"{address!r} is no address of a cluster's head",
            "run this on a node with launch.ray=auto, or submit",
        )
    if not re.fullmatch(r"[^\s:]+:\d{1,5}", address):
        raise InputError(where, f"unknown address {address!r}", "give local, auto or host:port")


@contextlib.contextmanager
def called_ray() -> Iterator[None]:
    """Name the cluster as a command's `--ray` does and not by a recipe's key."""
    try:
        yield
    except InputError as error:
        if not error.where.startswith("launch.ray"):
            raise
        raise InputError("--ray", error.problem, error.remedy.replace("launch.ray=", "--ray ")) from None


@contextlib.contextmanager
def worker_failures() -> Iterator[None]:
    """Say in one line why a command's worker failed; wrong input that it found stays as it is."""
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, InputError):
            raise cause from None
        reason = " ".join(str(cause or error).split())[-300:]
        raise InputError("--ray", f"a worker failed ({reason})", "check that every node has the models") from None


def same_place(name: str) -> str:
    """A model's name as workers find it, which may stand in another folder: a folder by its whole path."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def find_cluster(address: str) -> Cluster:
    """What the cluster at an address has, after joining it; `local` is this machine, where nothing is started yet.

    Raises:
        InputError: When Ray is not installed, or there is no cluster at the address.
    """
    require_ray()
    if address == "local":
        return this_machine()
    _join(address)
    import ray

    return Cluster([dict(node["Resources"]) for node in ray.nodes() if node["Alive"]], growth())


def growth() -> Resources:
    """The most that an autoscaler may bring up in all, empty without one."""
    from ray._private.state import state

    # Public Ray only knows the nodes that are up.
    return dict(state.get_max_resources_from_cluster_config() or {})


@contextlib.contextmanager
def cluster(address: str) -> Iterator[None]:
    """Be part of the cluster at an address, started here for `local`; afterwards this process has left it."""
    with contextlib.ExitStack() as stack:
        if address == "local":
            temporary = stack.enter_context(temporary_folder())
            stack.callback(_leave)
            _start(temporary)
        else:
            stack.callback(_leave)
            _join(address)
        yield


@contextlib.contextmanager
def _keeping_the_handler() -> Iterator[None]:
    """Ray puts its own handler in place of the command's for SIGTERM."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def apply_settings(*, local: bool) -> None:
    """Set what Ray reads from the environment when it is imported, unless the user has set it."""
    for name, value in (_SETTINGS | (_ON_ONE_NODE if local else {})).items():
        os.environ.setdefault(name, value)
    if "RAY_AUTH_MODE" in os.environ:
        return
    if local:
        # Ray listens on every interface; without the token anyone who reaches it could run code in it.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        return
    has_token = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ)
    os.environ["RAY_AUTH_MODE"] = "token" if has_token or _default_token().is_file() else "disabled"


def _default_token() -> Path:
    return Path.home() / ".ray" / "auth_token"


def _join(address: str) -> None:
    apply_settings(local=False)
    import ray

    if ray.is_initialized():
        return
    where, remedy = "launch.ray.address", "start one with `ray start --head`, or use launch.ray=local"
    if address != "auto":
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except (OSError, OverflowError) as error:
            raise InputError(where, f"nothing answers at {address!r} ({error})", remedy) from None
    try:
        with _keeping_the_handler():
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # Ray raises whatever it stumbles over
        reason = " ".join(str(error).split())[:200]
        raise InputError(where, f"no Ray cluster that can be joined at {address!r} ({reason})", remedy) from None


def _start(temporary: Path) -> None:
    apply_settings(local=True)
    import ray

    with _keeping_the_handler():
        ray.init(
            address="local",
            num_cpus=cpu_count(),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=_OBJECT_STORE_BYTES,
            _temp_dir=str(temporary),
            _node_ip_address="127.0.0.1",
            _system_config={
                # Workers have their own environment and never take over processes started ahead.
                "enable_worker_prestart": False,
                "prestart_worker_first_driver": False,
                # They are what the machine is for, as they are without Ray.
                "worker_niceness": 0,
            },
        )


def _leave() -> None:
    import ray

    ray.shutdown()


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for the time of a run. Those of commands that were killed are removed."""
    base = Path(tempfile.gettempdir())
    if len(str(base)) + len(_TEMPORARY) + 16 > _LONGEST_TEMPORARY:
        base = Path("/tmp")
    _remove_left_over(base)
    folder = Path(tempfile.mkdtemp(prefix=f"{_TEMPORARY}{os.getpid()}-", dir=base))
    try:
        yield folder
    finally:
        for _ in range(20):  # processes that are just ending may still write there
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                break
            time.sleep(0.1)


def _remove_left_over(base: Path) -> None:
    for folder in base.glob(f"{_TEMPORARY}*-*"):
        owner = folder.name.removeprefix(_TEMPORARY).partition("-")[0]
        if owner.isdigit() and not _runs(int(owner)) and folder.stat().st_uid == os.getuid():
            shutil.rmtree(folder, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
