"""From a scenario and its days to the stacked arrays of the market's step."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np

from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.grid import Feeder
from evcs_gym.envs.grid.operator import Limits
from evcs_gym.envs.market.auction import check_tariffs, rule_code
from evcs_gym.envs.market.core import MarketWorld
from evcs_gym.envs.market.core_kernels import MarketDays, MarketRules
from evcs_gym.envs.market.features import prepare_features
from evcs_gym.envs.market.operators import Grid, make_grid
from evcs_gym.envs.market.station import kernel_assets
from evcs_gym.envs.market.station_dp import plan_days
from evcs_gym.envs.types import BoolArray, FloatArray, StationAssets, frozen
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
    kernel_assets(scenario.stations)
    _check_buses(scenario.stations, scenario.feeder)
    return world_of(scenario, stack_days(scenario.feeder, len(scenario.stations), days))


def world_of(
    scenario: MarketScenario, stacked: Mapping[str, np.ndarray], value_eur: FloatArray | None = None
) -> MarketWorld:
    """The world of stacked days, see `stack_days`; the arrays become its own. value_eur: the stations' plans where they
    are known already."""
    assets, stations, tariff = kernel_assets(scenario.stations), scenario.stations, scenario.tariff
    rules = MarketRules(
        price_rule=rule_code(scenario.market.rule),
        reservation=bool(scenario.market.reservation),
        network_fee_eur_per_kwh=float(tariff.network_fee_eur_per_kwh),
        import_adder_eur_per_kwh=float(tariff.import_adder_eur_per_kwh),
        export_fee_eur_per_kwh=float(tariff.export_fee_eur_per_kwh),
    )
    days = MarketDays(**{name: frozen(stacked[place]) for name, place in _DAY_SERIES.items()})
    check_tariffs(days.import_eur_per_kwh, days.export_eur_per_kwh, rules.network_fee_eur_per_kwh)
    known: BoolArray = np.asarray((days.growth_frac == 0.0).all(axis=1))
    if value_eur is None:
        tariffs = days.import_eur_per_kwh[known], days.export_eur_per_kwh[known]
        value_eur = plan_days(assets, *tariffs, days.pv_kw[known], days.ev_kw[known])
    chargers_kw = np.asarray(stations.n_plugs * stations.plug_kw, dtype=np.float64)
    return MarketWorld(
        stations=stations,
        assets=assets,
        feeder=scenario.feeder,
        rules=rules,
        days=days,
        grid=_grid_of(scenario.feeder, stations, stacked),
        value_eur=frozen(value_eur),
        plan_row=frozen(np.where(known, np.cumsum(known) - 1, -1).astype(np.int64)),
        features=prepare_features(days, assets, rules, np.asarray(stations.pv_kw, dtype=np.float64), chargers_kw),
    )


def _check_buses(stations: StationAssets, feeder: Feeder) -> None:
    for name, bus in zip(stations.name, stations.bus.tolist(), strict=True):
        if not 0 < bus < len(feeder) or not feeder.phase_present[bus].all():
            raise DataError(
                f"stations: station {name!r} must be at a bus 1..{len(feeder) - 1} of feeder {feeder.name!r} that has "
                f"all three phases, got bus {bus}"
            )


_DAY_SERIES: Final[Mapping[str, str]] = {
    "import_eur_per_kwh": "import_eur_per_kwh",
    "export_eur_per_kwh": "export_eur_per_kwh",
    "largest_import_eur_per_kwh": "largest_import_eur_per_kwh",
    "pv_kw": "stations.pv_kw",
    "ev_kw": "stations.ev_kw",
    "growth_frac": "forecast.growth_frac",
    "price_error_eur_per_kwh": "forecast.import_eur_per_kwh",
    "pv_error_kw": "forecast.station_pv_kw",
    "ev_error_kw": "forecast.station_ev_kw",
}
"""Where a day holds the series of `MarketDays`."""
_LIMITS: Final = ("vmin_pu", "vmax_pu", "current_limit_a", "head_limit_kva", "unbalance_limit_frac")
"""Series that are infinite where there is no limit."""
_NETWORK: Final = ("load_kva", "source_pu", "capacitor_kvar", *_LIMITS)
STACKED: Final = (*_DAY_SERIES.values(), *_NETWORK)
"""Names of the arrays that make a world of days."""


def _shapes(feeder: Feeder, n_stations: int) -> dict[str, tuple[int, ...]]:
    n_buses, stations = len(feeder), (N_SLOTS, n_stations)
    return {
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


def stack_days(feeder: Feeder, n_stations: int, days: Sequence[Any]) -> dict[str, np.ndarray]:
    """The days' arrays along a leading axis D, by the names of `STACKED`.

    Raises:
        DataError: an array of another shape or with values that are not finite, negative PV or charging power, a day
            without stations; names the day.
    """
    shapes = _shapes(feeder, n_stations)
    for day in days:
        if day.stations is None:
            raise DataError(f"day {day.split}/{day.seed} has no stations: draw it from a scenario with stations")
        for name, shape in shapes.items():
            _check_series(f"day {day.split}/{day.seed}: {name}", _value(day, name), shape, limit=name in _LIMITS)
        for name in ("stations.pv_kw", "stations.ev_kw"):
            if _value(day, name).min() < 0.0:
                raise DataError(f"day {day.split}/{day.seed}: {name} must be >= 0, got {_value(day, name).min()}")
    stacked = {name: _stacked(days, name, np.complex128 if name == "load_kva" else np.float64) for name in shapes}
    stacked["largest_import_eur_per_kwh"] = stacked["import_eur_per_kwh"].max(axis=1)
    return stacked


def _value(day: Any, name: str) -> np.ndarray:
    for part in name.split("."):
        day = getattr(day, part)
    return np.asarray(day)


def _stacked(days: Sequence[Any], name: str, kind: type = np.float64) -> Any:
    """C-contiguous: a kernel is compiled anew for every other memory layout, which takes seconds."""
    return np.ascontiguousarray(np.stack([_value(day, name) for day in days]), dtype=kind)


def _grid_of(feeder: Feeder, stations: StationAssets, stacked: Mapping[str, np.ndarray]) -> Grid:
    """The network's arrays, an entry for every slot of every day."""
    entry = {name: stacked[name].reshape(-1, *stacked[name].shape[2:]) for name in _NETWORK}
    limits = Limits(
        vmin_pu=entry["vmin_pu"],
        vmax_pu=entry["vmax_pu"],
        current_a=entry["current_limit_a"],
        head_kva=entry["head_limit_kva"],
        unbalance_frac=entry["unbalance_limit_frac"],
    )
    return make_grid(feeder, stations.bus, entry["load_kva"], entry["source_pu"], entry["capacitor_kvar"], limits)


def stacked_of(world: MarketWorld) -> dict[str, np.ndarray]:
    """The arrays that `world_of` makes such a world from."""
    grid, limits = world.grid, world.grid.limits
    none = np.zeros_like(limits.vmin_pu)  # no bank in service on any day
    entries = {
        "load_kva": grid.load_kva,
        "source_pu": grid.source_pu,
        "capacitor_kvar": none if grid.capacitor_kvar is None else grid.capacitor_kvar,
        "vmin_pu": limits.vmin_pu,
        "vmax_pu": limits.vmax_pu,
        "current_limit_a": limits.current_a,
        "head_limit_kva": limits.head_kva,
        "unbalance_limit_frac": limits.unbalance_frac,
    }
    stacked = {place: getattr(world.days, name) for name, place in _DAY_SERIES.items()}
    return stacked | {
        name: values.reshape(world.n_days, N_SLOTS, *values.shape[1:]) for name, values in entries.items()
    }


def _check_series(where: str, values: np.ndarray, shape: tuple[int, ...], *, limit: bool) -> None:
    if values.shape != shape:
        raise DataError(f"{where} must have shape {shape}, got {values.shape}")
    if np.isnan(values).any() or not (limit or np.isfinite(values).all()):
        raise DataError(f"{where} must be finite, got NaN or infinity")
