"""What each session needs: energy, slots and power, in both modes of normal charging (model.md section 9)."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from evcs_gym.envs.types import FloatArray, IntArray, Sessions, frozen
from evcs_gym.envs.units import SLOT_H

ChargingMode = Literal["on_off", "modulated"]

SLOT_ROUNDING = 1e-9
"""A need within this of a whole number of slots counts as that number."""


@dataclass(frozen=True, eq=False)
class Needs:
    """Demand of each session, all arrays (S,), grid side.

    energy_kwh: what is delivered by the end of the session. infeasible_kwh: what is missing for a full battery because
    the stay is too short. n_slots: fewest slots that deliver the energy. power_kw: in ``on_off`` the constant power
    of exactly ``n_slots`` slots, in ``modulated`` the largest power of any slot.
    """

    energy_kwh: FloatArray
    infeasible_kwh: FloatArray
    n_slots: IntArray
    power_kw: FloatArray


def session_needs(sessions: Sessions, mode: ChargingMode) -> Needs:
    """Needs of the sessions: (8) full at departure, or charging in every slot where that is impossible.

    Source: Sun, Yang, Yan (2017), 10.1186/s41601-017-0065-x, number of slots k = ceil((1 - SoC0) C / (eta p dt)).
    """
    full_kwh = (1.0 - sessions.soc0_frac) * sessions.capacity_kwh / sessions.efficiency_frac
    slot_kwh = sessions.power_kw * SLOT_H
    stay = sessions.departure_slot - sessions.arrival_slot
    energy_kwh = np.minimum(full_kwh, slot_kwh * stay)
    n_slots = np.ceil(energy_kwh / slot_kwh - SLOT_ROUNDING).astype(np.int64)
    energy_kwh = np.where(n_slots > 0, energy_kwh, 0.0)  # a need within the rounding is none: no slot could deliver it
    if mode == "on_off":
        power_kw = np.where(n_slots > 0, energy_kwh / (np.maximum(n_slots, 1) * SLOT_H), sessions.power_kw)
    else:
        power_kw = sessions.power_kw.copy()
    return Needs(
        energy_kwh=frozen(energy_kwh),
        infeasible_kwh=frozen(np.where(n_slots > 0, full_kwh - energy_kwh, 0.0)),
        n_slots=frozen(n_slots),
        power_kw=frozen(power_kw),
    )
