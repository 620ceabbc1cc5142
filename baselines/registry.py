"""Names of rules and planners, resolved in one place, for every problem in which policies play."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, overload

from evcs_gym.baselines import rules
from evcs_gym.baselines.policy import Rule
from evcs_gym.baselines.policy_fast import FastRulePolicy
from evcs_gym.baselines.policy_market import MarketPolicy, MarketRulePolicy
from evcs_gym.baselines.rules_fast import FAST_RULES
from evcs_gym.baselines.rules_market import MARKET_RULES
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.fleet.normal import View
from evcs_gym.envs.market.operators import NO_OPERATOR, PRO_RATA
from evcs_gym.envs.types import FloatArray

if TYPE_CHECKING:
    from evcs_gym.envs.market.operators import Operator
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


def _receding_market(_scenario: "Scenario | None") -> MarketPolicy:
    from evcs_gym.baselines.receding_market import RecedingHorizon

    return RecedingHorizon()


def _four_stage(_scenario: "Scenario | None") -> MarketPolicy:
    from evcs_gym.baselines.four_stage import FourStage

    return FourStage(make_operator("misocp"))


def _receding_normal(scenario: "Scenario | None") -> Rule:
    from evcs_gym.baselines.receding_normal import receding_horizon

    if scenario is None:
        raise ConfigError(
            f"planner {RECEDING_HORIZON!r} needs the scenario whose cars it is to expect: pass scenario=..."
        )
    return receding_horizon(scenario)


def _slot_optimum(_scenario: "Scenario | None") -> FastRulePolicy:
    from evcs_gym.baselines.slot_optimum import SlotOptimum

    return FastRulePolicy(SLOT_OPTIMUM, SlotOptimum())


RECEDING_HORIZON: Final = "receding_horizon"
SLOT_OPTIMUM: Final = "slot_optimum"

PLANNERS: "Final[Mapping[str, Mapping[str, Callable[[Scenario | None], Any]]]]" = {
    "normal_charging": {RECEDING_HORIZON: _receding_normal},
    "market": {RECEDING_HORIZON: _receding_market, "four_stage": _four_stage},
    "fast_charging": {SLOT_OPTIMUM: _slot_optimum},
}
"""By problem: policies that solve programmes while they play, milliseconds a decision and more; some need the scenario.
Their modules are imported when they are asked for: Pyomo takes half a second that a user of rules need not wait."""

OPERATORS: Final = ("pro_rata", "misocp", "none")
"""Network operators of the market by name; environments take the object (`operator=`)."""


def make_operator(name: str) -> "Operator":
    """A network operator of the market.

    Raises:
        ConfigError: there is none of that name; says the nearest.
    """
    if name == "misocp":
        from evcs_gym.baselines.operator_misocp import MISOCP

        return MISOCP
    known: dict[str, Operator] = {"pro_rata": PRO_RATA, "none": NO_OPERATOR}
    if name not in known:
        raise ConfigError(f"there is no operator {name!r}{_nearest(name, OPERATORS)} (known: {', '.join(OPERATORS)})")
    return known[name]


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f"; did you mean {close[0]!r}?" if close else ""


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
    """Names that `make_policy` knows in a problem: rules, then planners.

    Raises:
        ConfigError: no policies play in that problem.
    """
    return (*rules_of(problem), *PLANNERS[problem])


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
        raise ConfigError(f"there is no rule {name!r}{_nearest(name, known)} (rules: {', '.join(known)})")
    if problem == "market":
        return MarketRulePolicy(name, MARKET_RULES[name])
    return FastRulePolicy(name, FAST_RULES[name]) if problem == "fast_charging" else Rule(name, RULES[name])


def make_policy(name: str, problem: str = "normal_charging", scenario: "Scenario | None" = None) -> Any:
    """A fresh policy of the registry: a rule or a planner.

    Args:
        scenario: what a planner may ask for, see `PLANNERS`; rules do not ask.

    Raises:
        ConfigError: none of that name; says the nearest. No policies play in that problem. A planner without the
            scenario that it needs.
    """
    known = names_of(problem)
    if name in PLANNERS[problem]:
        return PLANNERS[problem][name](scenario)
    if name not in known:
        raise ConfigError(f"there is no policy {name!r}{_nearest(name, known)} (known: {', '.join(known)})")
    return make_rule(name, problem)
