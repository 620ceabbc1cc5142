"""The market of charging stations: the pure core of model.md sections 3-6, batched over environments.

Read `step` first: it is one slot from the stations' wishes to their profits. A ``MarketWorld`` is a scenario with its
prepared days, a ``MarketState`` is what changes. Environments, rules, learned policies and the replay of an exact plan
all pass through ``step``; equal inputs give equal outputs, inputs are untouched.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.grid import Feeder
from evcs_gym.envs.grid.powerflow import PHASE_UNIT
from evcs_gym.envs.grid.simd import LANES
from evcs_gym.envs.market import core_kernels as kernels
from evcs_gym.envs.market.auction import check_asks
from evcs_gym.envs.market.core_kernels import Demand, MarketDays, MarketRules, Terms
from evcs_gym.envs.market.features import Features
from evcs_gym.envs.market.operators import PRO_RATA, AgreedCaps, Grid, Operator, empty_answer, refuse_faults
from evcs_gym.envs.market.station import Assets
from evcs_gym.envs.threads import run_rows
from evcs_gym.envs.types import BoolArray, ComplexArray, FloatArray, IntArray, StationAssets, frozen
from evcs_gym.envs.units import N_SLOTS, PHASE_BASE_KVA

PARALLEL_FROM_ROWS = 512
"""Rows from which a second thread pays: below that starting it costs more than it saves."""


@dataclass(frozen=True, eq=False)
class MarketWorld:
    """Everything about the market that does not change within a day.

    stations: as the scenario gives them, S. assets: their columns for kernels. feeder: N buses. rules: price rule,
    reservation, network fee. days: stacked arrays, leading axis D. grid: the network's, by slot of a day.
    value_eur: (K, S, T + 1, G), the stations' own plans of the K days whose forecasts are perfect. plan_row: (D,) their
    rows, -1 for days that are re-planned every slot. features: what observations show of the days.
    """

    stations: StationAssets
    assets: Assets
    feeder: Feeder
    rules: MarketRules
    days: MarketDays
    grid: Grid
    value_eur: FloatArray
    plan_row: IntArray
    features: Features

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrays that were pickled or copied come back writable: freeze them, or every kernel is compiled again."""
        for name, value in state.items():
            for array in value if isinstance(value, tuple) else (value,):
                if isinstance(array, np.ndarray):
                    frozen(array)
            object.__setattr__(self, name, value)

    @property
    def n_days(self) -> int:
        """Number of stacked days D."""
        return int(self.days.pv_kw.shape[0])

    @property
    def n_stations(self) -> int:
        """Number of stations S."""
        return len(self.stations)


@dataclass(frozen=True, eq=False)
class MarketState:
    """What changes. Rows: the day (B,), its slot (B,), the stored energy (B, S), the voltages of the slot before
    (B, N, P), from which the next power flow starts.

    The rest is what slot t - 1 published or told the station itself: price_eur_per_kwh, volume_kw (B,), position_kw,
    accepted_kw, cap_kw (B, S; infinite where there was none), n_rounds (B,): see `MarketOutcome`.
    """

    day: IntArray
    slot: IntArray
    energy_kwh: FloatArray
    voltage_pu: ComplexArray
    price_eur_per_kwh: FloatArray
    volume_kw: FloatArray
    position_kw: FloatArray
    accepted_kw: FloatArray
    cap_kw: FloatArray
    n_rounds: IntArray


@dataclass(frozen=True, eq=False)
class MarketAction:
    """What the stations decide, (B, S): the storage power that they wish (charging > 0; projected to what can be
    executed) and the price that they ask, within [export, import - network fee].

    cap_kw (B, S), n_rounds (B,): where stations and operator talked before the slot, the caps that they agreed on,
    infinite where there is none, and how many rounds it took. The operator may cap further.
    """

    storage_kw: FloatArray
    ask_eur_per_kwh: FloatArray
    cap_kw: FloatArray | None = None
    n_rounds: IntArray | None = None


@dataclass(frozen=True, eq=False)
class MarketOutcome:
    """What happened in the slot.

    (B, S): ev_kw that drivers asked for, position_kw, storage_kw (executed), curtailed_kw, unserved_kw, accepted_kw,
    payment_eur_per_h of the clearing that stands, held_kw kept in storage because it was not sold (M6), moved_kw that
    caps moved into or out of storage, cap_kw, ask_eur_per_kwh, terms in EUR. (B,): n_rounds between stations and
    operator, 1 where caps came without talks, 0 without caps; price_eur_per_kwh, volume_kw, community_eur, factor,
    n_extra_flows and fallback of the operator, converged, loss_kw of the network. voltage_pu (B, N, P).
    """

    ev_kw: FloatArray
    position_kw: FloatArray
    storage_kw: FloatArray
    curtailed_kw: FloatArray
    unserved_kw: FloatArray
    accepted_kw: FloatArray
    payment_eur_per_h: FloatArray
    held_kw: FloatArray
    moved_kw: FloatArray
    cap_kw: FloatArray
    ask_eur_per_kwh: FloatArray
    terms: Terms
    n_rounds: IntArray
    price_eur_per_kwh: FloatArray
    volume_kw: FloatArray
    community_eur: FloatArray
    factor: FloatArray
    n_extra_flows: IntArray
    fallback: BoolArray
    converged: BoolArray
    voltage_pu: ComplexArray
    loss_kw: FloatArray

    @cached_property
    def profit_eur(self) -> FloatArray:
        """Profit of every station in the slot, (B, S): the sum of the named terms."""
        return np.asarray(sum(self.terms))


def step(
    world: MarketWorld,
    state: MarketState,
    action: MarketAction,
    operator: Operator = PRO_RATA,
    demand: Demand | None = None,
) -> tuple[MarketState, MarketOutcome]:
    """One slot of the market, pure: traffic (of the day) -> stations -> auction -> operator -> grid -> reward.

    Args:
        operator: `PRO_RATA` holds the stations to the network's limits, `NO_OPERATOR` lets every position pass.
        demand: what drivers ask for; by default the day's. `evcs_gym.envs.market.responsive` lets them answer prices.

    Returns:
        The state of the next slot, and what happened.

    Raises:
        DataError: an action of another shape or with values that are not finite; a negative cap; limits that the base
            load breaks.
        ConfigError: an ask outside the band; the day of a row is over.
    """
    action = _checked(world, state, action)
    (n_rows, n_stations), wish, ask = state.energy_kwh.shape, action.storage_kw, action.ask_eur_per_kwh
    hand, answer = kernels.empty_hand(n_rows, n_stations), empty_answer(n_rows, n_stations, len(world.feeder))
    terms, community = kernels.empty_terms(n_rows, n_stations), np.empty(n_rows)
    energy, n_rounds = np.empty((n_rows, n_stations)), np.empty(n_rows, dtype=np.int64)
    at = state.day * N_SLOTS + state.slot
    drivers = prepared_demand(world, state) if demand is None else demand
    known = (world.days, world.assets, world.rules, state.day, state.slot, state.energy_kwh, drivers)
    operator = operator if action.cap_kw is None else AgreedCaps(operator, action.cap_kw)

    def rows(first: int, stop: int) -> None:
        # stations' positions, first clearing, what is not sold stays in the storage
        kernels.offer_rows(first, stop, *known, wish, ask, hand)
        # caps where a limit breaks, and the power flow under them
        operator.answer(first, stop, world.grid, at, hand.position_kw, state.voltage_pu, answer)
        # stations follow their caps and the auction is cleared again; then money and energy
        kernels.settle_rows(first, stop, *known, ask, answer.cap_kw, hand, terms, community, energy, n_rounds)

    many = operator.in_threads and world.feeder.equipment is None
    run_rows(rows, n_rows, (), parallel_from=PARALLEL_FROM_ROWS if many else n_rows + 1, block=LANES)
    refuse_faults(answer)
    if action.n_rounds is not None:
        n_rounds = np.maximum(n_rounds, action.n_rounds)
    outcome = MarketOutcome(
        **hand._asdict(),
        ev_kw=drivers.ev_kw,
        cap_kw=answer.cap_kw,
        ask_eur_per_kwh=ask,
        terms=terms,
        n_rounds=n_rounds,
        community_eur=community,
        factor=answer.factor,
        n_extra_flows=answer.n_extra_flows,
        fallback=answer.fallback,
        converged=answer.converged,
        voltage_pu=answer.voltage_pu,
        loss_kw=answer.loss_pu * PHASE_BASE_KVA,
    )
    return _advanced(world, state, energy, outcome), outcome


def prepared_demand(world: MarketWorld, state: MarketState) -> Demand:
    """What drivers ask for in the state's slot at the stations' own retail prices: the day's traffic."""
    retail = np.array(world.assets.retail_eur_per_kwh, ndmin=2)
    return Demand(np.ascontiguousarray(world.days.ev_kw[state.day, state.slot]), retail)


def _advanced(world: MarketWorld, state: MarketState, energy_kwh: FloatArray, outcome: MarketOutcome) -> MarketState:
    """The state of the next slot: what was published to all, and to each station its own."""
    voltage = outcome.voltage_pu
    if not outcome.converged.all():  # a collapsed flow is no start for the next one: the row starts flat again
        flat = _flat(world, state.day, state.slot)
        voltage = np.where(outcome.converged[:, None, None], voltage, flat)
    return MarketState(
        day=state.day,
        slot=state.slot + 1,
        energy_kwh=energy_kwh,
        voltage_pu=voltage,
        price_eur_per_kwh=outcome.price_eur_per_kwh,  # (M5)
        volume_kw=outcome.volume_kw,
        position_kw=outcome.position_kw,
        accepted_kw=outcome.accepted_kw,
        cap_kw=outcome.cap_kw,
        n_rounds=outcome.n_rounds,
    )


def initial_state(world: MarketWorld, day: IntArray) -> MarketState:
    """Slot 0 of the given days, an array (B,) of rows of the world's stack.

    Raises:
        ConfigError: a row that the stack does not have.
    """
    day = np.array(day, dtype=np.int64)
    if day.ndim != 1 or len(day) == 0 or day.min() < 0 or day.max() >= world.n_days:
        raise ConfigError(f"day must be an array (B,) of rows 0..{world.n_days - 1}, got {day.tolist()}")
    n_rows, shape = len(day), (len(day), world.n_stations)
    slot = np.zeros(n_rows, dtype=np.int64)
    return MarketState(
        day=day,
        slot=slot,
        energy_kwh=np.repeat(world.assets.energy_start_kwh[None], n_rows, axis=0),
        voltage_pu=_flat(world, day, slot),
        price_eur_per_kwh=world.days.export_eur_per_kwh[day, 0],
        volume_kw=np.zeros(n_rows),
        position_kw=np.zeros(shape),
        accepted_kw=np.zeros(shape),
        cap_kw=np.full(shape, np.inf),
        n_rounds=np.zeros(n_rows, dtype=np.int64),
    )


def with_reset_rows(world: MarketWorld, state: MarketState, rows: BoolArray, day: IntArray) -> MarketState:
    """The state in which the marked rows (B,) begin the given days (number of marked rows,)."""
    fresh = initial_state(world, day)
    changed = {name: getattr(state, name).copy() for name in MarketState.__dataclass_fields__}
    for name, values in changed.items():
        values[rows] = getattr(fresh, name)
    return replace(state, **changed)


def _flat(world: MarketWorld, day: IntArray, slot: IntArray) -> ComplexArray:
    """(B, N, P) voltages of the source at every bus."""
    source = world.grid.source_pu[day * N_SLOTS + slot]
    return np.asarray(source[:, None, None] * (PHASE_UNIT * world.feeder.phase_present)[None])


def _checked(world: MarketWorld, state: MarketState, action: MarketAction) -> MarketAction:
    """The action as kernels read it; inputs stay as they are."""
    wish = np.array(action.storage_kw, dtype=np.float64, order="C")
    ask = np.array(action.ask_eur_per_kwh, dtype=np.float64, order="C")
    tariffs = (world.days.import_eur_per_kwh, world.days.export_eur_per_kwh, world.rules.network_fee_eur_per_kwh)
    same_shape = wish.shape == ask.shape == state.energy_kwh.shape
    if same_shape and kernels.is_playable(*tariffs, state.day, state.slot, wish, ask):
        talked = _checked_talks(state, action) if action.cap_kw is not None or action.n_rounds is not None else ()
        return MarketAction(wish, ask, *talked)
    return _refused(world, state, action)


def _checked_talks(state: MarketState, action: MarketAction) -> tuple[FloatArray | None, IntArray | None]:
    """Caps and rounds of an action.

    Raises:
        DataError: another shape, a cap that is negative or not a number, a negative number of rounds.
    """
    cap, rounds = action.cap_kw, action.n_rounds
    if cap is not None:
        cap = np.array(cap, dtype=np.float64, order="C")
        if cap.shape != state.energy_kwh.shape or not (cap >= 0.0).all():
            raise DataError(
                f"action.cap_kw must have shape (B, S) = {state.energy_kwh.shape} and be >= 0, infinite where there is "
                f"no cap, got shape {cap.shape}, least {cap.min(initial=np.inf)}"
            )
    if rounds is not None:
        rounds = np.array(rounds, dtype=np.int64)
        if rounds.shape != state.slot.shape or rounds.min(initial=0) < 0:
            raise DataError(
                f"action.n_rounds must have shape (B,) = {state.slot.shape} and be >= 0, got {rounds.tolist()}"
            )
    return cap, rounds


def _refused(world: MarketWorld, state: MarketState, action: MarketAction) -> MarketAction:
    """Raises for what is wrong with an action; it comes back where nothing is."""
    if state.slot.max() >= N_SLOTS:
        raise ConfigError(f"the day of row {int(state.slot.argmax())} is over; start another one before the next step")
    checked = []
    for name in ("storage_kw", "ask_eur_per_kwh"):
        values = np.array(getattr(action, name), dtype=np.float64, order="C")
        if values.shape != state.energy_kwh.shape:
            raise DataError(f"action.{name} must have shape (B, S) = {state.energy_kwh.shape}, got {values.shape}")
        if not np.isfinite(values).all():
            row, station = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
            raise DataError(f"action.{name}[{row}, {station}] must be finite, got {values[row, station]}")
        checked.append(values)
    check_asks(checked[1], *ask_band(world, state), np.ones(checked[1].shape, dtype=np.bool_))
    return replace(action, storage_kw=checked[0], ask_eur_per_kwh=checked[1])


def ask_band(world: MarketWorld, state: MarketState) -> tuple[FloatArray, FloatArray]:
    """Least and largest ask of the state's slot [EUR/kWh], (B,)."""
    days = world.days
    high = days.import_eur_per_kwh[state.day, state.slot] - world.rules.network_fee_eur_per_kwh
    return days.export_eur_per_kwh[state.day, state.slot], high
