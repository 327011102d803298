"""Per-token log-probabilities of the reference, computed once and kept between runs."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, is_peft_model, tqdm
from datasets import Dataset, concatenate_datasets
from datasets import config as datasets_config
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from tokencredit.trainers.annotate import REFERENCE, SIDES, truncation

IDS = ("prompt_ids", "chosen_ids", "rejected_ids")


def with_reference_logps(
    dataset: Dataset,
    model: Any,
    score: Callable[[dict[str, Any]], torch.Tensor],
    *,
    accelerator: Accelerator,
    collator: Any,
    batch_size: int,
    name: str,
) -> Dataset:
    """Add `ref_chosen_token_logps` and `ref_rejected_token_logps`, one per response token.

    The file is named by a hash of the token ids (which stand for data and tokenizer), the truncation, the precision and
    the reference's configuration and weights. Tokens that truncation removes are 0; they never reach the loss.

    Args:
        dataset: Pairs with their ids.
        model: The reference, or the policy whose adapters are left out.
        score: A padded batch → ℓ^ref `[2b, T − 1]`, 0 outside the responses.
        accelerator: Spreads the batches over the processes, which all run the same number of forwards.
        collator: TRL's pair collator.
        batch_size: Pairs per forward and process.
        name: Of the data, for the progress bar.
    """
    kept = truncation(collator.max_length, collator.truncation_mode)
    path = _cache_file(dataset, model, kept, str(accelerator.mixed_precision))
    # A node with a disk of its own may lack the file that another has.
    if not all(gather_object([path.is_file()])):
        columns = _compute(dataset, score, kept, accelerator, collator, batch_size, name)
        if accelerator.is_local_main_process:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            pq.write_table(pa.table(columns), temporary)
            os.replace(temporary, path)
        accelerator.wait_for_everyone()
    return concatenate_datasets([dataset, Dataset(pq.read_table(path))], axis=1)


def _compute(
    dataset: Dataset,
    score: Callable[[dict[str, Any]], torch.Tensor],
    kept: slice,
    accelerator: Accelerator,
    collator: Any,
    batch_size: int,
    name: str,
) -> dict[str, pa.Array]:
    loader: Any = DataLoader(dataset.select_columns([*IDS]), batch_size=batch_size, collate_fn=collator)
    found: dict[str, list[np.ndarray[Any, Any]]] = {side: [] for side in SIDES}
    quiet = bool(os.environ.get("TQDM_DISABLE"))
    for batch in tqdm(accelerator.prepare(loader), desc=f"Reference log-probs of the {name} data", disable=quiet):
        width = accelerator.pad_across_processes(score(batch).float(), dim=1)
        pairs = torch.stack(width.chunk(2), dim=1)  # a row per pair, so that what fills up the last batch is dropped
        for logps in accelerator.gather_for_metrics(pairs).cpu().numpy():
            for side, values in zip(SIDES, logps, strict=True):
                found[side].append(values)
    return {
        column: pa.array(_response_parts(dataset, side, found[side], kept), type=pa.list_(pa.float32()))
        for column, side in zip(REFERENCE, SIDES, strict=True)
    }


def _response_parts(
    dataset: Dataset, side: str, rows: list[np.ndarray[Any, Any]], kept: slice
) -> Iterator[np.ndarray[Any, Any]]:
    for prompt, response, values in zip(dataset["prompt_ids"], dataset[f"{side}_ids"], rows, strict=True):
        whole = np.zeros(len(prompt) + len(response), dtype=np.float32)
        inside = whole[kept]  # a view: what is written here stands in `whole`
        inside[1:] = values[: len(inside) - 1]
        yield whole[len(prompt) :]


def _cache_file(dataset: Dataset, model: Any, kept: slice, precision: str) -> Path:
    digest = hashlib.sha256(f"{kept} {precision}".encode())
    for batch in dataset.select_columns([*IDS]).with_format("numpy").iter(batch_size=1000):
        for column in IDS:
            for ids in batch[column]:
                digest.update(np.asarray(ids, dtype=np.int64).tobytes() + b"|")
    digest.update(weights_hash(model).encode())
    return Path(datasets_config.HF_DATASETS_CACHE) / "tokencredit" / f"reference-{digest.hexdigest()[:32]}.parquet"


def weights_hash(model: Any) -> str:
    """Hash of the configuration and the weights that the reference computes with.

    Of a PEFT policy without a `ref` adapter these are the frozen weights only. How the weights are sharded does not
    matter: all processes call this, and look at one whole parameter at a time.
    """
    base = getattr(model, "module", model)
    adapter_off = is_peft_model(base) and "ref" not in base.peft_config
    # Training switches the cache of generation off, in the policy alone.
    aside = {"attention": base.config._attn_implementation, "_name_or_path": None, "use_cache": None}
    digest = hashlib.sha256(json.dumps(base.config.to_dict() | aside, sort_keys=True, default=str).encode())
    for name, parameter in sorted(base.named_parameters()):
        if adapter_off and parameter.requires_grad:
            continue
        with _whole(parameter) as tensor:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _whole(parameter: Any) -> Iterator[torch.Tensor]:
    """A parameter as it is without sharding."""
    if hasattr(parameter, "ds_tensor"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            yield parameter.detach()
    else:
        tensor = parameter.detach()
        yield tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
