"""Behaviour cloning of a clairvoyant closed-loop plan by DAgger: a labelled warm start for PPO.

The teacher plans all cars of the day, also those that have not come yet, anew in every slot; the learner sees only what
every policy may know. Source of the method: Ross, Gordon, Bagnell (2011), no-regret imitation (DAgger).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO

from evcs_gym.baselines.rules import WATER_FILLING_PASSES, fill_valleys
from evcs_gym.envs.fleet import normal
from evcs_gym.envs.types import FloatArray
from evcs_gym.envs.units import N_SLOTS
from evcs_gym.training.config import CloneSpec
from evcs_gym.training.vec_env import NormalChargingVecEnv


def teacher_power_kw(world: normal.World, state: normal.State) -> FloatArray:
    """Bus powers of the clairvoyant plan, (B, C)."""
    days, day = world.days, state.day
    net = days.base_kw[day] - days.dg_kw[day]
    return fill_valleys(
        state.slot,
        days.bus_start[day],
        days.arrival_slot[day],
        days.departure_slot[day],
        days.power_kw[day],
        np.where(days.departure_slot[day] > state.slot[:, None], state.remaining_kwh, 0.0),
        days.import_eur_per_kwh[day],
        np.ascontiguousarray(net.transpose(0, 2, 1)),
        world.rules.omega1_eur_per_kwh,
        world.rules.energy_weight,
        WATER_FILLING_PASSES,
    )


def _teacher_action(world: normal.World, state: normal.State) -> tuple[FloatArray, FloatArray]:
    """Actions of the teacher and the weight of each, both (B, C): where cars leave no choice nothing is learned."""
    view = normal.view(world, state)
    action = normal.knee_action(teacher_power_kw(world, state), view.surplus_kw, view.least_kw, view.largest_kw)
    return action, (view.largest_kw - view.least_kw) / world.installed_kw


def _collect(
    world: normal.World, days: np.ndarray, model: PPO | None, teacher_share_frac: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows (observation, teacher's action, weight) of days played by teacher and learner mixed slot by slot."""
    state = normal.initial_state(world, days)
    observations, actions, weights = [], [], []
    for _ in range(N_SLOTS):
        observation = normal.observe(world, state)
        wanted, weight = _teacher_action(world, state)
        observations.append(observation.reshape(-1, observation.shape[-1]))
        actions.append(wanted.reshape(-1, 1))
        weights.append(weight.reshape(-1))
        played = wanted
        if model is not None:
            own = np.clip(model.predict(observations[-1], deterministic=True)[0], -1.0, 1.0).reshape(wanted.shape)
            played = np.where(rng.random(wanted.shape) < teacher_share_frac, wanted, own)
        state, _ = normal.step(world, state, normal.dispatch(world, state, played.astype(np.float64)))
    return np.concatenate(observations), np.concatenate(actions), np.concatenate(weights)


def _fit(model: PPO, rows: tuple[np.ndarray, np.ndarray, np.ndarray], spec: CloneSpec) -> float:
    """Weighted least squares of the policy's mean; the last loss."""
    observation, action, weight = (torch.as_tensor(part, dtype=torch.float32) for part in rows)
    optimizer = torch.optim.Adam(model.policy.parameters(), spec.learning_rate)
    loss = torch.zeros(())
    for _ in range(spec.n_epochs):
        for batch in torch.split(torch.randperm(len(observation)), spec.batch_size):
            distribution: Any = model.policy.get_distribution(observation[batch]).distribution
            mean = distribution.mean
            loss = (weight[batch] * ((mean - action[batch]) ** 2).mean(dim=1)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return float(loss.detach())


def clone(
    model: PPO,
    world: normal.World,
    spec: CloneSpec,
    rng: np.random.Generator,
    progress: Callable[[int, float], None] = lambda _pass, _loss: None,
) -> None:
    """Fit a policy with rows of buses to the clairvoyant plan; its exploration stays as it is.

    Args:
        progress: called after each pass with its number and loss.
    """
    gathered: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for number in range(spec.n_passes):
        days = rng.integers(world.n_days, size=spec.n_days)
        gathered.append(_collect(world, days, model if number else None, spec.teacher_share_frac, rng))
        together = tuple(np.concatenate(parts) for parts in zip(*gathered, strict=True))
        progress(number + 1, _fit(model, together, spec))  # type: ignore[arg-type]


def fit_critic(model: PPO, env: NormalChargingVecEnv, spec: CloneSpec, rng: np.random.Generator) -> float:
    """Fit the critic to the returns of ``spec.n_days`` days of the policy as it explores; the last squared error.

    Without it the first advantages are those of a random critic, and PPO unlearns what was cloned.
    """
    world = env.batch.world
    state = normal.initial_state(world, rng.integers(world.n_days, size=spec.n_days))
    observations, rewards = [], []
    for _ in range(N_SLOTS):
        observation = normal.observe(world, state)
        observations.append(observation.reshape(-1, observation.shape[-1]))
        action = model.predict(observations[-1], deterministic=False)[0].reshape(observation.shape[:2])
        after, outcome = normal.step(world, state, normal.dispatch(world, state, action.astype(np.float64)))
        reward = env.reward_scale * normal.reward_eur(world, state, outcome, env.batch.reward_shift)
        rewards.append(reward.reshape(-1))
        state = after
    returns = discounted_returns(np.stack(rewards), model.gamma)
    return _regress(model, np.concatenate(observations), returns.reshape(-1), spec)


def discounted_returns(reward: FloatArray, gamma: float) -> FloatArray:
    """Sum of what is still to come, discounted, of rewards (T, rows) of whole days; same shape."""
    out = np.array(reward, dtype=np.float64)
    for slot in reversed(range(len(out) - 1)):
        out[slot] += gamma * out[slot + 1]
    return out


def _regress(model: PPO, observation: np.ndarray, target: FloatArray, spec: CloneSpec) -> float:
    rows, wanted = torch.as_tensor(observation), torch.as_tensor(target, dtype=torch.float32)
    optimizer = torch.optim.Adam(model.policy.parameters(), spec.learning_rate)
    loss = torch.zeros(())
    for _ in range(spec.critic_steps):
        batch = torch.randint(len(rows), (spec.batch_size,))
        loss = ((model.policy.predict_values(rows[batch]).flatten() - wanted[batch]) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return float(loss.detach())
