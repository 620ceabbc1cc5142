"""The best response of one station to the others' bids of a day, and what it says about how they bid.

1. *Programme*: storage schedule and asks of the station over the whole day, which it knows, against the others'
   recorded quantities and asks, without operator. On each price that it can reach its profit is linear in its storage
   power: a mixed-integer programme whose bound is an upper limit of what the station could earn (`problems`).
2. *Plan*: the chosen powers and asks, priced by the environment's station and auction. It reaches the bound up to the
   gap asked for and ``ASK_STEP_EUR_PER_KWH`` per kWh: at a tie there is only a supremum. Where the plan sits on a
   quantity at which the price turns, it is sought again ``STEP_KW`` away from it.

Regret has two parts. *Storage*: own asks kept, own storage at its best. *Strategic*: asks freed too.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from evcs_gym.baselines.forms.best_response import best_response as form_of
from evcs_gym.baselines.policy_market import MarketPolicy, MarketStage
from evcs_gym.baselines.problems import best_response as problems
from evcs_gym.baselines.problems.best_response import STEP_KW, ResponseProblem
from evcs_gym.baselines.solvers import Task, compile_model, solve
from evcs_gym.envs.errors import SolverError
from evcs_gym.envs.market.auction import PRICE_RULES
from evcs_gym.envs.market.core import MarketAction, MarketWorld, initial_state, step
from evcs_gym.envs.market.operators import NO_OPERATOR, Operator
from evcs_gym.envs.market.station import Assets
from evcs_gym.envs.types import FloatArray
from evcs_gym.envs.units import N_SLOTS

GAP_EUR: Final = 1e-4
"""Gap [EUR of the day] at which the search ends."""
TIME_LIMIT_S: Final = 60.0
BOUND_OFF_EUR: Final = 1e-4
"""Tolerances of solver and auction: what a plan may earn above a bound."""


@dataclass(frozen=True, eq=False)
class Response:
    """The best day found for one station, and that no day earns more than ``bound_eur``.

    storage_kw, ask_eur_per_kwh: (T,) wished and asked for. profit_eur: of them, by the environment's station and
    auction. status: of the solver; ``time_limit`` leaves a wider gap.
    """

    storage_kw: FloatArray
    ask_eur_per_kwh: FloatArray
    profit_eur: float
    bound_eur: float
    status: str
    seconds: float

    @property
    def gap_eur(self) -> float:
        """What is not proven."""
        return self.bound_eur - self.profit_eur


@dataclass(frozen=True, eq=False)
class Regret:
    """What a station left on the table. played_eur: its profit as it played. kept: best storage under its own asks.
    freed: best storage and asks. Both are at least as good as what was played, which they may choose too."""

    played_eur: float
    kept: Response
    freed: Response

    @property
    def storage_eur(self) -> float:
        """Storage part: what a better schedule under the same asks would have earned."""
        return self.kept.profit_eur - self.played_eur

    @property
    def strategic_eur(self) -> float:
        """Strategic part: what other asks would have earned beyond that."""
        return self.freed.profit_eur - self.kept.profit_eur


def best_response(
    problem: ResponseProblem,
    kept_ask_eur_per_kwh: FloatArray | None = None,
    gap_eur: float = GAP_EUR,
    time_limit_s: float = TIME_LIMIT_S,
) -> Response:
    """The station's best storage schedule and asks; kept_ask_eur_per_kwh: (T,) asks that stay as they are.

    The bound takes the share in a tie of a kept ask a little too large; the plan's profit is what the auction gives it.

    Raises:
        ConfigError: a price rule without exact response. DataError: wrong shapes or NaN.
        SolverError: no solver, one that failed, or one that found nothing in time.
    """
    problems.check_data(problem)
    began = time.monotonic()
    found = _solved(problem, kept_ask_eur_per_kwh, 0.0, gap_eur, time_limit_s)
    if found is None:
        raise SolverError(
            f"best response of station {problem.name!r}: no plan in {time_limit_s:g} s; raise the time limit"
        )
    left_s = time_limit_s - (time.monotonic() - began)
    if found.gap_eur > gap_eur and left_s > 0.0:  # a quantity at which the price turns: stay a step away from it
        again = _solved(problem, kept_ask_eur_per_kwh, STEP_KW, gap_eur, left_s)
        if again is not None and again.profit_eur > found.profit_eur:
            found = replace(again, bound_eur=found.bound_eur, status=found.status)
    bound = _upper_limit(problem, found.bound_eur, found.profit_eur)
    return replace(found, bound_eur=bound, seconds=time.monotonic() - began)


def _solved(
    problem: ResponseProblem,
    kept_ask_eur_per_kwh: FloatArray | None,
    step_kw: float,
    gap_eur: float,
    time_limit_s: float,
) -> Response | None:
    """The programme's plan, priced, and its bound, which holds for all plans where the step is 0; None without time."""
    ways = problems.ways(problem, kept_ask_eur_per_kwh, step_kw)
    form = form_of(problem, ways)
    compiled = compile_model(form.model)
    result = solve(Task(compiled.form, absolute_gap=gap_eur), time_limit_s)
    if result.x is None:
        return None
    chosen, power = (result.x[compiled.columns(variables)] for variables in (form.chosen, form.power))
    wish, ask = np.zeros(problem.n_slots), np.zeros(problem.n_slots)
    for way, taken, kw in zip(ways, chosen > 0.5, power, strict=True):
        if taken:
            wish[way.slot], ask[way.slot] = problems.wish_kw(problem, way, kw), way.ask_eur_per_kwh
    if kept_ask_eur_per_kwh is not None:
        ask = np.array(kept_ask_eur_per_kwh, dtype=np.float64)
    profit = problems.play(problem, wish, ask).profit_eur
    return Response(wish, ask, profit, -result.bound, str(result.status), result.seconds)


def regret(
    problem: ResponseProblem,
    wish_kw: FloatArray,
    ask_eur_per_kwh: FloatArray,
    gap_eur: float = GAP_EUR,
    time_limit_s: float = TIME_LIMIT_S,
) -> Regret:
    """Both parts of the regret of a station that wished and asked (T,). Each part is >= 0 by construction: what was
    played, and then the best under kept asks, are plans of the larger set too.

    Raises:
        SolverError: one of them earns more than a bound allows. Others as `best_response`.
    """
    played = problems.play(problem, wish_kw, ask_eur_per_kwh).profit_eur
    kept = best_response(problem, ask_eur_per_kwh, gap_eur, time_limit_s)
    kept = _at_least(problem, kept, wish_kw, ask_eur_per_kwh, played)
    freed = best_response(problem, None, gap_eur, time_limit_s)
    freed = _at_least(problem, freed, kept.storage_kw, kept.ask_eur_per_kwh, kept.profit_eur)
    return Regret(played, replace(kept, bound_eur=min(kept.bound_eur, freed.bound_eur)), freed)


def _at_least(
    problem: ResponseProblem, found: Response, wish_kw: FloatArray, ask_eur_per_kwh: FloatArray, profit_eur: float
) -> Response:
    """The response, or a plan that is known to earn more within its gap."""
    if profit_eur <= found.profit_eur:
        return found
    bound = _upper_limit(problem, found.bound_eur, profit_eur)
    return replace(found, storage_kw=wish_kw, ask_eur_per_kwh=ask_eur_per_kwh, profit_eur=profit_eur, bound_eur=bound)


def _upper_limit(problem: ResponseProblem, bound_eur: float, profit_eur: float) -> float:
    """The bound, raised by rounding where a plan that is known is above it.

    Raises:
        SolverError: by more than rounding.
    """
    if profit_eur > bound_eur + BOUND_OFF_EUR:
        raise SolverError(
            f"best response of station {problem.name!r}: no plan can earn more than {bound_eur:.6f} EUR, but a known "
            f"one earns {profit_eur:.6f}; the programme or its solver is wrong"
        )
    return max(bound_eur, profit_eur)


# --- what a policy bid, and what a response earns in the environment -----------------------------------------


@dataclass(frozen=True, eq=False)
class Bids:
    """What all stations did on the D days of a world, without operator.

    (D, T, S): wish_kw, storage power that was executed before (M6); ask_eur_per_kwh; offered_kw, position before (M6);
    cost_eur_per_kwh, what a sold kWh costs the station under its own plan. price_eur_per_kwh, volume_kw (D, T).
    profit_eur (D, S). community_eur (D,): what the community pays.
    """

    wish_kw: FloatArray
    ask_eur_per_kwh: FloatArray
    offered_kw: FloatArray
    cost_eur_per_kwh: FloatArray
    price_eur_per_kwh: FloatArray
    volume_kw: FloatArray
    profit_eur: FloatArray
    community_eur: FloatArray


def record_bids(world: MarketWorld, policy: MarketPolicy) -> Bids:
    """Play every day of the world once, without operator.

    Raises:
        DataError: the policy gives actions of the wrong shape or NaN. ConfigError: an ask outside the band.
    """
    stage = MarketStage(world, initial_state(world, np.arange(world.n_days)))
    costs, outcomes = [], []
    for _ in range(N_SLOTS):
        costs.append(np.array(stage.plan().ask_eur_per_kwh))
        action = policy.decide(stage)
        bid = MarketAction(action.storage_kw, action.ask_eur_per_kwh)  # caps agreed on with the operator do not bind
        stage.state, outcome = step(world, stage.state, bid, NO_OPERATOR)
        outcomes.append(outcome)
    held = np.stack([outcome.held_kw for outcome in outcomes], axis=1)
    return Bids(
        wish_kw=np.stack([outcome.storage_kw for outcome in outcomes], axis=1) - held,
        ask_eur_per_kwh=np.stack([outcome.ask_eur_per_kwh for outcome in outcomes], axis=1),
        offered_kw=np.stack([outcome.position_kw for outcome in outcomes], axis=1) + held,
        cost_eur_per_kwh=np.stack(costs, axis=1),
        price_eur_per_kwh=np.stack([outcome.price_eur_per_kwh for outcome in outcomes], axis=1),
        volume_kw=np.stack([outcome.volume_kw for outcome in outcomes], axis=1),
        profit_eur=np.asarray(sum(outcome.profit_eur for outcome in outcomes)),
        community_eur=np.asarray(sum(outcome.community_eur for outcome in outcomes)),
    )


def response_problem(world: MarketWorld, bids: Bids, day: int, station: int) -> ResponseProblem:
    """What a station (number) faces on a day (row of the world) if the others do what they did."""
    days, others = world.days, np.arange(world.n_stations) != station
    return ResponseProblem(
        name=world.stations.name[station],
        assets=Assets(*(column[station : station + 1] for column in world.assets)),
        import_eur_per_kwh=days.import_eur_per_kwh[day],
        export_eur_per_kwh=days.export_eur_per_kwh[day],
        network_fee_eur_per_kwh=world.rules.network_fee_eur_per_kwh,
        price_rule=PRICE_RULES[world.rules.price_rule],
        reservation=world.rules.reservation,
        pv_kw=days.pv_kw[day, :, station],
        ev_kw=days.ev_kw[day, :, station],
        others_kw=bids.offered_kw[day][:, others],
        others_ask_eur_per_kwh=bids.ask_eur_per_kwh[day][:, others],
    )


def station_regret(
    world: MarketWorld,
    bids: Bids,
    day: int,
    station: int,
    gap_eur: float = GAP_EUR,
    time_limit_s: float = TIME_LIMIT_S,
) -> Regret:
    """`regret` of a station on a day that was recorded."""
    problem = response_problem(world, bids, day, station)
    own = (bids.wish_kw[day, :, station], bids.ask_eur_per_kwh[day, :, station])
    return regret(problem, *own, gap_eur, time_limit_s)


def replay_eur(
    world: MarketWorld, bids: Bids, day: int, responses: Sequence[Response], operator: Operator
) -> tuple[FloatArray, FloatArray]:
    """Profit of each station, (S,), as recorded and with its response while the others wish and ask what they did.

    Unlike in the programme, what others hold back and what caps move changes what they can do later.
    """
    n_stations = world.n_stations
    wish, ask = (np.repeat(x[day][None], n_stations + 1, axis=0) for x in (bids.wish_kw, bids.ask_eur_per_kwh))
    for n, response in enumerate(responses):
        wish[n, :, n], ask[n, :, n] = response.storage_kw, response.ask_eur_per_kwh
    state = initial_state(world, np.full(n_stations + 1, day))
    profit = np.zeros((n_stations + 1, n_stations))
    for t in range(N_SLOTS):
        state, outcome = step(world, state, MarketAction(wish[:, t], ask[:, t]), operator)
        profit += outcome.profit_eur
    return profit[-1], np.diagonal(profit[:-1]).copy()
