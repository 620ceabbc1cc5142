"""Names of rules, resolved in one place."""

import difflib
from collections.abc import Callable

from evcs_gym.baselines import rules
from evcs_gym.baselines.policy import Rule
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.fleet.normal import View
from evcs_gym.envs.types import FloatArray

NAIVE_RULE = "charge_on_arrival"
"""The reference at which captured is 0."""

RULES: dict[str, Callable[[View], FloatArray]] = {
    NAIVE_RULE: rules.charge_on_arrival,
    "cheapest_slots": rules.cheapest_slots,
    "least_laxity": rules.least_laxity,
    "dg_following": rules.dg_following,
    "water_filling": rules.water_filling,
}
"""Rules of normal charging by name."""


def make_rule(name: str) -> Rule:
    """A fresh rule of the registry.

    Raises:
        ConfigError: no rule of that name; says the nearest.
    """
    if name not in RULES:
        close = difflib.get_close_matches(name, RULES, n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"there is no rule {name!r}{hint} (rules: {', '.join(RULES)})")
    return Rule(name, RULES[name])
