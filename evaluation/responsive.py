"""Compare rules of the market on days whose drivers respond: profit, travel time, energy served, no captured share.

Bound, gap and captured share are defined with responsive demand off. Every rule is played at every retail rule named.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np

from evcs_gym.baselines.registry import make_rule
from evcs_gym.baselines.retail_market import retail_rule
from evcs_gym.baselines.rules_market import MARKET_RULES
from evcs_gym.baselines.score_responsive import ResponsiveRollout, responsive_rollout
from evcs_gym.envs import Scenario
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.market.responsive import responsive_world
from evcs_gym.evaluation.contest import OPTIMUM, Listener
from evcs_gym.evaluation.records import Provenance, Record, collect_provenance, validated, write_json, write_rows
from evcs_gym.training.provenance import config_hash

OWN_RETAIL: Final = ("own",)
CAPTION: Final = (
    "Drivers respond to retail prices: who charges is part of the result, so bounds, gap and captured share, which are "
    "defined with responsive_demand off, are left out."
)
SOLVER: Final = "traffic equilibria by path-based gradient projection"


class ResponsiveMeans(Record):
    """Means per day, of all stations together and of each, (S,); units and meaning as in `ResponsiveResult`."""

    profit_eur: float
    station_profit_eur: tuple[float, ...]
    travel_h: float
    outside_veh: float
    served_kwh: float
    station_served_kwh: tuple[float, ...]
    cooperative_eur: float


class ResponsiveResult(Record):
    """One rule for storage and asks at one retail rule, on every day.

    profit_eur, served_kwh: (n_days, S) of each station. travel_h: (n_days,) vehicle-hours of everybody, on roads and at
    stations. outside_veh: (n_days,) cars that did not charge here. unserved_kwh: (n_days,) asked for at these prices
    and not delivered. cooperative_eur: (n_days,) minus what the community pays, everybody's time and the outside
    option. n_capped_slots, n_violations: (n_days,) slots in which some station was capped, slots outside a limit.
    """

    policy: str
    retail: str
    mean: ResponsiveMeans
    profit_eur: tuple[tuple[float, ...], ...]
    served_kwh: tuple[tuple[float, ...], ...]
    travel_h: tuple[float, ...]
    outside_veh: tuple[float, ...]
    unserved_kwh: tuple[float, ...]
    cooperative_eur: tuple[float, ...]
    n_capped_slots: tuple[int, ...]
    n_violations: tuple[int, ...]


class ResponsiveComparison(Record):
    """Rules beside each other on the same days. caption: why there is no captured share. provenance: its relative_gap
    is that of the traffic equilibria."""

    record: Literal["evcs-gym responsive comparison 1"] = "evcs-gym responsive comparison 1"
    scenario: str
    split: str
    day_seeds: tuple[int, ...]
    stations: tuple[str, ...]
    caption: str = CAPTION
    results: tuple[ResponsiveResult, ...]
    provenance: Provenance


class ResponsiveDayRow(Record):
    """One line of days.csv: one rule at one retail rule on one day, all stations together."""

    policy: str
    retail: str
    day_seed: int
    profit_eur: float
    travel_h: float
    outside_veh: float
    served_kwh: float
    unserved_kwh: float
    cooperative_eur: float
    n_capped_slots: int
    n_violations: int


class ResponsiveStationRow(Record):
    """One line of stations.csv: one station under one rule at one retail rule on one day."""

    policy: str
    retail: str
    day_seed: int
    station: str
    profit_eur: float
    served_kwh: float


def compare_responsive(
    scenario: Scenario,
    policies: Sequence[str],
    retail: Sequence[str] = OWN_RETAIL,
    n_days: int = 20,
    split: str = "test",
    out: Path | None = None,
    listener: Listener = lambda _what, _done, _all: None,
) -> ResponsiveComparison:
    """Play every rule at every retail rule on the days 0 .. n_days - 1 of a split.

    Args:
        policies: names of market rules.
        retail: names of retail rules, see `evcs_gym.baselines.retail_market.RETAIL_RULES`.
        out: folder for comparison.json, days.csv and stations.csv.

    Raises:
        ConfigError: a scenario without ``responsive_demand``; an unknown rule, retail rule or split, one named twice,
            none, no day; a run folder or the exact plan, which do not play here. DataError: ``out`` cannot be written.
            ConvergenceError: an equilibrium that does not reach ``responsive_demand.relative_gap``.
    """
    _check_question(scenario, policies, retail, n_days)
    seeds, pairs = tuple(range(n_days)), [(policy, price) for policy in policies for price in retail]
    listener("preparing days", 0, len(pairs))
    world = responsive_world(scenario, scenario.days(seeds, split))
    results: list[ResponsiveResult] = []
    for number, (policy, price) in enumerate(pairs):
        listener(f"playing {policy} at retail prices {price}", number, len(pairs))
        played = responsive_rollout(world, make_rule(policy, "market"), retail_rule(price))
        results.append(responsive_result(policy, price, played))
    listener("done", len(pairs), len(pairs))
    comparison = ResponsiveComparison(
        scenario=scenario.name,
        split=split,
        day_seeds=seeds,
        stations=scenario.stations.name,
        results=tuple(results),
        provenance=collect_provenance(
            config_hash=config_hash(scenario.model_dump_json(by_alias=True)),
            training_seeds=(),
            solver=SOLVER,
            relative_gap=world.relative_gap,
        ),
    )
    if out is not None:
        _store(out, comparison)
    return comparison


def _check_question(scenario: Scenario, policies: Sequence[str], retail: Sequence[str], n_days: int) -> None:
    if scenario.responsive_spec is None:
        raise ConfigError(
            f"{scenario.name}: responsive_demand must be on where drivers answer prices; add the section, or use "
            "compare"
        )
    if n_days < 1:
        raise ConfigError(f"a comparison needs at least one day, got {n_days}")
    for what, names in (("policy", policies), ("retail rule", retail)):
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"name at least one {what}, and each once, got {', '.join(names) or 'none'}")
    for name in policies:
        if name == OPTIMUM or (name not in MARKET_RULES and (Path(name).is_dir() or "/" in name or "\\" in name)):
            raise ConfigError(
                f"{name!r} cannot be compared where drivers respond: training and the exact plan want "
                f"responsive_demand off; name rules ({', '.join(MARKET_RULES)}), or leave that section out"
            )
        make_rule(name, "market")
    for name in retail:
        retail_rule(name)


def responsive_result(policy: str, retail: str, played: ResponsiveRollout) -> ResponsiveResult:
    """The record of a rollout.

    Raises:
        DataError: a number is not finite.
    """
    market = played.market
    data = {
        "policy": policy,
        "retail": retail,
        "mean": {
            "profit_eur": float(market.profit_eur.sum(axis=1).mean()),
            "station_profit_eur": market.profit_eur.mean(axis=0).tolist(),
            "travel_h": float(played.travel_h.mean()),
            "outside_veh": float(played.outside_veh.mean()),
            "served_kwh": float(played.served_kwh.sum(axis=1).mean()),
            "station_served_kwh": played.served_kwh.mean(axis=0).tolist(),
            "cooperative_eur": float(played.cooperative_eur.mean()),
        },
        **{name: getattr(played, name).tolist() for name in ("served_kwh", "travel_h", "outside_veh")},
        "cooperative_eur": played.cooperative_eur.tolist(),
        **{
            name: getattr(market, name).tolist()
            for name in ("profit_eur", "unserved_kwh", "n_capped_slots", "n_violations")
        },
    }
    return validated(ResponsiveResult, data, f"{policy!r} at retail prices {retail!r}")


def _store(out: Path, comparison: ResponsiveComparison) -> None:
    (out / "report.html").unlink(missing_ok=True)  # it would not belong to the numbers beside it
    write_json(out / "comparison.json", comparison)
    write_rows(out / "days.csv", ResponsiveDayRow, _day_rows(comparison))
    write_rows(out / "stations.csv", ResponsiveStationRow, _station_rows(comparison))


def _day_rows(comparison: ResponsiveComparison) -> Iterable[ResponsiveDayRow]:
    whole = ("travel_h", "outside_veh", "unserved_kwh", "cooperative_eur", "n_capped_slots", "n_violations")
    for result in comparison.results:
        for day, seed in enumerate(comparison.day_seeds):
            yield ResponsiveDayRow(
                policy=result.policy,
                retail=result.retail,
                day_seed=seed,
                profit_eur=float(np.sum(result.profit_eur[day])),
                served_kwh=float(np.sum(result.served_kwh[day])),
                **{name: getattr(result, name)[day] for name in whole},
            )


def _station_rows(comparison: ResponsiveComparison) -> Iterable[ResponsiveStationRow]:
    for result in comparison.results:
        for day, seed in enumerate(comparison.day_seeds):
            columns = (comparison.stations, result.profit_eur[day], result.served_kwh[day])
            for station, profit_eur, served_kwh in zip(*columns, strict=True):
                yield ResponsiveStationRow(
                    policy=result.policy,
                    retail=result.retail,
                    day_seed=seed,
                    station=station,
                    profit_eur=profit_eur,
                    served_kwh=served_kwh,
                )
