"""Names of rules, resolved in one place, for every problem in which policies play."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, overload

from evcs_gym.baselines import rules
from evcs_gym.baselines.policy import Rule
from evcs_gym.baselines.policy_fast import FastRulePolicy
from evcs_gym.baselines.policy_market import MarketRulePolicy
from evcs_gym.baselines.rules_fast import FAST_RULES
from evcs_gym.baselines.rules_market import MARKET_RULES
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.fleet.normal import View
from evcs_gym.envs.types import FloatArray

NAIVE_RULE = "charge_on_arrival"
"""The reference of normal charging at which captured is 0."""

NAIVE_RULES: Final[Mapping[str, str]] = {
    "normal_charging": NAIVE_RULE,
    "market": "idle",
    "fast_charging": "nearest",
}
"""The rule at which captured is 0, by problem: the problems in which policies play."""

RULES: dict[str, Callable[[View], FloatArray]] = {
    NAIVE_RULE: rules.charge_on_arrival,
    "cheapest_slots": rules.cheapest_slots,
    "least_laxity": rules.least_laxity,
    "dg_following": rules.dg_following,
    "water_filling": rules.water_filling,
}
"""Rules of normal charging by name."""


def rules_of(problem: str) -> Mapping[str, Callable[..., Any]]:
    """Rules of a problem by name.

    Raises:
        ConfigError: no policies play in that problem.
    """
    known: dict[str, Mapping[str, Callable[..., Any]]] = {
        "normal_charging": RULES,
        "market": MARKET_RULES,
        "fast_charging": FAST_RULES,
    }
    return known[played(problem)]


def played(problem: str) -> str:
    """The problem, checked to be one in which policies play.

    Raises:
        ConfigError: it is none.
    """
    if problem not in NAIVE_RULES:
        raise ConfigError(f"policies play in {', '.join(NAIVE_RULES)}, got problem {problem!r}")
    return problem


@overload
def make_rule(name: str, problem: Literal["normal_charging"] = ...) -> Rule: ...


@overload
def make_rule(name: str, problem: Literal["market"]) -> MarketRulePolicy: ...


@overload
def make_rule(name: str, problem: Literal["fast_charging"]) -> FastRulePolicy: ...


@overload
def make_rule(name: str, problem: str) -> Rule | MarketRulePolicy | FastRulePolicy: ...


def make_rule(name: str, problem: str = "normal_charging") -> Rule | MarketRulePolicy | FastRulePolicy:
    """A fresh rule of the registry.

    Raises:
        ConfigError: no rule of that name; says the nearest. No policies play in that problem.
    """
    known = rules_of(problem)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"there is no rule {name!r}{hint} (rules: {', '.join(known)})")
    if problem == "market":
        return MarketRulePolicy(name, MARKET_RULES[name])
    return FastRulePolicy(name, FAST_RULES[name]) if problem == "fast_charging" else Rule(name, RULES[name])
