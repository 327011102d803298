"""The table of a comparison: one row a position, with every measure and the most likely tokens of both models."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokencredit.analysis.trajectories import Trajectory
from tokencredit.scoring.measures import FIGURES, RANKS, TOPS, Measures

Array = NDArray[Any]

KEYS = ("model", "led", "prompt", "response", "position", "length", "token_id", "token")
"""Which position a row is: name of the tuned model, who wrote the response, number of its problem and of the response,
the token's place in it, how long it is, and the token."""


def rows(
    model: str, trajectories: Sequence[Trajectory], first: int, measures: Sequence[Measures], texts: Any
) -> pa.Table:
    """The rows of some responses.

    Args:
        model: Name of the tuned model.
        trajectories: The responses.
        first: Number of the first of them.
        measures: Of each, from `tokencredit.scoring.shift.shift_measures`.
        texts: From a token id to its text.

    Returns:
        `KEYS`, then the measures there are; figures float32, ranks and ids int32, lists of one length.
    """
    # The first token of a sequence has nothing before it, so that no model predicts it.
    sizes = [len(found["base_logp"]) for found in measures]
    skipped = [len(item.ids) - size for item, size in zip(trajectories, sizes, strict=True)]
    ids = [token for item, skip in zip(trajectories, skipped, strict=True) for token in item.ids[skip:]]

    def each(values: Iterable[Any], kind: pa.DataType) -> pa.Array:
        repeated = [value for value, size in zip(values, sizes, strict=True) for _ in range(size)]
        return pa.array(repeated, kind)

    places = [place for item, skip in zip(trajectories, skipped, strict=True) for place in range(skip, len(item.ids))]
    columns: dict[str, pa.Array] = {
        "model": each([model] * len(sizes), pa.string()),
        "led": each([item.led for item in trajectories], pa.string()),
        "prompt": each([item.prompt for item in trajectories], pa.int32()),
        "response": each(range(first, first + len(sizes)), pa.int32()),
        "position": pa.array(places, pa.int32()),
        "length": each([len(item.ids) for item in trajectories], pa.int32()),
        "token_id": pa.array(ids, pa.int32()),
        "token": pa.array([texts(token) for token in ids], pa.string()),
    }
    there = measures[0]
    for name in (*FIGURES, *RANKS, *TOPS):
        if name in there:
            columns[name] = _column(name, np.concatenate([found[name].numpy() for found in measures]))
    return pa.table(columns)


def _column(name: str, values: Array) -> pa.Array:
    if name in FIGURES:
        return pa.array(values.astype(np.float32))
    if name in RANKS or values.ndim == 1:
        return pa.array(values.astype(np.int32))
    kind = np.int32 if name.endswith("_ids") else np.float32
    return pa.FixedSizeListArray.from_arrays(pa.array(values.astype(kind).ravel()), values.shape[1])


def column(table: pa.Table, name: str) -> Array:
    """A column as NumPy: `[N]`, or `[N, n]` for a list."""
    values = table[name].combine_chunks()
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)
    if pa.types.is_fixed_size_list(values.type):
        return values.flatten().to_numpy(zero_copy_only=False).reshape(-1, values.type.list_size)  # type: ignore[no-any-return]
    return values.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def parts(table: pa.Table) -> dict[tuple[str, str], pa.Table]:
    """The rows of each tuned model and each kind of trajectory, in order of appearance."""
    keys = dict.fromkeys(zip(table["model"].to_pylist(), table["led"].to_pylist(), strict=True))
    models, led = column(table, "model"), column(table, "led")
    return {key: table.filter(pa.array((models == key[0]) & (led == key[1]))) for key in keys}


def listed_texts(table: pa.Table, texts: Any) -> dict[int, str]:
    """The texts of all tokens that a table names."""
    ids: set[int] = set()
    for name in ("token_id", "base_top_ids", "tuned_top_ids"):
        ids |= set(np.unique(column(table, name)).tolist())
    return {token: texts(token) for token in sorted(ids)}


def metadata(table: pa.Table, values: Mapping[str, str]) -> pa.Table:
    """The table with notes in its schema."""
    return table.replace_schema_metadata({key.encode(): value.encode() for key, value in values.items()})
