"""The market's step: slots by hand, the accounting identity, and what must hold in every slot of random days."""

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
from market_fixtures import (
    asks,
    city_world,
    day_of,
    line,
    play_random,
    random_action,
    scenario_of,
    small_world,
    stations,
)
from reference import market_slot_reference

from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.grid import Equipment, Feeder, power_flow
from evcs_gym.envs.grid.operator import Limits, effective_limits, excesses, with_stations
from evcs_gym.envs.market import PRICE_RULES, clear, core
from evcs_gym.envs.market.core import (
    MarketAction,
    MarketOutcome,
    MarketState,
    MarketWorld,
    initial_state,
    step,
    with_reset_rows,
)
from evcs_gym.envs.market.operators import NO_OPERATOR, PRO_RATA
from evcs_gym.envs.market.prepare import market_world
from evcs_gym.envs.market.view import own_plan, view
from evcs_gym.envs.types import FloatArray
from evcs_gym.envs.units import N_SLOTS

ACCEPTED_OFF_PU = 1e-4
"""(N4): what an accepted slot may be off its limits."""


def one_slot(world: MarketWorld, storage_kw: Any, share: Any = 0.0, slot: int = 0) -> MarketOutcome:
    """The outcome of one slot in which stations wish these powers and ask at these shares of the band."""
    state = dataclasses.replace(initial_state(world, np.array([0])), slot=np.array([slot]))
    return step(world, state, MarketAction(np.array([storage_kw], dtype=float), asks(world, state, share)))[1]


# --- by hand: import 0.10, export 0.04, fee 0.008, half an hour ---------------------------------------------


def test_a_surplus_meets_a_deficit() -> None:
    """100 kW of PV and 60 kW of cars: 60 are traded at the ask 0.04, 40 go to the utility at 0.04."""
    world = small_world(stations(2), pv_kw=[100.0, 0.0], ev_kw=[0.0, 60.0])
    done = one_slot(world, [0.0, 0.0])
    assert done.position_kw.tolist() == [[100.0, -60.0]]
    assert (done.price_eur_per_kwh[0], done.volume_kw[0]) == (pytest.approx(0.04), 60.0)
    assert done.terms.trade_eur == pytest.approx(np.array([[0.5 * 60 * 0.04, -0.5 * 60 * 0.048]]))
    assert done.terms.export_eur == pytest.approx(np.array([[0.5 * 40 * 0.04, 0.0]]))
    assert done.terms.ev_income_eur == pytest.approx(np.array([[0.0, 0.5 * 60 * 0.40]]))
    assert done.community_eur == pytest.approx([0.5 * (60 * 0.008 - 40 * 0.04)])
    assert done.profit_eur == pytest.approx(np.array([[0.5 * 4.0, 0.5 * 60 * (0.40 - 0.048)]]))


def test_what_is_not_sold_stays_in_storage_unless_it_was_offered_at_the_export_price() -> None:
    """Both discharge 40 kW into a demand of 30: the dearer one sells nothing and keeps it."""
    world = small_world(stations(3), ev_kw=[0.0, 0.0, 30.0])
    done = one_slot(world, [-40.0, -40.0, 0.0], [0.0, 0.5, 0.0])
    assert done.position_kw.tolist() == [[40.0, 0.0, -30.0]]
    assert done.held_kw.tolist() == [[0.0, 40.0, 0.0]]
    assert done.storage_kw.tolist() == [[-40.0, 0.0, 0.0]]
    firm = one_slot(
        small_world(stations(3), reservation=False, ev_kw=[0.0, 0.0, 30.0]), [-40.0, -40.0, 0.0], [0, 0.5, 0]
    )
    assert firm.position_kw.tolist() == [[40.0, 40.0, -30.0]]
    middle = one_slot(
        small_world(stations(3), rule="mid_market", ev_kw=[0.0, 0.0, 30.0]), [-40.0, -40.0, 0.0], [0, 0.5, 0]
    )
    assert middle.position_kw.tolist() == [[40.0, 40.0, -30.0]]
    assert middle.accepted_kw.tolist() == [[15.0, 15.0, -30.0]]


def test_the_last_slot_buys_what_the_storage_lacks() -> None:
    world = small_world(stations(1), spot_eur_per_kwh=np.linspace(0.05, 0.15, N_SLOTS))
    done = one_slot(world, [-20.0], slot=N_SLOTS - 1)
    assert done.terms.missing_eur[0, 0] == pytest.approx(-10 * 0.20)
    assert one_slot(world, [-20.0], slot=N_SLOTS - 2).terms.missing_eur[0, 0] == 0.0
    assert one_slot(world, [20.0], slot=N_SLOTS - 1).terms.missing_eur[0, 0] == 0.0


def weak_world(**day: Any) -> MarketWorld:
    """Two stations behind 1 ohm at 1 kV: 0.95 pu allows an import of 142.5 kW at the first."""
    feeder = Feeder.from_arrays(
        parent=[-1, 0, 0],
        impedance_ohm=np.array([0, 1, 1e-6])[:, None, None] * np.eye(3),
        line_to_line_kv=np.sqrt(3.0),
        load_kva=np.zeros((3, 3)),
    )
    return small_world(stations(2), feeder=feeder, **day)


def test_a_capped_import_discharges_first_then_leaves_cars_waiting_and_the_auction_is_cleared_again() -> None:
    """240 kW of cars and 30 kW into the storage against 142.5 kW; the other station has 500 kW of PV to sell."""
    done = one_slot(weak_world(pv_kw=[0.0, 500.0], ev_kw=[240.0, 0.0]), [30.0, 0.0])
    cap = done.cap_kw[0, 0]
    assert cap == pytest.approx(142.5, rel=1e-3)
    assert np.isinf(done.cap_kw[0, 1])
    assert done.position_kw[0].tolist() == [-cap, 500.0]
    assert (done.storage_kw[0, 0], done.moved_kw[0, 0]) == (-50.0, -80.0)
    assert done.unserved_kw[0, 0] == pytest.approx(240.0 - 50.0 - cap)
    assert done.volume_kw[0] == cap
    assert done.terms.unserved_eur[0, 0] == pytest.approx(-0.5 * 0.50 * done.unserved_kw[0, 0])
    assert done.terms.ev_income_eur[0, 0] == pytest.approx(0.5 * 0.40 * (50.0 + cap))


def test_a_capped_export_charges_first_then_curtails() -> None:
    done = one_slot(weak_world(pv_kw=[300.0, 0.0]), [-20.0, 0.0])
    cap = done.cap_kw[0, 0]
    assert cap == pytest.approx(157.5, rel=1e-3)
    assert done.storage_kw[0, 0] == 50.0
    assert done.curtailed_kw[0, 0] == pytest.approx(250.0 - cap)
    assert not done.unserved_kw.any()


def test_in_a_slot_with_caps_the_second_clearing_holds_nothing_back() -> None:
    """The seller's 20 kW out of storage were sold in the first clearing; after the buyer's cap they are firm."""
    world = weak_world(pv_kw=[0.0, 140.0], ev_kw=[200.0, 0.0])
    done = one_slot(world, [40.0, -20.0], [0.0, 0.5])
    assert done.cap_kw[0, 0] < 160.0
    assert done.position_kw[0, 1] == 160.0
    assert done.accepted_kw[0, 1] == done.cap_kw[0, 0]
    assert done.held_kw[0, 1] == 0.0
    assert done.terms.export_eur[0, 1] == pytest.approx(0.5 * 0.04 * (160.0 - done.cap_kw[0, 0]))


def test_without_an_operator_positions_pass_and_voltages_show_it() -> None:
    world = weak_world(ev_kw=[200.0, 0.0])
    state = initial_state(world, np.array([0]))
    action = MarketAction(np.zeros((1, 2)), asks(world, state))
    free, held = (step(world, state, action, operator)[1] for operator in (NO_OPERATOR, PRO_RATA))
    assert free.position_kw[0, 0] == -200.0
    assert np.abs(free.voltage_pu[0, 1]).min() < 0.93 < 0.95 - 1e-5 < np.abs(held.voltage_pu[0, 1]).min()


# --- what must hold in every slot --------------------------------------------------------------------------

Played = tuple[MarketWorld, list[tuple[MarketState, MarketAction, MarketOutcome]]]


@pytest.fixture(scope="module")
def played() -> Callable[[str], Played]:
    """Random days of the city under a price rule, each played once."""
    seen: dict[str, Played] = {}

    def get(rule: str) -> Played:
        if rule not in seen:
            world = city_world(4, rule)
            seen[rule] = (world, play_random(world, 8, seed=1)[1])
        return seen[rule]

    return get


@pytest.mark.parametrize("rule", PRICE_RULES)
def test_profits_sum_to_income_less_what_the_community_pays(rule: str, played: Callable[[str], Played]) -> None:
    _, slots = played(rule)
    for _, _, done in slots:
        left = done.profit_eur.sum(axis=1)
        assert left == pytest.approx(done.terms.ev_income_eur.sum(axis=1) - done.community_eur, abs=1e-9)


def test_the_random_days_have_caps_rationing_ties_and_unserved_energy(played: Callable[[str], Played]) -> None:
    """Else the test above would say little."""
    _, slots = played("marginal")
    outcomes = [done for _, _, done in slots]
    capped = np.concatenate([np.isfinite(done.cap_kw).any(axis=1) for done in outcomes])
    assert 0.02 < capped.mean() < 0.5
    supply = np.concatenate([done.position_kw.clip(0).sum(axis=1) for done in outcomes])
    demand = np.concatenate([-done.position_kw.clip(max=0).sum(axis=1) for done in outcomes])
    assert ((supply < demand) & (supply > 0)).any()
    assert ((supply > demand) & (demand > 0)).any()
    assert sum(float(done.unserved_kw.sum()) for done in outcomes) > 1.0
    assert sum(float(done.curtailed_kw.sum()) for done in outcomes) > 1.0
    assert sum(float(done.held_kw.sum()) for done in outcomes) > 1.0
    ties = [
        len(np.unique(row[sells])) < sells.sum()
        for done in outcomes
        for row, sells in zip(done.ask_eur_per_kwh, done.position_kw > 0, strict=True)
    ]
    assert any(ties)


@pytest.mark.parametrize("rule", ["marginal", "pay_as_ask"])
def test_the_clearing_that_stands_is_that_of_the_adjusted_positions(rule: str, played: Callable[[str], Played]) -> None:
    """Where there were caps exactly; elsewhere what was held back only takes away what was not sold."""
    world, slots = played(rule)
    fee = world.rules.network_fee_eur_per_kwh
    for state, action, done in slots:
        at = (state.day, state.slot)
        tariffs = (world.days.import_eur_per_kwh[at], world.days.export_eur_per_kwh[at])
        again = clear(done.position_kw, action.ask_eur_per_kwh, *tariffs, fee, rule)
        capped = np.isfinite(done.cap_kw).any(axis=1)
        assert np.array_equal(again.accepted_kw[capped], done.accepted_kw[capped])
        assert np.array_equal(again.price_eur_per_kwh[capped], done.price_eur_per_kwh[capped])
        assert again.volume_kw == pytest.approx(done.volume_kw, rel=1e-12)
        assert (np.abs(done.accepted_kw) <= np.abs(done.position_kw) + 1e-9).all()
        paid = done.payment_eur_per_h.sum(axis=1)
        assert paid == pytest.approx(fee * done.volume_kw, abs=1e-9)


@pytest.mark.parametrize("rule", PRICE_RULES)
def test_every_slot_is_that_of_the_plain_twin(rule: str, played: Callable[[str], Played]) -> None:
    world, slots = played(rule)
    for i, (state, action, done) in enumerate(slots):
        after = slots[i + 1][0].energy_kwh if i + 1 < len(slots) else None
        for row in range(0, 8, 3):
            twin = market_slot_reference(world, state, action, done.cap_kw, row)
            energy = twin.pop("energy_kwh")
            for name, values in twin.items():
                assert getattr(done, name)[row] == pytest.approx(values, abs=1e-8), name
            assert after is None or after[row] == pytest.approx(energy, abs=1e-9)


def test_stations_balance_and_energies_stay_in_bounds(played: Callable[[str], Played]) -> None:
    world, slots = played("marginal")
    for state, _, done in slots:
        at = (state.day, state.slot)
        served = world.days.ev_kw[at] - done.unserved_kw
        balance = world.days.pv_kw[at] - done.curtailed_kw - served - done.storage_kw
        assert done.position_kw == pytest.approx(balance, abs=1e-9)
        assert (np.abs(done.position_kw) <= np.minimum(world.assets.connection_kw, done.cap_kw) + 1e-9).all()
        assert (state.energy_kwh >= -1e-9).all()
        assert (state.energy_kwh <= world.assets.storage_kwh + 1e-9).all()


def test_every_slot_passes_the_power_flow(played: Callable[[str], Played]) -> None:
    world, slots = played("marginal")
    grid = world.grid
    for state, _, done in slots:
        assert done.converged.all()
        at = state.day * N_SLOTS + state.slot
        limits = Limits(**{f.name: getattr(grid.limits, f.name)[at] for f in dataclasses.fields(Limits)})
        load = with_stations(grid.load_kva[at], done.position_kw, world.stations.bus)
        flow = power_flow(world.feeder, load, grid.source_pu[at])
        assert excesses(world.feeder, limits, load, flow, grid.source_pu[at]).max() <= ACCEPTED_OFF_PU
        assert done.voltage_pu == pytest.approx(flow.voltage_pu, abs=1e-6)
        assert done.loss_kw == pytest.approx(flow.loss_kw, abs=1e-3)


# --- purity ------------------------------------------------------------------------------------------------


def same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple):
        return all(same(a, b) for a, b in zip(one, other, strict=True))
    if dataclasses.is_dataclass(one):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))
    return bool(np.array_equal(one, other))


def test_a_step_leaves_its_inputs_and_a_row_does_not_depend_on_its_neighbours() -> None:
    world = city_world(3)
    rng = np.random.default_rng(0)
    state = dataclasses.replace(initial_state(world, np.array([0, 1, 2])), slot=np.array([3, 20, 47]))
    action = random_action(world, state, rng)
    before = copy.deepcopy((state, action))
    after, done = step(world, state, action)
    assert same(before, (state, action))
    assert same((after, done), step(world, state, action))
    for row in range(3):
        alone = MarketState(**{f.name: getattr(state, f.name)[row : row + 1] for f in dataclasses.fields(state)})
        one = MarketAction(action.storage_kw[row : row + 1], action.ask_eur_per_kwh[row : row + 1])
        _, lonely = step(world, alone, one)
        for name in ("position_kw", "accepted_kw", "cap_kw", "voltage_pu", "profit_eur", "community_eur"):
            assert np.array_equal(getattr(lonely, name)[0], getattr(done, name)[row]), name


def test_worlds_and_states_pickle_and_copy() -> None:
    world = city_world(1)
    state, _ = play_random(world, 2)
    for clone in (pickle.loads(pickle.dumps(world)), copy.deepcopy(world)):
        assert not clone.days.pv_kw.flags.writeable
        assert not clone.assets.storage_kw.flags.writeable
        assert same(play_random(clone, 2)[0], state)
    assert same(pickle.loads(pickle.dumps(state)), state)


def test_rows_begin_a_day_of_their_own() -> None:
    world = city_world(2)
    state, _ = play_random(world, 2)
    begun = with_reset_rows(world, state, np.array([False, True]), np.array([0]))
    assert begun.slot.tolist() == [N_SLOTS, 0]
    assert same(begun.energy_kwh[1], world.assets.energy_start_kwh)
    assert state.slot.tolist() == [N_SLOTS, N_SLOTS]


# --- views -------------------------------------------------------------------------------------------------


def test_a_view_holds_the_truth_up_to_the_slot_and_forecasts_beyond_it() -> None:
    world = small_world(
        stations(1),
        pv_kw=100.0,
        growth_frac=np.r_[0.0, np.full(47, 0.5)],
        pv_error_kw=20.0,
        price_error_eur_per_kwh=-0.02,
    )
    state = dataclasses.replace(initial_state(world, np.array([0])), slot=np.array([10]))
    seen = view(world, state)
    assert seen.pv_kw[0, :, 0].tolist() == [100.0] * 11 + [110.0] * 37
    assert seen.import_eur_per_kwh[0, 9:12] == pytest.approx([0.10, 0.10, 0.09])
    assert seen.export_eur_per_kwh[0, 9:12] == pytest.approx([0.04, 0.04, 0.03])
    assert seen.surplus_kw.tolist() == [[100.0]]
    assert (seen.least_kw[0, 0], seen.largest_kw[0, 0]) == (-50.0, 50.0)


def test_the_stations_plan_cuts_their_bill() -> None:
    """Each alone, no trade: the plan at the utility's tariffs costs a station less than an idle storage."""
    world = city_world(2)
    for n in range(8):
        column = {name: getattr(world.stations, name)[n : n + 1] for name in world.stations.__dataclass_fields__}
        alone = small_world(
            type(world.stations)(**{**column, "bus": np.array([1])}),
            pv_kw=world.days.pv_kw[0, :, n : n + 1],
            ev_kw=world.days.ev_kw[0, :, n : n + 1],
            spot_eur_per_kwh=world.days.import_eur_per_kwh[0] - 0.05,
        )
        costs = [
            day_cost(alone, wish) for wish in (lambda w, s: own_plan(w, s).storage_kw, lambda w, s: np.zeros((1, 1)))
        ]
        assert costs[0] < costs[1] - 0.1


def day_cost(world: MarketWorld, wish: Callable[[MarketWorld, MarketState], FloatArray]) -> float:
    state, cost = initial_state(world, np.array([0])), 0.0
    for _ in range(N_SLOTS):
        state, done = step(world, state, MarketAction(wish(world, state), asks(world, state)), NO_OPERATOR)
        cost += float(done.community_eur[0])
    return cost


# --- refusals ----------------------------------------------------------------------------------------------


def test_impossible_actions_are_refused() -> None:
    world = small_world(stations(2))
    state = initial_state(world, np.array([0]))
    good = MarketAction(np.zeros((1, 2)), asks(world, state))
    with pytest.raises(DataError, match=r"action.storage_kw must have shape \(B, S\) = \(1, 2\), got \(2,\)"):
        step(world, state, dataclasses.replace(good, storage_kw=np.zeros(2)))
    with pytest.raises(DataError, match=r"action.storage_kw\[0, 1\] must be finite, got nan"):
        step(world, state, dataclasses.replace(good, storage_kw=np.array([[0.0, np.nan]])))
    with pytest.raises(ConfigError, match=r"ask_eur_per_kwh\[0, 0\] must lie in \[export, import - network fee\]"):
        step(world, state, dataclasses.replace(good, ask_eur_per_kwh=np.array([[0.0, 0.05]])))
    over = dataclasses.replace(state, slot=np.array([N_SLOTS]))
    with pytest.raises(ConfigError, match="the day of row 0 is over; start another one"):
        step(world, over, good)


def test_days_that_the_stack_does_not_have_are_refused() -> None:
    world = small_world(stations(1))
    for day in ([1], [-1], []):
        with pytest.raises(ConfigError, match=r"day must be an array \(B,\) of rows 0\.\.0"):
            initial_state(world, np.array(day, dtype=np.int64))


def spoiled(world_of: Callable[[Any, list[Any]], MarketWorld], **changes: Any) -> None:
    feeder = line(2)
    day = day_of(feeder, 2)
    for name, value in changes.items():
        owner, _, field = name.rpartition("__")
        setattr(getattr(day, owner) if owner else day, field, value)
    world_of(scenario_of(stations(2), feeder), [day])


def test_days_that_do_not_fit_are_refused() -> None:
    feeder = line(2)
    with pytest.raises(ConfigError, match="at least one day is needed, got none"):
        market_world(scenario_of(stations(2), feeder), [])
    with pytest.raises(DataError, match="day test/0 has no stations: draw it from a scenario with stations"):
        spoiled(market_world, stations=None)
    with pytest.raises(DataError, match=r"stations.pv_kw must have shape \(48, 2\), got \(48, 3\)"):
        spoiled(market_world, stations__pv_kw=np.zeros((48, 3)))
    with pytest.raises(DataError, match=r"stations.ev_kw must be finite, got NaN or infinity"):
        spoiled(market_world, stations__ev_kw=np.full((48, 2), np.nan))
    with pytest.raises(DataError, match=r"stations.ev_kw must be >= 0, got -1\.0"):
        spoiled(market_world, stations__ev_kw=np.full((48, 2), -1.0))
    with pytest.raises(ConfigError, match=r"export \+ network fee must stay below import"):
        spoiled(market_world, export_eur_per_kwh=np.full(48, 0.095))


def test_stations_at_missing_buses_and_unknown_rules_are_refused() -> None:
    feeder = line(2)
    for bus in (0, 3):
        with pytest.raises(DataError, match=rf"station 's1' must be at a bus 1..2 .* three phases, got bus {bus}"):
            market_world(scenario_of(stations(2, bus=[1, bus]), feeder), [day_of(feeder, 2)])
    with pytest.raises(ConfigError, match="rule must be one of marginal"):
        market_world(scenario_of(stations(2), feeder, rule="first_price"), [day_of(feeder, 2)])


def test_limits_of_the_day_are_those_of_the_operator() -> None:
    """The prepared limits of a slot are what effective_limits says of its base load."""
    world = city_world(1)
    found = effective_limits(world.feeder, world.grid.load_kva[:1], 1.0125)
    assert np.array_equal(world.grid.limits.vmin_pu[0], found.vmin_pu[0])
    assert np.array_equal(world.grid.limits.current_a[5], found.current_a[0])


def test_capacitor_banks_in_service_lift_the_voltage_and_the_cap_with_it() -> None:
    """3 kvar per phase into 1 ohm of reactance at 1 kV: the import that 0.95 pu allows grows."""
    feeder = Feeder.from_arrays(
        parent=[-1, 0],
        impedance_ohm=np.array([0, 1 + 1j])[:, None, None] * np.eye(3),
        line_to_line_kv=np.sqrt(3.0),
        load_kva=np.zeros((2, 3)),
    )
    caps = []
    for kvar in (0.0, 3.0):
        bank = np.zeros((N_SLOTS, 2, 3))
        bank[:, 1] = kvar
        day = day_of(feeder, 1, ev_kw=400.0)
        day.capacitor_kvar = bank
        world = market_world(scenario_of(stations(1), feeder), [day])
        caps.append(one_slot(world, [50.0]).cap_kw[0, 0])
    assert caps[0] == pytest.approx(3 * 46.3, rel=0.01)
    assert caps[1] == pytest.approx(caps[0] + 3 * 3 * 0.95**2, rel=0.01)


def test_limits_that_the_base_load_breaks_are_refused() -> None:
    feeder = line(2)
    day = day_of(feeder, 2)
    day.vmin_pu = np.where(day.vmin_pu > 0.0, 1.01, 0.0)
    world = market_world(scenario_of(stations(2), feeder), [day])
    with pytest.raises(DataError, match=r"the base load alone of row 0 exceeds the day's limits"):
        one_slot(world, [0.0, 0.0])


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows over two threads, in blocks of lanes, bit for bit as on one."""
    world = city_world(2)
    one = play_random(world, 24, seed=5)[0]
    monkeypatch.setattr(core, "PARALLEL_FROM_ROWS", 8)
    monkeypatch.setattr(numba, "get_num_threads", lambda: 2)
    assert same(play_random(world, 24, seed=5)[0], one)


def test_a_feeder_with_equipment_is_held_to_its_limits_too() -> None:
    """A transformer of ratio one changes nothing but the way the power flow is computed."""
    plain = line(2, resistance_ohm=20.0)
    parts = Equipment.of(3, 12.66, shunt_siemens=np.zeros((3, 3, 3)), transfer=np.tile(np.eye(3), (3, 1, 1)))
    equipped = Feeder.from_arrays(
        parent=plain.parent,
        impedance_ohm=plain.impedance_ohm,
        line_to_line_kv=12.66,
        load_kva=np.zeros((3, 3)),
        equipment=parts,
    )
    done = {}
    for name, feeder in (("plain", plain), ("equipped", equipped)):
        world = small_world(stations(2, connection_kw=1e5), feeder=feeder, ev_kw=[100.0, 4000.0])
        state = initial_state(world, np.array([0]))
        action = MarketAction(np.zeros((1, 2)), asks(world, state))
        done[name] = [step(world, state, action, operator)[1] for operator in (PRO_RATA, NO_OPERATOR)]
    for one, other in zip(done["plain"], done["equipped"], strict=True):
        for field in ("position_kw", "cap_kw", "profit_eur", "loss_kw"):
            assert getattr(other, field) == pytest.approx(getattr(one, field), rel=1e-5), field
        assert other.voltage_pu == pytest.approx(one.voltage_pu, abs=1e-6)
    assert np.isfinite(done["equipped"][0].cap_kw).any()


# --- caps that stations bring with them -------------------------------------------------------------------------


def test_caps_agreed_on_before_the_slot_bind_like_the_operators_and_before_it() -> None:
    """80 kW of sun under an agreed cap of 20: 50 kW into the storage, 10 curtailed. A wider cap does nothing."""
    world = small_world(stations(2), pv_kw=[80.0, 30.0])
    state = initial_state(world, np.array([0]))
    action = MarketAction(np.zeros((1, 2)), asks(world, state), np.array([[20.0, 40.0]]), np.array([3]))
    for operator in (PRO_RATA, NO_OPERATOR):
        after, done = step(world, state, action, operator)
        assert done.position_kw.tolist() == [[20.0, 30.0]]
        assert (done.moved_kw[0, 0], done.curtailed_kw[0, 0]) == pytest.approx((50.0, 10.0))
        assert done.cap_kw.tolist() == after.cap_kw.tolist() == [[20.0, np.inf]]
        assert done.n_rounds.tolist() == after.n_rounds.tolist() == [3]


def test_behind_agreed_caps_the_operator_still_holds_the_limits() -> None:
    world = small_world(stations(2, connection_kw=1e4), feeder=line(2, resistance_ohm=5.0), ev_kw=[0.0, 3000.0])
    state = initial_state(world, np.array([0]))
    caps = np.array([[np.inf, 2900.0]])
    free = step(world, state, MarketAction(np.zeros((1, 2)), asks(world, state)))[1]
    held = step(world, state, MarketAction(np.zeros((1, 2)), asks(world, state), caps))[1]
    assert free.cap_kw[0, 1] < 2900.0
    assert held.cap_kw == pytest.approx(free.cap_kw, rel=1e-3)  # the search for the factor begins elsewhere
    assert held.n_rounds.tolist() == free.n_rounds.tolist() == [1]


def test_caps_and_rounds_that_cannot_be_are_refused() -> None:
    world = small_world(stations(2))
    state = initial_state(world, np.array([0]))
    wish, ask = np.zeros((1, 2)), asks(world, state)
    for caps in (np.array([[-1.0, 5.0]]), np.array([[np.nan, 5.0]]), np.array([5.0, 5.0])):
        with pytest.raises(DataError, match=r"action.cap_kw must have shape \(B, S\) = \(1, 2\) and be >= 0"):
            step(world, state, MarketAction(wish, ask, caps))
    with pytest.raises(DataError, match=r"action.n_rounds must have shape \(B,\) = \(1,\) and be >= 0, got \[-1\]"):
        step(world, state, MarketAction(wish, ask, n_rounds=np.array([-1])))
