"""A loss that does harm once: in the seventh step of a run, after the checkpoints of steps 2, 4 and 6."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tests.cluster.ray_nodes import wait_until
from tokencredit.losses import dpo_loss
from tokencredit.trainers.checkpoints import read_manifest

STEP = 7
calls = 0


def loss(
    chosen_logps: torch.Tensor,
    rejected_logps: torch.Tensor,
    ref_chosen_logps: torch.Tensor,
    ref_rejected_logps: torch.Tensor,
    chosen_mask: torch.Tensor,
    rejected_mask: torch.Tensor,
    *,
    beta: float,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """DPO's, called once a step; `FAULT` names what happens besides, in the run folder `FAULT_RUN`."""
    global calls
    calls += 1
    fault = FAULTS.get(os.environ.get("FAULT", ""))
    if fault is not None and calls == STEP:
        run, rank = Path(os.environ["FAULT_RUN"]), int(os.environ["RANK"])
        happened = run.parent / f"happened-{rank}"
        if not happened.exists():
            happened.write_text(str(os.getpid()))
            fault(run, rank)
    return dpo_loss(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, chosen_mask, rejected_mask, beta=beta
    )


def _kill(run: Path, rank: int) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def _truncate(run: Path, rank: int) -> None:
    """As a machine leaves it that loses power: named, listed, and cut off."""
    if rank == 1:
        newest = run / f"checkpoint-{STEP - 1}"
        wait_until(lambda: read_manifest(newest) is not None)
        weights = newest / "model.safetensors"
        os.truncate(weights, weights.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)


def _hang(run: Path, rank: int) -> None:
    time.sleep(600)


def _refuse(run: Path, rank: int) -> None:
    from tokencredit.errors import InputError

    if rank == 1:
        raise InputError("loss", "the seventh batch is bad", "mend it")
    time.sleep(600)


FAULTS: dict[str, Callable[[Path, int], None]] = {
    "kill": _kill,
    "truncate": _truncate,
    "hang": _hang,
    "refuse": _refuse,
}
