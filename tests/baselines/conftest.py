"""Small problems of normal charging, by hand and at random."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from evcs_gym.baselines.forms.normal_charging import VoltageRows
from evcs_gym.baselines.problems.normal_charging import NormalProblem
from evcs_gym.envs.fleet.needs import ChargingMode
from evcs_gym.envs.types import FloatArray

ProblemMaker = Callable[..., NormalProblem]


def problem_by_hand(
    net_kw: Sequence[Sequence[float]],
    price: Sequence[float],
    stays: Sequence[tuple[int, int]],
    n_slots: Sequence[int],
    power_kw: Sequence[float],
    bus: Sequence[int] | None = None,
    phase: Sequence[int] | None = None,
    mode: ChargingMode = "on_off",
    gap_eur_per_kwh: float = 0.08,
    energy_weight: float = 1.0,
    energy_kwh: Sequence[float] | None = None,
) -> NormalProblem:
    """A problem of half-hours; without ``energy_kwh`` each car needs ``n_slots`` slots at its power."""
    n = len(stays)
    power = np.array(power_kw, dtype=np.float64)
    slots = np.array(n_slots, dtype=np.int64)
    return NormalProblem(
        mode=mode,
        bus=np.array([0] * n if bus is None else bus, dtype=np.int64),
        phase=np.array([-1] * n if phase is None else phase, dtype=np.int64),
        arrival_slot=np.array([stay[0] for stay in stays], dtype=np.int64),
        departure_slot=np.array([stay[1] for stay in stays], dtype=np.int64),
        car=np.arange(n) + 100,
        power_kw=power,
        energy_kwh=slots * power * 0.5 if energy_kwh is None else np.array(energy_kwh, dtype=np.float64),
        n_slots=slots,
        infeasible_kwh=np.zeros(n),
        net_kw=np.array(net_kw, dtype=np.float64),
        import_eur_per_kwh=np.array(price, dtype=np.float64),
        gap_eur_per_kwh=gap_eur_per_kwh,
        energy_weight=energy_weight,
    )


def problem_at_random(
    seed: int,
    n_cars: int = 4,
    n_buses: int = 2,
    n_slots: int = 6,
    mode: ChargingMode = "on_off",
    one_power: bool = False,
) -> NormalProblem:
    """A tiny random day with DG surplus in about half of the slots; powers differ unless ``one_power``."""
    rng = np.random.default_rng(seed)
    arrival = rng.integers(0, n_slots - 2, n_cars)
    departure = np.minimum(arrival + rng.integers(2, n_slots, n_cars), n_slots)
    power = np.full(n_cars, 7.4) if one_power else rng.choice([3.7, 7.4, 11.0], n_cars) * rng.uniform(0.7, 1.0, n_cars)
    slots = np.array([rng.integers(1, stay + 1) for stay in departure - arrival])
    return problem_by_hand(
        net_kw=rng.normal(-2.0, 8.0, (n_slots, n_buses)).tolist(),
        price=rng.uniform(0.02, 0.12, n_slots).tolist(),
        stays=list(zip(arrival.tolist(), departure.tolist(), strict=True)),
        n_slots=slots.tolist(),
        power_kw=power.tolist(),
        bus=np.sort(rng.integers(0, n_buses, n_cars)).tolist(),
        phase=rng.integers(-1, 3, n_cars).tolist(),
        mode=mode,
    )


def rows_at_random(problem: NormalProblem, seed: int, n_rows: int = 5) -> VoltageRows:
    """Lower and upper voltage rows with random gains and limits, some broken whatever the cars do."""
    rng = np.random.default_rng(seed)
    n_slots, n_buses = problem.net_kw.shape
    sign = rng.choice([-1.0, 1.0], n_rows)
    return VoltageRows(
        slot=rng.integers(0, n_slots, n_rows),
        bus=rng.integers(1, 9, n_rows),
        phase=rng.integers(0, 3, n_rows),
        limit_pu=1.0 - sign * rng.uniform(-0.01, 0.05, n_rows),
        base_pu=np.ones(n_rows),
        sign=sign,
        gain_pu_per_kw=rng.normal(-0.002, 0.002, (n_rows, n_buses, 4)),
        price_eur_per_pu=100.0,
    )


def every_plan(problem: NormalProblem) -> FloatArray:
    """All ``on_off`` plans of a tiny problem, (number of plans, T, S)."""
    per_car = []
    for i in range(problem.n_sessions):
        stay = range(int(problem.arrival_slot[i]), int(problem.departure_slot[i]))
        per_car.append(list(itertools.combinations(stay, int(problem.n_slots[i]))))
    choices = list(itertools.product(*per_car))
    plans = np.zeros((len(choices), len(problem.net_kw), problem.n_sessions))
    for number, choice in enumerate(choices):
        for i, slots in enumerate(choice):
            plans[number, list(slots), i] = problem.power_kw[i]
    return plans


@pytest.fixture
def by_hand() -> ProblemMaker:
    """See `problem_by_hand`."""
    return problem_by_hand


@pytest.fixture(scope="session")
def at_random() -> ProblemMaker:
    """See `problem_at_random`."""
    return problem_at_random


@pytest.fixture(scope="session")
def enumerated() -> Callable[[NormalProblem], FloatArray]:
    """See `every_plan`."""
    return every_plan


@pytest.fixture(scope="session")
def random_rows() -> Callable[..., VoltageRows]:
    """See `rows_at_random`."""
    return rows_at_random
