"""What balance costs: the exact optimum of scheduling over a sweep of the two weights.

Each point is the optimum of days without network, in which the first term of (1) or (5) weighs ``share`` and the
charging cost ``1 - share``; at one half they have the scenario's own weights. The first term may be replaced by the
peak or by squares (`evcs_gym.baselines.problems.balance`): programmes only, the environments keep the printed one.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np

from evcs_gym.baselines import fast_charging as fast_solver
from evcs_gym.baselines import normal_charging as normal_solver
from evcs_gym.baselines.normal_charging import Budget
from evcs_gym.baselines.problems import fast_charging as fast_problems
from evcs_gym.baselines.problems import normal_charging as normal_problems
from evcs_gym.baselines.problems.balance import BALANCES, Balance
from evcs_gym.baselines.problems.fast_charging import FastProblem
from evcs_gym.baselines.problems.normal_charging import NormalProblem
from evcs_gym.envs import Day, Scenario
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.types import FloatArray
from evcs_gym.envs.units import SLOT_H

PROBLEMS: Final = ("normal_charging", "fast_charging")
"""Problems with two weights."""
SHARES: Final = (0.005, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 0.98)
"""Both ends keep a little of the other term: without it one of many optima would be drawn by lot."""
RELATIVE_GAP: Final = 1e-3
TIME_LIMIT_S: Final = 10.0
"""Per solve: what it proves by then is in the point. Peak and squares of fast charging need it all."""


@dataclass(frozen=True)
class ParetoPoint:
    """Means over the days of the optimum at a share of the first term.

    exchange_kwh: sum |base + charging - DG|. unabsorbed_kwh: DG that nobody takes. peak_kw: largest |base + charging -
    DG| of a day, summed over buses. charging_eur: cost of the energy, unweighted. n_stranded: cars. objective_eur,
    bound_eur: of the programme; relative_gap: the largest of a day.
    """

    balance: Balance
    share: float
    exchange_kwh: float
    unabsorbed_kwh: float
    peak_kw: float
    charging_eur: float
    n_stranded: float
    objective_eur: float
    bound_eur: float
    relative_gap: float

    def as_dict(self) -> dict[str, Any]:
        """The point as plain numbers and strings."""
        return asdict(self)


def pareto(
    problem: str,
    scenario: Scenario,
    n_days: int,
    split: str = "test",
    balances: Sequence[Balance] = ("exchange",),
    shares: Sequence[float] = SHARES,
    as_printed: bool = False,
    time_limit_s: float = TIME_LIMIT_S,
    listener: Callable[[int, int], None] = lambda _done, _all: None,
) -> list[ParetoPoint]:
    """Points of the sweep, by balance and share; ``time_limit_s`` is for each solve.

    ``listener`` is called with (solves done, solves in all).

    Raises:
        ConfigError: a problem without two weights, a balance or a share out of range, a scenario without that world.
        SolverError: no solver, or one that failed.
    """
    _check(problem, balances, shares, time_limit_s)
    if as_printed:
        scenario = printed(problem, scenario)
    days = scenario.days(range(n_days), split)
    points: list[ParetoPoint] = []
    n_solves = len(balances) * len(shares) * len(days)
    for balance in balances:
        for share in shares:
            solved = []
            for day in days:
                solved.append(_solved(problem, scenario, day, balance, share, time_limit_s))
                listener(len(points) * len(days) + len(solved), n_solves)
            means = {name: float(np.mean([one[name] for one in solved])) for name in solved[0]}
            means["relative_gap"] = max(one["relative_gap"] for one in solved)
            points.append(ParetoPoint(balance=balance, share=share, **means))
    return points


def _check(problem: str, balances: Sequence[Balance], shares: Sequence[float], time_limit_s: float) -> None:
    if problem not in PROBLEMS:
        raise ConfigError(f"pareto: problem must be one of {', '.join(PROBLEMS)}, got {problem!r}")
    for balance in balances:
        if balance not in BALANCES:
            raise ConfigError(f"pareto: balance must be one of {', '.join(BALANCES)}, got {balance!r}")
    if not 0.0 < time_limit_s < float("inf"):
        raise ConfigError(f"pareto: time_limit_s must be a positive number of seconds, got {time_limit_s}")
    for share in shares:
        if not 0.0 < share < 1.0:
            raise ConfigError(f"pareto: shares must lie between 0 and 1, both excluded, got {share}")


def printed(problem: str, scenario: Scenario) -> Scenario:
    """The scenario in the paper's form of its weights (``as_printed``)."""
    if problem == "normal_charging":
        normal = scenario.normal_charging.model_copy(update={"as_printed": True, "omega2": 1.0})
        return scenario.model_copy(update={"normal_charging_spec": normal})
    fast = scenario.fast_charging.model_copy(update={"as_printed": True, "reserve_soc_frac": 0.0})
    return scenario.model_copy(update={"fast_charging_spec": fast})


def _solved(
    problem: str, scenario: Scenario, day: Day, balance: Balance, share: float, time_limit_s: float
) -> dict[str, float]:
    budget, first, second = Budget(time.monotonic(), time_limit_s), 2.0 * share, 2.0 * (1.0 - share)
    if problem == "normal_charging":
        normal = normal_problems.problem_of(scenario, day, "modulated")
        weighted = replace(
            normal,
            balance=balance,
            gap_eur_per_kwh=first * normal.gap_eur_per_kwh,
            energy_weight=second * normal.energy_weight,
        )
        return _normal(weighted, budget)
    fast = fast_problems.problem_of(scenario, day)
    return _fast(
        replace(
            fast,
            balance=balance,
            absorb_eur_per_kw=first * fast.absorb_eur_per_kw,
            request_weight=second * fast.request_weight,
        ),
        budget,
    )


def _normal(problem: NormalProblem, budget: Budget) -> dict[str, float]:
    normal_problems.check_data(problem)
    answer = normal_solver.solve_programme(problem, None, 0.0, budget)
    charging_kw = normal_problems.bus_power_kw(problem, answer.power_kw)
    gap = max(0.0, answer.cost_eur - answer.bound_eur) / max(1.0, abs(answer.cost_eur))
    return {
        **_balance_of(problem.net_kw + charging_kw),
        "charging_eur": float(SLOT_H * (problem.import_eur_per_kwh @ charging_kw).sum()),
        "n_stranded": 0.0,
        "objective_eur": answer.cost_eur,
        "bound_eur": answer.bound_eur,
        "relative_gap": gap,
    }


def _fast(problem: FastProblem, budget: Budget) -> dict[str, float]:
    fast_problems.check_data(problem)
    answer = fast_solver.solve_programme(problem, None, RELATIVE_GAP, budget)
    arcs = fast_problems.arcs_of(problem)
    chosen = fast_problems.chosen_arcs(problem, arcs, answer.station)
    energy_kwh = problem.need_kwh[arcs.request] + problem.detour_kwh[arcs.request, arcs.station]
    price = problem.import_eur_per_kwh[problem.slot[arcs.request]]
    load_kw = fast_problems.new_load_kw(problem, arcs, chosen.astype(np.float64))
    return {
        **_balance_of(problem.net_kw + load_kw),
        "charging_eur": float((price * energy_kwh)[chosen].sum()),
        "n_stranded": float((answer.station == problem.n_stations).sum()),
        "objective_eur": answer.cost_eur,
        "bound_eur": answer.bound_eur,
        "relative_gap": answer.relative_gap,
    }


def _balance_of(total_kw: FloatArray) -> dict[str, float]:
    return {
        "exchange_kwh": float(SLOT_H * np.abs(total_kw).sum()),
        "unabsorbed_kwh": float(SLOT_H * np.maximum(-total_kw, 0.0).sum()),
        "peak_kw": float(np.abs(total_kw).max(axis=0).sum()),
    }
