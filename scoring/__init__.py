"""Models to per-token numbers."""

from tokencredit.scoring.logps import sequence_logps

__all__ = ["sequence_logps"]
