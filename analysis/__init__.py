"""What a model did, token by token: statistics and the views that show them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokencredit.analysis.cross_sampling import cross_sample
    from tokencredit.analysis.shift import ShiftResult, compare

__all__ = ["ShiftResult", "compare", "cross_sample"]

_HOMES = {
    "ShiftResult": "tokencredit.analysis.shift",
    "compare": "tokencredit.analysis.shift",
    "cross_sample": "tokencredit.analysis.cross_sampling",
}


def __getattr__(name: str) -> Any:
    """Imported only when asked for: reports of run folders need no models."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
