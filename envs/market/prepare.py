"""From a scenario and its days to the stacked arrays of the market's step."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.grid import Feeder
from evcs_gym.envs.grid.operator import Limits
from evcs_gym.envs.market.auction import check_tariffs, rule_code
from evcs_gym.envs.market.core import MarketWorld
from evcs_gym.envs.market.core_kernels import MarketDays, MarketRules
from evcs_gym.envs.market.operators import Grid, make_grid
from evcs_gym.envs.market.station import kernel_assets
from evcs_gym.envs.market.station_dp import plan_days
from evcs_gym.envs.types import BoolArray, StationAssets, frozen
from evcs_gym.envs.units import N_SLOTS


class _Tariff(Protocol):
    @property
    def network_fee_eur_per_kwh(self) -> float: ...
    @property
    def import_adder_eur_per_kwh(self) -> float: ...
    @property
    def export_fee_eur_per_kwh(self) -> float: ...


class _MarketSpec(Protocol):
    @property
    def rule(self) -> str: ...
    @property
    def reservation(self) -> bool: ...


class MarketScenario(Protocol):
    """What the market reads of a scenario."""

    @property
    def feeder(self) -> Feeder: ...
    @property
    def stations(self) -> StationAssets: ...
    @property
    def tariff(self) -> _Tariff: ...
    @property
    def market(self) -> _MarketSpec: ...


def market_world(scenario: MarketScenario, days: Sequence[Any]) -> MarketWorld:
    """Stack days for the kernels, and plan each station's own day where forecasts are perfect.

    days: of `evcs_gym.envs.day.Day`, with ``stations``.

    Raises:
        ConfigError: no day, an unknown price rule, tariffs that allow arbitrage.
        DataError: no station, a station at a bus that the feeder does not have or that lacks a phase, a day whose
            arrays do not fit the scenario or are not finite.
    """
    if not days:
        raise ConfigError("market: at least one day is needed, got none")
    assets, stations, tariff = kernel_assets(scenario.stations), scenario.stations, scenario.tariff
    _check_buses(stations, scenario.feeder)
    rules = MarketRules(
        price_rule=rule_code(scenario.market.rule),
        reservation=bool(scenario.market.reservation),
        network_fee_eur_per_kwh=float(tariff.network_fee_eur_per_kwh),
        import_adder_eur_per_kwh=float(tariff.import_adder_eur_per_kwh),
        export_fee_eur_per_kwh=float(tariff.export_fee_eur_per_kwh),
    )
    stacked = stack_days(scenario.feeder, len(stations), days)
    check_tariffs(stacked.import_eur_per_kwh, stacked.export_eur_per_kwh, rules.network_fee_eur_per_kwh)
    known: BoolArray = np.asarray((stacked.growth_frac == 0.0).all(axis=1))
    value = plan_days(
        assets,
        stacked.import_eur_per_kwh[known],
        stacked.export_eur_per_kwh[known],
        stacked.pv_kw[known],
        stacked.ev_kw[known],
    )
    plan_row = frozen(np.where(known, np.cumsum(known) - 1, -1).astype(np.int64))
    grid = _stacked_grid(scenario.feeder, stations, days)
    return MarketWorld(stations, assets, scenario.feeder, rules, stacked, grid, value, plan_row)


def _check_buses(stations: StationAssets, feeder: Feeder) -> None:
    for name, bus in zip(stations.name, stations.bus.tolist(), strict=True):
        if not 0 < bus < len(feeder) or not feeder.phase_present[bus].all():
            raise DataError(
                f"stations: station {name!r} must be at a bus 1..{len(feeder) - 1} of feeder {feeder.name!r} that has "
                f"all three phases, got bus {bus}"
            )


def stack_days(feeder: Feeder, n_stations: int, days: Sequence[Any]) -> MarketDays:
    """The days' arrays along a leading axis D.

    Raises:
        DataError: an array of another shape or with values that are not finite, negative PV or charging power, a day
            without stations; names the day.
    """
    n_buses, stations = len(feeder), (N_SLOTS, n_stations)
    shapes = {
        "import_eur_per_kwh": (N_SLOTS,),
        "export_eur_per_kwh": (N_SLOTS,),
        "load_kva": (N_SLOTS, n_buses, 3),
        "source_pu": (N_SLOTS,),
        "capacitor_kvar": (N_SLOTS, n_buses, 3),
        "vmin_pu": (N_SLOTS, n_buses, 3),
        "vmax_pu": (N_SLOTS, n_buses, 3),
        "current_limit_a": (N_SLOTS, n_buses),
        "head_limit_kva": (N_SLOTS,),
        "unbalance_limit_frac": (N_SLOTS, n_buses),
        "stations.pv_kw": stations,
        "stations.ev_kw": stations,
        "forecast.growth_frac": (N_SLOTS,),
        "forecast.import_eur_per_kwh": (N_SLOTS,),
        "forecast.station_pv_kw": stations,
        "forecast.station_ev_kw": stations,
    }
    for day in days:
        if day.stations is None:
            raise DataError(f"day {day.split}/{day.seed} has no stations: draw it from a scenario with stations")
        for name, shape in shapes.items():
            _check_series(f"day {day.split}/{day.seed}: {name}", _value(day, name), shape, limit=name in _LIMITS)
        for name in ("stations.pv_kw", "stations.ev_kw"):
            if _value(day, name).min() < 0.0:
                raise DataError(f"day {day.split}/{day.seed}: {name} must be >= 0, got {_value(day, name).min()}")
    columns = {name: frozen(_stacked(days, name)) for name in shapes if name not in ("load_kva", *_NETWORK)}
    return MarketDays(
        import_eur_per_kwh=columns["import_eur_per_kwh"],
        export_eur_per_kwh=columns["export_eur_per_kwh"],
        largest_import_eur_per_kwh=frozen(columns["import_eur_per_kwh"].max(axis=1)),
        pv_kw=columns["stations.pv_kw"],
        ev_kw=columns["stations.ev_kw"],
        growth_frac=columns["forecast.growth_frac"],
        price_error_eur_per_kwh=columns["forecast.import_eur_per_kwh"],
        pv_error_kw=columns["forecast.station_pv_kw"],
        ev_error_kw=columns["forecast.station_ev_kw"],
    )


_NETWORK = (
    "source_pu",
    "capacitor_kvar",
    "vmin_pu",
    "vmax_pu",
    "current_limit_a",
    "head_limit_kva",
    "unbalance_limit_frac",
)
"""Series of the network beside the load."""
_LIMITS = ("vmin_pu", "vmax_pu", "current_limit_a", "head_limit_kva", "unbalance_limit_frac")
"""Series that are infinite where there is no limit."""


def _value(day: Any, name: str) -> np.ndarray:
    for part in name.split("."):
        day = getattr(day, part)
    return np.asarray(day)


def _stacked(days: Sequence[Any], name: str, kind: type = np.float64) -> Any:
    """C-contiguous: a kernel is compiled anew for every other memory layout, which takes seconds."""
    return np.ascontiguousarray(np.stack([_value(day, name) for day in days]), dtype=kind)


def _stacked_grid(feeder: Feeder, stations: StationAssets, days: Sequence[Any]) -> Grid:
    """The network's arrays, an entry for every slot of every day."""

    def entries(name: str, kind: type = np.float64) -> Any:
        values = _stacked(days, name, kind)
        return values.reshape(-1, *values.shape[2:])

    limits = Limits(
        vmin_pu=entries("vmin_pu"),
        vmax_pu=entries("vmax_pu"),
        current_a=entries("current_limit_a"),
        head_kva=entries("head_limit_kva"),
        unbalance_frac=entries("unbalance_limit_frac"),
    )
    load, source, kvar = entries("load_kva", np.complex128), entries("source_pu"), entries("capacitor_kvar")
    return make_grid(feeder, stations.bus, load, source, kvar, limits)


def _check_series(where: str, values: np.ndarray, shape: tuple[int, ...], *, limit: bool) -> None:
    if values.shape != shape:
        raise DataError(f"{where} must have shape {shape}, got {values.shape}")
    if np.isnan(values).any() or not (limit or np.isfinite(values).all()):
        raise DataError(f"{where} must be finite, got NaN or infinity")
