"""The rounds of the four-stage method on one day, as records."""

from typing import Any

import numpy as np

from evcs_gym.baselines.four_stage import MAX_ROUNDS, FourStage, Round, Talk
from evcs_gym.baselines.policy_market import MarketStage
from evcs_gym.baselines.registry import make_operator
from evcs_gym.baselines.score_market import MarketRollout, market_rollout
from evcs_gym.envs import Day, Scenario
from evcs_gym.envs.market.core import MarketAction
from evcs_gym.envs.market.prepare import market_world
from evcs_gym.envs.types import FloatArray


def talks_of_day(
    scenario: Scenario, day: Day, operator: str = "misocp", max_rounds: int = MAX_ROUNDS
) -> tuple[list[Talk], MarketRollout]:
    """Play a day under an operator with whom the stations talk first; all talks in order, and what became of the day.

    Raises:
        ConfigError: no such operator, no round, a scenario without stations.
        InfeasibleError, SolverError, ConvergenceError: see `FourStage`.
    """
    policy, talks = FourStage(make_operator(operator), max_rounds), []

    class Noted:
        """The policy, its talks written down."""

        def decide(self, stage: MarketStage) -> MarketAction:
            action = policy.decide(stage)
            talks.extend(policy.talks)
            return action

    return talks, market_rollout(market_world(scenario, [day]), Noted(), policy.operator)


def round_rows(talks: list[Talk]) -> list[dict[str, Any]]:
    """A row for every round: the slot before which it was held, caps in force, and of the slots left what would be
    curtailed, the mean published price, all stations' profit and its change."""
    return [
        {
            "slot": talk.slot,
            "round": now.number,
            "ended": "" if now is not talk.rounds[-1] else "agreed" if talk.agreed else "operator",
            "n_caps": int(np.isfinite(now.cap_kw).sum()),
            "curtailed_kwh": now.curtailed_kwh,
            "eur_per_kwh": float(now.price_eur_per_kwh.mean()),
            "profit_eur": float(now.profit_eur.sum()),
            "change_eur": float(now.change_eur.sum()),
        }
        for talk in talks
        for now in talk.rounds
    ]


def talk_records(talks: list[Talk]) -> list[dict[str, Any]]:
    """Talks as plain numbers and lists; a cap that is infinite is null."""
    return [
        {"slot": talk.slot, "agreed": talk.agreed, "rounds": [_record(one) for one in talk.rounds]} for talk in talks
    ]


def _record(one: Round) -> dict[str, Any]:
    def plain(values: FloatArray) -> Any:
        kept = values.astype(object)
        kept[~np.isfinite(values)] = None
        return kept.tolist()

    values = {name: getattr(one, name) for name in Round.__dataclass_fields__}
    return {name: plain(value) if isinstance(value, np.ndarray) else value for name, value in values.items()}
