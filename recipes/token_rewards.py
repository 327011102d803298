"""`tokencredit token-rewards`: the rewards of a T-REG recipe's pairs, computed, kept, described and shown."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.table import Table

from tokencredit.analysis import page
from tokencredit.analysis.models import load_model, load_tokenizer
from tokencredit.analysis.other_rewards import dpo_rewards, shuffled_rewards
from tokencredit.analysis.reward_figures import RewardedPair, RewardFigures, in_text, reward_figures, reward_view
from tokencredit.errors import InputError
from tokencredit.recipes.build import build_trainer
from tokencredit.recipes.schema import Recipe, parse_recipe
from tokencredit.trainers.annotate import CLASSES, REWARDS, SIDES

SHOWN_PAIRS = 200
"""Pairs on a page."""


@dataclass(frozen=True)
class Made:
    """Pairs with rewards.

    Args:
        dataset: Tokenised as in training.
        columns: Those of the data as they were given.
        tokenizer: The one that made the ids.
        pairs: The same for reading.
        figures: Over all of them.
        templates: The requests.
    """

    dataset: Any
    columns: list[str]
    tokenizer: Any
    pairs: list[RewardedPair]
    figures: RewardFigures
    templates: str


def parsed(layer: dict[str, Any]) -> Recipe:
    """The recipe of a layer.

    Raises:
        InputError: It cannot be used, or is for another trainer.
    """
    recipe = parse_recipe(layer)
    if recipe.own.trainer != "t_reg":
        raise InputError("trainer", f"{recipe.own.trainer!r} has no token rewards", "name a recipe with trainer: t_reg")
    if recipe.own.init is not None:
        raise InputError("init", "a model from scratch finds no token better than another", "name a trained model")
    return recipe


def check_files(files: Iterable[Path | None]) -> None:
    """Refuse files that cannot be written, before anything is loaded.

    Raises:
        InputError: Naming the first of them.
    """
    for path in files:
        if path is not None and path.is_dir():
            raise InputError(str(path), "is a folder", "name a file")
        if path is not None and not path.parent.is_dir():
            raise InputError(str(path), f"there is no folder {str(path.parent)!r}", "create it, or name another file")


def reward(
    recipe: Recipe, data: Any, *, limit: int | None, shuffle: int | None = None, from_dpo: str | None = None
) -> Made:
    """Give the training pairs of a recipe their rewards, and those it evaluates on unless there is a limit.

    Args:
        recipe: A resolved `t_reg` recipe.
        data: Its `RecipeData`.
        limit: Take the first so many training pairs.
        shuffle: Deal the rewards of each response out at random, by this seed.
        from_dpo: Take what this model implies instead, see `tokencredit.analysis.other_rewards.dpo_rewards`.
    """
    if not isinstance(data.train, Dataset):
        raise InputError("dataset_streaming", "token rewards are computed of the whole data", "load it whole")
    columns = next(iter(data.train)).keys()
    if limit is not None or from_dpo is not None:
        rows = len(data.train) if limit is None else min(limit, len(data.train))
        data = replace(data, train=data.train.select(range(rows)), evaluation=None)
    # The rewards are the same for both bases, and SimPO holds no second model in memory.
    settings: dict[str, Any] = {"base": "simpo", "precompute_ref_log_probs": False, "loss": None, "loss_kwargs": None}
    if from_dpo is not None:
        settings["loss"] = "tokencredit.losses:simpo_loss"  # needs no rewards, so that none are computed
    trainer = build_trainer(recipe.with_training(**settings), data)
    dataset, tokenizer = trainer.train_dataset, trainer.processing_class
    special = tokenizer.all_special_ids
    if from_dpo is not None:
        tuned = _tuned(from_dpo, tokenizer)
        dataset = _with_columns(dataset, dpo_rewards(dataset, tuned, trainer.model.eval(), special=special))
    if shuffle is not None:
        dataset = _with_columns(dataset, shuffled_rewards(dataset, special=special, seed=shuffle))
    pairs = _pairs(dataset, tokenizer)
    return Made(
        dataset=dataset,
        columns=["prompt", *columns],
        tokenizer=tokenizer,
        pairs=pairs,
        figures=reward_figures(pairs),
        templates=trainer.args.templates,
    )


def _tuned(name: str, tokenizer: Any) -> Any:
    try:
        if load_tokenizer(name).get_vocab() != tokenizer.get_vocab():
            raise InputError("MODEL", f"{name!r} has another tokenizer", "name a model tuned from the recipe's")
        return load_model(name)
    except InputError as error:
        raise InputError("--from-dpo", error.problem, error.remedy) from None


def _with_columns(dataset: Any, columns: dict[str, list[list[float]]]) -> Any:
    kept = dataset.remove_columns([name for name in REWARDS if name in dataset.column_names])
    for name, values in columns.items():
        kept = kept.add_column(name, values)
    return kept


def _pairs(dataset: Any, tokenizer: Any) -> list[RewardedPair]:
    special = set(tokenizer.all_special_ids)
    texts: dict[int, str] = {}

    def text(token: int) -> str:
        if token not in texts:
            texts[token] = tokenizer.decode([token])
        return texts[token]

    found = []
    for row in dataset:
        ids = {side: row[f"{side}_ids"] for side in SIDES}
        found.append(
            RewardedPair(
                prompt=tokenizer.decode(row["prompt_ids"]),
                strategy=row.get("strategy"),
                tokens={side: [text(token) for token in ids[side]] for side in SIDES},
                ids=ids,
                rewards={side: row[column] for side, column in zip(SIDES, REWARDS, strict=True)},
                classes={side: row.get(column) or [] for side, column in zip(SIDES, CLASSES, strict=True)},
                inside={side: in_text(ids[side], special) for side in SIDES},
            )
        )
    return found


def write(made: Made, output: Path | None, html: Path | None) -> Iterator[str]:
    """Write what was asked for, each file in one step, and say so."""
    if output is not None:
        _save(made, output)
        yield f"saved {output}"
    if html is not None:
        page.write(_page(made), html)
        yield f"written to {html}"


def _save(made: Made, path: Path) -> None:
    """The pairs with their rewards as Parquet: data that a recipe can name."""
    end = made.tokenizer.eos_token or ""

    def as_given(row: dict[str, Any]) -> dict[str, Any]:
        return {side: row[side].removesuffix(end) for side in SIDES if isinstance(row[side], str)}

    kept = made.dataset.select_columns([*dict.fromkeys([*made.columns, *REWARDS])])
    temporary = path.with_name(path.name + ".tmp")
    kept.map(as_given).to_parquet(temporary)
    os.replace(temporary, path)


def _page(made: Made) -> page.Page:
    """The token view of the first pairs, with the figures over all."""
    left_out = len(made.pairs) - SHOWN_PAIRS
    view = reward_view(made.pairs[:SHOWN_PAIRS])
    classes = _class_rows(made.figures)
    return page.Page(
        title="Token rewards",
        summary=f"Templates: {made.templates}.",
        facts=_facts(made.figures),
        notes=[f"the last {left_out} pairs are left out, to keep the page small"] if left_out > 0 else [],
        view=view,
        tables=[page.Table("Token classes", _CLASS_HEAD, classes)] if classes else [],
        column=view.start(),
    )


_CLASS_HEAD = ("token class", "mean |r̂|", "tokens", "mean r̂ chosen", "rejected")


def tables(figures: RewardFigures) -> Iterator[Table]:
    """The figures for a terminal."""
    table = Table("figure", "value", box=None)
    for name, value in _facts(figures):
        table.add_row(name, value)
    yield table
    if figures.classes:
        classes = Table(*_CLASS_HEAD, box=None)
        for row in _class_rows(figures):
            classes.add_row(*row)
        yield classes


def _facts(figures: RewardFigures) -> list[tuple[str, str]]:
    facts = [
        ("pairs", str(figures.chosen.count)),
        ("mean r̂ chosen", str(figures.chosen)),
        ("mean r̂ rejected", str(figures.rejected)),
        ("difference", str(figures.difference)),
        ("pairs with chosen above rejected", f"{figures.preferred:.3f}"),
    ]
    for strategy, found in figures.auc.items():
        name = f"AUC within answers{strategy and f', {strategy}'} (n = {found.count})"
        facts.append((name, f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"))
    if figures.pooled_auc is not None:
        facts.append(("AUC over all answers", f"{figures.pooled_auc:.3f}"))
    return facts


def _class_rows(figures: RewardFigures) -> list[list[str]]:
    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:+.4f}"

    return [
        [name, f"{found.size:.4f}", str(found.count), number(found.chosen), number(found.rejected)]
        for name, found in figures.classes.items()
    ]
