"""The comparison: statistics, figures, report, speed, command line."""

if __name__ != "evcs_gym.evaluation":
    raise ImportError(
        f"this folder is the package evcs_gym.evaluation, but it was imported as {__name__!r}: "
        "install the project (pip install -e .) and write 'import evcs_gym.evaluation'"
    )
