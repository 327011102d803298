"""A recipe as a job of a Ray cluster: sent with the functions it names, followed, and its exit code."""

import ast
import asyncio
import logging
import os
import re
import shutil
import sys
import tempfile
import time
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import yaml

from tokencredit.cluster.ray_cluster import apply_settings, require_ray
from tokencredit.errors import InputError
from tokencredit.recipes.files import RECIPE_FILE, load_yaml, named_functions
from tokencredit.recipes.schema import Recipe, is_secret

ENTRYPOINT = f"python -m tokencredit train {RECIPE_FILE}"
_LARGEST_BYTES = 20 * 2**20
_RECONNECT_S = 120.0
"""How long a job server may be out of reach while a job is followed."""


class Job:
    """A submitted job.

    Args:
        client: Ray's client of the job server.
        name: The job's id.
    """

    def __init__(self, client: Any, name: str) -> None:
        self.client, self.name = client, name

    def follow(self) -> int:
        """Print the job's log until it ends.

        Returns:
            The exit code of the job's command; 128 + n when it was ended by signal n.
        """
        shown, lost_at = 0, None
        while True:
            try:
                shown = asyncio.run(self._tail(shown))
                info = self.client.get_job_info(self.name)
                lost_at = None
            except (RuntimeError, OSError) as error:  # what Ray's client raises for a connection
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > _RECONNECT_S:
                    reason = " ".join(str(error).split())[:200]
                    print(f"error: the job server is out of reach ({reason}); the job may go on", file=sys.stderr)
                    return 1
                info = None
            if info is not None and info.status.is_terminal():
                return _exit_code(info)
            time.sleep(1)

    async def _tail(self, shown: int) -> int:
        """Print what follows the first `shown` characters; returns how many there are now."""
        seen = 0
        async for text in self.client.tail_job_logs(self.name):
            new = text[max(0, shown - seen) :]
            seen += len(text)
            print(new, end="", flush=True)
        return max(seen, shown)


def submit(recipe: Recipe, *, address: str, variables: list[str], runtime_env: Path | None) -> Job:
    """Send a recipe to a cluster's job server.

    Args:
        recipe: A checked recipe; it runs with `launch.ray` at the cluster it is sent to.
        address: Of the job server, e.g. `http://head:8265`.
        variables: Environment variables of the job, `NAME=VALUE`, or `NAME` with the value it has here.
        runtime_env: A YAML file with more of Ray's runtime environment, e.g. `pip`.

    Raises:
        InputError: When there is no job server, or something cannot be sent.
    """
    require_ray()
    environment = _runtime_environment(runtime_env, variables)
    client = _client(address)
    with tempfile.TemporaryDirectory(prefix="tokencredit-job-") as name:
        folder = Path(name)
        _pack(recipe, folder)
        try:
            job = client.submit_job(entrypoint=ENTRYPOINT, runtime_env=environment | {"working_dir": name})
        except (RuntimeError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError("submit", f"the job server refuses the job ({reason})", "correct --runtime-env") from None
    return Job(client, job)


def left_out(recipe: Recipe) -> list[str]:
    """The credentials of a recipe, which are not sent: the job's files lie open in the cluster."""
    found = [f"env.{name}" for name in recipe.own.env if is_secret(name)]
    return found + (["hub_token"] if recipe.training.get("hub_token") else [])


def _client(address: str) -> Any:
    where, remedy = "--address", "give the address of the cluster's dashboard, e.g. http://head:8265"
    if not re.fullmatch(r"https?://[^\s/]+/?", address):
        raise InputError(where, f"{address!r} is no job server", remedy)
    apply_settings(local=False)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(name, None)  # Ray would take these instead of the address that is given
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.ERROR)  # it tells of every step of an upload
    try:
        return JobSubmissionClient(address)
    except Exception as error:  # Ray raises whatever it stumbles over
        reason = " ".join(str(error).split())[:200]
        raise InputError(where, f"no job server that can be used at {address!r} ({reason})", remedy) from None


def _runtime_environment(file: Path | None, variables: list[str]) -> dict[str, Any]:
    given = load_yaml(file) if file is not None else {}
    if "working_dir" in given:
        raise InputError("--runtime-env", "has a working_dir, which is made of the recipe", "remove it")
    named = dict(_variable(item) for item in variables)
    return given | {"env_vars": (given.get("env_vars") or {}) | named}


def _variable(item: str) -> tuple[str, str]:
    name, equals, value = item.partition("=")
    if not equals and name not in os.environ:
        raise InputError("--env", f"{name!r} is not set here", "set it, or write NAME=VALUE")
    return name, value if equals else os.environ[name]


def _pack(recipe: Recipe, folder: Path) -> None:
    """Write the recipe, for the cluster it is sent to, and the modules it names that lie in the working directory."""
    layer = recipe.flat()
    launch = layer.get("launch", {})
    layer["launch"] = launch | {"ray": launch.get("ray", {}) | {"address": "auto"}}
    (folder / RECIPE_FILE).write_text(yaml.safe_dump(layer, sort_keys=False, allow_unicode=True), encoding="utf-8")
    here = Path.cwd()
    for path in _modules({name.partition(":")[0] for _, name in named_functions(layer)}, here):
        _copy(path, folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > _LARGEST_BYTES:
        raise InputError(
            "submit",
            f"the modules that the recipe names, with what they import from {str(here)!r}, have {size / 2**20:.0f} MiB",
            "keep them apart from data",
        )


def _modules(names: set[str], here: Path) -> list[Path]:
    """The files and packages of modules in a folder, with those of the folder that they import."""
    found: dict[str, Path] = {}
    waiting = {name.partition(".")[0] for name in names}
    elsewhere = [path for path in sys.path if path and Path(path).resolve() != here.resolve()]
    while waiting:
        name = waiting.pop()
        # As in training, what is installed comes first.
        if name in found or name in sys.stdlib_module_names or PathFinder.find_spec(name, elsewhere):
            continue
        path = next((path for path in (here / name, here / f"{name}.py") if path.exists()), None)
        if path is not None:
            found[name] = path
            waiting |= _imports(path)
    return list(found.values())


def _imports(path: Path) -> set[str]:
    """Top-level names of what a file, or the files of a package, import."""
    found = set()
    for file in [path] if path.is_file() else path.rglob("*.py"):
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError) as error:
            raise InputError(str(file), f"is not Python ({error})", "correct it") from None
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found


def _copy(path: Path, folder: Path) -> None:
    if path.is_file():
        shutil.copy2(path, folder)
    else:
        shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__", ".*"))


def _exit_code(info: Any) -> int:
    code = info.driver_exit_code
    if code is not None:
        return 128 - int(code) if code < 0 else int(code)
    if info.status == "SUCCEEDED":
        return 0
    print(f"error: the job has {str(info.status).lower()}: {info.message}", file=sys.stderr)
    return 1
