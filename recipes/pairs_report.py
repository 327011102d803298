"""What `tokencredit pairs` says: before, in a dry run, and after."""

from collections import Counter
from collections.abc import Iterator

import yaml
from rich.table import Table

from tokencredit.data.negatives import Rows
from tokencredit.recipes.pairs_build import Made, Prepared
from tokencredit.recipes.pairs_confusion import confusion_file

_SHOWN = 10


def describe(prepared: Prepared) -> str:
    """The resolved recipe as YAML, followed by one comment line per thing it would use."""
    recipe, data = prepared.recipe, prepared.data
    lines = [yaml.safe_dump(recipe.flat(), sort_keys=False, allow_unicode=True, width=120).rstrip(), ""]
    uses = {"output": recipe.output_file}
    if recipe.measures:
        uses["confusion counts"] = str(confusion_file(recipe))
    if recipe.confusion_table is not None:
        uses["counts read from"] = str(recipe.confusion_table)
    if recipe.generates:
        uses["model"] = str(recipe.model_name_or_path)
    if data is not None:
        uses["documents"] = str(len(data.training))
        if data.counting:
            uses["counted on"] = f"{len(data.counting)} documents"
        if data.ontology:
            names = sum(map(len, data.ontology.values()))
            uses["ontology"] = f"{len(data.ontology)} labels with {names} sub-labels"
        if data.experts:
            uses["expert pairs"] = str(len(data.experts))
        uses["first prompt"] = repr(data.training[0].prompt)
    return "\n".join(lines + [f"# {name:16} {value}" for name, value in uses.items()])


def result(made: Made) -> Iterator[Table | str]:
    """What was measured, made and written, from top to bottom."""
    yield from confusion_tables(made)
    yield from summary(made)
    yield from (f"saved {path}" for path in made.files)


def confusion_tables(made: Made) -> Iterator[Table]:
    """The most frequent confusions of labels and of sub-labels, if they were measured, now or before."""
    if made.confusion is None:
        return
    for title, rows in (("label", made.confusion["labels"]), ("sub-label", made.confusion["sublabels"])):
        yield _table(title, rows)


def _table(title: str, rows: Rows) -> Table:
    """The share is that among all confusions of the gold name."""
    counts = {(gold, name): count for gold, row in rows.items() for name, count in row.items()}
    top = sorted(counts, key=lambda names: (-counts[names], names))[:_SHOWN]
    more = f" (top {_SHOWN} of {len(counts)})" if len(counts) > _SHOWN else ""
    table = Table(f"gold {title}", f"predicted{more}", "count", "share", box=None)
    for gold, name in top:
        share = counts[gold, name] / sum(rows[gold].values())
        table.add_row(gold, name, f"{counts[gold, name]:g}", f"{share:.2f}")
    return table


def summary(made: Made) -> list[str]:
    """What was made, by strategy, and what was not, by reason."""
    pairs, lines = made.pairs, []
    if made.counted:
        lines.append(f"{made.invalid} of {made.counted} answers were not valid JSON with records")
    by_strategy = Counter(row["strategy"] for row in pairs.rows)
    lines.append(f"{len(pairs.rows)} pairs: " + ", ".join(f"{name} {count}" for name, count in by_strategy.items()))
    if made.confusion is not None and pairs.renamed:
        lines.append(f"{pairs.measured} of {pairs.renamed} new names follow measured confusions, the rest are uniform")
    lines += [f"not made: {count} ({reason})" for reason, count in pairs.dropped.most_common()]
    return lines
