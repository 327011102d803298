"""Two models on the same token ids: every position's measures of how far their predictions are apart."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from peft import PeftModel
from torch import Tensor, nn

from tokencredit.errors import InputError
from tokencredit.scoring.branches import evaluating
from tokencredit.scoring.logps import check_ids
from tokencredit.scoring.measures import Measures, check_mode, measures
from tokencredit.scoring.trl_compat import bare_model

CELLS = 1 << 24
"""Logits of one model that are held at a time: positions times vocabulary, 64 MiB in float32."""

_CHECKED: WeakSet[nn.Module] = WeakSet()


@dataclass(frozen=True)
class Side:
    """One of the two models.

    Args:
        model: A causal language model, plain or with an adapter (PEFT).
        adapter: False switches its adapters off: the same model is then its own base, without being loaded twice.
    """

    model: nn.Module
    adapter: bool = True

    def active(self) -> AbstractContextManager[Any]:
        """Where the model runs as this side."""
        if isinstance(self.model, PeftModel) and not self.adapter:
            return self.model.disable_adapter()
        return nullcontext()

    @property
    def vocabulary(self) -> int:
        """Rows of its output head."""
        return int(bare_model(self.model).get_output_embeddings().weight.shape[0])

    def hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        """What the output head reads, `[B, T, H]`."""
        with self.active():
            inner: Any = bare_model(self.model).base_model
            output = inner(input_ids=ids, attention_mask=mask, use_cache=False)
        return output.last_hidden_state  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """As the model itself makes them of hidden states, `[N, V]`, in its own precision."""
        bare = bare_model(self.model)
        with self.active():
            logits: Tensor = bare.get_output_embeddings()(hidden)
        scale, cap = _scaling(bare.config.get_text_config())
        if scale != 1.0:
            logits = logits * scale
        return logits if cap is None else cap * torch.tanh(logits / cap)


def sides(base: nn.Module | None, tuned: nn.Module) -> tuple[Side, Side]:
    """The two sides of a comparison.

    Args:
        base: None takes the tuned model with its adapter off.
        tuned: The tuned model.

    Raises:
        InputError: There is no base and `tuned` has no adapter; or the adapter puts tokens in front of the text.
    """
    if base is None and not isinstance(tuned, PeftModel):
        raise InputError("BASE", "there is none, and TUNED is no adapter", "name the model that was tuned")
    for model in (base, tuned):
        if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
            raise InputError("TUNED", "its adapter puts tokens in front of the text", "compare LoRA or whole models")
    return (Side(tuned, adapter=False) if base is None else Side(base)), Side(tuned)


@torch.no_grad()
def shift_measures(
    base: Side,
    tuned: Side,
    sequences: Sequence[list[int]],
    starts: Sequence[int],
    *,
    mode: str = "exact",
    top_p: float = 0.7,
    top_n: int = 10,
    cells: int = CELLS,
    batch_tokens: int = 4096,
) -> list[Measures]:
    """Compare two models at every token of each response, given the same tokens before it.

    Each model runs once over a batch. Its hidden states at the compared positions are kept, and the output heads are
    applied to so many of them at a time as `cells` allows: memory does not grow with length times vocabulary. The
    numbers are those that the models would sample from: logits in the models' own precision, softmax in float32.

    Args:
        base: p.
        tuned: q.
        sequences: Token ids of prompt and response together.
        starts: Where each response begins; tokens from there on are compared, but for the first of a sequence.
        mode: As `measures` takes it.
        top_p: For the mode `top_p`.
        top_n: Most likely tokens returned of both.
        cells: Logits of one model at a time.
        batch_tokens: At most so many padded tokens in one forward; a longer sequence runs alone.

    Returns:
        In the order of `sequences`, name → one entry per compared token, on the CPU (`measures`). Where the output
        heads differ in size, tokens beyond the smaller one take no part.

    Raises:
        InputError: An empty sequence, an id outside the shared vocabulary, an unknown mode, or a model whose logits are
            not made of its output head as those of the known families are.
    """
    check_mode(mode, top_p)
    vocabulary = min(base.vocabulary, tuned.vocabulary)
    check_ids(list(sequences), vocabulary)
    with evaluating(base.model), evaluating(tuned.model):
        for side in (base, tuned):
            if sequences and side.model not in _CHECKED:
                _check_head(side, sequences[0][:4])
                _CHECKED.add(side.model)
        found: list[Measures] = [{}] * len(sequences)
        for rows in _batches([len(ids) for ids in sequences], batch_tokens):
            batch = [sequences[row] for row in rows]
            states, targets, counts = _states((base, tuned), batch, [starts[row] for row in rows])
            chunk = max(1, cells // vocabulary)
            parts = []
            # At least one piece, so that empty responses have columns too.
            for place in range(0, max(1, len(targets)), chunk):
                piece = slice(place, place + chunk)
                a, b = (
                    side.logits(state[piece])[:, :vocabulary] for side, state in zip((base, tuned), states, strict=True)
                )
                part = measures(a, b, targets[piece], mode=mode, top_p=top_p, top_n=top_n)
                del a, b
                parts.append({name: value.cpu() for name, value in part.items()})
            whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            end = 0
            for row, count in zip(rows, counts, strict=True):
                # A copy, so that one response does not hold on to all of them.
                found[row] = {name: values[end : end + count].clone() for name, values in whole.items()}
                end += count
    return found


def _states(
    both: tuple[Side, Side], batch: list[list[int]], starts: list[int]
) -> tuple[list[Tensor], Tensor, list[int]]:
    """Hidden states before each compared token `[N, H]` of both models, the tokens `[N]`, and N of each sequence."""
    device = bare_model(both[0].model).device
    width = max(map(len, batch))
    ids, mask = torch.zeros(2, len(batch), width, dtype=torch.long)
    compared = torch.zeros(len(batch), width, dtype=torch.bool)
    for row, (tokens, start) in enumerate(zip(batch, starts, strict=True)):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
        compared[row, max(start, 1) : len(tokens)] = True
    ids, mask, before = ids.to(device), mask.to(device), compared[:, 1:].to(device)
    states = [side.hidden(ids, mask)[:, :-1][before] for side in both]
    return states, ids[:, 1:][before], compared.sum(1).tolist()


def _batches(lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Neighbours, so that what was asked for first is done first."""
    rows: list[int] = []
    for row, length in enumerate(lengths):
        if rows and (len(rows) + 1) * max(length, *(lengths[other] for other in rows)) > batch_tokens:
            yield rows
            rows = []
        rows = [*rows, row]
    if rows:
        yield rows


def _scaling(config: Any) -> tuple[float, float | None]:
    """What a family does to the head's output: a factor, then a soft cap."""
    scale = getattr(config, "logit_scale", None)
    if scale is None and getattr(config, "logits_scaling", None) is not None:
        scale = 1 / config.logits_scaling
    return (1.0 if scale is None else float(scale)), getattr(config, "final_logit_softcapping", None)


def _check_head(side: Side, start: list[int]) -> None:
    """A family that makes its logits in a way of its own would be compared by numbers that it never uses."""
    bare = bare_model(side.model)
    ids = torch.tensor([start], device=bare.device)
    ours = side.logits(side.hidden(ids, torch.ones_like(ids))[0]).float()
    with side.active():
        theirs = bare(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].float()
    # Sixteen bits round twice where the shapes of the products differ.
    if not torch.allclose(ours, theirs, atol=0.02 * float(theirs.abs().max()) + 1e-4):
        kind = bare.config.get_text_config().model_type
        raise InputError("model", f"{kind} makes its logits in a way of its own", "compare models of other families")
