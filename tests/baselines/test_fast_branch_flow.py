"""Voltage in the programme of fast charging against another form: the second-order branch flow of Farivar and Low.

Farivar and Low, Branch flow model, IEEE Trans. Power Syst. 28(3), 2013, 10.1109/TPWRS.2013.2255317, written here per
phase for a balanced line without mutual impedance, over the same dispatch, and handed to Clarabel as it is.
"""

import itertools
import time
from dataclasses import dataclass

import clarabel
import numpy as np
import pytest
from network_problems import line_with_load
from reference_fast_exact import play
from scipy.sparse import csc_matrix

from evcs_gym.baselines.fast_charging import Found, best_slot, solve_programme
from evcs_gym.baselines.normal_charging import Budget
from evcs_gym.baselines.problems import fast_charging as problems
from evcs_gym.baselines.problems.fast_charging import FastProblem
from evcs_gym.baselines.problems.normal_charging import NetworkProblem, voltage_cost
from evcs_gym.envs.types import FloatArray
from evcs_gym.envs.units import PHASE_BASE_KVA

STATION_BUS = (2, 4)
PRICE_EUR_PER_PU = 400.0
N_BUSES = 5


def case(seed: int) -> tuple[FastProblem, NetworkProblem]:
    """Six cars, a near station at the end of a weak line and a far one in its middle, limits that bind."""
    rng = np.random.default_rng(seed)
    feeder = line_with_load(N_BUSES - 1, 0.6, 0.4, 60.0 + 20.0j)
    problem = FastProblem(
        slot=np.zeros(6, dtype=np.int64),
        car=np.arange(6),
        need_kwh=rng.uniform(25.0, 60.0, 6),
        detour_kwh=np.column_stack([rng.uniform(3.0, 9.0, 6), rng.uniform(0.5, 2.0, 6)]),
        reach=np.ones((6, 2), dtype=np.bool_),
        request_weight=np.ones(6),
        plug_kw=np.array([100.0, 150.0]),
        net_kw=np.array([[-40.0, -60.0]]),
        free_plugs=np.full((1, 2), 6),
        import_eur_per_kwh=np.array([0.15]),
        absorb_eur_per_kw=0.02,
        stranded_eur=50.0,
    )
    load = np.broadcast_to(feeder.load_kva, (1, *feeder.load_kva.shape)).copy()
    network = NetworkProblem(
        feeder=feeder,
        source_pu=np.ones(1),
        charging_bus=np.array(STATION_BUS),
        load_kva=load,
        base_voltage_pu=np.ones((1, N_BUSES, 3)),
        vmin_pu=np.full((1, N_BUSES, 3), 0.0),
        vmax_pu=np.full((1, N_BUSES, 3), 1.1),
        voltage_eur_per_pu=PRICE_EUR_PER_PU,
    )
    base, converged = problems.plan_voltage(network, np.zeros((1, 2)))
    assert converged.all()
    tight = {"base_voltage_pu": base, "vmin_pu": base - 0.004}
    return problem, NetworkProblem(**{**network.__dict__, **tight})


@dataclass(frozen=True)
class BranchFlow:
    """Cost of (1) with priced voltage, and the voltage of every bus, (N,)."""

    cost_eur: float
    voltage_pu: FloatArray


class Conic:
    """min c x subject to rows in cones, collected row by row as Clarabel takes them: b - A x in a cone."""

    def __init__(self) -> None:
        self.cost: list[float] = []
        self.rows: list[dict[int, float]] = []
        self.right: list[float] = []
        self.kinds: list[object] = []

    def variable(self, cost: float = 0.0) -> int:
        self.cost.append(cost)
        return len(self.cost) - 1

    def equal(self, terms: dict[int, float], value: float) -> None:
        self.rows.append(terms)
        self.right.append(value)
        self.kinds.append(clarabel.ZeroConeT(1))

    def at_most(self, terms: dict[int, float], value: float) -> None:
        self.rows.append(terms)
        self.right.append(value)
        self.kinds.append(clarabel.NonnegativeConeT(1))

    def norm(self, rows: list[tuple[float, dict[int, float]]]) -> None:
        """The first affine row is at least the norm of the others."""
        for constant, terms in rows:
            self.rows.append({column: -factor for column, factor in terms.items()})
            self.right.append(constant)
        self.kinds.append(clarabel.SecondOrderConeT(len(rows)))

    def solve(self) -> FloatArray:
        entries = [(i, column, factor) for i, row in enumerate(self.rows) for column, factor in row.items()]
        i, column, factor = (np.array(part) for part in zip(*entries, strict=True))
        matrix = csc_matrix((factor, (i, column)), shape=(len(self.rows), len(self.cost)))
        settings = clarabel.DefaultSettings()
        settings.verbose = False
        nothing = csc_matrix((len(self.cost), len(self.cost)))
        cost, right = np.array(self.cost), np.array(self.right)
        found = clarabel.DefaultSolver(nothing, cost, matrix, right, self.kinds, settings).solve()
        assert str(found.status) == "Solved"
        return np.array(found.x)


def branch_flow(problem: FastProblem, network: NetworkProblem, station: np.ndarray | None) -> BranchFlow:
    """The relaxed dispatch, or a given one, in the second-order branch flow; the slack counts v over twice the limit,
    which is at most its price."""
    conic = Conic()
    n, n_stations = problem.n_requests, problem.n_stations
    energy = problem.need_kwh[:, None] + problem.detour_kwh
    power = np.minimum(problem.plug_kw, 2.0 * energy)
    sent = [[conic.variable(0.15 * energy[r, j]) for j in range(n_stations)] for r in range(n)]
    for r in range(n):
        conic.equal({sent[r][j]: 1.0 for j in range(n_stations)}, 1.0)
        for j in range(n_stations):
            conic.at_most({sent[r][j]: -1.0}, 0.0)
            if station is not None:
                conic.equal({sent[r][j]: 1.0}, float(station[r] == j))
    for j in range(n_stations):
        exchange = conic.variable(problem.absorb_eur_per_kw)
        for sign in (1.0, -1.0):
            terms = {sent[r][j]: sign * power[r, j] for r in range(n)} | {exchange: -1.0}
            conic.at_most(terms, -sign * float(problem.net_kw[0, j]))
    v = [conic.variable() for _ in range(N_BUSES)]
    conic.equal({v[0]: 1.0}, 1.0)
    flow = {bus: tuple(conic.variable() for _ in range(2)) for bus in range(1, N_BUSES)}
    current = {bus: conic.variable(1e-4) for bus in range(1, N_BUSES)}  # or a current without a flow costs nothing
    for bus in range(1, N_BUSES):
        (p, q), ell = flow[bus], current[bus]
        z = complex(network.feeder.impedance_pu[bus, 0, 0])
        load = network.load_kva[0, bus, 0] / PHASE_BASE_KVA
        below = flow.get(bus + 1)
        # voltage drop, then what arrives supplies load, stations and the next branch
        conic.equal(
            {v[bus]: 1.0, v[bus - 1]: -1.0, p: 2.0 * z.real, q: 2.0 * z.imag, ell: -(abs(z) ** 2)},
            0.0,
        )
        active = {p: 1.0, ell: -z.real} | ({} if below is None else {below[0]: -1.0})
        if bus in STATION_BUS:
            j = STATION_BUS.index(bus)
            active |= {sent[r][j]: -power[r, j] / 3.0 / PHASE_BASE_KVA for r in range(n)}
        conic.equal(active, float(load.real))
        conic.equal({q: 1.0, ell: -z.imag} | ({} if below is None else {below[1]: -1.0}), float(load.imag))
        above = v[bus - 1]
        conic.norm([(0.0, {above: 1.0, ell: 1.0}), (0.0, {above: 1.0, ell: -1.0}), (0.0, {p: 2.0}), (0.0, {q: 2.0})])
        limit = float(network.vmin_pu[0, bus, 0])
        slack = conic.variable(3.0 * PRICE_EUR_PER_PU / (2.0 * limit))
        conic.at_most({slack: -1.0}, 0.0)
        conic.at_most({v[bus]: -1.0, slack: -1.0}, -(limit**2))
    x = conic.solve()
    ell_eur = 1e-4 * sum(x[ell] for ell in current.values())
    return BranchFlow(float(np.array(conic.cost) @ x - ell_eur), np.sqrt(x[v]))


def true_cost(problem: FastProblem, network: NetworkProblem, station: np.ndarray) -> float:
    played = play(problem, station)
    voltage, _ = problems.plan_voltage(network, played.load_kw)
    return played.cost_eur + voltage_cost(network, voltage)


def best(problem: FastProblem, network: NetworkProblem) -> Found:
    return best_slot(problem, network, 0.0, Budget(time.monotonic(), 60.0))


@pytest.mark.parametrize("seed", range(4))
def test_both_forms_see_the_voltages_of_the_power_flow_at_the_plan(seed: int) -> None:
    problem, network = case(seed)
    found = best(problem, network)
    assert found.n_rows > 0
    station = found.answer.station
    cone = branch_flow(problem, network, station)
    voltage, _ = problems.plan_voltage(network, play(problem, station).load_kw)
    np.testing.assert_allclose(cone.voltage_pu, voltage[0, :, 0], atol=1e-6)
    assert found.linear_error_pu < 1e-3
    # the slack of the cone is in squares: less than the price by the share that the voltage lies below its limit
    assert cone.cost_eur == pytest.approx(true_cost(problem, network, station), rel=5e-3)


@pytest.mark.parametrize("seed", range(4))
def test_the_plan_is_the_best_of_all_and_the_cones_bound_it(seed: int) -> None:
    problem, network = case(seed)
    plans = [np.array(plan) for plan in itertools.product(range(2), repeat=6)]
    least = min(true_cost(problem, network, plan) for plan in plans)
    found = best(problem, network)
    assert true_cost(problem, network, found.answer.station) == pytest.approx(least, rel=2e-4)
    relaxed = branch_flow(problem, network, None)
    blind = solve_programme(problem, None, 0.0, Budget(time.monotonic(), 60.0), relaxed=True)
    assert blind.bound_eur - 0.05 <= relaxed.cost_eur <= least
    # the bound with linear rows and that of the cones differ by what each leaves out, not by the price of voltage
    assert found.answer.bound_eur == pytest.approx(relaxed.cost_eur, rel=0.02)
    assert found.answer.bound_eur > blind.bound_eur
