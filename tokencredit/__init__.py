"""RL fine-tuning for language models in which every token carries its own credit."""

import os

# The libraries below report usage over the network by default. A user who wants that sets the variable.
_TELEMETRY_OFF = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "GRADIO_ANALYTICS_ENABLED": "False",
}
for _name, _value in _TELEMETRY_OFF.items():
    os.environ.setdefault(_name, _value)


def __getattr__(name: str) -> str:
    """`tokencredit.__version__`, read only when asked for: the look-up would slow every command."""
    if name == "__version__":
        from importlib.metadata import version

        return version("tokencredit")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
