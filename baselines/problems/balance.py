"""How far a day is from balance: the first term of (1) and (5), and two others that studies may put in its place.

x = base + charging - DG of a slot and bus. With the energy E that is charged fixed,
sum |x| = sum x + 2 sum max(0, -x), and sum x does not depend on the plan: the printed term is twice the DG that nobody
takes, and where base exceeds DG it sees no difference between a flat and a peaked load. The others do.
"""

from typing import Final, Literal

import numpy as np

from evcs_gym.envs.types import FloatArray

Balance = Literal["exchange", "peak", "quadratic"]
BALANCES: Final[tuple[Balance, ...]] = ("exchange", "peak", "quadratic")
"""exchange: sum |x|, the environments' price. peak: every slot counts as the largest |x| of its bus. quadratic:
sum x^2 over the mean |base - DG|. All in kW summed over slots and buses, so that one price fits them."""


def imbalance_kw(kind: Balance, total_kw: FloatArray, net_kw: FloatArray) -> float:
    """The term for x = ``total_kw`` (T, C); ``net_kw`` (T, C) is x without charging."""
    if kind == "peak":
        return float(len(total_kw) * np.abs(total_kw).max(axis=0).sum())
    if kind == "quadratic":
        return float((total_kw**2).sum() / reference_kw(net_kw))
    return float(np.abs(total_kw).sum())


def reference_kw(net_kw: FloatArray) -> float:
    """Mean |base - DG| of a day (T, C), at least 1 kW: what squares are divided by."""
    return max(1.0, float(np.abs(net_kw).mean()))
