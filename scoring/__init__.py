"""Models to per-token numbers."""

from tokencredit.scoring.branches import branch_forwards, branch_logps
from tokencredit.scoring.contrastive import Draft, Templates, contrastive_rewards, load_templates
from tokencredit.scoring.cross_decode import Decoding, Row, Trace, cross_decode
from tokencredit.scoring.logps import sequence_logps
from tokencredit.scoring.measures import js_bounds
from tokencredit.scoring.probe import ProbeTask, draw_answers, probe_forwards, probe_steps
from tokencredit.scoring.reward_store import RewardStore
from tokencredit.scoring.shift import Side, shift_measures, sides

__all__ = [
    "Decoding",
    "Draft",
    "ProbeTask",
    "RewardStore",
    "Row",
    "Side",
    "Templates",
    "Trace",
    "branch_forwards",
    "branch_logps",
    "contrastive_rewards",
    "cross_decode",
    "draw_answers",
    "js_bounds",
    "load_templates",
    "probe_forwards",
    "probe_steps",
    "sequence_logps",
    "shift_measures",
    "sides",
]
