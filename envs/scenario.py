"""YAML to a frozen ``Scenario``: the city, its tariffs, its fleet; every check on user input.

A scenario is data (YAML, no code): `load_scenario` takes the name of a shipped one or a path. Unknown keys are refused
with the nearest known one; every value has a physical range.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from evcs_gym.envs import day as day_module
from evcs_gym.envs import day_traffic
from evcs_gym.envs.data import Profiles, load_profiles, load_travel_tables, load_vehicle_models
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.fast_specs import FastChargingSpec, FastStationSpec, fast_stations
from evcs_gym.envs.fleet.needs import ChargingMode
from evcs_gym.envs.fleet.vehicles import Fleet, TravelTables, draw_fleet
from evcs_gym.envs.grid import Feeder
from evcs_gym.envs.grid.devices import Devices
from evcs_gym.envs.market.auction import PriceRule
from evcs_gym.envs.network import FeederSpec, check_device_specs, devices_of, feeder_of
from evcs_gym.envs.network_check import NetworkCheck, check_base_load
from evcs_gym.envs.road_specs import Node, ResponsiveSpec, RoadsSpec, TrafficSpec, road_network, road_profile
from evcs_gym.envs.specs import (
    BusName,
    Frac,
    NonNegativeKw,
    PositiveKw,
    PricePerKwh,
    Spec,
    nearest,
    read_yaml,
    shipped,
    validated,
)
from evcs_gym.envs.station_specs import StationSpec, charging_stations, check_stations, station_assets
from evcs_gym.envs.traffic import RoadNetwork, TrafficModel, traffic_model
from evcs_gym.envs.traffic.distances import RoadDistances, road_distances
from evcs_gym.envs.traffic.equilibrium import Columns
from evcs_gym.envs.types import FastStations, FloatArray, IntArray, StationAssets, frozen


class ProfilesSpec(Spec):
    """Time series: year, peak of the base load as a share of nominal, load profile of each bus.

    ``load_profiles`` go round the buses in order; ``load_profile_at_bus`` overrides single buses.
    """

    year: int = 2016
    base_load_frac: Annotated[float, Field(ge=0.0, le=3.0)] = 0.8
    load_profiles: Annotated[tuple[str, ...], Field(min_length=1)]
    load_profile_at_bus: dict[BusName, str] = Field(default_factory=dict)
    pv_profile: str
    wind_profile: str


class TariffSpec(Spec):
    """Import = spot + adder, export = max(0, spot - fee), network fee of trades (all EUR/kWh)."""

    import_adder_eur_per_kwh: PricePerKwh = 0.05
    export_fee_eur_per_kwh: PricePerKwh = 0.010
    network_fee_eur_per_kwh: PricePerKwh = 0.008


class ForecastSpec(Spec):
    """What is known of later slots: the truth, yesterday, or the truth with an error that grows with lead time.

    ``noise_*_frac`` are standard deviations at long lead as shares of the day's mean absolute value,
    ``noise_correlation_frac`` is the AR(1) coefficient per slot.
    """

    kind: Literal["perfect", "persistence", "noisy"] = "perfect"
    noise_load_frac: Frac = 0.05
    noise_dg_frac: Frac = 0.25
    noise_price_frac: Frac = 0.15
    noise_correlation_frac: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.95


class ChargingBusSpec(Spec):
    """A bus where cars charge at home: the feeder bus by name, its cars, its photovoltaics and wind.

    ``node``: where its homes stand on the roads, from 1; needed for fast charging.
    """

    bus: BusName
    n_cars: Annotated[int, Field(ge=0, le=1_000_000)]
    pv_kw: NonNegativeKw = 0.0
    wind_kw: NonNegativeKw = 0.0
    node: Node | None = None


class FleetSpec(Spec):
    """Statistics of the cars; the models and their registrations are shipped data.

    ``home_charger_frac`` of the cars can charge at home; the others only charge fast.
    """

    charger_power_kw: Annotated[tuple[PositiveKw, ...], Field(min_length=1)] = (3.7, 7.4, 11.0)
    charger_share_frac: Annotated[tuple[Frac, ...], Field(min_length=1)] = (0.2, 0.3, 0.5)
    consumption_min_kwh_per_km: Annotated[float, Field(gt=0.0, le=2.0)] = 0.15
    consumption_max_kwh_per_km: Annotated[float, Field(gt=0.0, le=2.0)] = 0.22
    efficiency_frac: Annotated[float, Field(gt=0.5, le=1.0)] = 0.92
    worker_share_frac: Frac = 0.6
    home_charger_frac: Frac = 1.0
    request_below_soc_frac: Annotated[float, Field(gt=0.3, le=1.0)] = 0.8
    n_burn_in_days: Annotated[int, Field(ge=7, le=14)] = 10

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if len(self.charger_power_kw) != len(self.charger_share_frac):
            raise ValueError(
                "charger_share_frac must have one entry per charger_power_kw, got "
                f"{len(self.charger_share_frac)} and {len(self.charger_power_kw)}"
            )
        if abs(sum(self.charger_share_frac) - 1.0) > 1e-9:
            raise ValueError(f"charger_share_frac must sum to 1, got {sum(self.charger_share_frac)}")
        if self.consumption_min_kwh_per_km > self.consumption_max_kwh_per_km:
            raise ValueError(
                "consumption_min_kwh_per_km must not exceed consumption_max_kwh_per_km, got "
                f"{self.consumption_min_kwh_per_km} and {self.consumption_max_kwh_per_km}"
            )
        return self


class NormalChargingSpec(Spec):
    """The world of model.md section 9: car mode, weights of (5), price of voltage, order of disaggregation.

    ``omega1_eur_per_kwh`` prices energy exchanged between a bus and the network, ``omega2`` weighs the charging cost;
    ``as_printed`` gives the paper's form, in which omega1 multiplies both terms (omega2 is then ignored and must be 1).
    """

    mode: ChargingMode = "on_off"
    omega1_eur_per_kwh: Annotated[float, Field(ge=0.0, le=10.0)]
    omega2: Annotated[float, Field(ge=0.0, le=100.0)] = 1.0
    as_printed: bool = False
    voltage_eur_per_pu: Annotated[float, Field(ge=0.0, le=1e6)] = 100.0
    disaggregation: Literal["laxity", "price_laxity"] = "laxity"

    @model_validator(mode="after")
    def _printed(self) -> Self:
        if self.as_printed and self.omega2 != 1.0:
            raise ValueError(f"omega2 must be 1 when as_printed is true (the paper has one weight), got {self.omega2}")
        return self

    @property
    def energy_weight(self) -> float:
        """Factor of the charging cost in (5)."""
        return self.omega1_eur_per_kwh if self.as_printed else self.omega2


class MarketSpec(Spec):
    """Rules of the stations' market: how the price is found, and whether asks are reservation prices (M6)."""

    rule: PriceRule = "marginal"
    reservation: bool = True


class Scenario(Spec):
    """A city: feeder, profiles, tariffs and at least one world. Made by `load_scenario`.

    Worlds: cars that charge at home (``charging_buses``, ``fleet``, ``normal_charging``), charging stations on roads
    (``roads``, ``traffic``, ``stations``, ``market``), and cars of the first that charge fast on the way
    (``fast_charging``, ``roads``). What needs a world that is not there raises a ConfigError.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, ignored_types=(cached_property,))

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    description: str = ""
    seed: Annotated[int, Field(ge=0)] = 0
    feeder_spec: Annotated[FeederSpec, Field(alias="feeder")]
    profiles_spec: Annotated[ProfilesSpec, Field(alias="profiles")]
    tariff: TariffSpec = TariffSpec()
    forecast: ForecastSpec = ForecastSpec()
    charging_buses: Annotated[tuple[ChargingBusSpec, ...], Field(min_length=1)] = ()
    fleet_spec: Annotated[FleetSpec, Field(alias="fleet")] = FleetSpec()
    normal_charging_spec: Annotated[NormalChargingSpec | None, Field(alias="normal_charging")] = None
    fast_charging_spec: Annotated[FastChargingSpec | None, Field(alias="fast_charging")] = None
    roads_spec: Annotated[RoadsSpec | None, Field(alias="roads")] = None
    traffic_spec: Annotated[TrafficSpec, Field(alias="traffic")] = TrafficSpec()
    station_specs: Annotated[tuple[StationSpec, ...], Field(alias="stations", min_length=1)] = ()
    market: MarketSpec = MarketSpec()
    responsive_spec: Annotated[ResponsiveSpec | None, Field(alias="responsive_demand")] = None

    @model_validator(mode="after")
    def _worlds(self) -> Self:
        home = {"charging_buses": bool(self.charging_buses), "normal_charging": self.normal_charging_spec is not None}
        has_roads = self.roads_spec is not None
        roads = {"roads": has_roads, "stations": bool(self.station_specs)}
        if self.has_fast_charging and not self.has_stations:
            roads = {"stations": False} if "traffic_spec" in self.model_fields_set else {}
        for keys, world, extra in ((home, "charging at home", "fleet"), (roads, "charging stations", "traffic")):
            given = any(keys.values()) or f"{extra}_spec" in self.model_fields_set
            missing = [key for key, there in keys.items() if not there]
            if given and missing:
                raise ValueError(f"{missing[0]} is missing; {world} needs {' and '.join(keys)}, or none of {extra} too")
        if self.has_fast_charging and not (has_roads and self.has_home_charging):
            missing_key = "roads" if not has_roads else "normal_charging"
            raise ValueError(f"{missing_key} is missing; fast_charging needs roads, charging_buses and normal_charging")
        if "market" in self.model_fields_set and not self.has_stations:
            raise ValueError("stations is missing; market needs roads and stations")
        if self.responsive_spec is not None and not self.has_stations:
            raise ValueError("stations is missing; responsive_demand needs roads and stations")
        if not self.has_home_charging and not self.has_stations:
            raise ValueError(
                "normal_charging or stations is missing; a scenario needs charging_buses and normal_charging, or "
                "roads and stations, or all of them"
            )
        return self

    @model_serializer(mode="wrap")
    def _present_sections(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Sections of a world that the scenario does not have are left out: they would be refused when read again."""
        absent: set[str] = set()
        if not self.has_home_charging:
            absent |= {"charging_buses", "fleet", "fleet_spec", "normal_charging", "normal_charging_spec"}
        if not self.has_stations:
            absent |= {"traffic", "traffic_spec", "stations", "station_specs", "market"}
        if self.roads_spec is None:
            absent |= {"roads", "roads_spec"}
        if not self.has_fast_charging:
            absent |= {"fast_charging", "fast_charging_spec"}
        if self.responsive_spec is None:
            absent |= {"responsive_demand", "responsive_spec"}
        return {key: value for key, value in handler(self).items() if key not in absent}

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other sections, by the names they have in YAML or here; what is derived of them is made anew.

        Raises ConfigError for a section that does not exist: it would change nothing.
        """
        fields = type(self).model_fields
        names = {field.alias or name: name for name, field in fields.items()} | {name: name for name in fields}
        for key in set(update or {}) - set(names):
            raise ConfigError(f"{self.name}: {key} is no section of a scenario{nearest(key, sorted(names))}")
        copied = super().model_copy(update={names[key]: value for key, value in (update or {}).items()}, deep=deep)
        for derived in set(copied.__dict__) - set(fields) if update else ():
            del copied.__dict__[derived]
        return copied

    @property
    def has_home_charging(self) -> bool:
        """Whether cars charge at home."""
        return self.normal_charging_spec is not None

    @property
    def has_stations(self) -> bool:
        """Whether there are roads with charging stations that trade."""
        return bool(self.station_specs)

    @property
    def has_fast_charging(self) -> bool:
        """Whether the cars of the homes charge fast on their way."""
        return self.fast_charging_spec is not None

    def _missing(self, section: str, needs: str) -> ConfigError:
        return ConfigError(f"{self.name}: {section} is no section of this scenario; add {needs} or take another one")

    @property
    def normal_charging(self) -> NormalChargingSpec:
        """The world of charging at home. Raises ConfigError for a scenario without it."""
        if self.normal_charging_spec is None:
            raise self._missing("normal_charging", "charging_buses and normal_charging")
        return self.normal_charging_spec

    @property
    def fast_charging(self) -> FastChargingSpec:
        """The world of fast charging. Raises ConfigError for a scenario without it."""
        if self.fast_charging_spec is None:
            raise self._missing("fast_charging", "fast_charging and roads")
        return self.fast_charging_spec

    @property
    def road_demand(self) -> RoadsSpec:
        """Roads as they were asked for. Raises ConfigError for a scenario without them."""
        if self.roads_spec is None:
            raise self._missing("roads", "roads and stations")
        return self.roads_spec

    @property
    def responsive_demand(self) -> ResponsiveSpec:
        """How drivers answer prices. Raises ConfigError for a scenario in which they do not."""
        if self.responsive_spec is None:
            raise self._missing("responsive_demand", "responsive_demand")
        return self.responsive_spec

    @cached_property
    def roads(self) -> RoadNetwork:
        """The road network; its demand is the pair table times ``demand_frac``. ConfigError without roads."""
        return road_network(self.road_demand)

    @cached_property
    def road_distances(self) -> RoadDistances:
        """Shortest paths between all nodes of the roads. ConfigError without roads."""
        return road_distances(self.roads)

    @cached_property
    def fast_stations(self) -> FastStations:
        """The stations at which cars charge fast. ConfigError without them."""
        return fast_stations(self.fast_charging.stations, self.feeder.bus_name)

    @cached_property
    def home_node(self) -> IntArray:
        """Row of the road network at which each charging bus's homes stand, (C,). ConfigError without fast charging."""
        self.fast_charging  # noqa: B018 - refuses
        rows: IntArray = frozen(np.array([(bus.node or 0) - 1 for bus in self.charging_buses], dtype=np.int64))
        return rows

    @cached_property
    def departures_frac(self) -> FloatArray:
        """Departures in each slot as a share of the roads' demand, (T,). ConfigError without roads."""
        return road_profile(self.road_demand)

    @cached_property
    def stations(self) -> StationAssets:
        """What the charging stations own. ConfigError without stations."""
        if not self.station_specs:
            raise self._missing("stations", "roads and stations")
        return station_assets(self.station_specs, self.feeder.bus_name)

    @cached_property
    def traffic_model(self) -> TrafficModel:
        """Roads and stations as one graph. ConfigError without stations."""
        stations = charging_stations(self.stations, self.traffic_spec)
        return traffic_model(self.roads, stations, self.traffic_spec.value_of_time_eur_per_h)

    @cached_property
    def traffic_paths(self) -> Columns:
        """Paths that the days of this scenario begin with: the same whatever days are asked for."""
        return day_traffic.reference_paths(self)

    @cached_property
    def feeder(self) -> Feeder:
        """The distribution network, with the ampacities of the scenario."""
        return feeder_of(self.feeder_spec)

    @cached_property
    def devices(self) -> Devices:
        """Tap changer and capacitor banks; `devices.FIXED` where there are none."""
        return devices_of(self.feeder_spec, self.feeder)

    @cached_property
    def profiles(self) -> Profiles:
        """Load, PV, wind and price of the scenario's year."""
        return load_profiles(self.profiles_spec.year)

    @cached_property
    def load_peak_frac(self) -> tuple[FloatArray, FloatArray]:
        """Largest active and reactive value of each load profile in the year: a bus peaks at its nominal load."""
        return self.profiles.load_p_frac.max(axis=0), np.abs(self.profiles.load_q_frac).max(axis=0)

    @cached_property
    def travel(self) -> TravelTables:
        """Travel statistics."""
        return load_travel_tables()

    @cached_property
    def fleet(self) -> Fleet:
        """The cars of the city: the same on every day. ConfigError without charging at home."""
        spec = self.fleet_spec
        if not self.has_home_charging:
            raise self._missing("fleet", "charging_buses and normal_charging")
        return draw_fleet(
            n_cars_per_bus=np.array([bus.n_cars for bus in self.charging_buses], dtype=np.int64),
            models=load_vehicle_models(),
            charger_power_kw=np.array(spec.charger_power_kw),
            charger_share_frac=np.array(spec.charger_share_frac),
            consumption_kwh_per_km=(spec.consumption_min_kwh_per_km, spec.consumption_max_kwh_per_km),
            efficiency_frac=spec.efficiency_frac,
            worker_share_frac=spec.worker_share_frac,
            home_charger_frac=spec.home_charger_frac,
            rng=np.random.default_rng([self.seed, day_module.FLEET_STREAM]),
        )

    @cached_property
    def charging_bus(self) -> IntArray:
        """Feeder bus (row) of each charging bus, (C,)."""
        index = {name: row for row, name in enumerate(self.feeder.bus_name)}
        rows: IntArray = frozen(np.array([index[bus.bus] for bus in self.charging_buses], dtype=np.int64))
        return rows

    @cached_property
    def dg_pv_kw(self) -> FloatArray:
        """Photovoltaics at each bus of the feeder beside those of stations that trade, (N,)."""
        return self._dg_of("pv_kw")

    @cached_property
    def dg_wind_kw(self) -> FloatArray:
        """Wind at each bus of the feeder, (N,)."""
        return self._dg_of("wind_kw")

    def _dg_of(self, key: str) -> FloatArray:
        fast = self.fast_charging_spec
        owners: list[ChargingBusSpec | FastStationSpec] = [*self.charging_buses, *(fast.stations if fast else ())]
        row = {name: index for index, name in enumerate(self.feeder.bus_name)}
        total = np.zeros(len(self.feeder))
        for owner in owners:
            total[row[owner.bus]] += getattr(owner, key)
        installed: FloatArray = frozen(total)
        return installed

    @cached_property
    def installed_kw(self) -> FloatArray:
        """Sum of the chargers of the cars that live at each charging bus, at least 1 kW, (C,)."""
        total = np.bincount(self.fleet.bus, weights=self.fleet.charge_power_kw, minlength=len(self.charging_buses))
        at_least_one: FloatArray = frozen(np.maximum(total, 1.0))
        return at_least_one

    def day(self, seed: int, split: str = "train") -> "day_module.Day":
        """The day that this seed draws from the split's calendar days; the same on every machine.

        Args:
            seed: 0, 1, 2, ...; consecutive seeds go through all calendar days of the split before one comes again.
            split: "train", "validation" or "test" (disjoint calendar days).

        Raises:
            ConfigError: unknown split or negative seed.
        """
        return day_module.sample_days(self, [seed], split)[0]

    def days(self, seeds: Sequence[int], split: str = "train") -> "list[day_module.Day]":
        """The days of several seeds, in their order: the same as one by one, but their traffic is solved at once."""
        return day_module.sample_days(self, seeds, split)

    def check(self, split: str | None = None, n_days: int | None = None) -> NetworkCheck:
        """The base load of every day against the nominal limits of the network.

        Args:
            split: the days of one split; all three by default.
            n_days: seeds 0 .. n_days - 1 of each split; by default every calendar day once.

        Raises:
            ConfigError: unknown split, n_days < 1, or, in a scenario with devices, a day whose base load has less than
                0.005 pu to a voltage limit or exceeds another nominal limit.
        """
        return check_base_load(self, split, n_days)


def shipped_scenarios() -> list[str]:
    """Names of the scenarios that come with the package."""
    return shipped("scenarios")


def load_scenario(name_or_path: str | Path) -> Scenario:
    """The scenario of a shipped name or of a YAML file.

    Raises:
        ConfigError: missing file, no YAML, unknown key, value out of range, a bus that does not exist, tariffs that
            break export + network fee < import, trips or charges that take too long, stations that are too small.
        DataError: a data file that the scenario names is missing or broken.
    """
    source, content = read_yaml("scenarios", name_or_path)
    return scenario_from_dict(content, source)


def scenario_from_dict(content: dict[str, Any], source: str = "scenario") -> Scenario:
    """The scenario of a dictionary with the keys of the YAML files; ``source`` names it in messages."""
    scenario = validated(Scenario, content, source)
    check_device_specs(scenario.feeder_spec, scenario.feeder, source)
    _check_buses(scenario, source)
    _check_profiles(scenario, source)
    if scenario.has_stations:
        check_stations(scenario.station_specs, scenario.feeder, scenario.roads, source)
        day_traffic.check_traffic(scenario, source)
        _check_retail(scenario, source)
    if scenario.has_fast_charging:
        stations = scenario.fast_charging.stations
        check_stations(stations, scenario.feeder, scenario.roads, source, "fast_charging.stations")
        _check_fast(scenario, source)
    return scenario


def _check_buses(scenario: Scenario, source: str) -> None:
    names = scenario.feeder.bus_name
    seen: set[str] = set()
    for position, spec in enumerate(scenario.charging_buses):
        where = f"{source}: charging_buses.{position}.bus"
        if spec.bus not in names:
            raise ConfigError(
                f"{where} must be a bus of feeder {scenario.feeder.name!r} ({names[0]}..{names[-1]}), got {spec.bus!r}"
            )
        if spec.bus == names[0]:
            raise ConfigError(f"{where} must not be the source bus, got {spec.bus!r}")
        if spec.bus in seen:
            raise ConfigError(f"{where} must not come twice, got {spec.bus!r}")
        seen.add(spec.bus)
    for bus in scenario.profiles_spec.load_profile_at_bus:
        if bus not in names:
            raise ConfigError(f"{source}: profiles.load_profile_at_bus.{bus} must be a bus of the feeder")


def _check_fast(scenario: Scenario, source: str) -> None:
    """Homes and stations must have a place of their own, and the roads lengths."""
    roads = scenario.roads
    if not roads.length_km.any():
        raise ConfigError(
            f"{source}: fast_charging needs roads with lengths, all of {roads.name!r} are 0 km; "
            "give links with length_km"
        )
    seen: set[str] = set()
    for position, station in enumerate(scenario.fast_charging.stations):
        if station.bus in seen:
            where = f"{source}: fast_charging.stations.{position}.bus"
            raise ConfigError(f"{where} must not come twice, got {station.bus!r}; add up plugs of one power")
        seen.add(station.bus)
    for position, home in enumerate(scenario.charging_buses):
        if home.node is None or not roads.n_closed < home.node <= roads.n_nodes:
            raise ConfigError(
                f"{source}: charging_buses.{position}.node must be a node of roads {roads.name!r} that cars may pass "
                f"({roads.n_closed + 1}..{roads.n_nodes}) in a scenario with fast_charging, got {home.node}"
            )


def _check_retail(scenario: Scenario, source: str) -> None:
    """Stations must be able to ask the price at which the days are made."""
    spec = scenario.responsive_spec
    if spec is None:
        return
    for position, station in enumerate(scenario.station_specs):
        if not spec.least_retail_eur_per_kwh <= station.retail_eur_per_kwh <= spec.largest_retail_eur_per_kwh:
            raise ConfigError(
                f"{source}: stations.{position}.retail_eur_per_kwh must lie in responsive_demand's "
                f"[{spec.least_retail_eur_per_kwh}, {spec.largest_retail_eur_per_kwh}], "
                f"got {station.retail_eur_per_kwh}"
            )


def _check_profiles(scenario: Scenario, source: str) -> None:
    profiles, spec, tariff = scenario.profiles, scenario.profiles_spec, scenario.tariff
    wanted = [("load_profiles", name, profiles.load_name) for name in spec.load_profiles]
    wanted += [("load_profile_at_bus", name, profiles.load_name) for name in spec.load_profile_at_bus.values()]
    wanted += [("pv_profile", spec.pv_profile, profiles.pv_name)]
    wanted += [("wind_profile", spec.wind_profile, profiles.wind_name)]
    for key, name, known in wanted:
        if name not in known:
            raise ConfigError(f"{source}: profiles.{key}: there is no profile {name!r}{nearest(name, known)}")
    spot = profiles.price_eur_per_kwh
    margin = (
        spot
        + tariff.import_adder_eur_per_kwh
        - np.maximum(0.0, spot - tariff.export_fee_eur_per_kwh)
        - tariff.network_fee_eur_per_kwh
    )
    if margin.min() <= 0.0:
        hour = int(np.argmin(margin))
        raise ConfigError(
            f"{source}: tariff: export + network fee must stay below import in every hour of {spec.year}, "
            f"but half-hour {hour} has spot {spot[hour]:.4f} EUR/kWh and margin {margin[hour]:.4f}; "
            "raise import_adder_eur_per_kwh or take another year"
        )
