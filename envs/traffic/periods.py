"""Semi-dynamic traffic over the slots of a day: what is still on the road at the end of a slot belongs to the next."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from evcs_gym.envs.errors import ConfigError, ConvergenceError, DataError
from evcs_gym.envs.threads import run_rows
from evcs_gym.envs.traffic.batch import PARALLEL_FROM, BatchFlow, solve_apart, solve_batch
from evcs_gym.envs.traffic.charging import Stations, TrafficModel, check_capacity_rows, joined_demand, refuse_overfull
from evcs_gym.envs.traffic.equilibrium import Columns, solve_graph
from evcs_gym.envs.traffic.kernels import time_rows
from evcs_gym.envs.types import FloatArray
from evcs_gym.envs.units import SLOT_H

LONGEST_TRIP_SLOTS: Final = 0.8
"""Free-flow time with charging that a pair may take, in slots: above it carry-over into one slot says too little."""
_LITTLE_VEH_PER_H: Final = 1e-9
"""A flow that slows nobody."""


@dataclass(frozen=True, eq=False)
class DayTraffic:
    """Traffic of D days in T slots; L links, S stations, K pairs, and two classes: through, charging.

    link_flow_veh_per_h: (D, T, L). station_veh_per_h: (D, T, S), arrivals at stations. station_kw: (D, T, S), (T6).
    committed_kw: (D, T + 1, S), the part of each slot's power that cars of the slot before take; entry T is what stays
    for the slot after the last. outside_veh_per_h: (D, T). assigned_veh_per_h: (D, T, 2, K), what travels in a slot.
    carry_frac: (D, T, 2, K) share of a slot's departures that travels in the next one. carried_in_veh_per_h,
    carried_out_veh_per_h: (D, 2, K) from before slot 0, and after the last slot. pair_time_h: (D, T, K) of through
    traffic. relative_gap: (D, T). wait_h: (D, T, S), time in the queue of a station.
    """

    link_flow_veh_per_h: FloatArray
    station_veh_per_h: FloatArray
    station_kw: FloatArray
    committed_kw: FloatArray
    outside_veh_per_h: FloatArray
    assigned_veh_per_h: FloatArray
    carry_frac: FloatArray
    carried_in_veh_per_h: FloatArray
    carried_out_veh_per_h: FloatArray
    pair_time_h: FloatArray
    relative_gap: FloatArray
    wait_h: FloatArray

    @property
    def on_road_veh(self) -> FloatArray:
        """Cars of each class that are still on the road after the last slot, (D, 2)."""
        return np.asarray(SLOT_H * self.carried_out_veh_per_h.sum(axis=-1))


def assign_days(
    model: TrafficModel,
    through_veh_per_h: ArrayLike,
    charging_veh_per_h: ArrayLike,
    price_eur_per_kwh: ArrayLike = 0.0,
    carry_over: bool = True,
    relative_gap: float = 1e-6,
    paths: Columns | None = None,
) -> DayTraffic:
    """Equilibria of the slots of D days for departures (D, T, K) of both classes at the stations' prices (S,).

    Slot 0 starts from the equilibrium of its own departures, as if they had been those of the slot before; so what is
    carried into it is what is carried out of it. Without carry-over the slots are independent. Days share their paths,
    unless ``paths`` are given to begin with: then a day comes out the same, bit for bit, in any company.

    Raises ConfigError if a charge takes longer than a slot, or, with carry-over, a trip at free flow longer than 0.8
    slots, or roads cost anything beside time; InfeasibleError if charging demand does not fit or a pair has no path;
    ConvergenceError if a slot does not reach the gap; DataError for departures out of range.
    """
    departures = joined_demand(model, np.asarray(through_veh_per_h), np.asarray(charging_veh_per_h))
    if departures.ndim != 3 or not departures.size:
        raise DataError(f"{model.network.name}: departures must have shape (D, T, K), got {departures.shape}")
    check_days_model(model, carry_over)
    n_days, n_slots, n_pairs = (*departures.shape[:2], model.network.n_pairs)
    fixed = model.fixed_h(price_eur_per_kwh)
    flow = np.empty((n_days, n_slots, len(model.graph.fixed_h)))
    cost, gap = np.empty(departures.shape), np.empty((n_days, n_slots))
    share, assigned = np.zeros(departures.shape), departures.copy()
    found: BatchFlow | None = None
    for slot in range(n_slots):
        if carry_over and slot > 0:
            share[:, slot] = _carry_share(model, cost[:, slot - 1, :n_pairs])
            stays, comes = departures[:, slot], departures[:, slot - 1] * share[:, slot - 1]
            assigned[:, slot] = stays * (1.0 - share[:, slot]) + comes  # (T5)
        check_capacity_rows(model, assigned[:, slot, n_pairs:])
        found = _solved(model, assigned[:, slot], fixed, found, relative_gap, slot, paths)
        flow[:, slot], cost[:, slot], gap[:, slot] = found.flow_veh_per_h, found.pair_cost_h, found.relative_gap
        if carry_over and slot == 0:
            share[:, 0] = _carry_share(model, cost[:, 0, :n_pairs])
    return _day_traffic(model, flow, cost, gap, departures, assigned, share)


def _carry_share(model: TrafficModel, time_h: FloatArray) -> FloatArray:
    """Share of the departures (D, 2 K) that is on the way at the end of the slot, for times (D, K) of the last slot.

    Departures are even over the slot: at its end a car is on average half way through its time tau.
    """
    longest = float(model.stations.service_h.max())
    tau = np.concatenate([time_h, time_h + longest], axis=-1)
    return np.asarray(np.minimum(1.0, tau / (2.0 * SLOT_H)))


def _solved(
    model: TrafficModel,
    demand: FloatArray,
    fixed_h: FloatArray,
    start: BatchFlow | None,
    relative_gap: float,
    slot: int,
    paths: Columns | None,
) -> BatchFlow:
    if paths is None:
        found = solve_batch(model.graph, demand, relative_gap, start, fixed_h)
    else:
        begin = None if start is None else start.path_flow_veh_per_h
        found = solve_apart(model.graph, demand, relative_gap, paths, begin, fixed_h)
    if not found.converged.all():
        day = int(np.argmin(found.converged))
        raise ConvergenceError(
            f"{model.network.name}: day {day}, slot {slot} must reach relative_gap {relative_gap:.3g}, got "
            f"{found.relative_gap[day]:.3g}; raise relative_gap"
        )
    refuse_overfull(model, found.flow_veh_per_h[:, model.station_resources])
    return found


def _day_traffic(
    model: TrafficModel,
    flow: FloatArray,
    cost: FloatArray,
    gap: FloatArray,
    departures: FloatArray,
    assigned: FloatArray,
    share: FloatArray,
) -> DayTraffic:
    n_links, n_pairs, at = model.network.n_links, model.network.n_pairs, model.station_resources
    n_days, n_slots = departures.shape[:2]
    cars = flow[:, :, at]
    energy, late = model.stations.energy_kwh, model.stations.service_h / (2.0 * SLOT_H)
    before = np.concatenate([cars[:, :1], cars], axis=1)
    classes = (n_days, n_slots, 2, n_pairs)
    return DayTraffic(
        link_flow_veh_per_h=flow[:, :, :n_links],
        station_veh_per_h=cars,
        station_kw=charging_kw(model.stations, cars, before[:, :-1]),
        committed_kw=before * energy * late,
        outside_veh_per_h=flow[:, :, at.stop :].sum(axis=-1),
        assigned_veh_per_h=assigned.reshape(classes),
        carry_frac=share.reshape(classes),
        carried_in_veh_per_h=(departures[:, 0] * share[:, 0]).reshape(n_days, 2, n_pairs),
        carried_out_veh_per_h=(departures[:, -1] * share[:, -1]).reshape(n_days, 2, n_pairs),
        pair_time_h=cost[:, :, :n_pairs],
        relative_gap=gap,
        wait_h=_waiting_h(model, flow),
    )


def charging_kw(stations: Stations, cars_veh_per_h: FloatArray, before_veh_per_h: FloatArray) -> FloatArray:
    """Charging power (..., S) of the cars that arrive in a slot and of those that came in the slot before."""
    energy, late = stations.energy_kwh, stations.service_h / (2.0 * SLOT_H)
    return np.asarray(cars_veh_per_h * energy * (1.0 - late) + before_veh_per_h * energy * late)  # (T6)


def _waiting_h(model: TrafficModel, flow: FloatArray) -> FloatArray:
    """Time in the queue (D, T, S) at flows of the resources (D, T, R)."""
    rows = flow.reshape(-1, flow.shape[-1])
    time = np.empty(rows.shape)
    free = np.zeros(flow.shape[-1])
    run_rows(time_rows, len(rows), (model.graph.arrays, free, rows, time), parallel_from=PARALLEL_FROM)
    stations = time.reshape(flow.shape)[..., model.station_resources]
    return np.asarray(np.maximum(stations - model.stations.service_h, 0.0))


def check_days_model(model: TrafficModel, carry_over: bool) -> None:
    """ConfigError if a charge takes longer than a slot or, with carry-over, a trip longer than 0.8 slots."""
    name, longest = model.network.name, float(model.stations.service_h.max())
    if longest > SLOT_H:
        raise ConfigError(
            f"{name}: a charge must end within a slot of {SLOT_H} h, got {longest:.4g} h; raise charger_kw or lower "
            "energy_kwh"
        )
    if not carry_over:
        return
    if model.network.fixed_h.any():
        raise ConfigError(
            f"{name}: carry-over needs the time of each pair, so roads must cost nothing beside time, got fixed_h up "
            f"to {model.network.fixed_h.max():.4g}; leave tolls out or set carry_over=False"
        )
    little = np.full(model.graph.n_pairs, _LITTLE_VEH_PER_H)
    trip = solve_graph(model.graph, little, 1e-3, np.inf).pair_cost_h[: model.network.n_pairs] + longest
    if trip.max(initial=0.0) > LONGEST_TRIP_SLOTS * SLOT_H:
        pair = int(np.argmax(trip))
        raise ConfigError(
            f"{name}: with carry-over a trip with charging must take at most {LONGEST_TRIP_SLOTS} slots at free flow, "
            f"pair {pair} ({model.graph.pair_label[pair]}) takes {trip[pair] / SLOT_H:.3g}; set carry_over=False"
        )
