"""Fast charging as a comparison sees it: rules, the optimum of each slot, the clairvoyant day, learned policies."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from evcs_gym.baselines.policy_fast import FastPolicy, FastStage
from evcs_gym.baselines.registry import PLANNERS
from evcs_gym.baselines.rules_fast import FAST_RULES
from evcs_gym.baselines.score_fast import FastRollout, fast_rollout
from evcs_gym.envs import Day, Scenario
from evcs_gym.envs.fleet.fast import make_fast_world, replay, requests_of
from evcs_gym.envs.fleet.fast_env import DEFAULT_SCENARIO
from evcs_gym.envs.types import FloatArray, IntArray
from evcs_gym.envs.units import DAY_START_HOUR, N_SLOTS, SLOT_H
from evcs_gym.evaluation.contest import OPTIMUM, Contest, Game, Played, scored
from evcs_gym.evaluation.records import DayTrace, FastResult

if TYPE_CHECKING:
    from evcs_gym.baselines.fast_charging import FastSolution

PROBLEM: Final = "fast_charging"
BOUND_LABEL = "bound of the day that knows all requests, no network"


@dataclass(frozen=True, eq=False)
class FirstDay:
    """The first day of a policy: charging_kw (T,) of all stations, voltage_pu (T, N, P) magnitudes."""

    charging_kw: FloatArray
    voltage_pu: FloatArray


@dataclass(frozen=True)
class PlannedStations:
    """Plans as a policy: the station of every request, one array for each day of the world."""

    station: Sequence[IntArray]

    def send(self, stage: FastStage) -> IntArray:
        """See `FastPolicy`."""
        state = stage.state
        return np.array([self.station[d][r] for d, r in zip(state.day, state.request, strict=True)], dtype=np.int64)


def _solve(scenario: Scenario, day: Day, relative_gap: float) -> "FastSolution":
    from evcs_gym.baselines import optimum

    return optimum(scenario, day, problem=PROBLEM, relative_gap=relative_gap)


def _columns(contest: Contest, rollouts: Sequence[FastRollout]) -> dict[str, Any]:
    missing_kwh, n_stations = contest.world.days.missing_kwh, contest.world.n_stations
    return {
        "violation_pu": np.stack([r.violation_pu for r in rollouts]),
        "unmet_kwh": np.stack([np.where(r.station == n_stations, missing_kwh, 0.0).sum(axis=1) for r in rollouts]),
        "fast": FastResult(
            **{name: np.stack([getattr(r, name) for r in rollouts]).tolist() for name in FastResult.model_fields}
        ),
    }


def _first_day(contest: Contest, policy: FastPolicy) -> FirstDay:
    day = contest.days[0]
    station = fast_rollout(make_fast_world(contest.scenario, [day]), policy).station[0]
    shown = replay(contest.scenario, day, station[: len(requests_of(day))])
    return FirstDay(shown.load_kw.sum(axis=1), np.abs(shown.voltage_pu))


def _play_optimum(contest: Contest, _name: str) -> Played:
    solutions: Sequence[FastSolution] = contest.solutions
    plans = PlannedStations([s.plan.station for s in solutions])
    result = scored(
        FAST_CHARGING,
        contest,
        OPTIMUM,
        "optimum",
        [fast_rollout(contest.world, plans)],
        f"sees the whole day; {np.mean([s.seconds for s in solutions]):.1f} s per day",
        relative_gap=[s.relative_gap for s in solutions],
    )
    return Played(result, _first_day(contest, plans))


def _trace(contest: Contest, played: Sequence[Played]) -> DayTrace:
    day = contest.days[0]
    fast, absent = requests_of(day), ~contest.scenario.feeder.phase_present[None]
    return DayTrace(
        time_h=DAY_START_HOUR + SLOT_H * np.arange(N_SLOTS, dtype=np.float64),
        base_kw=fast.base_kw.sum(axis=1),
        dg_kw=fast.dg_kw.sum(axis=1),
        import_eur_per_kwh=day.import_eur_per_kwh,
        charging_kw={p.result.label: p.first_day.charging_kw for p in played},
        voltage_pu={p.result.label: p.first_day.voltage_pu for p in played},
        vmin_pu=day.vmin_pu,
        vmax_pu=np.where(absent, contest.scenario.feeder_spec.vmax_pu, day.vmax_pu),
        title=f"{contest.split} day {day.seed}, {day.date}",
    )


FAST_CHARGING = Game(
    problem=PROBLEM,
    scenario=DEFAULT_SCENARIO,
    bound_label=BOUND_LABEL,
    rules=FAST_RULES,
    planners=tuple(PLANNERS[PROBLEM]),
    plans=(OPTIMUM,),
    solve=_solve,
    roll=lambda world, policy, _operator: fast_rollout(world, policy),
    columns=_columns,
    infeasible_kwh=lambda contest: np.zeros(len(contest.days)),
    plan=_play_optimum,
    first_day=_first_day,
    trace=_trace,
)
