"""Pure tensor functions: log-probabilities, weights and rewards in, losses and credit out. Imports torch only."""

from tokencredit.losses.advantages import group_advantages, live_rows, whiten
from tokencredit.losses.divergence import divergence_weights, js_divergence
from tokencredit.losses.preference import dpo_loss, simpo_loss
from tokencredit.losses.spae import spae_advantages, spae_credit, step_potential
from tokencredit.losses.t_reg import t_reg_loss, token_rewards
from tokencredit.losses.tab_po import tab_po_loss

__all__ = [
    "divergence_weights",
    "dpo_loss",
    "group_advantages",
    "js_divergence",
    "live_rows",
    "simpo_loss",
    "spae_advantages",
    "spae_credit",
    "step_potential",
    "t_reg_loss",
    "tab_po_loss",
    "token_rewards",
    "whiten",
]
