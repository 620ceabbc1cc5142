"""What may be known in a slot: the realised slot, forecasts beyond it, what was published, and a station's own plan.

Rules read a `MarketView`; a station's columns of it are its own, and a rule of one station uses no other column.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from evcs_gym.envs.market.core import PARALLEL_FROM_ROWS, MarketState, MarketWorld, ask_band
from evcs_gym.envs.market.core_kernels import MarketDays, MarketRules
from evcs_gym.envs.market.features import N_FEATURES, Features, Float32Array, observe_rows
from evcs_gym.envs.market.station import Assets, power_interval
from evcs_gym.envs.market.station_dp import N_ENERGIES, decide, plan_rows, truthful_ask
from evcs_gym.envs.threads import run_rows
from evcs_gym.envs.types import FloatArray, IntArray, frozen
from evcs_gym.envs.units import N_SLOTS


@dataclass(frozen=True, eq=False)
class OwnPlan:
    """What each station would do alone at the utility's tariffs, (B, S): storage power, the ask that covers its cost,
    the value of a kWh that stays stored."""

    storage_kw: FloatArray
    ask_eur_per_kwh: FloatArray
    water_eur_per_kwh: FloatArray


@dataclass(frozen=True, eq=False)
class MarketView:
    """What policies may know in their slot.

    slot (B,), energy_kwh (B, S). import_eur_per_kwh, export_eur_per_kwh (B, T), pv_kw, ev_kw (B, T, S): the truth up
    to the slot, forecasts beyond it. least_ask_eur_per_kwh, largest_ask_eur_per_kwh (B,). least_kw, largest_kw (B, S):
    storage power that can be executed. day (B,): row of the day, a key for random draws and nothing else.
    """

    day: IntArray
    slot: IntArray
    energy_kwh: FloatArray
    import_eur_per_kwh: FloatArray
    export_eur_per_kwh: FloatArray
    pv_kw: FloatArray
    ev_kw: FloatArray
    least_ask_eur_per_kwh: FloatArray
    largest_ask_eur_per_kwh: FloatArray
    least_kw: FloatArray
    largest_kw: FloatArray
    assets: Assets

    @property
    def surplus_kw(self) -> FloatArray:
        """Photovoltaic power less charging power of the present slot, (B, S)."""
        rows = np.arange(len(self.slot))
        return np.asarray((self.pv_kw - self.ev_kw)[rows, self.slot])


def view(world: MarketWorld, state: MarketState) -> MarketView:
    """The view of the state's slot."""
    (n_rows, n_stations), n_slots = state.energy_kwh.shape, world.days.pv_kw.shape[1]
    imports, exports = np.empty((n_rows, n_slots)), np.empty((n_rows, n_slots))
    pv_kw, ev_kw = np.empty((n_rows, n_slots, n_stations)), np.empty((n_rows, n_slots, n_stations))
    least_kw, largest_kw = np.empty((n_rows, n_stations)), np.empty((n_rows, n_stations))
    known = (world.days, world.assets, world.rules, state.day, state.slot, state.energy_kwh)
    written = (imports, exports, pv_kw, ev_kw, least_kw, largest_kw)
    run_rows(_view_rows, n_rows, known + written, parallel_from=PARALLEL_FROM_ROWS)
    low, high = ask_band(world, state)
    return MarketView(
        day=state.day,
        slot=state.slot,
        energy_kwh=state.energy_kwh,
        import_eur_per_kwh=imports,
        export_eur_per_kwh=exports,
        pv_kw=pv_kw,
        ev_kw=ev_kw,
        least_ask_eur_per_kwh=low,
        largest_ask_eur_per_kwh=high,
        least_kw=least_kw,
        largest_kw=largest_kw,
        assets=world.assets,
    )


def own_plan(world: MarketWorld, state: MarketState) -> OwnPlan:
    """The stations' own plans, prepared with the day where it is known, else made anew from the forecasts.

    At the end of the day there is nothing left to plan: all numbers are 0.
    """
    plan, arguments = _planning(world, state)
    run_rows(_decide_rows, len(state.day), arguments, parallel_from=PARALLEL_FROM_ROWS)
    return plan


def look(world: MarketWorld, state: MarketState) -> tuple[OwnPlan, Float32Array]:
    """The stations' own plans, and what each station observes, (B, S, F): see `observation.OBSERVATION`."""
    plan, planning = _planning(world, state)
    seen = np.empty((*state.energy_kwh.shape, N_FEATURES), dtype=np.float32)
    published = (state.price_eur_per_kwh, state.volume_kw, state.position_kw, state.accepted_kw, state.cap_kw)
    run_rows(
        _look_rows, len(state.day), (*planning, world.features, *published, seen), parallel_from=PARALLEL_FROM_ROWS
    )
    return plan, seen


def _planning(world: MarketWorld, state: MarketState) -> tuple[OwnPlan, tuple[Any, ...]]:
    """An empty plan, and what `_decide_rows` fills it from."""
    shape = state.energy_kwh.shape
    rows = world.plan_row[state.day]
    unknown = ((rows < 0) & (state.slot < N_SLOTS)).nonzero()[0]
    fresh = np.empty((len(unknown), shape[1], world.days.pv_kw.shape[1] + 1, N_ENERGIES))
    if len(unknown):
        seen = view(world, some_rows(state, unknown))
        series = [frozen(x) for x in (seen.import_eur_per_kwh, seen.export_eur_per_kwh, seen.pv_kw, seen.ev_kw)]
        arguments = (world.assets, *series, frozen(seen.slot.copy()), fresh)
        run_rows(plan_rows, len(unknown), arguments, parallel_from=8)
        rows = rows.copy()
        rows[unknown] = -1 - np.arange(len(unknown))
    plan = OwnPlan(np.empty(shape), np.empty(shape), np.empty(shape))
    known = (world.days, world.assets, world.rules, state.day, state.slot, state.energy_kwh)
    written = (plan.storage_kw, plan.ask_eur_per_kwh, plan.water_eur_per_kwh)
    return plan, (*known, rows, world.value_eur, fresh, *written)


def some_rows(state: MarketState, rows: IntArray) -> MarketState:
    """The state of some of its rows."""
    return MarketState(**{name: getattr(state, name)[rows] for name in MarketState.__dataclass_fields__})


@njit(cache=True, nogil=True)
def _view_rows(
    first: int,
    stop: int,
    days: MarketDays,
    assets: Assets,
    rules: MarketRules,
    day: IntArray,
    slot: IntArray,
    energy_kwh: FloatArray,
    imports: FloatArray,
    exports: FloatArray,
    pv_kw: FloatArray,
    ev_kw: FloatArray,
    least_kw: FloatArray,
    largest_kw: FloatArray,
) -> None:
    for row in range(first, stop):
        d, now = day[row], slot[row]
        for t in range(imports.shape[1]):
            growth = days.growth_frac[d, t - now] if t > now else 0.0
            imports[row, t] = days.import_eur_per_kwh[d, t] + growth * days.price_error_eur_per_kwh[d, t]
            exports[row, t] = days.export_eur_per_kwh[d, t]
            if growth > 0.0:
                spot = imports[row, t] - rules.import_adder_eur_per_kwh
                exports[row, t] = max(0.0, spot - rules.export_fee_eur_per_kwh)
            for n in range(pv_kw.shape[2]):
                pv_kw[row, t, n] = days.pv_kw[d, t, n] + growth * days.pv_error_kw[d, t, n]
                ev_kw[row, t, n] = days.ev_kw[d, t, n] + growth * days.ev_error_kw[d, t, n]
        for n in range(pv_kw.shape[2]):
            least_kw[row, n], largest_kw[row, n] = power_interval(energy_kwh[row, n], assets, n)


@njit(cache=True, nogil=True)
def _decide_rows(
    first: int,
    stop: int,
    days: MarketDays,
    assets: Assets,
    rules: MarketRules,
    day: IntArray,
    slot: IntArray,
    energy_kwh: FloatArray,
    plan_row: IntArray,
    known_value: FloatArray,
    fresh_value: FloatArray,
    storage_kw: FloatArray,
    ask: FloatArray,
    water: FloatArray,
) -> None:
    """plan_row: row of ``known_value`` where >= 0, else -1 - row of ``fresh_value``."""
    for row in range(first, stop):
        d, t = day[row], slot[row]
        if t >= N_SLOTS:
            for n in range(storage_kw.shape[1]):
                storage_kw[row, n], ask[row, n], water[row, n] = 0.0, 0.0, 0.0
            continue
        imports, exports = days.import_eur_per_kwh[d, t], days.export_eur_per_kwh[d, t]
        for n in range(storage_kw.shape[1]):
            energy, pv, ev = energy_kwh[row, n], days.pv_kw[d, t, n], days.ev_kw[d, t, n]
            if plan_row[row] >= 0:
                done = decide(energy, pv, ev, imports, exports, known_value[plan_row[row], n, t + 1], assets, n)
            else:
                done = decide(energy, pv, ev, imports, exports, fresh_value[-1 - plan_row[row], n, t + 1], assets, n)
            storage_kw[row, n], water[row, n] = done
            fee = rules.network_fee_eur_per_kwh
            ask[row, n] = truthful_ask(done, energy, imports, exports, fee, assets, n)


@njit(cache=True, nogil=True)
def _look_rows(
    first: int,
    stop: int,
    days: MarketDays,
    assets: Assets,
    rules: MarketRules,
    day: IntArray,
    slot: IntArray,
    energy_kwh: FloatArray,
    plan_row: IntArray,
    known_value: FloatArray,
    fresh_value: FloatArray,
    storage_kw: FloatArray,
    ask: FloatArray,
    water: FloatArray,
    features: Features,
    price: FloatArray,
    volume_kw: FloatArray,
    position_kw: FloatArray,
    accepted_kw: FloatArray,
    cap_kw: FloatArray,
    seen: Float32Array,
) -> None:
    """Plans and observations in one launch: handing the records of a world over takes longer than a row of both."""
    planned = (storage_kw, ask, water)
    now = (day, slot, energy_kwh)
    _decide_rows(first, stop, days, assets, rules, *now, plan_row, known_value, fresh_value, *planned)
    own = (price, volume_kw, position_kw, accepted_kw, cap_kw)
    observe_rows(first, stop, days, assets, rules, features, *now, *own, *planned, seen)
