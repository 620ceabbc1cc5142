"""Whether the bounds of the market stand below every policy: `evcs-gym ordering`.

Day by day the optimum with the network is solved and everything that plays the market plays the day with the network's
operator: all rules, the exact plan, the network-free plan, learned policies. The network-free bound must not exceed any
cost. The network's bound is linearised at the exact plan; where it exceeds a cost, the programme of some slot must say
that the policy's positions are not possible, though the power flow let them pass: then the excess that it shows is the
error of the linearisation, and elsewhere the bound is wrong.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from evcs_gym.baselines.decomposition import (
    CUT_TOLERANCE,
    Search,
    references_of,
    shared_values,
    slot_matrices,
    solve_slot,
    spread,
)
from evcs_gym.baselines.forms.network import BOUND_SLACK, EXCESS_BOX, Tightness
from evcs_gym.baselines.market import ROUNDING_FRAC, solve_programme
from evcs_gym.baselines.market_network import NetworkSolution, solve_market_network
from evcs_gym.baselines.policy_market import MarketPolicy, PlanPolicy
from evcs_gym.baselines.problems.market import MarketPlan, gap_scale_eur, problem_of
from evcs_gym.baselines.problems.network import NetworkPlan, NetworkProblem, network_problem
from evcs_gym.baselines.registry import make_rule, rules_of
from evcs_gym.baselines.score_market import MarketRollout, market_rollout
from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.market.prepare import market_world
from evcs_gym.evaluation.benchmark import check_policies, load_runs
from evcs_gym.evaluation.contest import Listener
from evcs_gym.evaluation.contest_market import MARKET
from evcs_gym.evaluation.records import Provenance, Record, collect_provenance, validated, write_json
from evcs_gym.training.market import refuse_answering_drivers
from evcs_gym.training.provenance import config_hash
from evcs_gym.training.train import one_thread

if TYPE_CHECKING:
    from evcs_gym.envs import Day, Scenario

EXACT_PLAN: Final = "exact_plan"
"""The plan of the optimum with the network, its own devices and caps, in the environment."""
FREE_PLAN: Final = "network_free_plan"
"""The storage powers of the network-free optimum, with the network's operator behind them."""
FILE: Final = "ordering.json"
TIME_LIMIT_S: Final = 120.0


class OrderedDay(Record):
    """Bounds and costs of one day [EUR].

    network_bound_eur: None where the network-free bound proves the plan. rounding_eur: by which sums in another order
    may differ. cost_eur: by policy. linear_excess_pu: by policy, the largest excess over the limits that the slots'
    programmes of the network's bound show at its positions, where there is such a bound.
    """

    seed: int
    network_free_bound_eur: float
    network_bound_eur: float | None
    relative_gap: float
    status: str
    seconds: float
    rounding_eur: float
    cost_eur: dict[str, float]
    linear_excess_pu: dict[str, float]


class Ordering(Record):
    """Bounds and costs of days, in the order in which they were played."""

    record: Literal["evcs-gym ordering 1"] = "evcs-gym ordering 1"
    scenario: str
    split: str
    policies: tuple[str, ...]
    provenance: Provenance
    days: tuple[OrderedDay, ...] = ()


@dataclass(frozen=True)
class Order:
    """How far a policy stayed above the bounds.

    least_eur: least cost less network-free bound of a day, on which seed. n_below: days below it, none if it is true.
    n_network: days with a bound of the network; least_network_eur: as above, None without such days; n_below_network;
    linear_excess_pu: largest excess that the linearised programmes show at positions that the power flow let pass.
    n_unexplained: days below the network's bound although no programme shows an excess, none if it is true.
    """

    policy: str
    n_days: int
    cost_eur: float
    least_eur: float
    least_on_seed: int
    n_below: int
    n_network: int
    least_network_eur: float | None
    n_below_network: int
    linear_excess_pu: float | None
    n_unexplained: int

    def as_dict(self) -> dict[str, Any]:
        """The row as plain numbers and strings."""
        return asdict(self)


def ordering(
    scenario: "Scenario",
    n_days: int,
    runs: Sequence[str] = (),
    split: str = "test",
    relative_gap: float = 1e-4,
    out: Path | None = None,
    listener: Listener = lambda _what, _done, _all: None,
) -> Ordering:
    """Solve and play the days 0 .. n_days - 1.

    Args:
        runs: folders of learned policies, each with one seed or several.
        out: folder of `FILE`, written after every day; days that are in it already are not played again.

    Raises:
        ConfigError: no day, a policy that does not exist, a scenario without stations or whose drivers respond, a file
            of other days or policies in ``out``. DataError: a broken file. Whatever a solve may raise.
    """
    if n_days < 1:
        raise ConfigError(f"ordering: at least one day, got {n_days}")
    refuse_answering_drivers(scenario)
    learned = _learned(scenario, runs)
    names = (*rules_of("market"), EXACT_PLAN, FREE_PLAN, *learned)
    known = _begun(out, scenario, split, names, relative_gap)
    seen = {day.seed for day in known.days}
    for number, seed in enumerate(range(n_days)):
        listener("solving and playing days", number, n_days)
        if seed not in seen:
            with one_thread():
                day = ordered_day(scenario, scenario.day(seed, split), learned, relative_gap)
            known = known.model_copy(update={"days": (*known.days, day)})
            if out is not None:
                write_json(out / FILE, known)
    listener("solving and playing days", n_days, n_days)
    return known.model_copy(update={"days": tuple(day for day in known.days if day.seed < n_days)})


def _learned(scenario: "Scenario", runs: Sequence[str]) -> dict[str, MarketPolicy]:
    """Learned policies by folder and seed."""
    if not runs:
        return {}
    check_policies(runs, MARKET)
    found = {}
    for name, run in load_runs(runs, scenario, "market").items():
        for record, policy in zip(run.records, run.policies, strict=True):
            found[f"{Path(name).name}/seed-{record.seed}"] = policy
    return found


def _begun(
    out: Path | None, scenario: "Scenario", split: str, policies: tuple[str, ...], relative_gap: float
) -> Ordering:
    """What is in the folder, or a new record without days."""
    fresh = Ordering(
        scenario=scenario.name,
        split=split,
        policies=policies,
        provenance=collect_provenance(
            config_hash=config_hash(scenario.model_dump_json(by_alias=True)),
            training_seeds=(),
            solver="HiGHS, Clarabel",
            relative_gap=relative_gap,
        ),
    )
    if out is None or not (out / FILE).is_file():
        return fresh
    old = _read(out / FILE)
    for what, was, wanted in (
        ("split", old.split, fresh.split),
        ("policies", old.policies, fresh.policies),
        ("scenario", old.provenance.config_hash, fresh.provenance.config_hash),
        ("relative_gap", old.provenance.relative_gap, fresh.provenance.relative_gap),
    ):
        if was != wanted:
            raise ConfigError(f"{out / FILE}: {what} must be {wanted}, got {was}; choose another folder or remove it")
    return old


def _read(path: Path) -> Ordering:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); remove it and play the days again") from error
    return validated(Ordering, content, str(path))


def ordered_day(
    scenario: "Scenario", day: "Day", learned: dict[str, MarketPolicy], relative_gap: float = 1e-4
) -> OrderedDay:
    """Solve one day and let everything play it."""
    solution = solve_market_network(scenario, day, relative_gap, TIME_LIMIT_S)
    evidence, world, market = solution.certificate, market_world(scenario, [day]), problem_of(scenario, day)
    players: dict[str, MarketPolicy] = {name: make_rule(name, "market") for name in rules_of("market")}
    free = solve_programme(market, TIME_LIMIT_S).plan.storage_kw
    players |= {FREE_PLAN: PlanPolicy(free[None]), **learned}
    played = {name: market_rollout(world, policy, keep_outcomes=True) for name, policy in players.items()}
    cost = {name: float(rollout.cost_eur[0]) for name, rollout in played.items()}
    excess = {}
    if evidence.network_bound_eur is not None:
        excess = linear_excess_pu(scenario, day, solution, played)
    return OrderedDay(
        seed=day.seed,
        network_free_bound_eur=evidence.network_free_bound_eur,
        network_bound_eur=evidence.network_bound_eur,
        relative_gap=solution.relative_gap,
        status=str(solution.status),
        seconds=solution.seconds,
        rounding_eur=ROUNDING_FRAC * max(1.0, gap_scale_eur(market)),
        cost_eur={**cost, EXACT_PLAN: evidence.replay_cost_eur},
        linear_excess_pu=excess,
    )


def linear_excess_pu(
    scenario: "Scenario", day: "Day", solution: NetworkSolution, played: dict[str, MarketRollout]
) -> dict[str, float]:
    """By policy: the largest excess of a slot's programme, limits wider by (N4), at the positions that it took."""
    problem = network_problem(scenario, day)
    search = Search(problem, 0.0, np.inf)
    references = references_of(problem, solution.plan)
    values = {name: shared_values(problem, _positions(problem, rollout)) for name, rollout in played.items()}

    def work(slot: int) -> list[float]:
        matrices = slot_matrices(problem, slot, references[slot], Tightness(BOUND_SLACK))
        answers = [solve_slot(search, matrices, shared[slot]) for shared in values.values()]
        return [EXCESS_BOX[1] if answer.ray else answer.objective for answer in answers]

    worst = np.max(spread(work, np.arange(problem.n_slots)), axis=0)
    return dict(zip(values, worst.tolist(), strict=True))


def _positions(problem: NetworkProblem, rollout: MarketRollout) -> NetworkPlan:
    """A plan with the positions that a policy took, under the day's own devices."""
    assert rollout.outcomes is not None
    position = np.concatenate([outcome.position_kw for outcome in rollout.outcomes])
    nothing = np.zeros_like(position)
    return NetworkPlan(
        MarketPlan(problem.market.pv_kw - problem.market.ev_kw - position, nothing, nothing), problem.own
    )


def orders(found: Ordering) -> list[Order]:
    """A row for each policy."""
    return [_order(name, found.days) for name in found.policies]


def _order(policy: str, days: Sequence[OrderedDay]) -> Order:
    above = [day.cost_eur[policy] - day.network_free_bound_eur for day in days]
    n_below = sum(margin < -day.rounding_eur for margin, day in zip(above, days, strict=True))
    bounded = [day for day in days if day.network_bound_eur is not None]
    over = [(day, day.cost_eur[policy] - _bound(day)) for day in bounded]
    below = [day for day, margin in over if margin < -day.rounding_eur]
    excess = [day.linear_excess_pu[policy] for day in bounded if policy in day.linear_excess_pu]
    explained = sum(day.linear_excess_pu.get(policy, 0.0) > CUT_TOLERANCE for day in below)
    return Order(
        policy=policy,
        n_days=len(days),
        cost_eur=float(np.mean([day.cost_eur[policy] for day in days])),
        least_eur=min(above),
        least_on_seed=days[int(np.argmin(above))].seed,
        n_below=n_below,
        n_network=len(bounded),
        least_network_eur=min((margin for _, margin in over), default=None),
        n_below_network=len(below),
        linear_excess_pu=max(excess, default=None),
        n_unexplained=len(below) - explained,
    )


def _bound(day: OrderedDay) -> float:
    assert day.network_bound_eur is not None
    return day.network_bound_eur


def table_row(row: Order) -> dict[str, Any]:
    """The row as a table shows it."""
    names = ("policy", "cost_eur", "least_eur", "n_below", "n_unexplained")
    return {name: getattr(row, name) for name in names}
