"""Normal charging as a comparison sees it: rules, the exact plan, its bus totals replayed, and learned policies."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from evcs_gym.baselines.open_loop import OpenLoop, bus_totals_kw
from evcs_gym.baselines.policy import Policy
from evcs_gym.baselines.registry import PLANNERS, RULES
from evcs_gym.baselines.score import Rollout, rollout
from evcs_gym.envs import Day, Scenario
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.fleet.env import DEFAULT_SCENARIO
from evcs_gym.envs.fleet.normal import make_world, replay
from evcs_gym.envs.types import FloatArray
from evcs_gym.envs.units import DAY_START_HOUR, N_SLOTS, SLOT_H
from evcs_gym.evaluation.contest import OPTIMUM, Contest, Game, Played, scored
from evcs_gym.evaluation.records import DayTrace, policy_result

if TYPE_CHECKING:
    from evcs_gym.baselines.certificate import Solution

PROBLEM: Final = "normal_charging"
OPEN_LOOP = "open_loop_optimum"
"""The exact plan's bus totals replayed through the disaggregation."""
BOUND_LABEL = "LP with power in [0, p] and exact energy per car, no network"
OPEN_LOOP_NOTE = "bus totals of the exact plan, disaggregated by the environment; not an upper bound"


@dataclass(frozen=True, eq=False)
class FirstDay:
    """The first day of a policy: charging_kw (T,) of all buses, voltage_pu (T, N, P) magnitudes."""

    charging_kw: FloatArray
    voltage_pu: FloatArray


def _solve(scenario: Scenario, day: Day, relative_gap: float) -> "Solution":
    from evcs_gym.baselines import optimum

    return optimum(scenario, day, relative_gap=relative_gap)


def _infeasible_kwh(contest: Contest) -> FloatArray:
    return np.asarray(contest.world.infeasible_kwh.sum(axis=1))


def _columns(_contest: Contest, rollouts: Sequence[Rollout]) -> dict[str, FloatArray]:
    return {name: np.stack([getattr(r, name) for r in rollouts]) for name in ("violation_pu", "unmet_kwh")}


def _first_day(contest: Contest, policy: Policy) -> FirstDay:
    shown = rollout(make_world(contest.scenario, contest.days[:1]), policy, keep_voltage=True)
    if shown.voltage_pu is None:  # pragma: no cover - asked for above
        raise ConfigError("the rollout kept no voltages")
    return FirstDay(shown.bus_power_kw[0].sum(axis=1), np.abs(shown.voltage_pu[0]))


def _play_open_loop(contest: Contest) -> Played:
    totals = [
        bus_totals_kw(day.sessions, solution.plan.power_kw, contest.world.n_buses)
        for day, solution in zip(contest.days, contest.solutions, strict=True)
    ]
    policy = OpenLoop(totals)
    rollouts = [rollout(contest.world, policy)]
    result = scored(NORMAL_CHARGING, contest, OPEN_LOOP, "optimum", rollouts, OPEN_LOOP_NOTE)
    return Played(result, _first_day(contest, policy))


def _play_optimum(contest: Contest) -> Played:
    solutions = contest.solutions
    shown = replay(contest.scenario, contest.days[0], solutions[0].plan.power_kw)
    result = policy_result(
        OPTIMUM,
        "optimum",
        cost_eur=[s.cost_eur for s in solutions],
        naive_cost_eur=contest.naive_cost_eur,
        lower_bound_eur=contest.lower_bound_eur,
        n_violations=[s.certificate.n_violations for s in solutions],
        violation_pu=[s.certificate.voltage_excess_pu for s in solutions],
        unmet_kwh=[s.certificate.missing_kwh for s in solutions],
        relative_gap=[s.relative_gap for s in solutions],
        note=f"sees the whole day; {np.mean([s.seconds for s in solutions]):.1f} s per day",
    )
    return Played(result, FirstDay(shown.bus_power_kw.sum(axis=1), np.abs(shown.voltage_pu)))


def _plan(contest: Contest, name: str) -> Played:
    return _play_optimum(contest) if name == OPTIMUM else _play_open_loop(contest)


def _trace(contest: Contest, played: Sequence[Played]) -> DayTrace:
    day = contest.days[0]
    absent = ~contest.scenario.feeder.phase_present[None]
    return DayTrace(
        time_h=DAY_START_HOUR + SLOT_H * np.arange(N_SLOTS, dtype=np.float64),
        base_kw=day.base_kw.sum(axis=1),
        dg_kw=day.dg_kw.sum(axis=1),
        import_eur_per_kwh=day.import_eur_per_kwh,
        charging_kw={p.result.label: p.first_day.charging_kw for p in played},
        voltage_pu={p.result.label: p.first_day.voltage_pu for p in played},
        vmin_pu=day.vmin_pu,
        vmax_pu=np.where(absent, contest.scenario.feeder_spec.vmax_pu, day.vmax_pu),
        title=f"{contest.split} day {day.seed}, {day.date}",
    )


NORMAL_CHARGING = Game(
    problem=PROBLEM,
    scenario=DEFAULT_SCENARIO,
    bound_label=BOUND_LABEL,
    rules=RULES,
    planners=tuple(PLANNERS[PROBLEM]),
    plans=(OPTIMUM, OPEN_LOOP),
    solve=_solve,
    roll=lambda world, policy, _operator: rollout(world, policy),
    columns=_columns,
    infeasible_kwh=_infeasible_kwh,
    plan=_plan,
    first_day=_first_day,
    trace=_trace,
)
