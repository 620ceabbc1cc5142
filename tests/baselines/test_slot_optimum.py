"""The optimum of each slot as a policy: by hand, against the exact strategy and enumeration, and re-planning."""

import dataclasses
import itertools

import numpy as np
import pytest
from fast_fixtures import Request, fast_hand_day, fast_scenario

from evcs_gym.baselines import optimum, slot_optimum
from evcs_gym.baselines.fast_charging import Answer
from evcs_gym.baselines.policy_fast import FastStage
from evcs_gym.baselines.problems.fast_charging import FastProblem
from evcs_gym.baselines.registry import make_policy, names_of
from evcs_gym.baselines.score import rollout, world_of
from evcs_gym.baselines.slot_optimum import GAP, SlotOptimum
from evcs_gym.envs import Day, Scenario
from evcs_gym.envs.errors import InfeasibleError, SolverError
from evcs_gym.envs.fleet import fast
from evcs_gym.envs.units import N_SLOTS

LAST = N_SLOTS - 1


@pytest.fixture(scope="module")
def city() -> Scenario:
    """Three plugs of 20 kW, two of 100 kW; voltage costs nothing."""
    return fast_scenario(voltage_eur_per_pu=0.0)


def plan_of(city: Scenario, day: Day) -> list[int]:
    """Stations to which the policy sends the requests of a day."""
    done = rollout(world_of(city, [day], "fast_charging"), make_policy("slot_optimum", "fast_charging"))
    return [int(station) for station in done.station[0, : int(done.n_requests[0])]]


def test_the_slot_is_planned_as_a_whole(city: Scenario) -> None:
    # 100 kW of surplus at the quick station, none at the slow one, in the last slot: a car there absorbs 82 or 84 kW.
    # One by one both would go there; the second one would draw 68 kW too much. The slow plug draws 20 kW: 0.1 * 20 = 2
    # EUR instead of 0.1 * (68 - 16) = 5.2 EUR, whatever the way costs.
    dg = np.full((N_SLOTS, 2), 10.0)
    dg[LAST, 1] = 110.0
    day = fast_hand_day(city, *[Request(slot=LAST, soc0_frac=0.2)] * 2, dg_kw=dg)
    assert sorted(plan_of(city, day)) == [0, 1]


@pytest.mark.parametrize("seed", range(3))
def test_in_the_last_slot_it_is_what_enumeration_finds(city: Scenario, seed: int) -> None:
    rng = np.random.default_rng(seed)
    requests = [
        Request(LAST, float(rng.uniform(0.05, 0.3)), tuple(rng.uniform(1.0, 30.0, 2).tolist())) for _ in range(4)
    ]
    day = fast_hand_day(city, *requests, base_kw=5.0, dg_kw=rng.uniform(0.0, 150.0, (N_SLOTS, 2)))
    costs = []
    for plan in itertools.product(range(3), repeat=len(requests)):
        try:
            costs.append(fast.replay(city, day, np.array(plan)).cost_eur)
        except InfeasibleError:
            continue
    best = fast.replay(city, day, np.array(plan_of(city, day))).cost_eur
    assert best == pytest.approx(min(costs), abs=GAP * max(1.0, best))


def test_it_costs_what_the_exact_strategy_costs(city: Scenario) -> None:
    for day in city.days(range(2), "test"):
        exact = optimum(city, day, "fast_charging", relative_gap=1e-6, horizon="slot")
        played = fast.replay(city, day, np.array(plan_of(city, day))).cost_eur
        assert played == pytest.approx(exact.cost_eur, rel=2.0 * GAP)
        assert played >= exact.lower_bound_eur - 1e-6


def test_a_slot_is_solved_once_and_again_when_it_went_another_way(
    city: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    solve = slot_optimum.solved

    def counted(window: FastProblem) -> Answer:
        sizes.append(window.n_requests)
        return solve(window)

    monkeypatch.setattr(slot_optimum, "solved", counted)
    day = fast_hand_day(city, *[Request(slot=3)] * 3, *[Request(slot=8)] * 2)
    world = world_of(city, [day], "fast_charging")
    policy = SlotOptimum()
    stage = FastStage(world, fast.initial_state(world, np.zeros(1, dtype=np.int64)))
    while stage.state.slot[0] < N_SLOTS:
        stage.state, _ = fast.step(world, stage.state, policy(stage.view()))
    assert sizes == [3, 2]
    stage.state = fast.initial_state(world, np.zeros(1, dtype=np.int64))
    other = 1 - policy(stage.view())  # somebody else sends the first request elsewhere
    stage.state, _ = fast.step(world, stage.state, other)
    assert policy(stage.view()).tolist() == SlotOptimum()(stage.view()).tolist()
    assert sizes == [3, 2, 3, 2, 2]


def test_rows_with_days_of_their_own_are_planned_apart(city: Scenario) -> None:
    days = [fast_hand_day(city, *[Request(slot=3)] * n) for n in (1, 4)]
    together = rollout(world_of(city, days, "fast_charging"), make_policy("slot_optimum", "fast_charging"))
    for row, day in enumerate(days):
        assert together.station[row, : int(together.n_requests[row])].tolist() == plan_of(city, day)


def test_names_and_a_slot_without_time(city: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    assert names_of("fast_charging")[-1] == "slot_optimum"
    assert names_of("normal_charging")[-1] == "receding_horizon"
    unproven = Answer(np.zeros(2, dtype=np.int64), 10.0, 9.0, 1.0)
    monkeypatch.setattr(slot_optimum, "solve_programme", lambda *_: dataclasses.replace(unproven))
    with pytest.raises(
        SolverError, match=r"policy 'slot_optimum': a slot of 2 requests must be solved to a gap of 0.0"
    ):
        plan_of(city, fast_hand_day(city, *[Request(slot=3)] * 2))
