"""Models to per-token numbers."""

from tokencredit.scoring.branches import branch_forwards, branch_logps
from tokencredit.scoring.logps import sequence_logps

__all__ = ["branch_forwards", "branch_logps", "sequence_logps"]
