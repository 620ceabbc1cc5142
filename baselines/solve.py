"""The best possible day: one call for every problem."""

from typing import TYPE_CHECKING

from evcs_gym.baselines.certificate import Certificate, Solution, SolutionStatus
from evcs_gym.envs.errors import ConfigError

if TYPE_CHECKING:
    from evcs_gym.envs.day import Day
    from evcs_gym.envs.scenario import Scenario

__all__ = ["PROBLEMS", "Certificate", "Solution", "SolutionStatus", "optimum"]

PROBLEMS = ("normal_charging",)
"""Problems that `optimum` solves."""


def optimum(
    scenario: "Scenario",
    day: "Day",
    problem: str = "normal_charging",
    relative_gap: float = 1e-3,
    time_limit_s: float = 60.0,
) -> Solution:
    """Solve a day and prove how good the plan is.

    Args:
        relative_gap: gap of the solved programme at which the search may stop, in [0, 1).
        time_limit_s: wall time [s]; when it is over the best plan so far comes back with the gap proven so far and
            status ``time_limit``.

    Returns:
        A `Solution`: cost of the plan in the environment, a bound that no policy can beat, and the certificate.

    Raises:
        ConfigError: an unknown problem, a gap or a time limit out of range.
        InfeasibleError: the day's data contradict each other; names the session.
        ConvergenceError: the power flow of the best plan collapses.
        SolverError: no solver, or one that failed.
    """
    if problem not in PROBLEMS:
        raise ConfigError(f"problem must be one of {', '.join(PROBLEMS)}, got {problem!r}")
    if not 0.0 <= relative_gap < 1.0:
        raise ConfigError(f"relative_gap must be in [0, 1), got {relative_gap}")
    if not 0.0 < time_limit_s < float("inf"):
        raise ConfigError(f"time_limit_s must be a positive number of seconds, got {time_limit_s}")
    # imported here: Pyomo takes half a second that a user of the rules alone need not wait
    from evcs_gym.baselines.normal_charging import solve_normal_charging

    return solve_normal_charging(scenario, day, relative_gap, time_limit_s)
