"""Two saved models that are to write together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokencredit.analysis.cross_samples import Decode, Problem, decode_here, fingerprint
from tokencredit.analysis.models import check_positions, load_model, max_positions
from tokencredit.trainers.task_metric import stop_tokens

Names = tuple[str, str]


@dataclass(frozen=True)
class Opened:
    """Two models that are ready.

    Args:
        decode: Runs jobs on them.
        fingerprint: Of their settings and weights.
        stop_ids: Where either of them stops.
    """

    decode: Decode
    fingerprint: str
    stop_ids: tuple[int, ...]


def check_room(names: Sequence[str], problems: Sequence[Problem], max_new_tokens: int) -> None:
    """Refuse answers that are longer than a model can take.

    Raises:
        InputError: Saying how long they may be.
    """
    longest = max(len(problem.ids) for problem in problems)
    for name in names:
        check_positions(name, max_positions(name), longest, max_new_tokens)


def open_here(names: Names, tokenizer: Any, batch_size: int, dtype: str = "auto") -> Opened:
    """Load both models into this process.

    Raises:
        InputError: One cannot be loaded.
    """
    models = [load_model(name, dtype) for name in names]
    stops = sorted({token for model in models for token in stop_tokens(model, tokenizer)})
    return Opened(decode_here(models[0], models[1], batch_size), fingerprint(*models), tuple(stops))
