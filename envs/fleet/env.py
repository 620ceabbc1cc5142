"""Gymnasium view of normal charging: a batch of one over the pure core."""

from typing import Any

import gymnasium as gym
import numpy as np

from evcs_gym.envs.arguments import as_scenario, checked_action
from evcs_gym.envs.day import Day
from evcs_gym.envs.draws import draw_days
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.fleet import normal
from evcs_gym.envs.fleet.observation import action_space, observation_space
from evcs_gym.envs.fleet.pool import load_pool
from evcs_gym.envs.pool import DEFAULT_POOL_DAYS
from evcs_gym.envs.resets import given_day, known_options
from evcs_gym.envs.scenario import Scenario
from evcs_gym.envs.types import FloatArray
from evcs_gym.envs.units import N_SLOTS

DEFAULT_SCENARIO = "ieee33_residential"


def check_action(action: Any, shape: tuple[int, ...]) -> FloatArray:
    """The action as float64 of the given shape, see `checked_action`."""
    return checked_action(action, shape, "one number per charging bus")


def slot_info(outcome: normal.Outcome, row: int) -> dict[str, Any]:
    """What ``info`` tells of a slot of one environment: true EUR and named terms, whatever the reward is."""
    return {
        "cost_eur": float(outcome.cost_eur[row].sum()),
        "gap_eur": float(outcome.gap_eur[row].sum()),
        "energy_eur": float(outcome.energy_eur[row].sum()),
        "voltage_eur": float(outcome.voltage_eur[row].sum()),
        "bus_cost_eur": outcome.cost_eur[row],
        "bus_power_kw": outcome.bus_power_kw[row],
        "must_run_kw": outcome.must_run_kw[row],
        "n_violations": int(outcome.n_violations[row]),
        "violation_pu": float(outcome.violation_pu[row]),
        "converged": bool(outcome.converged[row]),
    }


class NormalChargingEnv(gym.Env[np.ndarray, np.ndarray]):
    """One day of home charging at the buses of a distribution network, 48 half-hour steps from noon to noon.

    Action: Box(-1, 1) of shape (C,), the power of each charging bus between the least that still fills every car (-1),
    the DG surplus (0) and all that the cars can take (+1). Observation: float32 (C, F), see docs/observation.md.
    Reward: minus the cost of the slot [EUR]: exchange with the network, energy, voltage; with ``reward_shift`` the
    training form. ``info`` always holds true EUR. The end of the day is a termination. ``reset(options={"day": day})``
    starts any `Day`, with ``"devices": schedule`` under other positions of tap changer and capacitors; else one of the
    pool is drawn.

    Args:
        scenario: a `Scenario`, a shipped name or a path.
        split: "train", "validation" or "test": the calendar days of the pool.
        pool_days: number of prepared days.
        reward_shift: reward less what no policy changes, which makes learning easier; off for evaluation.

    Attributes:
        day: the present `Day`. scenario: the `Scenario`. world, state: the core's records.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own convention

    def __init__(
        self,
        scenario: Scenario | str = DEFAULT_SCENARIO,
        split: str = "train",
        pool_days: int = DEFAULT_POOL_DAYS,
        reward_shift: bool = False,
    ) -> None:
        self.scenario = as_scenario(scenario)
        if pool_days < 1:
            raise ConfigError(f"pool_days must be at least 1, got {pool_days}")
        self.split, self.reward_shift, self.render_mode = split, reward_shift, None
        self._pool = load_pool(self.scenario, split, pool_days)
        self._own_day: Day | None = None
        self.world = self._pool
        self.state: normal.State | None = None
        self.observation_space = observation_space(self.world.n_buses)
        self.action_space = action_space(self.world.n_buses)

    @property
    def day(self) -> Day:
        """The day that is being played."""
        state = self._running()
        return self._own_day if self._own_day is not None else self.scenario.day(int(state.day[0]), self.split)

    def view(self) -> normal.View:
        """What a policy may know now, as a batch of one; rules use it."""
        return normal.view(self.world, self._running())

    def _running(self) -> normal.State:
        if self.state is None:
            raise ConfigError("the environment has no day yet; call reset() first")
        return self.state

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start a day: the one in ``options["day"]``, else one of the pool drawn with the environment's generator.

        ``options["devices"]``: a `DeviceSchedule` for the given day; its effective limits stay as they are.
        """
        super().reset(seed=seed)
        known = known_options(options)
        day = given_day(self.scenario, known.get("day"), known.get("devices"))
        if day is None:
            self.world = self._pool
            row = int(draw_days(self.np_random, np.zeros(1, dtype=np.int64), self._pool.n_days)[0])
        else:
            self.world, row = normal.make_world(self.scenario, [day]), 0
        self._own_day = day
        self.state = normal.initial_state(self.world, np.array([row]))
        return normal.observe(self.world, self.state)[0], {"day_seed": self._day_seed(row)}

    def _day_seed(self, row: int) -> int:
        return self._own_day.seed if self._own_day is not None else row

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One slot.

        Raises:
            DataError: an action of the wrong shape, with NaN or outside [-1, 1].
            ConfigError: no day yet, or the day is over.
        """
        state = self._running()
        if state.slot[0] >= N_SLOTS:
            raise ConfigError("the day is over; call reset() before the next step")
        values = check_action(action, (self.world.n_buses,))
        power_kw = normal.dispatch(self.world, state, values[None])
        self.state, outcome = normal.step(self.world, state, power_kw)
        reward = float(normal.reward_eur(self.world, state, outcome, self.reward_shift).sum())
        terminated = bool(self.state.slot[0] == N_SLOTS)
        info = slot_info(outcome, 0)
        if terminated:
            info["infeasible_kwh"] = float(self.world.infeasible_kwh[state.day[0]].sum())
        return normal.observe(self.world, self.state)[0], reward, terminated, False, info
