"""Peak and squares of the net load in Pyomo, in the place of the printed first term of (1) and (5)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyomo.environ as pyo
from pyomo.core.expr.numeric_expr import LinearExpression

from evcs_gym.baselines.problems.balance import Balance, reference_kw
from evcs_gym.envs.types import FloatArray

N_TANGENTS = 17
"""Tangents to each square: a plan's square is at most (range / 32)^2 above them."""

Draws = Mapping[int, tuple[Sequence[float], Sequence[Any]]]
"""What is charged at each place, slot * C + bus: powers [kW] and variables."""


def balance(
    model: Any, kind: Balance, net_kw: FloatArray, draws: Draws, most_kw: FloatArray, price: float
) -> LinearExpression:
    """Price of `imbalance_kw`; most_kw (T, C): the largest charging power of every place."""
    return (_peak if kind == "peak" else _squares)(model, net_kw, draws, most_kw, price)


def _peak(model: Any, net_kw: FloatArray, draws: Draws, most_kw: FloatArray, price: float) -> LinearExpression:
    """peak >= |x| of a bus, in every slot."""
    n_slots, n_buses = net_kw.shape
    highest = np.maximum(np.abs(net_kw), np.abs(net_kw + most_kw)).max(axis=0)
    model.peak_kw = pyo.Var(range(n_buses), bounds=lambda _, c: (0.0, float(highest[c])))
    model.peak = pyo.ConstraintList()
    for place, net in enumerate(net_kw.ravel().tolist()):
        powers, variables = draws.get(place, ((), ()))
        own = [*variables, model.peak_kw[place % n_buses]]
        for sign in (1.0, -1.0):
            body = LinearExpression(
                constant=0.0, linear_coefs=[*(-sign * power for power in powers), 1.0], linear_vars=own
            )
            model.peak.add((sign * net, body, None))
    return LinearExpression(
        constant=0.0, linear_coefs=[price * n_slots] * n_buses, linear_vars=list(model.peak_kw.values())
    )


def _squares(model: Any, net_kw: FloatArray, draws: Draws, most_kw: FloatArray, price: float) -> LinearExpression:
    """square >= its tangents, x^2 from below; exact where nobody charges."""
    net, most = net_kw.ravel(), most_kw.ravel()
    places = sorted(draws)
    highest = np.maximum(net**2, (net + most) ** 2)
    model.square_kw2 = pyo.Var(places, bounds=lambda _, place: (0.0, float(highest[place])))
    model.square = pyo.ConstraintList()
    for place in places:
        powers, variables = draws[place]
        for touch in np.linspace(net[place], net[place] + most[place], N_TANGENTS).tolist():
            body = LinearExpression(
                constant=0.0,
                linear_coefs=[*(-2.0 * touch * power for power in powers), 1.0],
                linear_vars=[*variables, model.square_kw2[place]],
            )
            model.square.add((2.0 * touch * float(net[place]) - touch**2, body, None))
    alone = net.copy()
    alone[places] = 0.0
    factor = price / reference_kw(net_kw)
    return LinearExpression(
        constant=factor * float((alone**2).sum()),
        linear_coefs=[factor] * len(places),
        linear_vars=list(model.square_kw2.values()),
    )


def balance_point(model: Any, kind: Balance, total_kw: FloatArray) -> tuple[list[Any], FloatArray]:
    """The variables that `balance` added and what they are at least for x = ``total_kw`` (T, C)."""
    if kind == "peak":
        return list(model.peak_kw.values()), np.asarray(np.abs(total_kw).max(axis=0))
    places = np.array(list(model.square_kw2.keys()), dtype=np.int64)
    return list(model.square_kw2.values()), np.asarray(total_kw.ravel()[places] ** 2)
