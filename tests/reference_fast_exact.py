"""Plain, slow twin of fast charging: a day played slot by slot, straight from the sentences of model.md section 8."""

import itertools
from dataclasses import dataclass

import numpy as np

from evcs_gym.baselines.problems.fast_charging import FastProblem
from evcs_gym.envs.types import FloatArray, IntArray

SLOT_H = 0.5


@dataclass
class Played:
    """What a plan costs, what stations draw (T, J), and whether every decision was allowed."""

    cost_eur: float
    load_kw: FloatArray
    allowed: bool


def play(problem: FastProblem, station: IntArray) -> Played:
    """Play a plan (R,) request by request."""
    n_slots, n_stations = problem.net_kw.shape
    left_kwh: list[list[float]] = [[] for _ in range(n_stations)]
    load_kw, cost, allowed = np.zeros((n_slots, n_stations)), 0.0, True
    for t in range(n_slots):
        for r in np.flatnonzero(problem.slot == t):
            free = [len(left_kwh[j]) < problem.free_plugs[t, j] for j in range(n_stations)]
            options = [j for j in range(n_stations) if problem.reach[r, j] and free[j]]
            j = int(station[r])
            allowed &= j in options if options else j == n_stations
            if j == n_stations:
                cost += problem.stranded_eur
                continue
            energy_kwh = problem.need_kwh[r] + problem.detour_kwh[r, j]
            left_kwh[j].append(energy_kwh)
            cost += problem.request_weight[r] * energy_kwh * problem.import_eur_per_kwh[t]
        for j in range(n_stations):
            powers = [min(problem.plug_kw[j], kwh / SLOT_H) for kwh in left_kwh[j]]
            load_kw[t, j] = sum(powers)
            left_kwh[j] = [k - p * SLOT_H for k, p in zip(left_kwh[j], powers, strict=True) if k - p * SLOT_H > 1e-9]
        cost += problem.absorb_eur_per_kw * float(np.abs(problem.net_kw[t] + load_kw[t]).sum())
    return Played(cost, load_kw, allowed)


def best_by_enumeration(problem: FastProblem) -> float:
    """Cost of the cheapest plan that is allowed, among all."""
    plans = itertools.product(range(problem.n_stations + 1), repeat=problem.n_requests)
    played = (play(problem, np.array(plan)) for plan in plans)
    return min(one.cost_eur for one in played if one.allowed)


def tiny_problem(seed: int, n_requests: int, n_stations: int, n_slots: int, equal_power: bool = False) -> FastProblem:
    """A random problem with few plugs, in which stranding can pay, plans are forced, and charges last."""
    rng = np.random.default_rng(seed)
    slot = np.sort(rng.integers(0, n_slots, n_requests))
    plug_kw = np.full(n_stations, 40.0) if equal_power else rng.choice([30.0, 50.0, 120.0], n_stations)
    count = np.bincount(slot, minlength=n_slots)
    return FastProblem(
        slot=slot,
        car=np.arange(n_requests),
        need_kwh=rng.uniform(25.0, 70.0, n_requests),
        detour_kwh=rng.uniform(0.1, 4.0, (n_requests, n_stations)),
        reach=rng.random((n_requests, n_stations)) < 0.75,
        request_weight=rng.uniform(0.3, 3.0) * n_requests / n_slots / np.maximum(count, 1)[slot],
        plug_kw=plug_kw,
        net_kw=rng.uniform(-150.0, 60.0, (n_slots, n_stations)),
        free_plugs=np.tile(rng.integers(1, 3, n_stations), (n_slots, 1)),
        import_eur_per_kwh=rng.uniform(0.05, 0.4, n_slots),
        absorb_eur_per_kw=float(rng.choice([0.01, 0.05, 0.15])),
        stranded_eur=float(rng.choice([2.0, 10.0, 50.0])),
    )


def one_slot(n_requests: int, n_stations: int, equal_power: bool = False, seed: int = 1) -> FastProblem:
    """Requests of one slot spread over a square of 20 km; generation that seven tenths of them could take, unevenly."""
    rng = np.random.default_rng(seed)
    car, place = rng.uniform(0.0, 20.0, (n_requests, 1, 2)), rng.uniform(2.0, 18.0, (1, n_stations, 2))
    detour_kwh = 0.18 * 1.08 * np.abs(car - place).sum(axis=2)
    capacity_kwh = rng.choice([39.0, 46.3, 52.0, 57.5, 64.8, 77.0], n_requests)
    soc_frac = rng.uniform(0.08, 0.3, n_requests)
    need_kwh = (1.0 - soc_frac) * capacity_kwh
    plug_kw = np.full(n_stations, 50.0) if equal_power else rng.choice([50.0, 120.0, 150.0, 350.0], n_stations)
    total_kw = min(2.0 * float(need_kwh.mean()), float(plug_kw.mean())) * n_requests
    return FastProblem(
        slot=np.zeros(n_requests, dtype=np.int64),
        car=np.arange(n_requests),
        need_kwh=need_kwh,
        detour_kwh=detour_kwh,
        reach=detour_kwh <= (soc_frac * capacity_kwh)[:, None],
        request_weight=np.ones(n_requests),
        plug_kw=plug_kw,
        net_kw=-0.7 * total_kw * rng.dirichlet(np.full(n_stations, 2.0), 1),
        free_plugs=np.full((1, n_stations), int(np.ceil(1.6 * n_requests / n_stations))),
        import_eur_per_kwh=np.array([0.12]),
        absorb_eur_per_kw=0.05,
        stranded_eur=50.0,
    )
