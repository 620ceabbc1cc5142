"""The operator `misocp`: by hand, against a nonlinear optimiser, on whole days, and what it says of failures."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from market_fixtures import city_world, play_random, small_world, stations
from network_problems import line_with_load
from scipy.optimize import minimize

from evcs_gym.baselines import operator_misocp
from evcs_gym.baselines.operator_misocp import MISOCP, SlotNetwork
from evcs_gym.baselines.registry import OPERATORS, make_operator, make_rule
from evcs_gym.baselines.score_market import market_rollout, slots_outside
from evcs_gym.envs import load_scenario
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.grid import Feeder, load_feeder
from evcs_gym.envs.grid.operator import PASS_TOLERANCE
from evcs_gym.envs.market.core import MarketWorld, step
from evcs_gym.envs.market.env import MarketEnv
from evcs_gym.envs.market.operators import NO_OPERATOR, PRO_RATA, Answer, Operator, empty_answer
from evcs_gym.envs.market.prepare import market_world
from evcs_gym.envs.types import FloatArray
from evcs_gym.envs.units import N_SLOTS

OHM = 12.66**2 / 3.0
"""Impedance of 1 pu."""
SURE_KW = 0.05
"""Power by which two ways to the same limit may differ."""


def answer(operator: Operator, world: MarketWorld, position_kw: FloatArray, entry: int = 0) -> Answer:
    """What an operator says to positions (B, S) in a slot of a world."""
    position = np.array(position_kw, dtype=np.float64)
    out = empty_answer(len(position), world.n_stations, len(world.feeder))
    at = np.full(len(position), entry, dtype=np.int64)
    start = (
        world.grid.source_pu[at, None, None] * np.exp(-2j * np.pi / 3.0 * np.arange(3)) * np.ones_like(out.voltage_pu)
    )
    operator.answer(0, len(position), world.grid, at, position, start, out)
    return out


def on_a_line(**limits: float) -> MarketWorld:
    """Two stations on a line of 0.1 pu a branch, no load."""
    feeder = line_with_load(2, 0.10 * OHM, 0.05 * OHM, 0.0)
    return small_world(stations(2), feeder=feeder, limits=limits)


def cut_kw(asked: FloatArray, given: Answer) -> FloatArray:
    """(B,) sum of cuts."""
    return np.asarray((np.abs(asked) - np.abs(given.adjusted_kw)).sum(axis=1))


# --- by hand -------------------------------------------------------------------------------------------------


def test_one_station_alone_is_cut_to_the_limit_as_pro_rata_does() -> None:
    """There is nothing to share."""
    world = small_world(stations(1), feeder=line_with_load(1, 0.2 * OHM, 0.1 * OHM, 0.0), limits={"vmin_pu": 0.97})
    asked = np.array([[-600.0], [-100.0]])
    mine, shared = answer(MISOCP, world, asked), answer(PRO_RATA, world, asked)
    assert mine.adjusted_kw == pytest.approx(shared.adjusted_kw, abs=SURE_KW)
    assert mine.cap_kw[0, 0] == abs(mine.adjusted_kw[0, 0]) < 599.0
    assert mine.adjusted_kw[1, 0] == -100.0
    assert np.isinf(mine.cap_kw[1, 0])


@pytest.mark.parametrize(("sign", "limits"), [(-1.0, {"vmin_pu": 0.965}), (1.0, {"vmax_pu": 1.03})])
def test_only_the_station_at_the_end_of_the_line_is_cut(sign: float, limits: dict[str, float]) -> None:
    """A kW at bus 2 moves its voltage by twice as much as one at bus 1; pro rata cuts both."""
    world = on_a_line(**limits)
    asked = sign * np.array([[400.0, 400.0]])
    mine, shared = answer(MISOCP, world, asked), answer(PRO_RATA, world, asked)
    assert (mine.adjusted_kw[0, 0], np.isinf(mine.cap_kw[0, 0])) == (asked[0, 0], True)
    assert np.isfinite(shared.cap_kw).all()
    assert 1.0 < cut_kw(asked, mine)[0] < 0.85 * cut_kw(asked, shared)[0]
    assert mine.factor[0] == pytest.approx(abs(mine.adjusted_kw[0, 1]) / 400.0)
    assert not mine.fallback.any()


def test_a_slot_within_its_limits_passes_untouched() -> None:
    world = on_a_line(vmin_pu=0.965)
    asked = np.array([[-20.0, 30.0]])
    mine, free = answer(MISOCP, world, asked), answer(NO_OPERATOR, world, asked)
    assert mine.adjusted_kw.tolist() == asked.tolist()
    assert np.isinf(mine.cap_kw).all()
    assert (mine.factor[0], mine.n_extra_flows[0]) == (1.0, 0)
    assert mine.voltage_pu.tobytes() == free.voltage_pu.tobytes()


# --- property and oracle -------------------------------------------------------------------------------------


def stressed(feeder: Feeder, **limits: float) -> MarketWorld:
    return small_world(
        stations(3, bus=[17, 24, 32], connection_kw=2000.0),
        feeder=feeder,
        load_kva=0.6 * feeder.load_kva,
        source_pu=1.02,
        limits=limits,
    )


WORLD = stressed(load_feeder("synthetic33"), vmin_pu=0.96, vmax_pu=1.03, unbalance_frac=0.006)


@settings(deadline=None, max_examples=12)
@given(st.lists(st.floats(-1.0, 1.0), min_size=3, max_size=3))
def test_limits_hold_signs_stay_and_nobody_cuts_less(share: list[float]) -> None:
    """Coupled phases, unbalanced loads, three kinds of limits."""
    asked = 900.0 * np.array([share])
    mine, shared = answer(MISOCP, WORLD, asked), answer(PRO_RATA, WORLD, asked)
    slot = SlotNetwork.of(WORLD.grid, 0, asked[0])
    flow, excess = slot.flow(mine.adjusted_kw[0], mine.voltage_pu[0])
    assert excess <= 2.0 * PASS_TOLERANCE
    assert np.abs(flow.voltage_pu - mine.voltage_pu).max() < 1e-7
    assert (mine.adjusted_kw * asked >= 0.0).all()
    assert (np.abs(mine.adjusted_kw) <= np.abs(asked)).all()
    assert cut_kw(asked, mine)[0] <= cut_kw(asked, shared)[0] + SURE_KW
    assert not mine.fallback.any()


@pytest.mark.parametrize("asked", [(-700.0, 100.0, -650.0), (800.0, 700.0, 900.0), (1500.0, -900.0, -700.0)])
def test_a_nonlinear_optimiser_on_the_power_flow_finds_no_smaller_cut(asked: tuple[float, float, float]) -> None:
    """SLSQP of SciPy with slopes by differences, from three starts."""
    wish = np.array(asked)
    mine = answer(MISOCP, WORLD, wish[None])
    slot, start = SlotNetwork.of(WORLD.grid, 0, wish), mine.voltage_pu[0]
    least = np.inf
    for first in (0.0, 0.5, 0.9):
        found = minimize(
            lambda share: -float(np.abs(wish) @ share) / 1000.0,
            np.full(3, first),
            method="SLSQP",
            bounds=[(0.0, 1.0)] * 3,
            constraints={"type": "ineq", "fun": lambda share: -100.0 * slot.flow(share * wish, start)[1]},
            options={"eps": 1e-6, "ftol": 1e-10, "maxiter": 60},
        )
        if slot.flow(found.x * wish, start)[1] <= PASS_TOLERANCE:
            least = min(least, float(np.abs(wish).sum() - np.abs(wish) @ found.x))
    assert cut_kw(wish[None], mine)[0] > 1.0
    assert cut_kw(wish[None], mine)[0] <= least + 0.1


# --- days ----------------------------------------------------------------------------------------------------


def test_every_slot_of_random_days_keeps_its_limits() -> None:
    world = city_world(2)
    _, seen = play_random(world, 2, seed=3, operator=MISOCP)
    n_capped = 0
    for before, action, outcome in seen:
        free = step(world, before, action, NO_OPERATOR)[1]
        broken = slots_outside(world, before, free) > 0
        capped = np.isfinite(outcome.cap_kw).any(axis=1)
        assert not slots_outside(world, before, outcome).any()
        assert capped[broken].all()
        n_capped += int(capped.sum())
        shared = step(world, before, action, PRO_RATA)[1]
        assert (np.abs(outcome.position_kw).sum(axis=1) >= np.abs(shared.position_kw).sum(axis=1) - SURE_KW).all()
        assert not outcome.fallback.any()
    assert n_capped > 5


def test_a_shipped_day_with_binding_slots() -> None:
    scenario = load_scenario("ieee33_twelve")
    world, rule = market_world(scenario, [scenario.day(19, "test")]), make_rule("dp_truthful", "market")
    mine, shared = (market_rollout(world, rule, make_operator(name)) for name in ("misocp", "pro_rata"))
    assert mine.n_capped_slots[0] >= 4
    assert (mine.n_violations[0], mine.n_fallbacks[0]) == (0, 0)
    assert mine.profit_eur.sum() == pytest.approx(mine.income_eur[0] - mine.cost_eur[0])
    lost = [r.curtailed_kwh[0] + r.unserved_kwh[0] + r.moved_kwh[0] for r in (mine, shared)]
    assert lost[0] < lost[1]


# --- what it says --------------------------------------------------------------------------------------------


def test_an_answer_that_is_not_its_own_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_misocp, "_programme", lambda *_: None)
    world, asked = on_a_line(vmin_pu=0.965), np.array([[-400.0, -400.0], [10.0, 10.0]])
    mine, shared = answer(MISOCP, world, asked), answer(PRO_RATA, world, asked)
    assert mine.fallback.tolist() == [True, False]
    assert mine.adjusted_kw.tolist() == shared.adjusted_kw.tolist()


def test_an_answer_that_is_refused_to_the_end_is_scaled_and_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programme's way of sharing stays where it keeps more than that of what was asked for."""
    monkeypatch.setattr(operator_misocp, "_programme", lambda *_: np.array([-400.0, -320.0]))
    world, asked = on_a_line(vmin_pu=0.965), np.array([[-400.0, -400.0]])
    mine, shared = answer(MISOCP, world, asked), answer(PRO_RATA, world, asked)
    assert mine.adjusted_kw[0, 1] / mine.adjusted_kw[0, 0] == pytest.approx(0.8)
    excess = SlotNetwork.of(world.grid, 0, asked[0]).flow(mine.adjusted_kw[0], mine.voltage_pu[0])[1]
    assert -1e-5 < excess <= 2.0 * PASS_TOLERANCE
    assert cut_kw(asked, mine)[0] < cut_kw(asked, shared)[0] - 1.0
    assert mine.fallback.all()


def test_the_environment_shows_it_in_its_info(monkeypatch: pytest.MonkeyPatch) -> None:
    scenario, told = load_scenario("ieee33_twelve"), []
    monkeypatch.setattr(operator_misocp, "_programme", lambda *_: None)
    env = MarketEnv(scenario, "test", 2, operator=MISOCP)
    env.reset(options={"day": scenario.day(19, "test")})
    for _ in range(N_SLOTS):
        *_, info = env.step(np.zeros(env.action_space.shape or (), dtype=np.float32))
        told.append(info["operator_fallback"])
    assert True in told
    assert False in told


def test_feeders_with_equipment_are_refused() -> None:
    scenario = load_scenario("ieee123_grid24")
    world = market_world(scenario, [scenario.day(0, "test")])
    with pytest.raises(ConfigError, match=r"operator 'misocp' knows lines and constant-power wye loads, and feeder"):
        market_rollout(world, make_rule("idle", "market"), MISOCP)


def test_operators_have_names() -> None:
    assert [make_operator(name) for name in OPERATORS] == [PRO_RATA, MISOCP, NO_OPERATOR]
    with pytest.raises(ConfigError, match=r"there is no operator 'misopc'; did you mean 'misocp'\? \(known: pro_rata"):
        make_operator("misopc")
