"""Names of rules, resolved in one place, for every problem in which policies play."""

import difflib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, overload

from evcs_gym.baselines import receding_normal, rules
from evcs_gym.baselines.policy import Rule
from evcs_gym.baselines.policy_fast import FastRulePolicy
from evcs_gym.baselines.policy_market import MarketRulePolicy
from evcs_gym.baselines.rules_fast import FAST_RULES
from evcs_gym.baselines.rules_market import MARKET_RULES
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.fleet.normal import View
from evcs_gym.envs.types import FloatArray

if TYPE_CHECKING:
    from evcs_gym.envs.scenario import Scenario

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


def _receding_horizon(scenario: "Scenario | None") -> Rule:
    if scenario is None:
        raise ConfigError(
            f"planner {receding_normal.NAME!r} needs the scenario whose cars it is to expect: pass scenario=..."
        )
    return receding_normal.receding_horizon(scenario)


def _slot_optimum(scenario: "Scenario | None") -> FastRulePolicy:
    from evcs_gym.baselines.slot_optimum import SlotOptimum  # Pyomo takes half a second

    return FastRulePolicy(SLOT_OPTIMUM, SlotOptimum())


SLOT_OPTIMUM: Final = "slot_optimum"

PLANNERS: "Final[Mapping[str, Mapping[str, Callable[[Scenario | None], Rule | FastRulePolicy]]]]" = {
    "normal_charging": {receding_normal.NAME: _receding_horizon},
    "fast_charging": {SLOT_OPTIMUM: _slot_optimum},
}
"""Policies that solve a programme for every decision, by problem and name; they may need the scenario."""


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


def names_of(problem: str) -> tuple[str, ...]:
    """Names that `make_rule` knows in a problem: rules, then planners.

    Raises:
        ConfigError: no policies play in that problem.
    """
    return (*rules_of(problem), *PLANNERS.get(problem, ()))


def played(problem: str) -> str:
    """The problem, checked to be one in which policies play.

    Raises:
        ConfigError: it is none.
    """
    if problem not in NAIVE_RULES:
        raise ConfigError(f"policies play in {', '.join(NAIVE_RULES)}, got problem {problem!r}")
    return problem


@overload
def make_rule(name: str, problem: Literal["normal_charging"] = ..., scenario: "Scenario | None" = ...) -> Rule: ...


@overload
def make_rule(name: str, problem: Literal["market"], scenario: "Scenario | None" = ...) -> MarketRulePolicy: ...


@overload
def make_rule(name: str, problem: Literal["fast_charging"], scenario: "Scenario | None" = ...) -> FastRulePolicy: ...


@overload
def make_rule(
    name: str, problem: str, scenario: "Scenario | None" = ...
) -> Rule | MarketRulePolicy | FastRulePolicy: ...


def make_rule(
    name: str, problem: str = "normal_charging", scenario: "Scenario | None" = None
) -> Rule | MarketRulePolicy | FastRulePolicy:
    """A fresh rule or planner of the registry.

    Args:
        scenario: what a planner may ask for, see `PLANNERS`; rules do not ask.

    Raises:
        ConfigError: no rule of that name; says the nearest. No policies play in that problem. A planner without a
            scenario.
    """
    known = names_of(problem)
    if name in PLANNERS.get(problem, {}):
        return PLANNERS[problem][name](scenario)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"there is no rule {name!r}{hint} (rules: {', '.join(known)})")
    if problem == "market":
        return MarketRulePolicy(name, MARKET_RULES[name])
    return FastRulePolicy(name, FAST_RULES[name]) if problem == "fast_charging" else Rule(name, RULES[name])
