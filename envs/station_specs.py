"""The ``stations`` section of a scenario: charging stations on both networks, and what they own."""

from collections.abc import Sequence
from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.fast_specs import FastStationSpec
from evcs_gym.envs.grid import Feeder
from evcs_gym.envs.road_specs import Node, TrafficSpec
from evcs_gym.envs.specs import BusName, NonNegativeKw, PositiveKw, PricePerKwh, Spec
from evcs_gym.envs.traffic import RoadNetwork, Stations
from evcs_gym.envs.types import StationAssets, frozen
from evcs_gym.envs.units import SLOT_H

Kwh = Annotated[float, Field(ge=0.0, le=1e6)]
Efficiency = Annotated[float, Field(gt=0.5, le=1.0)]


class StationSpec(Spec):
    """A charging station: its feeder bus by name, its node of the roads from 1, photovoltaics, storage, chargers.

    Power of the storage: ``storage_kw``, else ``storage_rate_per_h`` times its capacity. ``energy_start_kwh`` is half
    the capacity and ``connection_kw`` max(pv, chargers + half the storage power) where they are left out. Degradation
    is paid per kWh charged or discharged, ``self_discharge_frac`` is lost per slot.
    """

    bus: BusName
    node: Node
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")] | None = None
    pv_kw: NonNegativeKw = 0.0
    storage_kwh: Kwh = 0.0
    storage_kw: NonNegativeKw | None = None
    storage_rate_per_h: Annotated[float, Field(ge=0.0, le=100.0)] = 0.35
    charge_efficiency_frac: Efficiency = 0.95
    discharge_efficiency_frac: Efficiency = 0.95
    self_discharge_frac: Annotated[float, Field(ge=0.0, le=0.1)] = 0.0002
    energy_start_kwh: Kwh | None = None
    energy_min_kwh: Kwh = 0.0
    degradation_eur_per_kwh: PricePerKwh = 0.004
    n_plugs: Annotated[int, Field(ge=1, le=10_000)]
    plug_kw: PositiveKw = 150.0
    connection_kw: PositiveKw | None = None
    retail_eur_per_kwh: PricePerKwh = 0.40
    lost_load_eur_per_kwh: PricePerKwh = 0.5

    @model_validator(mode="after")
    def _storage(self) -> Self:
        if not self.energy_min_kwh <= self.start_kwh <= self.storage_kwh:
            raise ValueError(
                "energy must hold energy_min_kwh <= energy_start_kwh <= storage_kwh, got "
                f"{self.energy_min_kwh}, {self.start_kwh} and {self.storage_kwh}"
            )
        refill, lost = SLOT_H * self.charge_efficiency_frac * self.power_kw, self.self_discharge_frac
        if refill < lost * self.energy_min_kwh:
            raise ValueError(
                f"storage_kw must make up for what energy_min_kwh loses in a slot ({lost * self.energy_min_kwh:.4g} "
                f"kWh), got {refill:.4g} kWh; raise storage_kw or lower energy_min_kwh"
            )
        return self

    @property
    def power_kw(self) -> float:
        """Largest power of the storage, either way."""
        return self.storage_rate_per_h * self.storage_kwh if self.storage_kw is None else self.storage_kw

    @property
    def start_kwh(self) -> float:
        """Energy at the beginning of the day."""
        return 0.5 * self.storage_kwh if self.energy_start_kwh is None else self.energy_start_kwh

    @property
    def limit_kw(self) -> float:
        """Largest net position, either sign."""
        wanted = max(self.pv_kw, self.n_plugs * self.plug_kw + 0.5 * self.power_kw)
        return wanted if self.connection_kw is None else self.connection_kw


def station_assets(specs: Sequence[StationSpec], bus_name: Sequence[str]) -> StationAssets:
    """The stations as arrays, in their order; a station without a name is called station_0, station_1, ..."""
    row = {name: index for index, name in enumerate(bus_name)}
    same = (
        "pv_kw",
        "storage_kwh",
        "charge_efficiency_frac",
        "discharge_efficiency_frac",
        "self_discharge_frac",
        "energy_min_kwh",
        "degradation_eur_per_kwh",
        "plug_kw",
        "retail_eur_per_kwh",
        "lost_load_eur_per_kwh",
    )
    return StationAssets(
        name=tuple(spec.name or f"station_{k}" for k, spec in enumerate(specs)),
        bus=frozen(np.array([row[spec.bus] for spec in specs], dtype=np.int64)),
        node=frozen(np.array([spec.node - 1 for spec in specs], dtype=np.int64)),
        n_plugs=frozen(np.array([spec.n_plugs for spec in specs], dtype=np.int64)),
        storage_kw=frozen(np.array([spec.power_kw for spec in specs], dtype=np.float64)),
        energy_start_kwh=frozen(np.array([spec.start_kwh for spec in specs], dtype=np.float64)),
        connection_kw=frozen(np.array([spec.limit_kw for spec in specs], dtype=np.float64)),
        **{key: frozen(np.array([getattr(spec, key) for spec in specs], dtype=np.float64)) for key in same},
    )


def charging_stations(assets: StationAssets, spec: TrafficSpec) -> Stations:
    """The stations as drivers see them."""
    return Stations(
        node=assets.node,
        n_chargers=assets.n_plugs,
        charger_kw=assets.plug_kw,
        energy_kwh=spec.energy_per_charge_kwh,
        queue=spec.law,
        davidson_j=spec.davidson_j,
    )


def check_stations(
    specs: Sequence[StationSpec | FastStationSpec],
    feeder: Feeder,
    roads: RoadNetwork,
    source: str,
    section: str = "stations",
) -> None:
    """ConfigError for a station at a bus or a node where none can be, or with a name that another one has."""
    names, seen = feeder.bus_name, set[str]()
    for position, spec in enumerate(specs):
        where = f"{source}: {section}.{position}"
        if spec.bus not in names:
            raise ConfigError(
                f"{where}.bus must be a bus of feeder {feeder.name!r} ({names[0]}..{names[-1]}), got {spec.bus!r}"
            )
        row = names.index(spec.bus)
        if row == 0 or not feeder.phase_present[row].all():
            raise ConfigError(f"{where}.bus must have three phases and not be the source bus, got {spec.bus!r}")
        if not roads.n_closed < spec.node <= roads.n_nodes:
            raise ConfigError(
                f"{where}.node must be a node of roads {roads.name!r} that cars may pass "
                f"({roads.n_closed + 1}..{roads.n_nodes}), got {spec.node}"
            )
        name = spec.name or f"station_{position}"
        if name in seen:
            raise ConfigError(f"{where}.name must not come twice, got {name!r}")
        seen.add(name)
