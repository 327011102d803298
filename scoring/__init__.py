"""Models to per-token numbers."""

from tokencredit.scoring.branches import branch_forwards, branch_logps
from tokencredit.scoring.contrastive import Draft, Templates, contrastive_rewards, load_templates
from tokencredit.scoring.logps import sequence_logps
from tokencredit.scoring.reward_store import RewardStore

__all__ = [
    "Draft",
    "RewardStore",
    "Templates",
    "branch_forwards",
    "branch_logps",
    "contrastive_rewards",
    "load_templates",
    "sequence_logps",
]
