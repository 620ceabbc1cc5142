"""Scenarios, training presets and benchmarks as YAML, read through importlib.resources."""

if __name__ != "evcs_gym.configs":
    raise ImportError(
        f"this folder is the package evcs_gym.configs, but it was imported as {__name__!r}: "
        "install the project (pip install -e .) and write 'import evcs_gym.configs'"
    )
