"""The market as a comparison sees it: rules, the network-free plan replayed, and learned policies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evcs_gym.baselines.policy_market import MarketPolicy, PlanPolicy
from evcs_gym.baselines.registry import PLANNERS
from evcs_gym.baselines.rules_market import MARKET_RULES
from evcs_gym.baselines.score_market import MarketRollout, market_rollout
from evcs_gym.envs import Day, Scenario
from evcs_gym.envs.errors import DataError
from evcs_gym.envs.market.prepare import market_world
from evcs_gym.envs.types import FloatArray
from evcs_gym.envs.units import DAY_START_HOUR, N_SLOTS, SLOT_H
from evcs_gym.evaluation.contest import OPTIMUM, Contest, Game, Listener, Played, Run, scored
from evcs_gym.evaluation.records import ExploitDay, MarketResult, MarketTrace
from evcs_gym.training.market import refuse_answering_drivers

if TYPE_CHECKING:
    from evcs_gym.baselines.market import MarketSolution

DEFAULT_SCENARIO = "ieee33_twelve"
BOUND_LABEL = "LP of the community cost without network"
OPTIMUM_NOTE = "plan of the network-free programme, replayed with the network's operator; knows the whole day"


@dataclass(frozen=True, eq=False)
class FirstDay:
    """The first day of a policy, (T,): published price and volume, energy in all storages; voltage_pu (T, N, P)."""

    price_eur_per_kwh: FloatArray
    volume_kw: FloatArray
    stored_kwh: FloatArray
    voltage_pu: FloatArray


def _solve(scenario: Scenario, day: Day, relative_gap: float) -> "MarketSolution":
    refuse_answering_drivers(scenario)
    from evcs_gym.baselines import optimum

    return optimum(scenario, day, problem="market", relative_gap=relative_gap)


def _remark(rollouts: Sequence[MarketRollout]) -> str:
    """The slots in which the operator's own answer failed."""
    n = int(sum(r.n_fallbacks.sum() for r in rollouts))
    return f"the operator fell back to pro_rata in {n} slots" if n else ""


def _market_result(rollouts: Sequence[MarketRollout]) -> MarketResult:
    def rows(name: str) -> Any:
        return np.stack([getattr(r, name) for r in rollouts]).tolist()

    return MarketResult(**{name: rows(name) for name in MarketResult.model_fields})


def _columns(_contest: Contest, rollouts: Sequence[MarketRollout]) -> dict[str, Any]:
    return {
        "violation_pu": None,
        "unmet_kwh": np.stack([r.unserved_kwh for r in rollouts]),
        "market": _market_result(rollouts),
    }


@dataclass
class _Stored:
    """A policy, and the energy in all storages that it found, a number for each slot of the first row."""

    policy: MarketPolicy
    stored_kwh: list[float]

    def decide(self, stage: Any) -> Any:
        """See `MarketPolicy`."""
        self.stored_kwh.append(float(stage.state.energy_kwh[0].sum()))
        return self.policy.decide(stage)


def _first_day(contest: Contest, policy: MarketPolicy) -> FirstDay:
    world = market_world(contest.scenario, contest.days[:1])
    stored = _Stored(policy, [])
    shown = market_rollout(world, stored, contest.operator, keep_outcomes=True)
    if shown.outcomes is None:  # pragma: no cover - asked for above
        raise DataError("the rollout kept no outcomes")
    end_kwh = [*stored.stored_kwh[1:], float(shown.end_kwh[0].sum())]
    return FirstDay(
        price_eur_per_kwh=np.array([outcome.price_eur_per_kwh[0] for outcome in shown.outcomes]),
        volume_kw=np.array([outcome.volume_kw[0] for outcome in shown.outcomes]),
        stored_kwh=np.array(end_kwh),
        voltage_pu=np.abs(np.stack([outcome.voltage_pu[0] for outcome in shown.outcomes])),
    )


def _play_optimum(contest: Contest, _name: str) -> Played:
    solutions: Sequence[Any] = contest.solutions
    plans = np.stack([solution.plan.storage_kw for solution in solutions])
    result = scored(
        MARKET,
        contest,
        OPTIMUM,
        "optimum",
        [market_rollout(contest.world, PlanPolicy(plans), contest.operator)],
        f"{OPTIMUM_NOTE}; {np.mean([solution.seconds for solution in solutions]):.1f} s per day",
        relative_gap=[solution.relative_gap for solution in solutions],
    )
    return Played(result, _first_day(contest, PlanPolicy(plans[:1])))


def _trace(contest: Contest, played: Sequence[Played]) -> MarketTrace:
    day, world = contest.days[0], contest.world
    first: dict[str, FirstDay] = {p.result.label: p.first_day for p in played}
    absent = ~contest.scenario.feeder.phase_present[None]
    return MarketTrace(
        time_h=DAY_START_HOUR + SLOT_H * np.arange(N_SLOTS, dtype=np.float64),
        import_eur_per_kwh=day.import_eur_per_kwh,
        export_eur_per_kwh=day.export_eur_per_kwh,
        surplus_kw=(world.days.pv_kw[0] - world.days.ev_kw[0]).sum(axis=1),
        price_eur_per_kwh={label: shown.price_eur_per_kwh for label, shown in first.items()},
        volume_kw={label: shown.volume_kw for label, shown in first.items()},
        stored_kwh={label: shown.stored_kwh for label, shown in first.items()},
        voltage_pu={label: shown.voltage_pu for label, shown in first.items()},
        vmin_pu=day.vmin_pu,
        vmax_pu=np.where(absent, contest.scenario.feeder_spec.vmax_pu, day.vmax_pu),
        title=f"{contest.split} day {day.seed}, {day.date}",
    )


def _exploit(
    contest: Contest, name: str, runs: Mapping[str, Run], n_days: int, listener: Listener
) -> tuple[ExploitDay, ...]:
    from evcs_gym.evaluation.exploit import contest_days  # Pyomo takes half a second

    return contest_days(contest, name, runs.get(name), n_days, listener)


MARKET = Game(
    problem="market",
    scenario=DEFAULT_SCENARIO,
    bound_label=BOUND_LABEL,
    rules=MARKET_RULES,
    planners=tuple(PLANNERS["market"]),
    plans=(OPTIMUM,),
    solve=_solve,
    roll=market_rollout,
    columns=_columns,
    infeasible_kwh=lambda contest: np.zeros(len(contest.days)),
    plan=_play_optimum,
    first_day=_first_day,
    trace=_trace,
    remark=_remark,
    stations=lambda contest: contest.scenario.stations.name,
    exploit=_exploit,
)
