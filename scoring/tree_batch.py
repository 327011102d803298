"""Batches of prefix trees, made on the host.

A batch is a dictionary of tensors, so that it travels like the rest of a trainer's batch: `tokens`, `positions`, `ends`
`[L, R]` (L lines of R rows; no `ends` where each line is one sequence), `heads` and `labels` `[N]` (rows of the
flattened lines and what they predict), and `places`, which says where in the N predictions a sequence's tokens stand;
where all tokens count, `weights` `[L, R]`, the number of sequences that a row belongs to.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tokencredit.scoring.prefix_tree import PrefixTree, Rows, grouped, packed, prefix_tree

MAX_ROWS = 4096
"""Of a line with several sequences, unless two of them need more: a mask has an entry for each pair of its rows."""
_WORTH_IT = 0.95
_END = -1  # follows the last token of a sequence, and is no token


def batch_trees(
    input_ids: Tensor,
    attention_mask: Tensor,
    scored: Tensor,
    *,
    hidden_size: int,
    always: bool = False,
    whole: bool = False,
    multiple_of: int | None = None,
) -> dict[str, Tensor]:
    """Merge the sequences of a padded batch, where one forward over trees costs less [O].

    The cost is that of `grouped`, over all lines and their padding, against half the attention for the padded batch,
    whose kernels skip what a causal mask hides. A saving below a twentieth does not count: masks have to be made.

    Args:
        input_ids: `[S, T]`.
        attention_mask: `[S, T]`, 1 on tokens, which stand next to each other: padding is before or behind them.
        scored: `[S, T]`, 1 on the tokens whose numbers are wanted.
        hidden_size: Of the model.
        always: Lay out trees, whatever they cost, unless nothing is scored.
        whole: Give the last token of a sequence a row too, and return `weights`: for the load of a model's experts.
        multiple_of: Rows per line are padded to a multiple of it.

    Returns:
        `counts` `[3]`: the rows of the trees, what they would be without sharing, and 1 if trees are laid out; then
        also what the module's docstring names, with `places` `[S, T − 1]`, −1 where nothing is scored.
    """
    lengths, starts = attention_mask.sum(1).tolist(), attention_mask.argmax(1).tolist()
    last = [_END] if whole else []
    rows_given = zip(input_ids.tolist(), starts, lengths, strict=True)
    sequences = [row[start : start + length] + last for row, start, length in rows_given]
    max_rows = max(2 * max(map(len, sequences)), MAX_ROWS)
    trees, members = packed_trees(sequences, grouped(sequences, hidden_size=hidden_size, max_rows=max_rows))
    rows = max(map(len, trees))
    cost = len(trees) * rows * (1 + rows / (6 * hidden_size))
    padded = input_ids.numel() * (1 + input_ids.size(1) / (12 * hidden_size))
    used = bool(scored[:, 1:].any()) and (always or cost < _WORTH_IT * padded)
    alone = sum(len(sequence) - 1 for sequence in sequences)
    found = {"counts": torch.tensor([sum(map(len, trees)), alone, int(used)])}
    if not used:
        return found
    found |= lay_out(trees, multiple_of=multiple_of)
    places = np.full((len(sequences), input_ids.size(1) - 1), -1)
    offset = 0
    for tree, own_rows in zip(trees, members, strict=True):
        for row, own in zip(own_rows, tree.places, strict=True):
            # Nothing predicts what follows the last token.
            predicted = slice(starts[row], starts[row] + lengths[row] - 1)
            places[row, predicted] = offset + own[: lengths[row] - 1]
        offset += len(tree.heads)
    places[~scored[:, 1:].bool().numpy()] = -1
    wanted, places[places >= 0] = np.unique(places[places >= 0], return_inverse=True)
    found |= {name: found[name][torch.from_numpy(wanted)] for name in ("heads", "labels")}
    if all(len(own_rows) == 1 for own_rows in members):
        del found["ends"]
    if whole:
        found["weights"] = torch.stack([torch.from_numpy(_uses(tree, found["tokens"].size(1))) for tree in trees])
    return found | {"places": torch.from_numpy(places)}


def _uses(tree: PrefixTree, rows: int) -> Rows:
    """How many sequences each row belongs to, `[rows]`."""
    return np.bincount(np.concatenate([tree.heads[own] for own in tree.places]), minlength=rows)


def packed_trees(
    sequences: Sequence[Sequence[int]], groups: Sequence[list[int]]
) -> tuple[list[PrefixTree], list[list[int]]]:
    """Make each group a tree, and put several into a line where the longest leaves room.

    Returns:
        A tree per line, and the indices of its sequences.
    """
    sizes = [len(prefix_tree([sequences[row] for row in rows])) for rows in groups]
    lines = [[row for place in line for row in groups[place]] for line in packed(sizes, max(sizes))]
    return [prefix_tree([sequences[row] for row in line]) for line in lines], lines


def lay_out(trees: Sequence[PrefixTree], *, multiple_of: int | None = None) -> dict[str, Tensor]:
    """Put trees one a line: `tokens`, `positions`, `ends`, `heads` and `labels`."""
    rows = max(map(len, trees))
    rows += -rows % (multiple_of or 1)
    tokens, positions = (np.zeros((len(trees), rows), dtype=np.int64) for _ in range(2))
    # A padding row sees itself only: a row of the mask without any key would give NaN.
    ends = np.tile(np.arange(1, rows + 1), (len(trees), 1))
    for line, tree in enumerate(trees):
        own = slice(len(tree))
        tokens[line, own], positions[line, own], ends[line, own] = tree.tokens, tree.positions, tree.ends
    heads = np.concatenate([line * rows + tree.heads for line, tree in enumerate(trees)])
    labels = np.concatenate([tree.labels for tree in trees])
    arrays = {"tokens": tokens, "positions": positions, "ends": ends, "heads": heads, "labels": labels}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
