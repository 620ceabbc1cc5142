"""A small market made by hand: stations with round numbers on a feeder, and days given as arrays."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from evcs_gym.envs.grid import Feeder, load_feeder
from evcs_gym.envs.grid.operator import effective_limits
from evcs_gym.envs.market.core import MarketAction, MarketState, MarketWorld, initial_state, step
from evcs_gym.envs.market.operators import PRO_RATA, Operator
from evcs_gym.envs.market.prepare import market_world
from evcs_gym.envs.types import ComplexArray, FloatArray, StationAssets
from evcs_gym.envs.units import N_SLOTS

CITY_BUS = (17, 32, 13, 24, 21, 29, 7, 10)
CITY_PV_KW = (750.0, 200.0, 800.0, 950.0, 200.0, 150.0, 150.0, 750.0)
CITY_STORAGE_KWH = (500.0, 700.0, 500.0, 600.0, 800.0, 800.0, 600.0, 500.0)
CITY_PLUGS = (1, 3, 1, 1, 3, 3, 2, 1)


def stations(n: int = 2, **columns: ArrayLike) -> StationAssets:
    """Stations without losses and wear, storage 100 kWh and 50 kW, half full, connection 1000 kW, at buses 1, 2, ..."""
    values: dict[str, ArrayLike] = {
        "bus": np.arange(1, n + 1),
        "node": np.arange(n),
        "pv_kw": 500.0,
        "storage_kwh": 100.0,
        "storage_kw": 50.0,
        "charge_efficiency_frac": 1.0,
        "discharge_efficiency_frac": 1.0,
        "self_discharge_frac": 0.0,
        "energy_start_kwh": 50.0,
        "energy_min_kwh": 0.0,
        "degradation_eur_per_kwh": 0.0,
        "n_plugs": 1,
        "plug_kw": 150.0,
        "connection_kw": 1000.0,
        "retail_eur_per_kwh": 0.40,
        "lost_load_eur_per_kwh": 0.50,
        **columns,
    }
    whole = ("bus", "node", "n_plugs")
    arrays = {
        name: np.array(np.broadcast_to(np.asarray(value, dtype=np.int64 if name in whole else np.float64), (n,)))
        for name, value in values.items()
    }
    return StationAssets(name=tuple(f"s{i}" for i in range(n)), **arrays)


def city_stations() -> StationAssets:
    """Eight different stations with losses and wear."""
    storage, plugs = np.array(CITY_STORAGE_KWH), np.array(CITY_PLUGS)
    return stations(
        8,
        bus=np.array(CITY_BUS),
        pv_kw=CITY_PV_KW,
        storage_kwh=storage,
        storage_kw=0.35 * storage,
        charge_efficiency_frac=0.95,
        discharge_efficiency_frac=0.95,
        self_discharge_frac=2e-4,
        energy_start_kwh=0.5 * storage,
        degradation_eur_per_kwh=0.004,
        n_plugs=plugs,
        connection_kw=np.maximum(CITY_PV_KW, 150.0 * plugs + 0.175 * storage),
    )


def scenario_of(assets: StationAssets, feeder: Feeder, rule: str = "marginal", reservation: bool = True) -> Any:
    """What the market reads of a scenario."""
    return SimpleNamespace(
        feeder=feeder,
        stations=assets,
        tariff=SimpleNamespace(
            network_fee_eur_per_kwh=0.008, import_adder_eur_per_kwh=0.05, export_fee_eur_per_kwh=0.01
        ),
        market=SimpleNamespace(rule=rule, reservation=reservation),
    )


def day_of(
    feeder: Feeder,
    n_stations: int,
    *,
    pv_kw: ArrayLike = 0.0,
    ev_kw: ArrayLike = 0.0,
    spot_eur_per_kwh: ArrayLike = 0.05,
    load_kva: ComplexArray | None = None,
    source_pu: float = 1.0,
    growth_frac: ArrayLike = 0.0,
    pv_error_kw: ArrayLike = 0.0,
    price_error_eur_per_kwh: ArrayLike = 0.0,
    limits: dict[str, float] | None = None,
) -> Any:
    """A day of given arrays, broadcast to (T,) or (T, S); load_kva (N, P) in every slot."""

    def wide(values: ArrayLike, *shape: int) -> FloatArray:
        return np.array(np.broadcast_to(np.asarray(values, dtype=np.float64), (N_SLOTS, *shape)))

    load = np.zeros((len(feeder), 3), dtype=complex) if load_kva is None else load_kva
    base = np.repeat(load[None], N_SLOTS, axis=0)
    found = effective_limits(feeder, base[:1], source_pu, **(limits or {}))
    spot = wide(spot_eur_per_kwh)
    return SimpleNamespace(
        split="test",
        seed=0,
        import_eur_per_kwh=spot + 0.05,
        export_eur_per_kwh=np.maximum(0.0, spot - 0.01),
        load_kva=base,
        source_pu=wide(source_pu),
        capacitor_kvar=wide(0.0, len(feeder), 3),
        vmin_pu=np.repeat(found.vmin_pu, N_SLOTS, axis=0),
        vmax_pu=np.repeat(found.vmax_pu, N_SLOTS, axis=0),
        current_limit_a=np.repeat(found.current_a, N_SLOTS, axis=0),
        head_limit_kva=np.repeat(found.head_kva, N_SLOTS, axis=0),
        unbalance_limit_frac=np.repeat(found.unbalance_frac, N_SLOTS, axis=0),
        stations=SimpleNamespace(pv_kw=wide(pv_kw, n_stations), ev_kw=wide(ev_kw, n_stations)),
        forecast=SimpleNamespace(
            growth_frac=np.array(np.broadcast_to(np.asarray(growth_frac, dtype=np.float64), (N_SLOTS,))),
            import_eur_per_kwh=wide(price_error_eur_per_kwh),
            station_pv_kw=wide(pv_error_kw, n_stations),
            station_ev_kw=wide(0.0, n_stations),
        ),
    )


def line(n_stations: int, resistance_ohm: float = 1e-3) -> Feeder:
    """A line of ``n_stations`` buses behind the source."""
    impedance = np.zeros((n_stations + 1, 3, 3), dtype=complex)
    impedance[1:] = resistance_ohm * np.eye(3)
    return Feeder.from_arrays(
        parent=[-1, *range(n_stations)],
        impedance_ohm=impedance,
        line_to_line_kv=12.66,
        load_kva=np.zeros((n_stations + 1, 3)),
    )


def small_world(
    assets: StationAssets,
    *,
    rule: str = "marginal",
    reservation: bool = True,
    feeder: Feeder | None = None,
    **day: Any,
) -> MarketWorld:
    """One day of the stations on a short line."""
    feeder = line(len(assets)) if feeder is None else feeder
    return market_world(scenario_of(assets, feeder, rule, reservation), [day_of(feeder, len(assets), **day)])


def city_world(
    n_days: int = 4, rule: str = "marginal", reservation: bool = True, seed: int = 0, **changes: Any
) -> MarketWorld:
    """Eight stations on the unbalanced 33-bus feeder, smooth random days on which limits bind now and then."""
    feeder, assets = load_feeder("synthetic33"), city_stations()
    rng = np.random.default_rng(seed)
    days = [_city_day(feeder, assets, rng, **changes) for _ in range(n_days)]
    return market_world(scenario_of(assets, feeder, rule, reservation), days)


def _city_day(feeder: Feeder, assets: StationAssets, rng: np.random.Generator, **changes: Any) -> Any:
    hour = 12.25 + 0.5 * np.arange(N_SLOTS)
    sun = np.clip(np.cos((hour % 24 - 13.0) * np.pi / 14.0), 0.0, None) * (np.abs(hour % 24 - 13.0) < 7.0)
    rush = np.exp(-0.5 * ((hour % 24 - rng.uniform(8, 19, (8, 1))) / 3.0) ** 2)
    share = np.clip(rng.uniform(0.2, 1.0) * (1.0 + 0.1 * rng.standard_normal((N_SLOTS, 8))), 0.0, 1.0)
    spot = 0.04 + 0.015 * np.sin(hour / 24 * 4 * np.pi + rng.uniform(0, 6)) + 0.005 * rng.standard_normal(N_SLOTS)
    return day_of(
        feeder,
        8,
        pv_kw=sun[:, None] * share * assets.pv_kw,
        ev_kw=0.8 * rush.T * assets.n_plugs * assets.plug_kw,
        spot_eur_per_kwh=spot,
        load_kva=0.5 * feeder.load_kva,
        source_pu=1.0125,
        **changes,
    )


def random_action(world: MarketWorld, state: MarketState, rng: np.random.Generator) -> MarketAction:
    """Wishes beyond what can be executed, asks anywhere in the band, some of them tied."""
    shape = state.energy_kwh.shape
    at = (state.day, state.slot)
    low = world.days.export_eur_per_kwh[at][:, None]
    high = (world.days.import_eur_per_kwh[at] - world.rules.network_fee_eur_per_kwh)[:, None]
    share = np.round(rng.uniform(0.0, 1.0, shape) * 4.0) / 4.0
    ask = np.clip(low + share * (high - low), low, high)
    return MarketAction(1.5 * world.assets.storage_kw * rng.uniform(-1.0, 1.0, shape), ask)


def play_random(
    world: MarketWorld, n_rows: int, seed: int = 0, operator: Operator = PRO_RATA
) -> tuple[MarketState, list[tuple[MarketState, MarketAction, Any]]]:
    """A whole day of random actions; the last state and (state, action, outcome) of every slot."""
    rng = np.random.default_rng(seed)
    state, seen = initial_state(world, np.arange(n_rows) % world.n_days), []
    for _ in range(N_SLOTS):
        action = random_action(world, state, rng)
        after, outcome = step(world, state, action, operator)
        seen.append((state, action, outcome))
        state = after
    return state, seen


def asks(world: MarketWorld, state: MarketState, share_frac: float | Sequence[float] = 0.0) -> FloatArray:
    """Asks at a share of the band, (B, S)."""
    at = (state.day, state.slot)
    low = world.days.export_eur_per_kwh[at][:, None]
    high = (world.days.import_eur_per_kwh[at] - world.rules.network_fee_eur_per_kwh)[:, None]
    return np.asarray(low + np.asarray(share_frac) * (high - low) * np.ones(state.energy_kwh.shape))
