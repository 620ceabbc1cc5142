"""Small problems of the market with its network, made by hand."""

import numpy as np

from evcs_gym.baselines.problems.market import MarketPlan, MarketProblem
from evcs_gym.baselines.problems.network import NetworkPlan, NetworkProblem, admissible_positions, joint_positions
from evcs_gym.envs.grid import Feeder
from evcs_gym.envs.grid.devices import FIXED, Devices, bank_kvar, head_voltage_pu
from evcs_gym.envs.grid.operator import effective_limits
from evcs_gym.envs.types import FloatArray


def network_by_hand(
    market: MarketProblem,
    feeder: Feeder,
    *,
    load_frac: float = 0.0,
    source_pu: float = 1.0,
    devices: Devices = FIXED,
    **limits: float,
) -> NetworkProblem:
    """The market on a feeder with a share of its nominal load in every slot, devices at their start positions.

    limits: of `effective_limits`.
    """
    n_slots = market.n_slots
    load = np.repeat(load_frac * feeder.load_kva[None], n_slots, axis=0)
    taps, steps = joint_positions(devices)
    start = np.array([bank.start for bank in devices.banks], dtype=np.int64)
    own = np.flatnonzero((taps == devices.tap_changer.start) & (steps == start).all(axis=1))[0]
    head = float(head_voltage_pu(devices, devices.tap_changer.start, source_pu))
    kvar = np.tensordot(start, bank_kvar(devices, len(feeder)), axes=1) if len(start) else None
    in_service = None if kvar is None else np.repeat(kvar[None], n_slots, axis=0)
    found = effective_limits(feeder, load, head, capacitor_kvar=in_service, **limits)
    return NetworkProblem(
        market=market,
        feeder=feeder,
        devices=devices,
        source_pu=source_pu,
        load_kva=load,
        limits=found,
        tap_position=taps,
        capacitor_step=steps,
        admissible=admissible_positions(feeder, devices, source_pu, load, found, taps, steps),
        own=np.full(n_slots, own, dtype=np.int64),
    )


def plan_at(problem: NetworkProblem, position_kw: FloatArray) -> NetworkPlan:
    """A plan, possible or not, with given positions (T, S): storage does it all."""
    market = problem.market
    nothing = np.zeros_like(position_kw)
    return NetworkPlan(MarketPlan(market.pv_kw - market.ev_kw - position_kw, nothing, nothing.copy()), problem.own)


def line_with_load(n: int, resistance_ohm: float, reactance_ohm: float, load_kva: complex) -> Feeder:
    """A line of ``n`` equal branches without coupling between phases, the same load on every phase and bus, 150 A."""
    impedance = np.zeros((n + 1, 3, 3), dtype=complex)
    impedance[1:] = (resistance_ohm + 1j * reactance_ohm) * np.eye(3)
    load = np.full((n + 1, 3), load_kva, dtype=complex)
    load[0] = 0.0
    return Feeder.from_arrays(
        parent=[-1, *range(n)],
        impedance_ohm=impedance,
        line_to_line_kv=12.66,
        load_kva=load,
        ampacity_a=np.full(n + 1, 150.0),
    )
