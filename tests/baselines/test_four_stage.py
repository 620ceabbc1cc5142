"""The four-stage method: rounds known by hand, caps that only tighten, roles, limits of rounds, what others know."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from market_fixtures import city_world, day_of, line, scenario_of, small_world, stations
from market_problems import problem_of_row

from evcs_gym.baselines import receding_market
from evcs_gym.baselines.four_stage import TIGHTER_KW, FourStage, Talk, check_tighter, foreseen
from evcs_gym.baselines.market import solve_programme
from evcs_gym.baselines.policy_market import MarketStage
from evcs_gym.baselines.registry import make_operator, make_policy
from evcs_gym.baselines.score_market import MarketRollout, market_rollout
from evcs_gym.baselines.solvers import Result, Status
from evcs_gym.envs.errors import ConfigError, ConvergenceError, InfeasibleError, SolverError
from evcs_gym.envs.market.core import MarketAction, MarketWorld, initial_state, step
from evcs_gym.envs.market.operators import NO_OPERATOR, PRO_RATA, Answer, Grid, Operator
from evcs_gym.envs.market.play import slot_terms
from evcs_gym.envs.market.prepare import market_world
from evcs_gym.envs.market.view import view
from evcs_gym.envs.types import ComplexArray, FloatArray, IntArray
from evcs_gym.envs.units import N_SLOTS


@dataclass(frozen=True)
class ExportsUpTo:
    """All exports together stay below ``most_kw``, pro rata; ``lazy`` cuts half of what is too much."""

    most_kw: float
    lazy: bool = False
    in_threads: bool = False

    def answer(
        self,
        first: int,
        stop: int,
        grid: Grid,
        at: IntArray,
        position_kw: FloatArray,
        start_pu: ComplexArray,
        into: Answer,
    ) -> None:
        NO_OPERATOR.answer(first, stop, grid, at, position_kw, start_pu, into)
        for row in range(first, stop):
            exports = np.maximum(position_kw[row], 0.0).sum()
            if exports > self.most_kw + 1e-7:
                most = 0.5 * (self.most_kw + exports) if self.lazy else self.most_kw
                into.cap_kw[row] = np.where(position_kw[row] > 0.0, most / exports * position_kw[row], np.inf)


def sunny_hour(**columns: Any) -> MarketWorld:
    """80 and 40 kW of sun in slot 0, in which exports bring 0.09, against 0.04 later; storages are empty."""
    pv_kw, spot = np.zeros((N_SLOTS, 2)), np.full(N_SLOTS, 0.05)
    pv_kw[0], spot[0] = [80.0, 40.0], 0.10
    return small_world(stations(2, energy_start_kwh=0.0, **columns), pv_kw=pv_kw, spot_eur_per_kwh=spot)


def talked(world: MarketWorld, policy: FourStage, operator: Operator = PRO_RATA) -> tuple[MarketRollout, list[Talk]]:
    """A rollout, and all talks in it."""
    talks: list[Talk] = []

    class Listening:
        def decide(self, stage: MarketStage) -> MarketAction:
            action = policy.decide(stage)
            talks.extend(policy.talks)
            return action

    return market_rollout(world, Listening(), operator, keep_outcomes=True), talks


# --- by hand -----------------------------------------------------------------------------------------------


def test_rounds_of_two_stations_by_hand() -> None:
    """120 kW want out through 60: caps of 40 and 20. In the second round each stores what it may not send, 20 and 10
    kWh, and sells it later for 0.05 less a kWh: 1.00 and 0.50 EUR. Nothing breaks any more, all agree."""
    operator = ExportsUpTo(60.0)
    done, talks = talked(sunny_hour(), FourStage(operator), operator)
    (talk,) = talks
    assert (talk.row, talk.slot, len(talk.rounds), talk.agreed) == (0, 0, 2, True)
    first, second = talk.rounds
    assert (first.number, second.number) == (1, 2)
    assert np.isinf(first.cap_kw).all()
    assert first.position_kw[0].tolist() == pytest.approx([40.0, 20.0])  # (N3) under the operator's caps
    assert first.asked_kw[0].tolist() == pytest.approx([40.0, 20.0])
    assert np.isinf(first.asked_kw[1:]).all()
    assert second.cap_kw[0].tolist() == pytest.approx([40.0, 20.0])
    assert np.isinf(second.cap_kw[1:]).all()
    assert second.profit_eur == pytest.approx([20 * 0.09 + 20 * 0.04, 10 * 0.09 + 10 * 0.04])
    assert first.profit_eur == pytest.approx([20 * 0.09, 10 * 0.09])  # what was stored is not sold in this plan
    assert second.change_eur == pytest.approx([0.80, 0.40])
    assert (first.curtailed_kwh, second.curtailed_kwh) == pytest.approx((0.0, 0.0), abs=1e-9)
    assert second.price_eur_per_kwh[[0, 1]].tolist() == pytest.approx([0.09, 0.04])
    assert done.cost_eur == pytest.approx([-second.profit_eur.sum()])
    assert done.outcomes is not None
    assert [outcome.n_rounds[0] for outcome in done.outcomes] == [2, *[0] * (N_SLOTS - 1)]
    assert done.outcomes[0].position_kw[0].tolist() == pytest.approx([40.0, 20.0])


def test_without_storage_the_sun_is_curtailed_and_the_round_says_so() -> None:
    operator = ExportsUpTo(60.0)
    done, (talk,) = talked(sunny_hour(storage_kwh=0.0), FourStage(operator), operator)
    assert [r.curtailed_kwh for r in talk.rounds] == pytest.approx([30.0, 30.0])
    assert done.curtailed_kwh == pytest.approx([30.0])
    assert talk.rounds[1].change_eur == pytest.approx([0.0, 0.0])


def test_where_the_rounds_are_over_the_word_of_the_operator_stands() -> None:
    """It asks for half of what is too much: 120, 90, 75, 67.5 kW. After three rounds the last caps are played, with
    storages that take nothing more."""
    operator = ExportsUpTo(60.0, lazy=True)
    done, (talk, *later) = talked(sunny_hour(storage_kwh=0.0), FourStage(operator, max_rounds=3), NO_OPERATOR)
    assert (len(talk.rounds), talk.agreed, later) == (3, False, [])
    totals = [r.asked_kw[0].sum() for r in talk.rounds]
    assert totals == pytest.approx([90.0, 75.0, 67.5])
    assert done.outcomes is not None
    assert done.outcomes[0].position_kw[0].tolist() == pytest.approx([45.0, 22.5])
    assert done.outcomes[0].cap_kw[0].tolist() == pytest.approx([45.0, 22.5])


def test_what_is_known_a_day_ahead_is_planned_for() -> None:
    """The cap of slot 0 is met by nobody's storage before the talk. With a cap in slot 5 the storage is kept empty."""
    pv_kw = np.zeros((N_SLOTS, 2))
    pv_kw[5] = [80.0, 40.0]
    world = small_world(stations(2, energy_start_kwh=[40.0, 40.0]), pv_kw=pv_kw, ev_kw=[0.0, 0.0])
    operator = ExportsUpTo(30.0)
    done, (talk,) = talked(world, FourStage(operator), operator)
    assert talk.agreed
    assert done.curtailed_kwh == pytest.approx([0.0], abs=1e-6)


def test_an_export_at_the_export_price_is_not_held_back() -> None:
    """(M6) keeps what asks more than the utility pays; rounding of duals must not."""
    spot = np.full(N_SLOTS, 0.02)
    spot[0] = 0.50
    done, _ = talked(small_world(stations(2), spot_eur_per_kwh=spot), FourStage())
    assert done.held_kwh.tolist() == [0.0]
    assert done.outcomes is not None
    assert done.outcomes[0].position_kw[0].tolist() == pytest.approx([50.0, 50.0])


# --- what always holds --------------------------------------------------------------------------------------


def windy_world(seed: int, foresight: bool = False) -> MarketWorld:
    """A day of three stations on a weak line, of sun and drivers at random, on which limits bind; foreseen wrongly."""
    rng, feeder = np.random.default_rng(seed), line(3, resistance_ohm=3.0)
    pv_kw = rng.uniform(0.0, 1500.0, (N_SLOTS, 3)) * (rng.uniform(size=(N_SLOTS, 3)) < 0.3)
    ev_kw = rng.uniform(0.0, 1500.0, (N_SLOTS, 3)) * (rng.uniform(size=(N_SLOTS, 3)) < 0.3)
    day = day_of(
        feeder,
        3,
        pv_kw=pv_kw,
        ev_kw=ev_kw,
        spot_eur_per_kwh=rng.uniform(0.02, 0.10, N_SLOTS),
        growth_frac=0.0 if foresight else np.minimum(np.arange(N_SLOTS) / 8.0, 1.0),
        pv_error_kw=rng.uniform(-0.8, 0.8, (N_SLOTS, 3)) * pv_kw,
    )
    sizes: dict[str, Any] = {"storage_kwh": 400.0, "storage_kw": 200.0, "energy_start_kwh": 200.0}
    assets = stations(3, connection_kw=2000.0, degradation_eur_per_kwh=0.004, charge_efficiency_frac=0.9, **sizes)
    return market_world(scenario_of(assets, feeder), [day])


@settings(max_examples=3, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_caps_only_tighten_roles_stay_and_limits_hold(seed: int, max_rounds: int) -> None:
    world = windy_world(seed)
    done, talks = talked(world, FourStage(max_rounds=max_rounds))
    assert done.n_violations.tolist() == [0]
    assert done.cost_eur[0] >= solve_programme(problem_of_row(world, 0), 60.0).bound_eur
    for talk in talks:
        assert 1 <= len(talk.rounds) <= max_rounds
        for before, after in zip(talk.rounds, talk.rounds[1:], strict=False):
            assert (after.cap_kw <= before.cap_kw).all()
            assert (after.cap_kw <= before.asked_kw + 1e-12).all()
            assert (after.cap_kw < before.cap_kw - TIGHTER_KW).any()
        last = talk.rounds[-1]
        assert talk.agreed == bool((last.asked_kw >= last.cap_kw - TIGHTER_KW).all())
        assert talk.agreed or len(talk.rounds) == max_rounds
        if len(talk.rounds) == max_rounds > 1:
            before = talk.rounds[-2].position_kw
            assert (last.position_kw * before >= -1e-6).all()
            assert np.abs(last.position_kw[before == 0.0]).max(initial=0.0) <= 1e-6
    assert any(len(talk.rounds) > 1 for talk in talks) or max_rounds == 1


def test_on_a_known_day_one_talk_is_enough_and_its_last_round_is_played() -> None:
    """What all agreed on at noon stands all day: the last round is what happens, its caps bind."""
    done, (talk,) = talked(windy_world(3, foresight=True), FourStage())
    last = talk.rounds[-1]
    assert (talk.slot, talk.agreed) == (0, True)
    assert done.n_capped_slots[0] > 3
    assert last.cap_kw.min() < np.inf
    assert done.profit_eur[0] == pytest.approx(last.profit_eur, rel=1e-9)
    assert (done.curtailed_kwh[0], done.unserved_kwh[0]) == pytest.approx((last.curtailed_kwh, last.unserved_kwh))
    assert done.outcomes is not None
    caps = np.stack([outcome.cap_kw[0] for outcome in done.outcomes])
    assert caps[np.isfinite(caps)] == pytest.approx(last.cap_kw[np.isfinite(caps)], abs=1e-6)


def test_stations_talk_with_the_programme_of_the_network() -> None:
    """4000 kW of cars at the end of a weak line in slot 5: its station discharges what it has, cars wait for the rest.
    What the programme allowed is nothing that the environment's own operator would cut."""
    ev_kw = np.zeros((N_SLOTS, 2))
    ev_kw[5, 1] = 4000.0
    world = small_world(stations(2, connection_kw=1e4), feeder=line(2, resistance_ohm=5.0), ev_kw=ev_kw)
    done, (talk,) = talked(world, FourStage(make_operator("misocp")))
    assert (talk.agreed, len(talk.rounds)) == (True, 2)
    assert done.n_violations.tolist() == done.n_fallbacks.tolist() == [0]
    assert done.outcomes is not None
    played, cap = done.outcomes[5], talk.rounds[1].cap_kw[5, 1]
    assert played.position_kw[0, 1] == pytest.approx(-cap)
    assert played.cap_kw[0].tolist() == [np.inf, pytest.approx(cap)]
    assert played.storage_kw[0, 1] == pytest.approx(-50.0)
    assert done.unserved_kwh[0] == pytest.approx(0.5 * (4000.0 - 50.0 - cap))


def test_rows_talk_alone() -> None:
    """A batch plays as its rows do, in any mixture of slots, and a second rollout as the first."""
    world, policy = city_world(3, seed=5), FourStage()
    together = market_rollout(world, policy).cost_eur
    assert np.array_equal(market_rollout(world, policy).cost_eur, together)
    state = initial_state(world, np.array([2, 0]))
    later = dataclasses.replace(state, slot=np.array([0, 7]))
    mixed = FourStage().decide(MarketStage(world, later))
    alone = FourStage().decide(MarketStage(world, initial_state(world, np.array([2]))))
    for name in ("storage_kw", "ask_eur_per_kwh", "cap_kw", "n_rounds"):
        assert np.array_equal(getattr(mixed, name)[0], getattr(alone, name)[0])


def test_a_station_plans_with_what_is_its_own() -> None:
    """Other sizes, energies, sun and drivers of the neighbour change nothing as long as the network does not bind."""
    one = small_world(stations(2), pv_kw=[30.0, 0.0], ev_kw=[0.0, 80.0])
    other = small_world(
        stations(2, storage_kwh=[100.0, 900.0], energy_start_kwh=[50.0, 400.0]), pv_kw=[30.0, 500.0], ev_kw=[0.0, 10.0]
    )
    actions = [FourStage().decide(MarketStage(w, initial_state(w, np.zeros(1, dtype=np.int64)))) for w in (one, other)]
    assert actions[0].storage_kw[0, 0] == actions[1].storage_kw[0, 0]
    assert actions[0].ask_eur_per_kwh[0, 0] == actions[1].ask_eur_per_kwh[0, 0]


def test_the_foreseen_day_is_the_view_on_the_same_network() -> None:
    world = city_world(2, growth_frac=np.minimum(np.arange(N_SLOTS) / 10.0, 1.0), price_error_eur_per_kwh=0.01)
    seen = view(world, initial_state(world, np.array([1, 0])))
    ahead = foreseen(world, seen)
    assert np.array_equal(ahead.days.import_eur_per_kwh, seen.import_eur_per_kwh)
    assert np.array_equal(ahead.days.largest_import_eur_per_kwh, seen.import_eur_per_kwh.max(axis=1))
    assert np.array_equal(ahead.grid.load_kva[:N_SLOTS], world.grid.load_kva[N_SLOTS:])
    assert np.array_equal(ahead.grid.limits.vmin_pu[N_SLOTS:], world.grid.limits.vmin_pu[:N_SLOTS])


def test_rounds_are_in_the_state_and_in_what_environments_tell() -> None:
    world = sunny_hour()
    stage = MarketStage(world, initial_state(world, np.zeros(1, dtype=np.int64)))
    after, outcome = step(world, stage.state, FourStage(ExportsUpTo(60.0)).decide(stage))
    assert after.n_rounds.tolist() == slot_terms(outcome)["rounds"].tolist() == [2]
    assert after.cap_kw[0].tolist() == [np.inf, np.inf]  # the plan keeps them by itself
    idle = MarketAction(np.zeros((1, 2)), stage.least_ask_eur_per_kwh())
    assert slot_terms(step(world, stage.state, idle)[1])["rounds"].tolist() == [0]


# --- names and refusals ----------------------------------------------------------------------------------------


def test_it_is_found_by_name_and_talks_with_the_programme_of_the_network() -> None:
    policy = make_policy("four_stage", "market")
    assert isinstance(policy, FourStage)
    assert type(policy.operator).__name__ == "Misocp"


def test_a_talk_without_rounds_is_refused() -> None:
    with pytest.raises(ConfigError, match="four_stage: max_rounds must be at least 1, got 0"):
        FourStage(max_rounds=0)


def test_caps_that_get_looser_are_refused() -> None:
    caps = np.array([[[5.0, np.inf]]])
    check_tighter(caps, caps, 1)
    with pytest.raises(ConvergenceError, match=r"in round 2 that of station 0, slot 0, went from 5.0 to 6.0 kW"):
        check_tighter(caps, caps + 1.0, 2)

    class Confused(ExportsUpTo):
        def answer(self, *arguments: Any) -> None:
            super().answer(*arguments)
            arguments[-1].cap_kw[...] = np.nan

    world = sunny_hour()
    stage = MarketStage(world, initial_state(world, np.zeros(1, dtype=np.int64)))
    with pytest.raises(ConvergenceError, match=r"in round 1 that of station 0, slot 0, went from inf to nan kW"):
        FourStage(Confused(60.0)).decide(stage)


def test_a_station_without_a_plan_is_named() -> None:
    world = small_world(stations(2))
    state = dataclasses.replace(initial_state(world, np.zeros(1, dtype=np.int64)), energy_kwh=np.array([[50.0, 900.0]]))
    with pytest.raises(InfeasibleError, match=r"market, slot 0: stations 's1' have no plan .* \[900.0\]"):
        FourStage().decide(MarketStage(world, state))


def test_a_plan_that_is_not_optimal_ends_the_talk(monkeypatch: pytest.MonkeyPatch) -> None:
    late = Result(None, None, np.inf, -np.inf, Status.TIME_LIMIT, 10.0, 0)
    monkeypatch.setattr(receding_market, "solve", lambda *_: late)
    world = small_world(stations(2))
    with pytest.raises(SolverError, match=r"the plan of stations 's0' must be optimal, got status 'time_limit'"):
        FourStage().decide(MarketStage(world, initial_state(world, np.zeros(1, dtype=np.int64))))
