"""Run folders written by hand, for what reads them."""

import json
from pathlib import Path
from typing import Any

import yaml

RECIPE = {"trainer": "tab_po", "output_dir": "runs/first", "beta": 0.5, "token_weights": {"differing": 1.2}}
ENVIRONMENT = {
    "versions": {"torch": "2.13.0", "trl": "1.16.0"},
    "device": "cpu",
    "world_size": 1,
    "parameters": 901_000,
}


def sample(tokens: list[str], side: str = "chosen", step: int = 10, pair: int = 0, **columns: Any) -> dict[str, Any]:
    """A line of token samples; the columns are made up unless given."""
    size = len(tokens)
    line = {"step": step, "pair": pair, "side": side, "prompt": f"prompt {pair}\n", "tokens": tokens}
    line |= {"ids": [100_000 + place for place in range(size)], "weights": [1 + place / 10 for place in range(size)]}
    line |= {"logps": [-0.5 - place for place in range(size)], "ref_logps": [-1.0] * size}
    return line | columns


def metrics(steps: int = 20, level: float = 1.0) -> list[dict[str, Any]]:
    """Lines with a loss, token classes and an evaluation."""
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        lines.append({"step": step, "epoch": step / steps, "loss": level / step, "grad_norm": 1.0})
        lines[-1] |= {"logps_change": 0.1, "logps_change/span": 0.2, "logps_change/code": -0.1}
    return [*lines, {"step": steps, "epoch": 1.0, "eval_loss": level / 2, "eval_record_f1": 0.5}]


def write_run(
    folder: Path,
    samples: list[dict[str, Any]] | None = None,
    lines: list[dict[str, Any]] | None = None,
    **recipe: Any,
) -> Path:
    """A run folder; without lines or samples it has no such file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | recipe, sort_keys=False), encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    if lines is not None:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for step in sorted({line["step"] for line in samples or []}):
        file = folder / "token_samples" / f"step-{step:08d}.jsonl"
        file.parent.mkdir(exist_ok=True)
        chosen = [json.dumps(line) + "\n" for line in samples or [] if line["step"] == step]
        file.write_text("".join(chosen), encoding="utf-8")
    return folder
