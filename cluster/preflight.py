"""Everything about a recipe that can be known on this machine before anything is written or any process starts."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from tokencredit.cluster.devices import accelerator_bytes, memory_bytes
from tokencredit.cluster.memory import Memory, check_fits, needed_memory
from tokencredit.cluster.node_probe import MARKER
from tokencredit.cluster.plan import Plan
from tokencredit.cluster.resume import Start, find_start
from tokencredit.errors import InputError
from tokencredit.recipes.build import metric_function, peft_config, with_defaults
from tokencredit.recipes.data import RecipeData, load_data
from tokencredit.recipes.files import RECIPE_FILE
from tokencredit.recipes.init_model import INITIAL_MODEL, model_config
from tokencredit.recipes.rewards_schema import check_rewards
from tokencredit.recipes.schema import Recipe
from tokencredit.trainers.task_metric import answer_text

LOCK = ".lock"
# What a run writes before its first step; a folder with nothing else in it counts as unused.
_PREPARATION = {RECIPE_FILE, INITIAL_MODEL, f"{INITIAL_MODEL}.tmp", LOCK}
_LOSS_FIGURES = {"loss", "mean_token_accuracy", "entropy"}


@dataclass(frozen=True)
class Finding:
    """One check.

    Args:
        name: What was looked at.
        seconds: How long it took.
        detail: What is there.
        problems: What is wrong with it, none when it is as it must be.
    """

    name: str
    seconds: float
    detail: str = ""
    problems: tuple[InputError, ...] = ()


@dataclass
class Preflight:
    """What the checks found.

    Args:
        dry_run: Whether what is not on this machine is noted instead of refused.
        data: The loaded data, or None when it is not on this machine (dry run only) or not as it must be.
        start: Where the run begins.
        memory: What each process needs at least, or None where that cannot be known.
        notes: Lines for the user.
        findings: The checks in their order.
    """

    dry_run: bool = False
    data: RecipeData | None = None
    start: Start = field(default_factory=Start)
    memory: Memory | None = None
    notes: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    tokenizer: Any = None

    def take(self, name: str, look: Callable[[], str]) -> None:
        """Make a check: `look` says what is there, or raises `InputError`."""
        begun = time.monotonic()
        try:
            self.add(name, look(), [], begun)
        except InputError as error:
            self.add(name, "", [error], begun)

    def add(self, name: str, detail: str, problems: list[InputError], begun: float) -> None:
        """Add a check that was made elsewhere, since a moment of `time.monotonic`."""
        self.findings.append(Finding(name, time.monotonic() - begun, detail, tuple(problems)))

    def problems(self) -> list[InputError]:
        """Everything that is wrong, in the order of the checks."""
        return [problem for finding in self.findings for problem in finding.problems]


Step = Callable[[Recipe, Plan, Preflight], str]


def check(recipe: Recipe, plan: Plan, found: Preflight, *, every: bool = False) -> None:
    """Check a resolved recipe.

    Args:
        recipe: From `tokencredit.cluster.plan.resolve`.
        plan: From the same.
        found: What the checks find is added here.
        every: Go on after a check that fails, to find everything that is wrong.

    Raises:
        InputError: Naming the first thing that cannot work, unless `every` is set.
    """
    for name, step in _STEPS.items():
        found.take(name, partial(step, recipe, plan, found))
        if found.problems() and not every:
            raise found.problems()[0]


def _run_folder(recipe: Recipe, plan: Plan, found: Preflight) -> str:
    _check_output(recipe)
    found.start = find_start(recipe, plan.num_processes)
    found.notes += found.start.notes
    return recipe.output_dir


def _settings(recipe: Recipe, plan: Plan, found: Preflight) -> str:
    _check_reporting(recipe)
    peft_config(recipe)
    config = recipe.method.config_class()
    refuse = getattr(config, "refuse", None)
    if refuse is not None:
        refuse(with_defaults(config, recipe.training))
    check_rewards(recipe)
    return f"{recipe.own.trainer}, {plan.strategy} on {plan.num_processes}"


def _model(recipe: Recipe, plan: Plan, found: Preflight) -> str:
    found.tokenizer = _check_model(recipe, found)
    return str(recipe.model.get("model_name_or_path") or "made from scratch")


def _memory(recipe: Recipe, plan: Plan, found: Preflight) -> str:
    """On a Ray cluster it is compared with what the nodes have (`tokencredit.cluster.ray_check`)."""
    if recipe.own.init is None and found.tokenizer is None:
        return "unknown: the model is not here"
    try:
        found.memory = needed_memory(recipe, plan)
    except InputError:
        raise
    except Exception as error:  # an architecture of the model's own may not let itself be made without weights
        return f"not estimated ({' '.join(str(error).split())[:200]})"
    if found.memory is None:
        return "unknown before the run"
    ray = recipe.own.launch.ray
    if ray is None or ray.address == "local":
        on_cpu = bool(recipe.training.get("use_cpu"))
        devices = [memory_bytes()] if on_cpu else accelerator_bytes()
        if devices and not found.dry_run:
            return check_fits(found.memory, plan, devices, "machine" if on_cpu else "accelerator")
    return str(found.memory)


def _data(recipe: Recipe, plan: Plan, found: Preflight) -> str:
    try:
        found.data = load_data(recipe)
    except InputError as error:
        if not (found.dry_run and _is_hub_name(recipe.data.get("dataset_name")) and error.where == "dataset_name"):
            raise
        found.notes.append(f"not available locally: {error}")
        return "not here"
    _check_length(recipe, found.data)
    _check_task_metric(recipe, found.data)
    _check_chat(found.tokenizer, found.data, recipe)
    return f"{len(found.data.train)} rows" if hasattr(found.data.train, "__len__") else "a stream"


_STEPS: dict[str, Step] = {
    "run folder": _run_folder,
    "settings": _settings,
    "model": _model,
    "memory": _memory,
    "data": _data,
}


def is_unused(run: Path) -> bool:
    """Whether a run folder holds nothing that a run would overwrite."""
    names = {path.name for path in run.iterdir()} if run.exists() else set()
    return {name for name in names if not name.startswith(MARKER)} <= _PREPARATION


def _check_output(recipe: Recipe) -> None:
    run = existing = Path(recipe.output_dir)
    try:
        existing = next(path for path in (run, *run.parents) if path.exists())
        if not existing.is_dir():
            raise InputError("output_dir", f"{str(existing)!r} is a file", "name a folder")
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            "output_dir", f"cannot write to {str(existing)!r} ({reason})", "name a writable folder"
        ) from None
    if not recipe.training.get("resume_from_checkpoint") and not is_unused(run):
        raise InputError(
            "output_dir",
            f"{str(run)!r} is not empty",
            "name another folder, or set resume_from_checkpoint=true to go on with the run in it",
        )


def _check_reporting(recipe: Recipe) -> None:
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    asked = recipe.training.get("report_to") or []
    for name in [asked] if isinstance(asked, str) else asked:
        if name not in ("none", "all", *INTEGRATION_TO_CALLBACK):
            known = get_close_matches(name, INTEGRATION_TO_CALLBACK, n=1) or INTEGRATION_TO_CALLBACK
            raise InputError("report_to", f"unknown tracker {name!r}", f"choose {' or '.join(known)}")
        if name not in ("none", "all") and name not in get_available_reporting_integrations():
            raise InputError("report_to", f"{name!r} is not installed", f"pip install {name}, or report_to=none")


def _is_hub_name(value: Any) -> bool:
    return isinstance(value, str) and not Path(value).is_absolute()


class _NoTemplate:
    """Stands for the tokenizer that `init:` is going to build: it has no chat template."""

    chat_template = None


_NO_TEMPLATE = _NoTemplate()


def _check_model(recipe: Recipe, found: Preflight) -> Any:
    """The tokenizer, or None when it is yet to be built or fetched."""
    name = recipe.model.get("model_name_or_path")
    if recipe.own.init is not None:
        if name is not None:
            raise InputError("init", "given together with model_name_or_path", "keep one of them")
        model_config(recipe.own.init)
        return _NO_TEMPLATE
    if name is None:
        raise InputError("model_name_or_path", "is missing", "name a folder or a hub model, or write an init: section")
    if not _is_hub_name(name):
        return _check_model_folder(Path(name), recipe)
    try:
        return _load_tokenizer(name, recipe)
    except InputError as error:
        if not found.dry_run:
            raise
        found.notes.append(f"not available locally: {error}")
        return None


def _check_model_folder(folder: Path, recipe: Recipe) -> Any:
    where = "model_name_or_path"
    if not folder.is_dir():
        raise InputError(where, f"no folder {str(folder)!r}", "name the folder of a saved model or a hub model")
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise InputError(
                where, f"{str(folder)!r} is an adapter", "make a plain model of it with `tokencredit merge`"
            )
        raise InputError(where, f"{str(folder)!r} is no model (no config.json)", "name the folder of a saved model")
    tokenizer = _load_tokenizer(str(folder), recipe)
    if not any(path.suffix in (".safetensors", ".bin") for path in folder.iterdir()):
        raise InputError(where, f"{str(folder)!r} holds no weights", "name the folder of a saved model")
    return tokenizer


def _load_tokenizer(name: str, recipe: Recipe) -> Any:
    from transformers import AutoConfig, AutoTokenizer

    options = {
        "revision": recipe.model.get("model_revision", "main"),
        "trust_remote_code": bool(recipe.training.get("trust_remote_code", False)),
    }
    for part, kind in (("model", AutoConfig), ("tokenizer", AutoTokenizer)):
        try:
            loaded = kind.from_pretrained(name, **options)
        except Exception as error:  # the loaders raise whatever the files make them raise
            reason = " ".join(str(error).split())[:200]
            problem = f"{name!r} has no {part} that can be loaded ({reason})"
            if not Path(name).is_dir():
                problem = f"no folder {name!r}, and no model of that name on the hub that can be loaded ({reason})"
            raise InputError("model_name_or_path", problem, "name a saved model with its tokenizer") from None
    return loaded


def _check_length(recipe: Recipe, data: RecipeData) -> None:
    if not hasattr(data.train, "__len__") and recipe.training.get("max_steps", -1) <= 0:
        raise InputError("max_steps", "is missing, and a streamed dataset has no length", "set max_steps")


def _check_task_metric(recipe: Recipe, data: RecipeData) -> None:
    spec, best = recipe.own.task_metric, recipe.training.get("metric_for_best_model")
    names: set[str] = set()
    if spec is not None:
        if data.evaluation is None:
            raise InputError("task_metric", "there is no evaluation to compute it in", "set eval_strategy: steps")
        rows, reference = list(islice(data.evaluation, spec.limit)), recipe.method.reference
        if not {"prompt", reference} <= set(rows[0]):
            raise InputError("task_metric", f"the evaluation data has no prompt and {reference}", "add these columns")
        names = _metric_names(spec.function, [answer_text(row[reference]) for row in rows])
        for name in spec.stop_at:
            _check_figure("task_metric.stop_at", name, names)
    if best is not None and "/" not in best:  # TRL's own figures have a slash
        _check_figure("metric_for_best_model", best.removeprefix("eval_"), names | _LOSS_FIGURES)


def _check_figure(where: str, name: str, known: set[str]) -> None:
    if name not in known:
        near = get_close_matches(name, known, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(known))}"
        raise InputError(where, f"{name!r} is no figure of the evaluation", remedy)


def _metric_names(function: str, golds: list[str]) -> set[str]:
    """The figures a metric has, found by scoring the gold answers against themselves."""
    metric = metric_function(function)
    try:
        return {name for name, value in metric(golds, golds).items() if float(value) is not None}
    except InputError:
        raise
    except Exception as error:  # the user's own function may raise anything
        raise InputError("task_metric", f"{function} fails on the gold answers ({error!r})", "correct it") from None


def _check_chat(tokenizer: Any, data: RecipeData, recipe: Recipe) -> None:
    if tokenizer is None:
        return
    row = next(iter(data.train))
    messages = any(isinstance(row.get(name), list) for name in ("prompt", "messages", "chosen"))
    if messages and tokenizer.chat_template is None and not recipe.training.get("chat_template_path"):
        raise InputError(
            "model_name_or_path",
            "the data has chat messages and this model's tokenizer no chat template",
            "use an instruction-tuned model, or plain-text prompts",
        )
