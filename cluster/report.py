"""What a dry run says about a recipe, and what a run says when it has ended."""

from pathlib import Path

import yaml
from rich.markup import escape
from rich.table import Table

from tokencredit.cluster.plan import Plan
from tokencredit.cluster.preflight import Preflight
from tokencredit.recipes.schema import Recipe
from tokencredit.trainers.callbacks import is_result, read_metrics
from tokencredit.trainers.checkpoints import best_checkpoint


def describe(recipe: Recipe, plan: Plan, found: Preflight) -> str:
    """The resolved recipe as YAML, followed by one comment line per thing it would use."""
    lines = [yaml.safe_dump(recipe.flat(), sort_keys=False, allow_unicode=True, width=120).rstrip(), ""]
    model = recipe.model.get("model_name_or_path") or (
        f"{recipe.own.init.model_type} from scratch" if recipe.own.init else "none"
    )
    ray = recipe.own.launch.ray
    uses = {
        "trainer": recipe.method.trainer.replace(":", "."),
        "model": model,
        "processes": f"{plan.num_processes} ({plan.strategy}{f', Ray: {ray.address}' if ray else ''})",
        "output": recipe.output_dir,
    }
    if found.memory is not None:
        uses["memory"] = str(found.memory)
    if found.data is not None:
        uses["training rows"] = _rows(found.data.train)
        if found.data.evaluation is not None:
            uses["evaluation rows"] = _rows(found.data.evaluation)
        first = next(iter(found.data.train))
        for name in ("prompt", "completion", "chosen", "rejected"):
            if name in first:
                uses[f"first {name}"] = repr(first[name])
    return "\n".join(lines + [f"# {name:16} {value}" for name, value in uses.items()])


def findings(found: Preflight) -> Table:
    """The checks of `tokencredit check`, a row each."""
    table = Table("check", "result", "seconds", "", box=None)
    for finding in found.findings:
        result = "[bold red]wrong[/]" if finding.problems else "ok"
        table.add_row(finding.name, result, f"{finding.seconds:.1f}", escape(finding.detail))
    return table


def _rows(dataset: object) -> str:
    return str(len(dataset)) if hasattr(dataset, "__len__") else "streamed"


def scores(recipe: Recipe) -> Table | None:
    """The evaluation figures of a run: those of the model that was saved, or None without an evaluation."""
    by_step: dict[int, dict[str, float]] = {}
    for line in read_metrics(Path(recipe.output_dir)):
        figures = {name: value for name, value in line.items() if name.startswith("eval_")}
        if figures:
            by_step.setdefault(line["step"], {}).update(figures)
    if not by_step:
        return None
    best = best_checkpoint(Path(recipe.output_dir)) if recipe.training.get("load_best_model_at_end") else None
    step = int(best.name.removeprefix("checkpoint-")) if best else max(by_step)
    if step not in by_step:
        return None
    table = Table("evaluation", f"step {step}", box=None)
    for key, value in by_step[step].items():
        if is_result(key):
            table.add_row(key.removeprefix("eval_"), f"{value:.4f}")
    return table
