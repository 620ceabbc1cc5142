"""Training presets: YAML to frozen records; every number that a run depends on stands here."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, model_validator

from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.specs import Spec, read_yaml, validated

Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]
LogStd = Annotated[float, Field(ge=-10.0, le=2.0)]
ProblemName = Literal["normal_charging", "market", "market_responsive", "fast_charging"]
ROWS: dict[ProblemName, tuple[str, ...]] = {
    "normal_charging": ("buses", "environments"),
    "market": ("stations", "environments"),
    "market_responsive": ("stations", "environments"),
    "fast_charging": ("environments",),
}
"""Rows that each problem knows: those of its agents first."""


class PpoSpec(Spec):
    """Hyper-parameters of Stable-Baselines3's PPO; the learning rate falls linearly from start to end.

    So does the logarithm of the policy's standard deviation where ``log_std_final`` is given: exploration ends as
    planned, and what is learned last is the policy that is judged, its mean. Without it the deviation is learned. Both
    are one number, or one for each number of an action; fast charging, whose actions are choices, has none.
    """

    n_steps: Annotated[int, Field(ge=2)] = 48
    batch_size: Annotated[int, Field(ge=2)] = 1024
    n_epochs: Count = 5
    learning_rate_start: Positive = 4e-4
    learning_rate_end: Positive = 2e-5
    gamma: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    gae_lambda: Annotated[float, Field(ge=0.0, le=1.0)] = 0.98
    clip_range: Positive = 0.2
    entropy_coefficient: Annotated[float, Field(ge=0.0)] = 0.0
    value_coefficient: Annotated[float, Field(ge=0.0)] = 0.5
    max_gradient_norm: Positive = 0.5
    log_std_initial: LogStd | tuple[LogStd, ...] = -0.3
    log_std_final: LogStd | tuple[LogStd, ...] | None = -1.6
    hidden_units: Annotated[tuple[Count, ...], Field(min_length=1)] = (128, 128)

    @model_validator(mode="after")
    def _falls(self) -> Self:
        start, end = self.learning_rate_start, self.learning_rate_end
        if end > start:
            raise ValueError(f"learning_rate_end must not exceed learning_rate_start, got {end} and {start}")
        return self


class CloneSpec(Spec):
    """Behaviour cloning of the closed-loop clairvoyant plan (DAgger) before PPO.

    ``critic_steps``: gradient steps in which the critic is fitted to the clone's returns before PPO begins.
    """

    n_passes: Count = 4
    n_days: Count = 100
    n_epochs: Count = 8
    batch_size: Count = 4096
    learning_rate: Positive = 1e-3
    teacher_share_frac: Annotated[float, Field(ge=0.0, le=1.0)] = 0.3
    critic_steps: Annotated[int, Field(ge=0)] = 0


class ValidationSpec(Spec):
    """How often, and on how many days of the validation split, a run is judged; the best policy is kept."""

    n_days: Annotated[int, Field(ge=1, le=36)] = 36
    every_rollouts: Count = 5


class MarketLearningSpec(Spec):
    """What is learned in the market, and by whom.

    ``team_frac``: share of the profit of all stations in a station's reward, the rest is its own profit. ``by_size``:
    a station's reward is scaled by mean storage power / its own. ``residual``: storage power is added to that of the
    station's own plan. ``station``: name of the only one that learns, while the others follow the rule ``others``.
    """

    team_frac: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    by_size: bool = True
    residual: bool = True
    station: str | None = None
    others: str = "dp_truthful"


class Preset(Spec):
    """One training run: world, rows, budget, algorithm.

    ``rows``: "buses" (in the market "stations") trains one policy that all agents share, each (environment, agent)
    a row with its own reward; "environments" trains one joint policy. ``total_steps`` counts row steps.
    ``reward_scale_per_eur`` is fixed, so that runs are comparable.
    """

    name: str
    problem: ProblemName = "normal_charging"
    scenario: str = "ieee33_residential"
    rows: Literal["buses", "stations", "environments"] = "buses"
    n_envs: Count = 32
    pool_days: Count = 256
    total_steps: Count = 1_500_000
    reward_shift: bool = True
    reward_scale_per_eur: Positive = 2.0
    ppo: PpoSpec = PpoSpec()
    clone: CloneSpec | None = None
    market: MarketLearningSpec | None = None
    validation: ValidationSpec = ValidationSpec()
    checkpoint_every_rollouts: Count = 5

    @property
    def market_spec(self) -> MarketLearningSpec:
        """What is learned in the market; the defaults where nothing is said."""
        return self.market or MarketLearningSpec()

    @model_validator(mode="after")
    def _fits_the_problem(self) -> Self:
        if self.rows not in ROWS[self.problem]:
            raise ValueError(f"rows of {self.problem} must be {' or '.join(ROWS[self.problem])}, got {self.rows}")
        if self.market is not None and not self.problem.startswith("market"):
            raise ValueError(f"market goes with problems of the market, got {self.problem}; leave it out")
        if self.market_spec.station is not None and self.rows != "stations":
            raise ValueError(f"market.station needs rows: stations, got {self.rows}; leave the station out")
        return self

    @model_validator(mode="after")
    def _clone_needs_buses(self) -> Self:
        if self.clone is not None and self.rows != "buses":
            raise ValueError(f"clone needs rows: buses, got {self.rows}; leave clone out or train rows of buses")
        return self


def _override(content: dict[str, Any], assignment: str) -> None:
    key, separator, text = assignment.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set takes key=value, got {assignment!r}")
    *parents, last = key.split(".")
    place = content
    for parent in parents:
        child = place[parent] = {} if place.get(parent) is None else place[parent]
        if not isinstance(child, dict):
            raise ConfigError(f"--set {assignment}: {parent!r} is no section of the preset")
        place = child
    try:
        place[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {assignment}: the value is no valid YAML") from None
    if isinstance(place[last], str):
        # YAML 1.1 reads 1e-3 as text
        try:
            place[last] = float(text)
        except ValueError:
            place[last] = text


def load_preset(name_or_path: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> Preset:
    """The preset of a shipped name or a YAML file, with ``key=value`` overrides (dots go into sections).

    Raises:
        ConfigError: missing file, unknown key (with the nearest known one), value out of range.
    """
    source, content = read_yaml("training", name_or_path)
    for assignment in overrides:
        _override(content, assignment)
    return validated(Preset, content, source)
