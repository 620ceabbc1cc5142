"""What proves a solution: bounds, gap, replay; a result without a certificate is a failure, not a number."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Protocol

import numpy as np

from evcs_gym.baselines.problems.normal_charging import NormalPlan
from evcs_gym.baselines.solvers import StandardForm
from evcs_gym.envs.types import FloatArray


class SolutionStatus(StrEnum):
    """How a search ended.

    ``OPTIMAL``: the gap asked for is proven. ``TIME_LIMIT``: time ran out before; the gap proven so far is reported.
    ``GAP_OPEN``: the programme's own plan was proven, but another plan was cheaper in the true power flow and is
    returned instead, with its larger gap.
    """

    OPTIMAL = "optimal"
    TIME_LIMIT = "time_limit"
    GAP_OPEN = "gap_open"


@dataclass(frozen=True)
class Certificate:
    """Evidence for a plan of normal charging.

    programme_cost_eur, programme_bound_eur: of the solved programme, whose relative gap the solution reports; with
    voltage rows its limits are linear and lazily added. network_bound_eur: the programme's bound where voltage rows are
    active, else None; it holds up to the linearisation error and is never a bound on policies.
    plan_cost_eur: of the plan by the problem's own numpy and one exact power flow. replay_relative_error: between that
    and the environment's step. voltage_eur, voltage_excess_pu, n_violations: from the replay. linear_error_pu: largest
    error of an active voltage row at the plan. infeasible_kwh: what stays are too short for; missing_kwh: what the plan
    leaves undelivered beyond that. n_voltage_rows, n_rounds: rows added, rounds of adding them.
    """

    programme_cost_eur: float
    programme_bound_eur: float
    network_bound_eur: float | None
    plan_cost_eur: float
    replay_relative_error: float
    voltage_eur: float
    voltage_excess_pu: float
    n_violations: int
    linear_error_pu: float
    infeasible_kwh: float
    missing_kwh: float
    n_voltage_rows: int
    n_rounds: int
    solver: str
    solver_version: str


@dataclass(frozen=True, eq=False)
class Solution:
    """The best plan found for a day, with what is proven about it.

    cost_eur: of the plan, replayed through the environment. lower_bound_eur: no policy costs less in the environment.
    relative_gap: (programme cost - programme bound) / max(1 EUR, |programme cost|). status: a `SolutionStatus`.
    """

    problem: str
    cost_eur: float
    lower_bound_eur: float
    relative_gap: float
    status: str
    seconds: float
    plan: NormalPlan
    certificate: Certificate

    def plan_arrays(self) -> dict[str, FloatArray]:
        """The plan by name, as it is stored."""
        return {"power_kw": self.plan.power_kw}

    def as_dict(self, plan: bool = False) -> dict[str, Any]:
        """The solution as plain numbers, lists and strings; ``plan`` adds the plan."""
        return plain(self, plan)


class Solved(Protocol):
    """What the solutions of all problems have in common."""

    @property
    def problem(self) -> str: ...
    @property
    def cost_eur(self) -> float: ...
    @property
    def lower_bound_eur(self) -> float: ...
    @property
    def relative_gap(self) -> float: ...
    @property
    def status(self) -> str: ...
    @property
    def seconds(self) -> float: ...
    @property
    def certificate(self) -> Any: ...
    def plan_arrays(self) -> dict[str, FloatArray]:
        """The plan by name."""
        ...

    def as_dict(self, plan: bool = False) -> dict[str, Any]:
        """See `plain`."""
        ...


def plain(solution: Solved, plan: bool = False) -> dict[str, Any]:
    """A solution as plain numbers, lists and strings; ``plan`` adds the plan."""
    names = ("problem", "cost_eur", "lower_bound_eur", "relative_gap", "status", "seconds")
    out: dict[str, Any] = {name: getattr(solution, name) for name in names}
    out["certificate"] = asdict(solution.certificate)
    if plan:
        out["plan"] = {name: values.tolist() for name, values in solution.plan_arrays().items()}
    return out


def relative_gap(cost_eur: float, bound_eur: float, scale_eur: float = 1.0) -> float:
    """(cost - bound) / max(scale, |cost|); 0 where rounding puts the bound above the cost."""
    return max(0.0, cost_eur - bound_eur) / max(scale_eur, abs(cost_eur))


def dual_bound(form: StandardForm, row_dual: FloatArray) -> tuple[float, FloatArray]:
    """A lower bound of a programme, true for any row duals (m,), and the reduced costs (n,) that belong to it.

    The Lagrangian c x - y (A x - b) is minimised over the box of the variables, so that a solver's dual residual costs
    bound instead of truth. Valid with integers too. -inf where a needed side of a box is infinite.
    """
    # a multiplier of a side that a row does not have would charge infinity: it is not used
    y = np.where((row_dual > 0.0) & ~np.isfinite(form.row_lower), 0.0, row_dual)
    y = np.where((y < 0.0) & ~np.isfinite(form.row_upper), 0.0, y)
    column = np.repeat(np.arange(len(form.cost)), np.diff(form.start))
    reduced = form.cost - np.bincount(column, weights=form.value * y[form.index], minlength=len(form.cost))
    row_side = np.where(y > 0.0, form.row_lower, form.row_upper)
    col_side = np.where(reduced > 0.0, form.col_lower, form.col_upper)
    rows, columns = y != 0.0, reduced != 0.0
    bound = y[rows] @ row_side[rows] + reduced[columns] @ col_side[columns] + form.offset
    return float(bound), reduced
