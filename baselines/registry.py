"""Names of rules, resolved in one place, for every problem in which policies play."""

import difflib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, overload

from evcs_gym.baselines import receding_normal, rules
from evcs_gym.baselines.policy import Rule
from evcs_gym.baselines.policy_market import MarketRulePolicy
from evcs_gym.baselines.rules_market import MARKET_RULES
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.fleet.normal import View
from evcs_gym.envs.types import FloatArray

if TYPE_CHECKING:
    from evcs_gym.envs.scenario import Scenario

NAIVE_RULE = "charge_on_arrival"
"""The reference of normal charging at which captured is 0."""

NAIVE_RULES: Final[Mapping[str, str]] = {"normal_charging": NAIVE_RULE, "market": "idle"}
"""The rule at which captured is 0, by problem: the problems in which policies play."""

RULES: dict[str, Callable[[View], FloatArray]] = {
    NAIVE_RULE: rules.charge_on_arrival,
    "cheapest_slots": rules.cheapest_slots,
    "least_laxity": rules.least_laxity,
    "dg_following": rules.dg_following,
    "water_filling": rules.water_filling,
}
"""Rules of normal charging by name."""

PLANNERS: "Final[Mapping[str, Callable[[Scenario], Rule]]]" = {receding_normal.NAME: receding_normal.receding_horizon}
"""Policies of normal charging that must know the scenario, by name: they solve a programme in every slot."""


def rules_of(problem: str) -> Mapping[str, Callable[..., Any]]:
    """Rules of a problem by name.

    Raises:
        ConfigError: no policies play in that problem.
    """
    return MARKET_RULES if played(problem) == "market" else RULES


def played(problem: str) -> str:
    """The problem, checked to be one in which policies play.

    Raises:
        ConfigError: it is none.
    """
    if problem not in NAIVE_RULES:
        raise ConfigError(f"policies play in {' and '.join(NAIVE_RULES)}, got problem {problem!r}")
    return problem


@overload
def make_rule(
    name: str, problem: Literal["normal_charging"] = ..., scenario: "Scenario | None" = ...
) -> Rule: ...


@overload
def make_rule(name: str, problem: Literal["market"], scenario: "Scenario | None" = ...) -> MarketRulePolicy: ...


@overload
def make_rule(name: str, problem: str, scenario: "Scenario | None" = ...) -> Rule | MarketRulePolicy: ...


def make_rule(
    name: str, problem: str = "normal_charging", scenario: "Scenario | None" = None
) -> Rule | MarketRulePolicy:
    """A fresh rule or planner of the registry.

    Args:
        scenario: what a planner is to know, see `PLANNERS`; rules do not ask.

    Raises:
        ConfigError: no rule of that name; says the nearest. No policies play in that problem. A planner without a
            scenario.
    """
    known = [*rules_of(problem), *(PLANNERS if problem == "normal_charging" else ())]
    if name in known and name in PLANNERS:
        if scenario is None:
            raise ConfigError(f"planner {name!r} needs the scenario whose cars it is to expect: pass scenario=...")
        return PLANNERS[name](scenario)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"there is no rule {name!r}{hint} (rules: {', '.join(known)})")
    return MarketRulePolicy(name, MARKET_RULES[name]) if problem == "market" else Rule(name, RULES[name])
