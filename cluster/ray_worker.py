"""What each worker of Ray Train executes, and how what it says reaches the command."""

import io
import os
import socket
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokencredit.cluster.node_probe import enter
from tokencredit.errors import InputError


@dataclass
class News:
    """What the workers have said since the last time.

    Args:
        lines: `(stream, text)` in their order, the stream `stdout` or `stderr`.
        attempts: How often the workers have begun.
        failed: Whether one of them has failed since they last began.
        refusal: Wrong input that showed only in a worker.
    """

    lines: list[tuple[str, str]] = field(default_factory=list)
    attempts: int = 0
    failed: bool = False
    refusal: InputError | None = None


class Desk:
    """An actor beside the command, where the workers hand in what they have to say."""

    def __init__(self) -> None:
        self.news = News()

    def begin(self) -> int:
        """Called by the first worker of each attempt; returns the attempt's number, from 1."""
        self.news.attempts += 1
        self.news.failed = False
        return self.news.attempts

    def say(self, stream: str, text: str) -> None:
        """Take text for a stream of the command."""
        self.news.lines.append((stream, text))

    def fail(self, rank: int, trace: str) -> None:
        """Take the traceback of a worker. What others raise after the first one only follows from it."""
        if not self.news.failed:
            self.news.failed = True
            self.say("stderr", f"worker {rank} failed:\n{trace}")

    def refuse(self, error: InputError) -> None:
        """Take wrong input, which no further attempt would mend."""
        self.news.refusal = self.news.refusal or error

    def refusal(self) -> InputError | None:
        """Wrong input that a worker met."""
        return self.news.refusal

    def take(self) -> News:
        """Called by the command."""
        taken, self.news = self.news, News([], self.news.attempts, self.news.failed, self.news.refusal)
        return taken


@dataclass(frozen=True)
class Order:
    """What a worker needs to know.

    Args:
        recipe: The resolved recipe, flat.
        resume_from: The checkpoint the first attempt continues from, or None.
        secrets: Environment variables that must not be written anywhere.
        folder: The working directory of the command.
        desk: The `Desk` actor.
    """

    recipe: dict[str, Any]
    resume_from: str | None
    secrets: dict[str, str]
    folder: str
    desk: Any


def end_when_refused(desk: Any) -> Any:
    """A callback of Ray Train that ends the run when a worker has refused its input, whatever attempts are left."""
    import ray
    from ray.train import UserCallback

    class EndWhenRefused(UserCallback):  # type: ignore[misc]
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            refusal = ray.get(desk.refusal.remote())
            if refusal is not None:
                # From here it reaches the controller, which tries again after errors of workers only.
                raise refusal

    return EndWhenRefused()


def work(order: Order) -> None:
    """Train the recipe of an order in this worker."""
    import ray
    from ray.train import get_context

    os.environ.update(order.secrets)
    enter(order.folder, shipped=bool(ray.get_runtime_context().runtime_env.get("working_dir")))
    rank = get_context().get_world_rank()
    if rank == 0:
        sys.stdout, sys.stderr = Relay("stdout", order.desk), Relay("stderr", order.desk)
    try:
        _train(order, rank)
    except InputError as error:
        ray.get(order.desk.refuse.remote(error))
        raise
    except BaseException:
        ray.get(order.desk.fail.remote(rank, traceback.format_exc()))
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


class Relay(io.TextIOBase):
    """A stream whose lines are handed in at the desk."""

    encoding = "utf-8"

    def __init__(self, name: str, desk: Any) -> None:
        self.name, self.desk, self.rest = name, desk, ""

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, text: str) -> int:
        """Take text and pass on the lines it completes."""
        lines, newline, self.rest = (self.rest + text).rpartition("\n")
        if newline:
            self._pass_on(lines + newline)
        return len(text)

    def flush(self) -> None:
        """Pass on a line that was not ended."""
        text, self.rest = self.rest, ""
        if text:
            self._pass_on(text)

    def _pass_on(self, text: str) -> None:
        import ray

        ray.get(self.desk.say.remote(self.name, text))


def _train(order: Order, rank: int) -> None:
    from ray.train.collective import broadcast_from_rank_zero

    from tokencredit.cluster.quiet import quieten
    from tokencredit.cluster.worker import run
    from tokencredit.recipes.data import load_data
    from tokencredit.recipes.schema import parse_recipe

    quieten()
    recipe = parse_recipe(order.recipe)
    _check_shared(order.recipe)
    # Decided by one: another might see the folder of a later moment.
    begin = broadcast_from_rank_zero(_begin(order) if rank == 0 else None)
    if not begin["finished"]:
        run(recipe, load_data(recipe), begin["resume_from"])


def _check_shared(recipe: dict[str, Any]) -> None:
    """Refuse a run folder that another node has under the same name."""
    from tokencredit.recipes.files import RECIPE_FILE, load_yaml

    folder = recipe["output_dir"]
    path = Path(folder) / RECIPE_FILE
    if not path.is_file() or load_yaml(path).keys() != recipe.keys():
        problem = f"{folder!r} on {socket.gethostname()} is not the folder that the command has written to"
        raise InputError("output_dir", problem, "name one on storage that all nodes share")


def _begin(order: Order) -> dict[str, Any]:
    """Where this attempt begins: as the command says, or after a failure at the newest complete checkpoint."""
    import ray

    from tokencredit.cluster.resume import restart
    from tokencredit.recipes.schema import parse_recipe

    attempt = ray.get(order.desk.begin.remote())
    if attempt == 1:
        return {"finished": False, "resume_from": order.resume_from}
    start = restart(parse_recipe(order.recipe), order.resume_from)
    for note in [f"a worker failed: attempt {attempt} of the workers", *start.notes]:
        print(f"note: {note}", file=sys.stderr)
    return {"finished": start.finished, "resume_from": start.resume_from}
