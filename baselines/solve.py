"""The best possible day: one call for every problem."""

from typing import TYPE_CHECKING, Literal, overload

from evcs_gym.baselines.certificate import Certificate, Solution, SolutionStatus
from evcs_gym.envs.errors import ConfigError

if TYPE_CHECKING:
    from evcs_gym.baselines.market import MarketSolution
    from evcs_gym.baselines.market_network import NetworkSolution
    from evcs_gym.baselines.traffic import TrafficSolution
    from evcs_gym.envs.day import Day
    from evcs_gym.envs.scenario import Scenario

__all__ = ["PROBLEMS", "Certificate", "Solution", "SolutionStatus", "optimum"]

PROBLEMS = ("normal_charging", "market", "traffic")
"""Problems that `optimum` solves."""
DEFAULT_GAP = 1e-3
NETWORK_GAP = 1e-4
"""Gaps at which a day counts as solved: in general, and for the market with its network."""
NETWORKS = ("none", "misocp")
"""What the programme of the market may know of the network."""


@overload
def optimum(
    scenario: "Scenario",
    day: "Day",
    problem: Literal["normal_charging"] = ...,
    relative_gap: float | None = ...,
    time_limit_s: float = ...,
    slot: None = ...,
    network: None = ...,
) -> Solution: ...


@overload
def optimum(
    scenario: "Scenario",
    day: "Day",
    problem: Literal["market"],
    relative_gap: float | None = ...,
    time_limit_s: float = ...,
    slot: None = ...,
    network: Literal["none"] | None = ...,
) -> "MarketSolution": ...


@overload
def optimum(
    scenario: "Scenario",
    day: "Day",
    problem: Literal["market"],
    relative_gap: float | None = ...,
    time_limit_s: float = ...,
    slot: None = ...,
    *,
    network: Literal["misocp"],
) -> "NetworkSolution": ...


@overload
def optimum(
    scenario: "Scenario",
    day: "Day",
    problem: str,
    relative_gap: float | None = ...,
    time_limit_s: float = ...,
    slot: int | None = ...,
    network: str | None = ...,
) -> "Solution | MarketSolution | NetworkSolution | TrafficSolution": ...


def optimum(
    scenario: "Scenario",
    day: "Day",
    problem: str = "normal_charging",
    relative_gap: float | None = None,
    time_limit_s: float = 60.0,
    slot: int | None = None,
    network: str | None = None,
) -> "Solution | MarketSolution | NetworkSolution | TrafficSolution":
    """Solve a day, or one slot of its traffic, and prove how good the plan is.

    Args:
        problem: one of `PROBLEMS`. "market" minimises what the community of stations pays (C). "traffic" minimises
            (T3) of one slot: the user equilibrium by another road.
        relative_gap: gap of the solved programme at which the search may stop, in [0, 1); 1e-3 where nothing is said,
            1e-4 for the market with its network.
        time_limit_s: wall time [s]; when it is over the best plan so far comes back with the gap proven so far and
            status ``time_limit``. Traffic takes this time per solve and ends with an error.
        slot: of the day, for traffic.
        network: what the market's programme knows of the network, one of `NETWORKS`; "none" where nothing is said.
            "misocp" keeps its limits, and chooses the positions of tap changer and capacitor banks as well.

    Returns:
        A `Solution`, for the market a `MarketSolution` or, with its network, a `NetworkSolution`: cost of the plan in
        the environment, a bound that no policy can beat, and the certificate; for traffic a `TrafficSolution`: flows,
        their (T3), a bound that no flows can beat.

    Raises:
        ConfigError: an unknown problem, a gap, a time limit or a slot out of range, a scenario without that world.
        InfeasibleError: the day's data contradict each other; names the session, or the stations.
        ConvergenceError: the power flow of the best plan collapses; the gap of traffic is not proven.
        SolverError: no solver, or one that failed.
    """
    if problem not in PROBLEMS:
        raise ConfigError(f"problem must be one of {', '.join(PROBLEMS)}, got {problem!r}")
    gap = (NETWORK_GAP if network == "misocp" else DEFAULT_GAP) if relative_gap is None else relative_gap
    if not 0.0 <= gap < 1.0:
        raise ConfigError(f"relative_gap must be in [0, 1), got {gap}")
    if not 0.0 < time_limit_s < float("inf"):
        raise ConfigError(f"time_limit_s must be a positive number of seconds, got {time_limit_s}")
    if (slot is not None) != (problem == "traffic"):
        raise ConfigError(f"slot must be given for traffic and for nothing else, got {slot} for {problem}")
    if network is not None and (problem != "market" or network not in NETWORKS):
        raise ConfigError(
            f"network must be one of {', '.join(NETWORKS)}, for the market alone, got {network!r} for {problem}"
        )
    # imported here: Pyomo takes half a second that a user of the rules alone need not wait
    if slot is not None:
        from evcs_gym.baselines.traffic import solve_traffic

        return solve_traffic(scenario, day, slot, gap, time_limit_s)
    if network == "misocp":
        from evcs_gym.baselines.market_network import solve_market_network

        return solve_market_network(scenario, day, gap, time_limit_s)
    if problem == "market":
        from evcs_gym.baselines.market import solve_market

        return solve_market(scenario, day, gap, time_limit_s)
    from evcs_gym.baselines.normal_charging import solve_normal_charging

    return solve_normal_charging(scenario, day, gap, time_limit_s)
