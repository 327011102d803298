"""The token view of a comparison in few bytes: half a million tokens with both models' lists fit in a page.

Measures are rounded to twelve bits on a logarithmic scale (steps of 0.3 %), probabilities of the lists to 255 steps of
their log-odds; the table keeps every digit. Streams are split into planes of bytes and deflated together.
"""

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokencredit.analysis.shift_table import column
from tokencredit.analysis.token_view import Column, number_scale, short

Array = NDArray[Any]

FEW = 3
"""Tokens of each list that are kept where the models hardly differ."""
_FULL_SHARE = 0.1
_CODES = 4095
_NEGATIVE, _NONE = 4096, 65535


@dataclass(frozen=True)
class PackedView:
    """What `page` shows of a table.

    Args:
        table: Of one or several models.
        columns: Measures that can be chosen, the first one at the start; those that the table lacks are left out.
        prompts: Text of each problem.
        texts: Token id → text.
        measure: What the threshold is about: JS, or a bound of it.
    """

    table: pa.Table
    columns: Sequence[Column]
    prompts: Sequence[str]
    texts: Mapping[int, str]
    measure: str = "js"

    def payload(self) -> dict[str, Any]:
        """Everything as JSON."""
        used = [found for found in self.columns if found.name in self.table.column_names]
        listed, place = self._texts()
        streams = _lists(self.table, self.measure, place)
        described = []
        for number, found in enumerate(used):
            values = column(self.table, found.name)
            size = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
            streams |= _planes(f"column{number}", _coded(values, size), 2)
            described.append(_described(found, values) | {"size": size})
        whole = b"".join(stream.tobytes() for stream in streams.values())
        packer = zlib.compressobj(6, zlib.DEFLATED, -15)
        packed = {
            "bytes": base64.b64encode(packer.compress(whole) + packer.flush()).decode(),
            "streams": [[name, len(stream)] for name, stream in streams.items()],
            "count": len(self.table),
            "few": min(FEW, self._listed()),
            "many": self._listed(),
            "measure": self.measure,
        }
        prompts = {text: len(listed) + number for number, text in enumerate(dict.fromkeys(self.prompts))}
        responses = self._responses(prompts)
        return {"columns": described, "responses": responses, "texts": [*listed, *prompts], "packed": packed}

    def start(self, name: str | None = None) -> str | None:
        """The column that colours the tokens at first."""
        return name or next((found.name for found in self.columns if found.name in self.table.column_names), None)

    def _listed(self) -> int:
        return int(column(self.table, "base_top_ids").shape[1])

    def _texts(self) -> tuple[list[str], Array]:
        """The texts, the most frequent first so that their numbers pack well, and where that of each id is."""
        ids = np.concatenate(
            [column(self.table, name).ravel() for name in ("base_top_ids", "tuned_top_ids", "token_id")]
        )
        known, counts = np.unique(ids, return_counts=True)
        order = known[np.argsort(-counts, kind="stable")]
        place = np.zeros(int(known.max(initial=0)) + 1, np.int64)
        place[order] = np.arange(len(order))
        return [self.texts.get(token, "") for token in order.tolist()], place

    def _responses(self, prompts: Mapping[str, int]) -> list[dict[str, Any]]:
        names = ("model", "led", "prompt", "response")
        keys = list(zip(*(column(self.table, name).tolist() for name in names), strict=True))
        starts = [at for at, key in enumerate(keys) if not at or key != keys[at - 1]]
        several = len({key[0] for key in keys}) > 1
        found = []
        for start, end in zip(starts, [*starts[1:], len(keys)], strict=True):
            model, led, prompt, response = keys[start]
            text = self.prompts[prompt] if prompt < len(self.prompts) else ""
            found.append(
                {
                    "title": f"response {response}",
                    "side": f"{led}-led" if led != "given" else "given",
                    "group": f"{led} {prompt}",
                    "step": None,
                    "run": model if several else "",
                    "prompt": prompts.get(text, 0),
                    "size": end - start,
                }
            )
        return found


def _described(found: Column, values: Array) -> dict[str, Any]:
    finite = values[np.isfinite(values)]
    # Two thousand of them in order, the ends among them, have the scale of all.
    thinned = np.quantile(finite, np.linspace(0, 1, 2001)).tolist() if len(finite) else []
    scale = number_scale(thinned, found.diverging)
    limit = found.limit if found.limit is not None and scale.kind != "constant" else scale.limit
    ends = {"neutral": 0.0 if scale.kind == "sequential" else scale.neutral, "limit": limit}
    ends |= {"least": scale.least, "most": scale.most}
    about = {"name": found.name, "meaning": found.meaning, "coloured": True, "kind": scale.kind}
    return about | {name: short(value) for name, value in ends.items()}


def _coded(values: Array, size: float) -> Array:
    unit = size * 1e-5 or 1.0
    codes = np.rint(_CODES * np.log1p(np.abs(values) / unit) / np.log1p(1e5))
    codes = np.where(values < 0, codes + _NEGATIVE, codes)
    return np.where(np.isfinite(values), codes, _NONE).astype(np.int64)


def _planes(name: str, numbers: Array, count: int) -> dict[str, Array]:
    return {f"{name}.{plane}": (numbers >> (8 * plane) & 255).astype(np.uint8) for plane in range(count)}


def _odds(logps: Array) -> Array:
    """255 steps of the log-odds from −10 to 10."""
    log_rest = np.log(np.maximum(-np.expm1(np.minimum(logps, -1e-9).astype(float)), 1e-12))
    codes: Array = np.rint((np.clip(logps - log_rest, -10, 10) + 10) * 12.75)
    return codes.astype(np.int64)


def _lists(table: pa.Table, measure: str, place: Array) -> dict[str, Array]:
    """The written tokens and both models' most likely ones, each told by the others where they are the same."""
    base, tuned = column(table, "base_top_ids"), column(table, "tuned_top_ids")
    js, size = column(table, measure), base.shape[1]
    full = (js >= np.quantile(js, 1 - _FULL_SHARE)) & (js > 0) if len(js) else js > 0
    kept = np.arange(size)[None] < np.where(full, size, min(FEW, size))[:, None]
    same = np.zeros(tuned.shape, np.int64)
    own = np.zeros(len(js), np.int64)
    for at in range(size - 1, -1, -1):
        here = kept[:, at : at + 1]
        same = np.where((tuned == base[:, at : at + 1]) & here, at + 1, same)
        own = np.where((column(table, "token_id") == base[:, at]) & here[:, 0], at + 1, own)
    base_code, tuned_code = _odds(column(table, "base_top_logps")), _odds(column(table, "tuned_top_logps"))
    change = tuned_code - np.where(same > 0, np.take_along_axis(base_code, np.maximum(same - 1, 0), 1), 0)
    planes = 3 if len(place) and place.max() > 0xFFFF else 2
    return {
        "full": full.astype(np.uint8),
        "own": own.astype(np.uint8),
        "place": same[kept].astype(np.uint8),
        "code": base_code[kept].astype(np.uint8),
        "change": (change[kept] & 255).astype(np.uint8),
        **_planes("base", place[base[kept]], planes),
        **_planes("other", place[tuned[kept & (same == 0)]], planes),
        **_planes("written", place[column(table, "token_id")[own == 0]], planes),
    }
