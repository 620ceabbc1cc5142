"""Learned policies: presets, native vector environments, checkpoints."""

if __name__ != "evcs_gym.training":
    raise ImportError(
        f"this folder is the package evcs_gym.training, but it was imported as {__name__!r}: "
        "install the project (pip install -e .) and write 'import evcs_gym.training'"
    )
