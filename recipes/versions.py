"""Installed versions of what a run depends on."""

from importlib import metadata

_NAMES = ("tokencredit", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "deepspeed", "ray")


def versions() -> dict[str, str]:
    """Name and version of each library that is installed."""
    found = {}
    for name in _NAMES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
