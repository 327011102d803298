"""Pure tensor functions: log-probabilities and weights in, one loss per example out. Imports torch only."""

from tokencredit.losses.preference import dpo_loss, simpo_loss
from tokencredit.losses.t_reg import t_reg_loss, token_rewards
from tokencredit.losses.tab_po import tab_po_loss

__all__ = ["dpo_loss", "simpo_loss", "t_reg_loss", "tab_po_loss", "token_rewards"]
