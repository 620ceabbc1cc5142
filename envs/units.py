"""Conversions and bases: the only module in which the numbers 1000 and 3600 appear.

Power times ``SLOT_H`` is the only way from a power [kW] to an energy [kWh] of a slot.
"""

from typing import Final

N_SLOTS: Final = 48
"""Slots of a day, from 12:00 to 12:00 of the fixed clock UTC+1."""
SLOT_H: Final = 0.5
"""Length of a slot [h]."""
DAY_START_HOUR: Final = 12.0
"""Clock time at which slot 0 begins [h, UTC+1]."""
PHASE_BASE_KVA: Final = 1000.0
"""Per-unit base of one phase: 1 MVA."""
KW_PER_MW: Final = 1000.0
KWH_PER_MWH: Final = 1000.0
V_PER_KV: Final = 1000.0
G_PER_KG: Final = 1000.0
S_PER_H: Final = 3600.0
MS_PER_S: Final = 1000.0
US_PER_S: Final = 1e6
NS_PER_S: Final = 1e9


def eur_per_kwh(eur_per_mwh: float) -> float:
    """Price in EUR/kWh of a price in EUR/MWh."""
    return eur_per_mwh / KWH_PER_MWH
