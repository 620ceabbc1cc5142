"""Small problems of the market, by hand and at random, and the problem of a world's day."""

from typing import Any

import numpy as np
from market_fixtures import stations
from numpy.typing import ArrayLike

from evcs_gym.baselines.problems.market import MarketProblem
from evcs_gym.envs.market.core import MarketWorld
from evcs_gym.envs.types import FloatArray


def problem_by_hand(
    n_slots: int,
    n_stations: int = 1,
    *,
    pv_kw: ArrayLike = 0.0,
    ev_kw: ArrayLike = 0.0,
    imports: ArrayLike = 0.10,
    exports: ArrayLike = 0.04,
    fee: float = 0.008,
    **columns: ArrayLike,
) -> MarketProblem:
    """A problem of half-hours; arrays are broadcast to (T,) or (T, S). Stations as in `market_fixtures.stations`."""

    def wide(values: ArrayLike, *shape: int) -> FloatArray:
        return np.array(np.broadcast_to(np.asarray(values, dtype=np.float64), (n_slots, *shape)))

    return MarketProblem(
        stations=stations(n_stations, **columns),
        import_eur_per_kwh=wide(imports),
        export_eur_per_kwh=wide(exports),
        network_fee_eur_per_kwh=fee,
        pv_kw=wide(pv_kw, n_stations),
        ev_kw=wide(ev_kw, n_stations),
    )


def lossless_at_random(seed: int, n_slots: int = 3, n_stations: int = 2) -> MarketProblem:
    """A tiny city without losses whose powers are multiples of 10 kW: its optimum is one of such powers."""
    rng = np.random.default_rng(seed)
    shape = (n_slots, n_stations)
    spot = rng.integers(2, 12, n_slots) / 100.0
    return problem_by_hand(
        n_slots,
        n_stations,
        pv_kw=10.0 * rng.integers(0, 5, shape),
        ev_kw=10.0 * rng.integers(0, 5, shape),
        imports=spot + 0.05,
        exports=spot - 0.01,
        storage_kw=20.0,
        storage_kwh=20.0,
        energy_start_kwh=5.0 * rng.integers(0, 5, n_stations),
        connection_kw=10.0 * rng.integers(2, 6, n_stations),
        degradation_eur_per_kwh=rng.integers(0, 3, n_stations) / 100.0,
        lost_load_eur_per_kwh=rng.choice([0.06, 0.50], n_stations),
    )


def lossy_at_random(seed: int, n_slots: int = 6, n_stations: int = 3) -> MarketProblem:
    """A small city with losses, self-discharge, least energies, tight connections, now and then worthless drivers."""
    rng = np.random.default_rng(seed)
    shape, spot = (n_slots, n_stations), rng.uniform(0.02, 0.12, n_slots)
    size = rng.uniform(20.0, 100.0, n_stations)
    least = rng.uniform(0.0, 0.3, n_stations) * size * rng.integers(0, 2, n_stations)
    return problem_by_hand(
        n_slots,
        n_stations,
        pv_kw=rng.uniform(0.0, 80.0, shape) * rng.integers(0, 2, shape),
        ev_kw=rng.uniform(0.0, 80.0, shape) * rng.integers(0, 2, shape),
        imports=spot + 0.05,
        exports=np.maximum(spot - 0.05, 0.0),
        storage_kw=rng.uniform(10.0, 50.0, n_stations),
        storage_kwh=size,
        energy_start_kwh=least + rng.uniform(0.0, 1.0, n_stations) * (size - least),
        energy_min_kwh=least,
        charge_efficiency_frac=rng.uniform(0.7, 1.0, n_stations),
        discharge_efficiency_frac=rng.uniform(0.7, 1.0, n_stations),
        self_discharge_frac=rng.uniform(0.0, 0.05, n_stations),
        connection_kw=rng.uniform(20.0, 100.0, n_stations),
        degradation_eur_per_kwh=rng.uniform(0.0, 0.02, n_stations),
        lost_load_eur_per_kwh=rng.choice([0.06, 0.50], n_stations),
    )


def problem_of_row(world: MarketWorld, row: int) -> MarketProblem:
    """The problem of a day of the world."""
    days: Any = world.days
    return MarketProblem(
        stations=world.stations,
        import_eur_per_kwh=days.import_eur_per_kwh[row],
        export_eur_per_kwh=days.export_eur_per_kwh[row],
        network_fee_eur_per_kwh=world.rules.network_fee_eur_per_kwh,
        pv_kw=days.pv_kw[row],
        ev_kw=days.ev_kw[row],
    )
