"""Keep out of the terminal what the user can do nothing about."""

import os
import sys
import warnings


def quieten() -> None:
    """Silence the notices that every run would print, and progress bars where nobody watches them."""
    # TRL itself uses the old names of an option of Transformers, in every run.
    warnings.filterwarnings("ignore", message=r"`\w*gradient_checkpointing\w*` is deprecated", category=FutureWarning)
    # DeepSpeed uses the old names of two collectives, in every step of ZeRO-3.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+_tensor` is deprecated", category=FutureWarning)
    watched = sys.stderr.isatty()
    if not watched:
        os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported, which torch does
    import torch

    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed otherwise reports that it found none
    if not watched:
        from datasets import disable_progress_bars
        from transformers.utils import logging

        disable_progress_bars()
        logging.disable_progress_bar()
