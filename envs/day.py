"""One realisation of a scenario: exogenous series, sessions, effective limits, forecasts; and its sampler.

A day is complete: nothing that a policy does changes a later exogenous event. Environments step a day, baselines
solve the same day.
"""

import dataclasses
import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from evcs_gym.envs.data import profile_window
from evcs_gym.envs.day_fast import fast_day
from evcs_gym.envs.day_traffic import TrafficSample, sample_traffic
from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.fleet.vehicles import FastRequests, simulate_sessions
from evcs_gym.envs.grid import Feeder
from evcs_gym.envs.grid.devices import DeviceSchedule, checked_schedule
from evcs_gym.envs.grid.operator import Limits
from evcs_gym.envs.network import NetworkState, controlled, limits_of, refuse_broken, under_schedule
from evcs_gym.envs.types import (
    ComplexArray,
    FastDay,
    FloatArray,
    IntArray,
    Sessions,
    StationDay,
    TrafficDay,
    frozen,
)
from evcs_gym.envs.units import N_SLOTS

if TYPE_CHECKING:
    from evcs_gym.envs.scenario import ForecastSpec, Scenario

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

N_WINDOWS = 365
"""Noon-to-noon windows of a leap year of profiles."""
SPLIT_PERIOD = 20
"""Days after which the pattern of splits comes again: prime to 7, so that every split has all weekdays and seasons."""
TEST_OFFSETS = (3, 9, 16)
VALIDATION_OFFSETS = (6, 13)

FLEET_STREAM, CALENDAR_STREAM, SESSION_STREAM, FORECAST_STREAM = 1, 2, 3, 4
TRAFFIC_STREAM, STATION_FORECAST_STREAM = 5, 6
FAST_FORECAST_STREAM = 9
"""Streams of random numbers of a scenario: adding draws to one leaves the others as they are."""


@dataclass(frozen=True, eq=False)
class Forecast:
    """What slot t knows of slot s > t: truth(s) + growth_frac[s - t] * error(s) (model.md section 0).

    growth_frac: (T,), 0 at lead 0, never above 1. Errors have the shape of the series: import_eur_per_kwh (T,),
    base_kw and dg_kw (T, C), station_pv_kw and station_ev_kw (T, S), S = 0 without stations, fast_base_kw and
    fast_dg_kw (T, J) at fast-charging stations, J = 0 without them. Errors are bounded so that every forecast is
    physical: loads and DG not negative, prices such that export + network fee < import.
    """

    growth_frac: FloatArray
    import_eur_per_kwh: FloatArray
    base_kw: FloatArray
    dg_kw: FloatArray
    station_pv_kw: FloatArray
    station_ev_kw: FloatArray
    fast_base_kw: FloatArray
    fast_dg_kw: FloatArray


@dataclass(frozen=True, eq=False)
class Day:
    """One day of a scenario, from 12:00 to 12:00 (UTC+1).

    scenario, split, seed, date: where it comes from; ``date`` is the calendar date of slot 0.
    import_eur_per_kwh, export_eur_per_kwh: tariffs, (T,).
    charging_bus: feeder bus of each charging bus, (C,).
    base_kw, dg_kw: load without cars and local generation of each charging bus, (T, C).
    load_kva: exogenous net load of the feeder, base minus DG, (T, N, P).
    base_voltage_pu: magnitude of the power flow of ``load_kva`` alone, (T, N, P).
    vmin_pu, vmax_pu: effective limits of voltage, (T, N, P). current_limit_a (T, N), head_limit_kva (T,),
    unbalance_limit_frac (T, N): those of branch currents, of apparent power at the head, of voltage unbalance.
    sessions: charging requests at home.
    forecast: see `Forecast`. feeder: the network.
    tap_position (T,), capacitor_step (T, K): the device schedule. source_pu (T,), capacitor_kvar (T, N, P): what it
    makes of the head voltage, and of the nominal kvar of the capacitors in service.
    stations: what the day brings to charging stations, traffic: the equilibria behind it; None without stations.
    fast: requests of fast charging and the buses of its stations; None without it.
    """

    scenario: str
    split: str
    seed: int
    date: str
    import_eur_per_kwh: FloatArray
    export_eur_per_kwh: FloatArray
    charging_bus: IntArray
    base_kw: FloatArray
    dg_kw: FloatArray
    load_kva: ComplexArray
    base_voltage_pu: FloatArray
    vmin_pu: FloatArray
    vmax_pu: FloatArray
    sessions: Sessions
    forecast: Forecast
    feeder: Feeder
    source_pu: FloatArray
    tap_position: IntArray
    capacitor_step: IntArray
    capacitor_kvar: FloatArray
    current_limit_a: FloatArray
    head_limit_kva: FloatArray
    unbalance_limit_frac: FloatArray
    stations: StationDay | None = None
    traffic: TrafficDay | None = None
    fast: FastDay | None = None

    @property
    def limits(self) -> Limits:
        """The effective limits as the operator takes them, one row per slot."""
        return Limits(
            vmin_pu=self.vmin_pu,
            vmax_pu=self.vmax_pu,
            current_a=self.current_limit_a,
            head_kva=self.head_limit_kva,
            unbalance_frac=self.unbalance_limit_frac,
        )

    @property
    def schedule(self) -> DeviceSchedule:
        """Positions of the devices."""
        return DeviceSchedule(self.tap_position, self.capacitor_step)


def split_windows(split: str) -> IntArray:
    """Calendar windows of a split, ascending; the three splits are disjoint and cover the year.

    Raises:
        ConfigError: no such split.
    """
    if split not in SPLITS:
        raise ConfigError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    offset = np.arange(N_WINDOWS) % SPLIT_PERIOD
    test, validation = np.isin(offset, TEST_OFFSETS), np.isin(offset, VALIDATION_OFFSETS)
    chosen = {"test": test, "validation": validation, "train": ~(test | validation)}[split]
    return np.flatnonzero(chosen).astype(np.int64)


def calendar_window(scenario_seed: int, seed: int, split: str) -> int:
    """Calendar window of a day's seed: the split's windows in a fixed random order, again and again."""
    windows = split_windows(split)
    rng = np.random.default_rng([scenario_seed, CALENDAR_STREAM, SPLITS.index(split)])
    return int(rng.permutation(windows)[seed % len(windows)])


def date_of(scenario: "Scenario", window: int) -> datetime.date:
    """Date on which a calendar window begins."""
    return datetime.date(scenario.profiles_spec.year, 1, 1) + datetime.timedelta(days=window)


def base_of(scenario: "Scenario", seed: int, split: str) -> tuple[str, NetworkState]:
    """Date of a day, and its base load in the network: a day without its cars, which take longest."""
    window = calendar_window(scenario.seed, seed, split)
    date = str(date_of(scenario, window))
    return date, controlled(scenario, net_load_kva(scenario, _series(scenario, window, None)), date)


def sample_days(scenario: "Scenario", seeds: Sequence[int], split: str = "train") -> list[Day]:
    """The days of seeds, each the same whatever the others are; see `Scenario.day`."""
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ConfigError(f"the seed of a day must be an integer >= 0, got {seed!r}")
    split_windows(split)  # refuses an unknown split
    keys = [[scenario.seed, SPLITS.index(split), int(seed)] for seed in seeds]
    traffic: Sequence[TrafficSample | None] = [None] * len(keys)
    if scenario.has_stations:
        traffic = sample_traffic(scenario, [[*key, TRAFFIC_STREAM] for key in keys])
    return [_sample_day(scenario, key, split, sample) for key, sample in zip(keys, traffic, strict=True)]


def _sample_day(scenario: "Scenario", key: list[int], split: str, traffic: TrafficSample | None) -> Day:
    window = calendar_window(scenario.seed, key[-1], split)
    date = date_of(scenario, window)
    series = _series(scenario, window, None if traffic is None else traffic.ev_kw)
    forecast = _forecast(scenario, series, window, key, None if traffic is None else traffic.yesterday_ev_kw)
    stations = None
    if traffic is not None:
        stations = StationDay(
            pv_kw=frozen(series.station_pv_kw),
            ev_kw=traffic.ev_kw,
            arrivals_veh_per_h=traffic.arrivals_veh_per_h,
            wait_h=traffic.wait_h,
        )
    sessions, requests = _sessions(scenario, date, key)
    return build_day(
        scenario,
        series,
        sessions,
        forecast,
        split=split,
        seed=key[-1],
        date=str(date),
        stations=stations,
        traffic=None if traffic is None else traffic.report,
        fast=None if requests is None else fast_day(scenario, requests, series.fast_base_kw, series.fast_dg_kw, key),
    )


def _sessions(scenario: "Scenario", date: datetime.date, key: list[int]) -> tuple[Sessions, FastRequests | None]:
    """Sessions at home and, where the scenario has fast charging, the requests of the same cars on their way."""
    if not scenario.has_home_charging:
        none, nothing = np.zeros(0, dtype=np.int64), np.zeros(0)
        columns = {name: none if name in INTEGER_COLUMNS else nothing for name in Sessions.__dataclass_fields__}
        return Sessions(**{name: frozen(column.copy()) for name, column in columns.items()}), None
    found = simulate_sessions(
        scenario.fleet,
        scenario.travel,
        first_date=date,
        n_burn_in=scenario.fleet_spec.n_burn_in_days,
        request_below_soc_frac=scenario.fleet_spec.request_below_soc_frac,
        rng=np.random.default_rng([*key, SESSION_STREAM]),
    )
    return found.sessions, found.fast_requests if scenario.has_fast_charging else None


@dataclass(frozen=True, eq=False)
class _Series:
    """Exogenous series of one window."""

    import_eur_per_kwh: FloatArray  # (T,)
    export_eur_per_kwh: FloatArray  # (T,)
    feeder_load_kva: ComplexArray  # (T, N, P) without DG
    base_kw: FloatArray  # (T, C)
    dg_kw: FloatArray  # (T, C)
    station_pv_kw: FloatArray  # (T, S)
    station_ev_kw: FloatArray  # (T, S)
    fast_base_kw: FloatArray  # (T, J)
    fast_dg_kw: FloatArray  # (T, J) of the stations and of charging buses at the same bus


def _series(scenario: "Scenario", window: int, station_ev_kw: FloatArray | None) -> _Series:
    profiles, spec = scenario.profiles, scenario.profiles_spec
    rows = profile_window(window)
    names = [
        spec.load_profile_at_bus.get(bus, spec.load_profiles[row % len(spec.load_profiles)])
        for row, bus in enumerate(scenario.feeder.bus_name)
    ]
    columns = [profiles.load_name.index(name) for name in names]
    nominal = scenario.feeder.load_kva * spec.base_load_frac  # (N, P)
    p_peak, q_peak = scenario.load_peak_frac
    p_frac = profiles.load_p_frac[rows][:, columns] / p_peak[columns]  # (T, N)
    q_frac = profiles.load_q_frac[rows][:, columns] / q_peak[columns]
    load = nominal.real[None] * p_frac[:, :, None] + 1j * nominal.imag[None] * q_frac[:, :, None]
    pv_kw, wind_kw = scenario.dg_pv_kw, scenario.dg_wind_kw  # (N,)
    pv = profiles.pv_frac[rows, profiles.pv_name.index(spec.pv_profile)]
    wind = profiles.wind_frac[rows, profiles.wind_name.index(spec.wind_profile)]
    spot = profiles.price_eur_per_kwh[rows]
    home = scenario.charging_bus
    fast = scenario.fast_stations.bus if scenario.has_fast_charging else np.zeros(0, dtype=np.int64)

    def dg_kw(bus: IntArray) -> FloatArray:
        return np.asarray(pv[:, None] * pv_kw[bus][None] + wind[:, None] * wind_kw[bus][None])

    return _Series(
        import_eur_per_kwh=spot + scenario.tariff.import_adder_eur_per_kwh,
        export_eur_per_kwh=np.maximum(0.0, spot - scenario.tariff.export_fee_eur_per_kwh),
        feeder_load_kva=load,
        base_kw=load.real.sum(axis=2)[:, home],
        dg_kw=dg_kw(home),
        station_pv_kw=pv[:, None] * (scenario.stations.pv_kw if scenario.has_stations else np.zeros(0))[None],
        station_ev_kw=np.zeros((N_SLOTS, 0)) if station_ev_kw is None else station_ev_kw,
        fast_base_kw=load.real.sum(axis=2)[:, fast],
        fast_dg_kw=dg_kw(fast),
    )


def _ar1(shape: tuple[int, ...], correlation_frac: float, rng: np.random.Generator) -> FloatArray:
    """Stationary AR(1) of unit variance along the first axis."""
    noise = rng.standard_normal(shape)
    out = np.empty(shape)
    out[0] = noise[0]
    step = np.sqrt(1.0 - correlation_frac**2)
    for slot in range(1, shape[0]):
        out[slot] = correlation_frac * out[slot - 1] + step * noise[slot]
    return out


def _forecast(
    scenario: "Scenario", truth: _Series, window: int, key: list[int], yesterday_ev_kw: FloatArray | None
) -> Forecast:
    spec = scenario.forecast
    lead = np.arange(N_SLOTS)
    growth = np.zeros(N_SLOTS)
    price, base, dg = truth.import_eur_per_kwh, truth.base_kw, truth.dg_kw
    pv, ev = truth.station_pv_kw, truth.station_ev_kw
    fast_base, fast_dg = truth.fast_base_kw, truth.fast_dg_kw
    if spec.kind == "persistence":
        # the day before the first window is the first window itself: there is no earlier day in the data
        yesterday = _series(scenario, max(window - 1, 0), yesterday_ev_kw)
        growth = (lead > 0).astype(np.float64)
        price, base, dg = yesterday.import_eur_per_kwh, yesterday.base_kw, yesterday.dg_kw
        pv, ev = yesterday.station_pv_kw, yesterday.station_ev_kw
        fast_base, fast_dg = yesterday.fast_base_kw, yesterday.fast_dg_kw
    elif spec.kind == "noisy":
        growth = np.sqrt(1.0 - spec.noise_correlation_frac ** (2 * lead))
        rng = np.random.default_rng([*key, FORECAST_STREAM])
        price = price + _noise(price, spec, spec.noise_price_frac, rng)
        base = base + _noise(base, spec, spec.noise_load_frac, rng)
        dg = dg + _noise(dg, spec, spec.noise_dg_frac, rng)
        rng = np.random.default_rng([*key, STATION_FORECAST_STREAM])
        pv = pv + _noise(pv, spec, spec.noise_dg_frac, rng)
        ev = ev + _noise(ev, spec, scenario.traffic_spec.noise_ev_frac, rng)
        rng = np.random.default_rng([*key, FAST_FORECAST_STREAM])
        fast_base = fast_base + _noise(fast_base, spec, spec.noise_load_frac, rng)
        fast_dg = fast_dg + _noise(fast_dg, spec, spec.noise_dg_frac, rng)
    floor = scenario.tariff.network_fee_eur_per_kwh + PRICE_MARGIN_EUR_PER_KWH
    return Forecast(
        growth_frac=frozen(growth),
        import_eur_per_kwh=frozen(np.maximum(price, floor) - truth.import_eur_per_kwh),
        base_kw=frozen(np.maximum(base, 0.0) - truth.base_kw),
        dg_kw=frozen(np.maximum(dg, 0.0) - truth.dg_kw),
        station_pv_kw=frozen(np.maximum(pv, 0.0) - truth.station_pv_kw),
        station_ev_kw=frozen(np.maximum(ev, 0.0) - truth.station_ev_kw),
        fast_base_kw=frozen(np.maximum(fast_base, 0.0) - truth.fast_base_kw),
        fast_dg_kw=frozen(np.maximum(fast_dg, 0.0) - truth.fast_dg_kw),
    )


PRICE_MARGIN_EUR_PER_KWH = 1e-4
"""Least forecast of the import price above the network fee: then export + network fee < import for forecasts too."""


def _noise(series: FloatArray, spec: "ForecastSpec", share_frac: float, rng: np.random.Generator) -> FloatArray:
    scale = share_frac * np.abs(series).mean(axis=0)
    return np.asarray(scale * _ar1(series.shape, spec.noise_correlation_frac, rng))


def net_load_kva(scenario: "Scenario", series: "_Series") -> ComplexArray:
    """Base load less DG, (T, N, P): DG feeds in balanced, at unity power factor."""
    load = series.feeder_load_kva.copy()
    load[:, scenario.charging_bus] -= series.dg_kw[:, :, None] / 3.0
    if scenario.has_fast_charging:
        alone = ~np.isin(scenario.fast_stations.bus, scenario.charging_bus)  # else it is in dg_kw already
        load[:, scenario.fast_stations.bus[alone]] -= series.fast_dg_kw[:, alone, None] / 3.0
    return load


def build_day(
    scenario: "Scenario",
    series: "_Series",
    sessions: Sessions,
    forecast: Forecast,
    *,
    split: str,
    seed: int,
    date: str,
    stations: StationDay | None = None,
    traffic: TrafficDay | None = None,
    fast: FastDay | None = None,
) -> Day:
    """The complete day of given series and sessions: adds the base power flow and the effective limits."""
    load = net_load_kva(scenario, series)
    network = controlled(scenario, load, date)
    limits = limits_of(scenario, network)
    check_sessions(sessions, len(scenario.charging_buses))
    return Day(
        scenario=scenario.name,
        split=split,
        seed=seed,
        date=date,
        import_eur_per_kwh=frozen(series.import_eur_per_kwh),
        export_eur_per_kwh=frozen(series.export_eur_per_kwh),
        charging_bus=scenario.charging_bus,
        base_kw=frozen(series.base_kw),
        dg_kw=frozen(series.dg_kw),
        load_kva=frozen(load),
        base_voltage_pu=frozen(network.size_pu),
        vmin_pu=limits.vmin_pu,
        vmax_pu=limits.vmax_pu,
        sessions=sessions,
        forecast=forecast,
        feeder=scenario.feeder,
        source_pu=network.source_pu,
        tap_position=network.schedule.tap_position,
        capacitor_step=network.schedule.capacitor_step,
        capacitor_kvar=network.capacitor_kvar,
        current_limit_a=limits.current_a,
        head_limit_kva=limits.head_kva,
        unbalance_limit_frac=limits.unbalance_frac,
        stations=stations,
        traffic=traffic,
        fast=fast,
    )


def with_devices(scenario: "Scenario", day: Day, schedule: DeviceSchedule) -> Day:
    """The day under other positions of the devices. Its effective limits stay those of its own schedule.

    Raises:
        ConfigError: positions that do not exist, more movements than the budgets allow, positions under which the base
            load alone breaks the day's limits. ConvergenceError: or under which it has no power flow.
    """
    given = checked_schedule(scenario.devices, schedule, N_SLOTS, "devices")
    network = under_schedule(scenario, day.load_kva, given, day.date)
    refuse_broken(scenario, network, day.limits, day.date)
    return dataclasses.replace(
        day,
        base_voltage_pu=frozen(network.size_pu),
        source_pu=network.source_pu,
        tap_position=given.tap_position,
        capacitor_step=given.capacitor_step,
        capacitor_kvar=network.capacitor_kvar,
    )


INTEGER_COLUMNS = ("bus", "phase", "arrival_slot", "departure_slot", "car")
"""Columns of `Sessions` that are indices; the kernels are compiled for integers."""


def check_sessions(sessions: Sessions, n_buses: int) -> None:
    """Refuse sessions that no car can have: each complaint names the session.

    Raises:
        DataError: lengths differ, an index that is no integer, a value out of range, a session that leaves before it
            arrives, an unknown bus.
    """
    columns = {name: np.asarray(getattr(sessions, name)) for name in sessions.__dataclass_fields__}
    for name, values in columns.items():
        if values.shape != (len(sessions),):
            raise DataError(f"sessions.{name} must have shape ({len(sessions)},), got {values.shape}")
        if name in INTEGER_COLUMNS and not np.issubdtype(values.dtype, np.integer):
            raise DataError(f"sessions.{name} must hold integers, got {values.dtype}")
        if not np.isfinite(values).all():
            bad = int(np.argmin(np.isfinite(values)))
            raise DataError(f"sessions.{name}[{bad}] must be finite, got {values[bad]}")
    rules = [
        (
            "bus",
            "must be a charging bus 0.." + str(n_buses - 1),
            (sessions.bus >= 0) & (sessions.bus < n_buses),
        ),
        ("phase", "must be 0, 1, 2 or -1 (balanced)", (sessions.phase >= -1) & (sessions.phase <= 2)),
        (
            "arrival_slot",
            f"must be in 0..{N_SLOTS - 1}",
            (sessions.arrival_slot >= 0) & (sessions.arrival_slot < N_SLOTS),
        ),
        ("departure_slot", "must come after arrival_slot", sessions.departure_slot > sessions.arrival_slot),
        ("departure_slot", f"must be at most {N_SLOTS}", sessions.departure_slot <= N_SLOTS),
        ("soc0_frac", "must be in [0, 1]", (sessions.soc0_frac >= 0) & (sessions.soc0_frac <= 1)),
        ("capacity_kwh", "must be > 0", sessions.capacity_kwh > 0),
        ("power_kw", "must be > 0", sessions.power_kw > 0),
        (
            "efficiency_frac",
            "must be in (0, 1]",
            (sessions.efficiency_frac > 0) & (sessions.efficiency_frac <= 1),
        ),
    ]
    for name, rule, holds in rules:
        if not holds.all():
            bad = int(np.argmin(holds))
            raise DataError(
                f"sessions.{name}[{bad}] {rule}, got {columns[name][bad]} (car {int(sessions.car[bad])}, "
                f"arrival_slot {int(sessions.arrival_slot[bad])})"
            )
    if np.any(np.diff(sessions.bus) < 0):
        raise DataError("sessions must be sorted by bus")
