"""What a dry run says: the resolved recipe and what it would use."""

import yaml

from tokencredit.cluster.plan import Plan
from tokencredit.cluster.preflight import Preflight
from tokencredit.recipes.schema import Recipe


def describe(recipe: Recipe, plan: Plan, found: Preflight) -> str:
    """The resolved recipe as YAML, followed by one comment line per thing it would use."""
    lines = [yaml.safe_dump(recipe.flat(), sort_keys=False, allow_unicode=True, width=120).rstrip(), ""]
    model = recipe.model.get("model_name_or_path") or (
        f"{recipe.own.init.model_type} from scratch" if recipe.own.init else "none"
    )
    uses = {
        "trainer": recipe.method.trainer.replace(":", "."),
        "model": model,
        "processes": f"{plan.num_processes} ({plan.strategy})",
        "output": recipe.output_dir,
    }
    if found.data is not None:
        uses["training rows"] = _rows(found.data.train)
        if found.data.evaluation is not None:
            uses["evaluation rows"] = _rows(found.data.evaluation)
        first = next(iter(found.data.train))
        for name in ("prompt", "completion", "chosen", "rejected"):
            if name in first:
                uses[f"first {name}"] = repr(first[name])
    return "\n".join(lines + [f"# {name:16} {value}" for name, value in uses.items()])


def _rows(dataset: object) -> str:
    return str(len(dataset)) if hasattr(dataset, "__len__") else "streamed"
