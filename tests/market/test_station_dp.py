"""The station's own plan: days by hand, brute force, a linear programme, and how the grid converges."""

import numpy as np
import pytest
from market_fixtures import city_stations, small_world, stations
from scipy.optimize import linprog

from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.market.core import MarketAction, MarketWorld, initial_state, step
from evcs_gym.envs.market.operators import NO_OPERATOR
from evcs_gym.envs.market.station import Assets, dispatch, kernel_assets, missing_cost_eur, next_energy, power_interval
from evcs_gym.envs.market.station_dp import Decision, best_power, decide, plan_days, slot_cost_eur, truthful_ask
from evcs_gym.envs.market.view import own_plan
from evcs_gym.envs.types import FloatArray, StationAssets
from evcs_gym.envs.units import N_SLOTS, SLOT_H

PLAIN = kernel_assets(stations(1))


def series(values: FloatArray) -> FloatArray:
    return np.asarray(values, dtype=np.float64)[None]


def one_station_plan(
    assets: Assets, imports: FloatArray, exports: FloatArray, pv: FloatArray, ev: FloatArray, n: int = 41
) -> FloatArray:
    """Values (T + 1, G) of a day of one station."""
    return np.asarray(
        plan_days(assets, series(imports), series(exports), series(pv)[..., None], series(ev)[..., None], n)[0, 0]
    )


def random_series(seed: int, n_slots: int) -> tuple[FloatArray, ...]:
    rng = np.random.default_rng(seed)
    imports = rng.uniform(0.05, 0.20, n_slots)
    return imports, imports * rng.uniform(0.1, 0.8, n_slots), rng.uniform(0, 120, n_slots), rng.uniform(0, 120, n_slots)


# --- by hand -----------------------------------------------------------------------------------------------


def test_it_buys_cheap_energy_and_sells_it_dear() -> None:
    """Two slots, empty storage of 100 kWh and 50 kW: 25 kWh at 0.05, sold at 0.30 in the second slot."""
    assets = kernel_assets(stations(1, energy_start_kwh=0.0))
    nothing = np.zeros(2)
    value = one_station_plan(assets, np.array([0.05, 0.40]), np.array([0.01, 0.30]), nothing, nothing)
    assert value[0, 0] == pytest.approx(25 * 0.05 - 25 * 0.30)
    decision = decide(0.0, 0.0, 0.0, 0.05, 0.01, value[1], assets, 0)
    assert decision.storage_kw == pytest.approx(50.0)
    assert decision.water_eur_per_kwh == 0.0  # the second slot cannot sell more than 25 kWh
    slower = kernel_assets(stations(1, energy_start_kwh=0.0, storage_kw=40.0))
    assert decide(0.0, 0.0, 0.0, 0.05, 0.01, value[1], slower, 0) == pytest.approx((40.0, 0.30))


def test_missing_energy_makes_the_last_kwh_worth_the_dearest_price() -> None:
    nothing = np.zeros(3)
    value = one_station_plan(PLAIN, np.array([0.10, 0.20, 0.15]), np.array([0.01, 0.01, 0.01]), nothing, nothing)
    assert value[3, 0] == pytest.approx(50.0 * 0.20)
    assert value[2, 20] == 0.0  # half full is what the day began with
    assert value[2, 0] == pytest.approx(25 * 0.15 + 25 * 0.20)  # 25 kWh in the last slot, the rest is missing


def test_the_ask_is_what_a_sold_kwh_costs_the_station() -> None:
    assets = kernel_assets(
        stations(1, charge_efficiency_frac=0.8, discharge_efficiency_frac=0.5, degradation_eur_per_kwh=0.004)
    )
    sells, stores, full = Decision(-10.0, 0.02), Decision(10.0, 0.05), Decision(50.0, 0.05)
    assert truthful_ask(sells, 50.0, 0.1, 0.01, 0.008, assets, 0) == pytest.approx(0.02 / 0.5 + 0.004)
    assert truthful_ask(stores, 50.0, 0.1, 0.01, 0.008, assets, 0) == pytest.approx(0.05 * 0.8 - 0.004)
    assert truthful_ask(full, 50.0, 0.1, 0.01, 0.008, assets, 0) == 0.01  # cannot store more: else the utility has it
    assert truthful_ask(Decision(-10.0, 0.2), 50.0, 0.1, 0.01, 0.008, assets, 0) == pytest.approx(0.092)
    assert truthful_ask(Decision(-10.0, -0.2), 50.0, 0.1, 0.01, 0.008, assets, 0) == 0.01


def test_a_station_without_storage_does_nothing_and_its_plan_is_its_bill() -> None:
    assets = kernel_assets(stations(1, storage_kwh=0.0, storage_kw=0.0, energy_start_kwh=0.0))
    value = one_station_plan(assets, np.full(2, 0.1), np.full(2, 0.02), np.array([10.0, 0.0]), np.array([0.0, 30.0]))
    assert value[0] == pytest.approx(np.full(41, SLOT_H * (-10 * 0.02 + 30 * 0.1)))
    assert decide(0.0, 10.0, 0.0, 0.1, 0.02, value[1], assets, 0) == (0.0, 0.0)


# --- oracles -----------------------------------------------------------------------------------------------


def brute_value(
    assets: Assets, t: int, energy: float, day: tuple[FloatArray, ...], later: FloatArray, n_powers: int
) -> float:
    """Least cost of slot t over a fine scan of powers, with the same straight line between later values."""
    imports, exports, pv, ev = day
    low, high = power_interval(energy, assets, 0)
    grid = np.linspace(assets.energy_min_kwh[0], assets.storage_kwh[0], len(later))
    best = np.inf
    for wish in np.linspace(low, high, n_powers):
        done = dispatch(pv[t], ev[t], wish, low, high, assets.connection_kw[0])
        after = next_energy(energy, done.storage_kw, assets, 0)
        best = min(best, slot_cost_eur(done, imports[t], exports[t], assets, 0) + np.interp(after, grid, later))
    return float(best)


@pytest.mark.parametrize("seed", range(6))
def test_brute_force_finds_no_cheaper_power_and_comes_close(seed: int) -> None:
    tight = seed % 2 == 1  # a connection that binds, so that the storage is moved against its wish
    assets = kernel_assets(
        stations(
            1,
            charge_efficiency_frac=0.9,
            discharge_efficiency_frac=0.85,
            self_discharge_frac=0.01,
            degradation_eur_per_kwh=0.004,
            energy_min_kwh=10.0,
            connection_kw=60.0 if tight else 1e3,
        )
    )
    day = random_series(seed, 4)
    value = one_station_plan(assets, *day, n=13)
    grid = np.linspace(10.0, 100.0, 13)
    assert value[4] == pytest.approx([missing_cost_eur(e, day[0].max(), assets, 0) for e in grid])
    for t in range(4):
        for j, energy in enumerate(grid):
            brute = brute_value(assets, t, energy, day, value[t + 1], 801)
            assert value[t, j] <= brute + 1e-12
            assert value[t, j] >= brute - 2e-3  # the scan's step of 0.1 kW


def linear_programme(assets: Assets, imports: FloatArray, exports: FloatArray, pv: FloatArray, ev: FloatArray) -> float:
    """Optimal cost of a station without connection limit: ch, dis, E, sold, bought per slot, missing."""
    n = len(imports)
    charge, discharge = assets.charge_efficiency_frac[0], assets.discharge_efficiency_frac[0]
    wear, kept = assets.degradation_eur_per_kwh[0], 1.0 - assets.self_discharge_frac[0]
    cost = np.concatenate(
        [np.full(2 * n, wear * SLOT_H), np.zeros(n), -exports * SLOT_H, imports * SLOT_H, [imports.max() / charge]]
    )
    rows, right = [], []
    for t in range(n):
        energy, balance = np.zeros(5 * n + 1), np.zeros(5 * n + 1)
        energy[[t, n + t, 2 * n + t]] = -SLOT_H * charge, SLOT_H / discharge, 1.0
        if t > 0:
            energy[2 * n + t - 1] = -kept
        balance[[t, n + t, 3 * n + t, 4 * n + t]] = 1.0, -1.0, 1.0, -1.0
        rows += [energy, balance]
        right += [kept * assets.energy_start_kwh[0] if t == 0 else 0.0, pv[t] - ev[t]]
    missing = np.zeros(5 * n + 1)
    missing[[3 * n - 1, 5 * n]] = -1.0
    power, least, full = assets.storage_kw[0], assets.energy_min_kwh[0], assets.storage_kwh[0]
    bounds = [(0, power)] * (2 * n) + [(least, full)] * n + [(0, None)] * (2 * n + 1)
    found = linprog(cost, missing[None], [-assets.energy_start_kwh[0]], np.array(rows), right, bounds)
    assert found.status == 0
    return float(found.fun)


LOSSY = {"charge_efficiency_frac": 0.95, "discharge_efficiency_frac": 0.95, "degradation_eur_per_kwh": 0.004}


def test_the_plan_converges_to_the_linear_programme_from_above() -> None:
    assets = kernel_assets(stations(1, self_discharge_frac=2e-4, **LOSSY))
    day = random_series(7, N_SLOTS)
    exact = linear_programme(assets, *day)
    planned = [one_station_plan(assets, *day, n=n)[0, (n - 1) // 2] for n in (11, 21, 41, 81, 161)]
    excess = np.array(planned) - exact
    assert (excess >= -1e-9).all()
    assert (np.diff(excess) <= 1e-9).all()
    assert excess[2] <= 0.10  # EUR a day; 0.06 were measured
    assert excess[-1] <= 0.02


def play_plan(world: MarketWorld) -> FloatArray:
    """Community cost of the day when every station follows its own plan and sells to whoever wants."""
    state, cost = initial_state(world, np.array([0])), np.zeros(1)
    for _ in range(N_SLOTS):
        plan = own_plan(world, state)
        low = world.days.export_eur_per_kwh[state.day, state.slot][:, None]
        action = MarketAction(plan.storage_kw, np.broadcast_to(low, plan.storage_kw.shape))
        state, outcome = step(world, state, action, NO_OPERATOR)
        cost += outcome.community_eur
    return cost


def lonely_world(assets: StationAssets, growth_frac: float = 0.0, pv_error_kw: float = 0.0) -> MarketWorld:
    imports, _, pv, ev = random_series(7, N_SLOTS)
    growth = np.where(np.arange(N_SLOTS) > 0, growth_frac, 0.0)
    return small_world(
        assets,
        pv_kw=pv[:, None],
        ev_kw=ev[:, None],
        spot_eur_per_kwh=imports - 0.05,
        growth_frac=growth,
        pv_error_kw=pv_error_kw,
    )


def test_played_in_the_market_alone_the_plan_costs_what_it_said() -> None:
    assets = stations(1, self_discharge_frac=2e-4, **LOSSY)
    world = lonely_world(assets)
    days = world.days
    said = world.value_eur[0, 0, 0, 20]
    exact = linear_programme(
        world.assets,
        days.import_eur_per_kwh[0],
        days.export_eur_per_kwh[0],
        days.pv_kw[0, :, 0],
        days.ev_kw[0, :, 0],
    )
    played = play_plan(world)[0]
    assert exact - 1e-9 <= played <= said + 1e-9  # between grid points the plan is exact, what it said is a chord
    assert played <= exact + 0.01 * abs(exact)


def test_a_plan_made_anew_from_forecasts_that_are_true_is_the_same() -> None:
    assets = stations(1, **LOSSY)
    prepared, anew = lonely_world(assets), lonely_world(assets, growth_frac=1.0)
    assert (prepared.plan_row[0], anew.plan_row[0]) == (0, -1)
    assert play_plan(anew) == pytest.approx(play_plan(prepared), abs=1e-9)


def test_forecasts_that_err_cost_money() -> None:
    assets = stations(1, **LOSSY)
    assert play_plan(lonely_world(assets, 1.0, 100.0))[0] > play_plan(lonely_world(assets))[0] + 1e-3


def test_values_fall_with_energy_and_eight_stations_are_each_alone() -> None:
    assets = kernel_assets(city_stations())
    rng = np.random.default_rng(0)
    imports = rng.uniform(0.05, 0.20, (2, N_SLOTS))
    pv, ev = rng.uniform(0, 200, (2, 2, N_SLOTS, 8))
    value = plan_days(assets, imports, 0.5 * imports, pv, ev, 21)
    assert (np.diff(value, axis=-1) <= 1e-9).all()
    for n in (0, 5):
        alone = Assets(*(column[n : n + 1] for column in assets))
        one = plan_days(alone, imports, 0.5 * imports, pv[:, :, n : n + 1], ev[:, :, n : n + 1], 21)
        assert np.array_equal(one[:, 0], value[:, n])


def test_a_wish_at_equal_cost_is_to_do_nothing() -> None:
    assert best_power(50.0, 0.0, 0.0, 0.1, 0.02, np.zeros(5), PLAIN, 0)[0] == pytest.approx(-50.0)
    assert best_power(50.0, 0.0, 0.0, 0.1, 0.0, np.zeros(5), PLAIN, 0) == (0.0, 0.0)


def test_a_grid_of_one_point_is_refused() -> None:
    with pytest.raises(ConfigError, match="n_energies must be at least 2, got 1"):
        one_station_plan(PLAIN, *random_series(0, 2), n=1)
