"""The market's day as a problem: data, cost of a plan, check of a plan; numpy only.

What a plan decides is storage power, curtailed sun and energy that drivers do not get; trade between stations follows
from the net positions. (C) of model.md section 6, the community cost, is minimised. What the environment lets a station
do without operator is a part of the plans: it curtails or leaves drivers waiting only where its connection is full, and
after its storage has moved (N3). Under caps of an operator it does both earlier, so that every policy is a plan here.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from evcs_gym.envs.errors import ConfigError, DataError, InfeasibleError
from evcs_gym.envs.market.auction import check_tariffs
from evcs_gym.envs.market.station import kernel_assets
from evcs_gym.envs.types import BoolArray, FloatArray, StationAssets
from evcs_gym.envs.units import SLOT_H

if TYPE_CHECKING:
    from evcs_gym.envs.day import Day
    from evcs_gym.envs.scenario import Scenario

POWER_TOLERANCE_KW = 1e-6
ENERGY_TOLERANCE_KWH = 1e-6


@dataclass(frozen=True, eq=False)
class MarketProblem:
    """A day of the market without network: T slots, S stations.

    import_eur_per_kwh, export_eur_per_kwh: tariffs (T,). pv_kw: available, ev_kw: asked for by drivers, (T, S).
    network_fee_eur_per_kwh: on every kWh traded between stations.
    """

    stations: StationAssets
    import_eur_per_kwh: FloatArray
    export_eur_per_kwh: FloatArray
    network_fee_eur_per_kwh: float
    pv_kw: FloatArray
    ev_kw: FloatArray

    @property
    def n_slots(self) -> int:
        """Number of slots T."""
        return len(self.pv_kw)

    @property
    def missing_eur_per_kwh(self) -> FloatArray:
        """(S3) What a kWh costs that the storage lacks at the end, (S,)."""
        return np.asarray(self.import_eur_per_kwh.max() / self.stations.charge_efficiency_frac)

    @property
    def floor_kwh(self) -> FloatArray:
        """Least energy that any policy can reach, (T + 1, S): E_min, less what self-discharge takes from there on."""
        age = np.arange(self.n_slots + 1)[:, None]
        return np.asarray(self.stations.energy_min_kwh * (1.0 - self.stations.self_discharge_frac) ** age)


@dataclass(frozen=True, eq=False)
class MarketPlan:
    """What stations do, (T, S): storage power (charging > 0), sun not used, energy that drivers do not get."""

    storage_kw: FloatArray
    curtailed_kw: FloatArray
    unserved_kw: FloatArray


class CostTerms(NamedTuple):
    """Parts of (C) of a day [EUR]: with the utility, fees on trade, wear, unserved energy, missing energy (S3)."""

    utility_eur: float
    fee_eur: float
    degradation_eur: float
    unserved_eur: float
    missing_eur: float


def problem_of(scenario: "Scenario", day: "Day") -> MarketProblem:
    """The problem of a day.

    Raises:
        ConfigError: a day without stations.
    """
    stations = scenario.stations
    if day.stations is None:
        raise ConfigError(f"market: the day must be one of scenario {scenario.name!r}, got one without stations")
    return MarketProblem(
        stations=stations,
        import_eur_per_kwh=day.import_eur_per_kwh,
        export_eur_per_kwh=day.export_eur_per_kwh,
        network_fee_eur_per_kwh=scenario.tariff.network_fee_eur_per_kwh,
        pv_kw=day.stations.pv_kw,
        ev_kw=day.stations.ev_kw,
    )


def check_data(problem: MarketProblem) -> None:
    """Refuse data for which (C) is not convex or that no station can have.

    Raises:
        DataError: wrong shapes, NaN, a negative power, stations out of their physical range.
        ConfigError: tariffs that allow arbitrage.
    """
    kernel_assets(problem.stations)
    shape = (len(problem.import_eur_per_kwh), len(problem.stations))
    for name, wanted in (("export_eur_per_kwh", shape[:1]), ("pv_kw", shape), ("ev_kw", shape)):
        if getattr(problem, name).shape != wanted:
            raise DataError(f"problem.{name} must have shape {wanted}, got {getattr(problem, name).shape}")
    for name in ("pv_kw", "ev_kw"):
        values = getattr(problem, name)
        if not np.isfinite(values).all() or values.min(initial=0.0) < 0.0:
            raise DataError(f"problem.{name} must be finite and >= 0, got {values.min(initial=0.0)} or NaN")
    if problem.export_eur_per_kwh.min(initial=0.0) < 0.0:
        raise DataError(
            f"problem.export_eur_per_kwh must be >= 0, got {problem.export_eur_per_kwh.min()}: else stations would pay "
            "to be rid of energy, and a storage that charges and discharges at once would earn"
        )
    check_tariffs(problem.import_eur_per_kwh, problem.export_eur_per_kwh, problem.network_fee_eur_per_kwh)


def energies_kwh(problem: MarketProblem, storage_kw: FloatArray) -> FloatArray:
    """Stored energy before each slot and at the end, (T + 1, S)."""
    own, energy = problem.stations, np.empty((problem.n_slots + 1, len(problem.stations)))
    energy[0] = own.energy_start_kwh
    charged, discharged = np.maximum(storage_kw, 0.0), np.maximum(-storage_kw, 0.0)
    gain_kw = own.charge_efficiency_frac * charged - discharged / own.discharge_efficiency_frac
    for t in range(problem.n_slots):
        energy[t + 1] = energy[t] * (1.0 - own.self_discharge_frac) + SLOT_H * gain_kw[t]
    return energy


def positions_kw(problem: MarketProblem, plan: MarketPlan) -> FloatArray:
    """Net positions, surplus > 0, (T, S)."""
    served = problem.ev_kw - plan.unserved_kw
    return np.asarray(problem.pv_kw - plan.curtailed_kw - served - plan.storage_kw)


def cost_terms(problem: MarketProblem, plan: MarketPlan) -> CostTerms:
    """Parts of (C) of a plan."""
    position = positions_kw(problem, plan)
    supply, demand = np.maximum(position, 0.0).sum(axis=1), np.maximum(-position, 0.0).sum(axis=1)
    bought = problem.import_eur_per_kwh @ np.maximum(demand - supply, 0.0)
    sold = problem.export_eur_per_kwh @ np.maximum(supply - demand, 0.0)
    wear = (problem.stations.degradation_eur_per_kwh * np.abs(plan.storage_kw)).sum()
    unserved = (problem.stations.lost_load_eur_per_kwh * plan.unserved_kw).sum()
    end_kwh = energies_kwh(problem, plan.storage_kw)[-1]
    missing_kwh = np.maximum(problem.stations.energy_start_kwh - end_kwh, 0.0)
    return CostTerms(
        utility_eur=float(SLOT_H * (bought - sold)),
        fee_eur=float(SLOT_H * problem.network_fee_eur_per_kwh * np.minimum(supply, demand).sum()),
        degradation_eur=float(SLOT_H * wear),
        unserved_eur=float(SLOT_H * unserved),
        missing_eur=float(problem.missing_eur_per_kwh @ missing_kwh),
    )


def cost(problem: MarketProblem, plan: MarketPlan) -> float:
    """(C) of a plan [EUR]."""
    return float(sum(cost_terms(problem, plan)))


def gap_scale_eur(problem: MarketProblem) -> float:
    """What all deficits of the day would cost at the import price with idle storages [EUR]: the size to which gaps of
    the market relate, because (C) may be near zero."""
    deficit_kw = np.maximum(problem.ev_kw - problem.pv_kw, 0.0).sum(axis=1)
    return float(SLOT_H * (problem.import_eur_per_kwh @ deficit_kw))


def executed(problem: MarketProblem, wish_kw: FloatArray) -> MarketPlan:
    """The plan that wished storage powers (T, S) become without operator: projected to what the storage can do, then
    the connection limit, which moves the storage first."""
    own = problem.stations
    storage, curtailed, unserved = (np.empty(problem.pv_kw.shape) for _ in range(3))
    energy = own.energy_start_kwh.astype(np.float64)
    for t in range(problem.n_slots):
        kept = energy * (1.0 - own.self_discharge_frac)
        spare_kwh = np.maximum(kept - own.energy_min_kwh, 0.0)
        room_kwh = np.maximum(own.storage_kwh - kept, 0.0)
        least = np.maximum(-own.storage_kw, -spare_kwh * own.discharge_efficiency_frac / SLOT_H)
        largest = np.minimum(own.storage_kw, room_kwh / (own.charge_efficiency_frac * SLOT_H))
        power = np.clip(wish_kw[t], least, largest)
        position = problem.pv_kw[t] - problem.ev_kw[t] - power
        power = np.minimum(power + np.maximum(position - own.connection_kw, 0.0), largest)
        power = np.maximum(power - np.maximum(-own.connection_kw - position, 0.0), least)
        position = problem.pv_kw[t] - problem.ev_kw[t] - power
        storage[t], curtailed[t] = power, np.maximum(position - own.connection_kw, 0.0)
        unserved[t] = np.maximum(-own.connection_kw - position, 0.0)
        charged, discharged = np.maximum(power, 0.0), np.maximum(-power, 0.0)
        gain_kw = own.charge_efficiency_frac * charged - discharged / own.discharge_efficiency_frac
        energy = kept + SLOT_H * gain_kw
    return MarketPlan(storage, curtailed, unserved)


def check(problem: MarketProblem, plan: MarketPlan) -> None:
    """Refuse a plan that breaks (S1), (S2), or a power limit.

    Raises:
        DataError: wrong shape or NaN. InfeasibleError: names the station, the slot and what must hold.
    """
    shape, own = problem.pv_kw.shape, problem.stations
    for name in MarketPlan.__dataclass_fields__:
        values = getattr(plan, name)
        if values.shape != shape or not np.isfinite(values).all():
            raise DataError(f"plan.{name} must be a finite array {shape} (slots, stations), got {values.shape} or NaN")
    off = POWER_TOLERANCE_KW
    too_strong = np.abs(plan.storage_kw) > own.storage_kw + off
    _refuse(problem, plan, too_strong, "storage power must lie within plus and minus storage_kw")
    curtailed, unserved = plan.curtailed_kw, plan.unserved_kw
    _refuse(
        problem, plan, (curtailed < -off) | (curtailed > problem.pv_kw + off), "curtailed power must lie in 0..pv_kw"
    )
    _refuse(problem, plan, (unserved < -off) | (unserved > problem.ev_kw + off), "unserved power must lie in 0..ev_kw")
    wide = np.abs(positions_kw(problem, plan)) > own.connection_kw + off
    _refuse(problem, plan, wide, "the net position must lie within the connection limit (S2)")
    after = energies_kwh(problem, plan.storage_kw)[1:]
    least = np.where(plan.storage_kw < -off, own.energy_min_kwh, problem.floor_kwh[1:])
    outside = (after < least - ENERGY_TOLERANCE_KWH) | (after > own.storage_kwh + ENERGY_TOLERANCE_KWH)
    _refuse(problem, plan, outside, "the energy after the slot must lie in energy_min_kwh..storage_kwh (S1)")


def _refuse(problem: MarketProblem, plan: MarketPlan, bad: BoolArray, rule: str) -> None:
    if bad.any():
        t, n = (int(index) for index in np.argwhere(bad)[0])
        energy = energies_kwh(problem, plan.storage_kw)
        raise InfeasibleError(
            f"station {problem.stations.name[n]!r}, slot {t}: {rule}; the plan has storage {plan.storage_kw[t, n]:.6g} "
            f"kW, curtailed {plan.curtailed_kw[t, n]:.6g} kW, unserved {plan.unserved_kw[t, n]:.6g} kW, energy "
            f"{energy[t, n]:.6g} kWh before and {energy[t + 1, n]:.6g} kWh after"
        )
