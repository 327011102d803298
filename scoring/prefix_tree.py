"""Sequences as trees of their distinct prefixes, so that a model computes every distinct (prefix, token) once.

Rows stand in depth-first order. A row sees the rows on its way to the root and itself: with `end` one past the last row
below row i, row j sees row i exactly if i ≤ j < end_i. Its position is its depth. Several trees stand one after the
other in a line; their intervals do not meet. The output head predicts one token per row it is given, so a row is handed
to it once for every token that follows it somewhere: the row of a branch is repeated for each further child, after the
layers, where that costs no more than the head itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class PrefixTree:
    """One or several trees in a line of R rows, which predict N tokens.

    Args:
        tokens: `[R]`, the token of each row.
        positions: `[R]`, its depth, from 0 at a root.
        ends: `[R]`, one past the last row below it.
        heads: `[N]`, the row that predicts a token; a row with several children is there once for each.
        labels: `[N]`, the token that it predicts.
        places: For each sequence where in `heads` its tokens 1.. are predicted, `[n − 1]`.
    """

    tokens: Rows
    positions: Rows
    ends: Rows
    heads: Rows
    labels: Rows
    places: list[Rows]

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.tokens)


def prefix_tree(sequences: Sequence[Sequence[int]]) -> PrefixTree:
    """Merge sequences into trees, one for each different first token.

    A sequence's last token is a row only if it is needed: by a longer sequence that goes on from it.

    Args:
        sequences: Token ids, at least one each; equal ones and prefixes of others are allowed.

    Returns:
        The trees, with `places` in the order of the sequences.
    """
    arrays = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
    order = lexical_order(sequences)
    builder = _Builder(sum(max(0, len(array) - 1) for array in arrays), max(map(len, arrays), default=0))
    places: list[Rows] = [np.empty(0, dtype=np.int64)] * len(arrays)
    for index in order:
        places[index] = builder.add(arrays[index])
    return builder.finish(places)


def lexical_order(sequences: Sequence[Sequence[int]]) -> list[int]:
    """Indices of the sequences, sorted token by token: those that share a prefix stand together."""
    return sorted(range(len(sequences)), key=lambda index: list(sequences[index]))


def grouped(sequences: Sequence[Sequence[int]], *, hidden_size: int, max_rows: int) -> list[list[int]]:
    """Which sequences to merge: those for which one forward over all costs less than one for each [O].

    By its multiplications a row costs one unit in the projections of a layer and rows / (6 hidden_size) in its
    attention, to which every row of the same line is a key. So a short common prefix is not worth a long line.

    Args:
        sequences: Token ids, at least one each.
        hidden_size: Of the model.
        max_rows: The most rows of a group of several.

    Returns:
        Groups of indices; each sequence is in one.
    """

    def cost(rows: int) -> float:
        return rows * (1 + rows / (6 * hidden_size))

    groups: list[list[int]] = []
    rows, previous = 0, np.empty(0, dtype=np.int64)
    for index in lexical_order(sequences):
        sequence = np.asarray(sequences[index], dtype=np.int64)
        alone = len(sequence) - 1
        shared = common_length(previous, sequence)
        added = max(0, alone - min(shared, max(0, len(previous) - 1)))
        if groups and rows + added <= max_rows and cost(rows + added) < cost(rows) + cost(alone):
            groups[-1].append(index)
            rows += added
        else:
            groups.append([index])
            rows = alone
        previous = sequence
    return groups


def packed(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Fill lines of at most so many rows, the longest first, each into the first line that has room.

    Args:
        lengths: Rows of each tree.
        budget: Rows of a line; a longer tree gets a line of its own.

    Returns:
        The places of the trees in each line.
    """
    lines: list[list[int]] = []
    room: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        line = next((line for line, left in enumerate(room) if left >= lengths[place]), len(lines))
        if line == len(lines):
            lines.append([])
            room.append(budget)
        lines[line].append(place)
        room[line] -= lengths[place]
    return lines


class _Builder:
    """Takes sequences in lexical order. Further children are numbered from −1 down until all rows are known."""

    def __init__(self, capacity: int, longest: int) -> None:
        self.tokens, self.positions, self.ends, self.labels = (np.zeros(capacity, dtype=np.int64) for _ in range(4))
        self.count = 0
        self.path, self.scored = (np.zeros(longest, dtype=np.int64) for _ in range(2))
        self.previous = np.empty(0, dtype=np.int64)
        self.branches: list[int] = []
        self.branch_labels: list[int] = []

    def add(self, sequence: Rows) -> Rows:
        """Take a sequence and say what scores its tokens 1.."""
        shared = common_length(self.previous, sequence)
        # The last token of a sequence predicts nothing, so it has no row unless another sequence goes on.
        known = min(shared, max(0, len(self.previous) - 1))
        self._close(known)
        self._append(sequence[known:-1], known)
        self._predict(sequence, shared, known)
        self.previous = sequence
        return self.scored[: len(sequence) - 1].copy()

    def _close(self, depth: int) -> None:
        """What lies deeper on the path of the last sequence gets no further rows below it."""
        self.ends[self.path[depth : max(depth, len(self.previous) - 1)]] = self.count

    def _append(self, tokens: Rows, depth: int) -> None:
        rows = slice(self.count, self.count + len(tokens))
        self.tokens[rows], self.positions[rows] = tokens, np.arange(depth, depth + len(tokens))
        self.path[depth : depth + len(tokens)] = np.arange(rows.start, rows.stop)
        self.count += len(tokens)

    def _predict(self, sequence: Rows, shared: int, known: int) -> None:
        new = self.path[known : max(known, len(sequence) - 1)]
        self.labels[new] = sequence[known + 1 :]
        self.scored[known : known + len(new)] = new
        if 0 < shared == known < len(sequence):
            # The row before the branch exists, so it predicts another token already.
            self.branches.append(int(self.path[shared - 1]))
            self.branch_labels.append(int(sequence[shared]))
            self.scored[shared - 1] = -len(self.branches)

    def finish(self, places: list[Rows]) -> PrefixTree:
        """Put the further children behind the rows."""
        self._close(0)
        kept = slice(self.count)
        branches, labels = (np.asarray(values, dtype=np.int64) for values in (self.branches, self.branch_labels))
        return PrefixTree(
            tokens=self.tokens[kept],
            positions=self.positions[kept],
            ends=self.ends[kept],
            heads=np.concatenate([np.arange(self.count), branches]),
            labels=np.concatenate([self.labels[kept], labels]),
            places=[np.where(found < 0, self.count - 1 - found, found) for found in places],
        )


def common_length(a: Rows, b: Rows) -> int:
    """Length of the longest common prefix."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length
