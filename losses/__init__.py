"""Pure tensor functions: log-probabilities and weights in, one loss per example out. Imports torch only."""

from tokencredit.losses.preference import dpo_loss, simpo_loss

__all__ = ["dpo_loss", "simpo_loss"]
