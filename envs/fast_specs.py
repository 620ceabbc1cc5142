"""The ``fast_charging`` section of a scenario: stations at which cars charge fast, and what a day of them costs."""

from collections.abc import Sequence
from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from evcs_gym.envs.road_specs import Node
from evcs_gym.envs.specs import BusName, NonNegativeKw, PositiveKw, Spec
from evcs_gym.envs.types import FastStations, frozen
from evcs_gym.envs.units import SLOT_H


class FastStationSpec(Spec):
    """A fast-charging station: its feeder bus by name, its node of the roads from 1, chargers, own generation."""

    bus: BusName
    node: Node
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")] | None = None
    n_plugs: Annotated[int, Field(ge=1, le=100_000)]
    plug_kw: PositiveKw
    pv_kw: NonNegativeKw = 0.0
    wind_kw: NonNegativeKw = 0.0


class FastChargingSpec(Spec):
    """The world of model.md section 8: weights of (1), reserve of (4), prices, stations.

    ``omega1_eur_per_kwh`` prices energy exchanged between a station's bus and the network, ``omega2`` weighs the cost
    of charging, which counts as that of ``mean_requests_per_slot`` requests in every slot. ``as_printed`` gives the
    paper's form: omega1 on kW and omega2 on the mean cost of a request, no reserve. Voltage stays priced here; its hard
    limit is the programmes'.
    """

    omega1_eur_per_kwh: Annotated[float, Field(ge=0.0, le=10.0)]
    omega2: Annotated[float, Field(ge=0.0, le=100.0)] = 1.0
    mean_requests_per_slot: Annotated[float, Field(gt=0.0, le=1e6)]
    as_printed: bool = False
    reserve_soc_frac: Annotated[float, Field(ge=0.0, lt=0.3)] = 0.0
    stranded_eur: Annotated[float, Field(ge=0.0, le=1e4)] = 50.0
    voltage_eur_per_pu: Annotated[float, Field(ge=0.0, le=1e6)] = 100.0
    stations: Annotated[tuple[FastStationSpec, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _printed(self) -> Self:
        if self.as_printed and self.reserve_soc_frac != 0.0:
            raise ValueError(
                f"reserve_soc_frac must be 0 when as_printed is true (the paper has none), got {self.reserve_soc_frac}"
            )
        return self

    @property
    def absorb_eur_per_kw(self) -> float:
        """Factor of |base + charging - DG| of a slot in (1)."""
        return self.omega1_eur_per_kwh if self.as_printed else self.omega1_eur_per_kwh * SLOT_H

    @property
    def energy_weight(self) -> float:
        """Factor in (1) of the mean over a slot's requests of (2)."""
        return self.omega2 if self.as_printed else self.omega2 * self.mean_requests_per_slot


def fast_stations(specs: Sequence[FastStationSpec], bus_name: Sequence[str]) -> FastStations:
    """The stations as arrays, in their order; a station without a name is called station_0, station_1, ..."""
    row = {name: index for index, name in enumerate(bus_name)}
    return FastStations(
        name=tuple(spec.name or f"station_{j}" for j, spec in enumerate(specs)),
        bus=frozen(np.array([row[spec.bus] for spec in specs], dtype=np.int64)),
        node=frozen(np.array([spec.node - 1 for spec in specs], dtype=np.int64)),
        n_plugs=frozen(np.array([spec.n_plugs for spec in specs], dtype=np.int64)),
        **{
            key: frozen(np.array([getattr(spec, key) for spec in specs], dtype=np.float64))
            for key in ("plug_kw", "pv_kw", "wind_kw")
        },
    )
