"""Fast charging: the pure core of model.md section 8, batched over environments.

A ``FastWorld`` is a scenario with its prepared days, a ``FastState`` is what changes. Every step sends the next request
of each row to a station: rows have slots of their own and go on past slots without requests, so that a day has as many
steps as requests. Environments, rules, learned policies and the replay of an exact plan pass through one kernel.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from evcs_gym.envs.day import Day
from evcs_gym.envs.errors import ConfigError, DataError, InfeasibleError
from evcs_gym.envs.fleet import fast_kernels as kernels
from evcs_gym.envs.fleet.fast_kernels import REACH_TOLERANCE_KWH, FastDays, FastRules
from evcs_gym.envs.grid import Feeder, PowerFlow, power_flow
from evcs_gym.envs.grid.devices import bank_kvar
from evcs_gym.envs.threads import run_rows
from evcs_gym.envs.types import BoolArray, ComplexArray, FastDay, FastStations, FloatArray, IntArray, frozen
from evcs_gym.envs.units import N_SLOTS, SLOT_H

if TYPE_CHECKING:
    from evcs_gym.envs.fast_specs import FastChargingSpec
    from evcs_gym.envs.scenario import Scenario

PARALLEL_FROM_ROWS: Final = 64
"""Rows from which a second thread pays: below that starting it costs more than it saves."""


@dataclass(frozen=True, eq=False)
class FastWorld:
    """Everything about fast charging that does not change within a day.

    days: stacked arrays, leading axis D. source_pu (D, T): head voltage. capacitor_step (D, T, K): steps of the banks
    in service, bank_kvar (K, N, P): nominal kvar of one. seed (D,): of each day.
    """

    spec: "FastChargingSpec"
    feeder: Feeder
    stations: FastStations
    rules: FastRules
    bank_kvar: FloatArray
    days: FastDays
    source_pu: FloatArray
    capacitor_step: IntArray
    seed: IntArray

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrays that were pickled or copied come back writable: freeze them, or every kernel is compiled again."""
        for name, value in state.items():
            parts: Iterable[Any] = vars(value).values() if isinstance(value, FastStations) else (value,)
            for array in value if isinstance(value, (FastDays, FastRules)) else parts:
                if isinstance(array, np.ndarray):
                    frozen(array)
            object.__setattr__(self, name, value)

    @property
    def n_days(self) -> int:
        """Number of stacked days D."""
        return len(self.seed)

    @property
    def n_stations(self) -> int:
        """Number of stations J; action J strands."""
        return len(self.stations)

    @property
    def n_requests(self) -> IntArray:
        """Requests of each day, (D,)."""
        return np.asarray(self.days.slot_start[:, -1])


@dataclass(frozen=True, eq=False)
class FastState:
    """What changes: the row's day (B,), its slot (B,), 48 when its day is over, and its next request (B,).

    load_kw (B, T, J): power of every slot to which requests so far have led, plugs in use n_busy (B, T, J), energy
    after the last slot beyond_kwh (B, J). pending_eur (B, 2): what empty slots before this one cost, absorb and voltage
    terms, which the next reward pays. episode (B,): days that the row began before this one; the next day that is drawn
    for it follows from this.
    """

    day: IntArray
    slot: IntArray
    request: IntArray
    load_kw: FloatArray
    n_busy: IntArray
    beyond_kwh: FloatArray
    pending_eur: FloatArray
    episode: IntArray


@dataclass(frozen=True, eq=False)
class FastOutcome:
    """What one request of each row cost, (B,), as named terms whose sum is the cost, and what happened.

    absorb_eur, energy_eur: by how much it raised the terms of (1); the first request of a slot pays what the slot cost
    without any, and slots without requests before it. stranded_eur. voltage_eur: of the slot that it finished; the last
    request of a day also pays for the slots after it.
    station (B,): where it went, J if stranded, and n_stranded (B,) is 1. delivered_kwh (B,): energy of the charge;
    charge_eur (B,): (2). n_slots (B,): slots that the step finished; of these violation_pu, n_violations: sum and
    number of bus-phases outside the effective limits, and n_collapsed: slots without a power flow. n_replaced (B,): see
    `step_executed`.
    """

    absorb_eur: FloatArray
    energy_eur: FloatArray
    stranded_eur: FloatArray
    voltage_eur: FloatArray
    station: IntArray
    n_stranded: IntArray
    delivered_kwh: FloatArray
    charge_eur: FloatArray
    n_slots: IntArray
    violation_pu: FloatArray
    n_violations: IntArray
    n_collapsed: IntArray
    n_replaced: IntArray

    @property
    def cost_eur(self) -> FloatArray:
        """Cost of the step, (B,)."""
        return np.asarray(self.absorb_eur + self.energy_eur + self.stranded_eur + self.voltage_eur)


# ------------------------------------------------------------------------------------------------- days to a world

_WHOLE: Final = ("slot", "car", "node")


def check_requests(fast: FastDay, n_stations: int, where: str) -> None:
    """Refuse requests that no car can make: each complaint names the request.

    Raises:
        DataError: shapes that differ, an index that is no integer, a value out of range, an order other than by slot
            and car.
    """
    n = len(fast)
    shapes = {"distance_km": (n, n_stations), "base_kw": (N_SLOTS, n_stations), "dg_kw": (N_SLOTS, n_stations)}
    for name in FastDay.__dataclass_fields__:
        values, shape = np.asarray(getattr(fast, name)), shapes.get(name, (n,))
        if values.shape != shape:
            raise DataError(f"{where}: fast.{name} must have shape {shape}, got {values.shape}")
        if name in _WHOLE and not np.issubdtype(values.dtype, np.integer):
            raise DataError(f"{where}: fast.{name} must hold integers, got {values.dtype}")
        if np.isnan(values).any() or (name != "distance_km" and not np.isfinite(values).all()):
            raise DataError(f"{where}: fast.{name} must be finite, got NaN or infinity")
    rules = (
        ("slot", f"must be in 0..{N_SLOTS - 1}", (fast.slot >= 0) & (fast.slot < N_SLOTS)),
        ("soc0_frac", "must be in [0, 1]", (fast.soc0_frac >= 0) & (fast.soc0_frac <= 1)),
        ("capacity_kwh", "must be > 0", fast.capacity_kwh > 0),
        ("consumption_kwh_per_km", "must be > 0", fast.consumption_kwh_per_km > 0),
        ("distance_km", "must not be negative", (fast.distance_km >= 0).all(axis=1)),
    )
    for name, rule, holds in rules:
        if not holds.all():
            bad = int(np.argmin(holds))
            got = np.asarray(getattr(fast, name))[bad]
            raise DataError(f"{where}: fast.{name}[{bad}] {rule}, got {got} (car {int(fast.car[bad])})")
    if not np.array_equal(np.lexsort((fast.car, fast.slot)), np.arange(n)):
        raise DataError(f"{where}: fast must be sorted by slot, then car")


def _check_days(scenario: "Scenario", days: Sequence[Day]) -> None:
    if not days:
        raise ConfigError("at least one day is needed, got none")
    shapes: dict[str, tuple[int, ...]] = {"import_eur_per_kwh": (N_SLOTS,), "source_pu": (N_SLOTS,)}
    shapes |= {"load_kva": (N_SLOTS, *scenario.feeder.load_kva.shape)}
    shapes["capacitor_step"] = (N_SLOTS, len(scenario.devices.banks))
    for day in days:
        where = f"day {day.split}/{day.seed}"
        if day.fast is None or day.feeder.name != scenario.feeder.name:
            raise DataError(
                f"{where}: must be a day of scenario {scenario.name!r} with fast charging, got one of {day.scenario!r}"
            )
        for name, shape in shapes.items():
            value = getattr(day, name)
            if value.shape != shape or not np.isfinite(value).all():
                raise DataError(f"{where}: {name} must be finite and have shape {shape}, got shape {value.shape}")
        check_requests(day.fast, len(scenario.fast_stations), where)


def requests_of(day: Day) -> FastDay:
    """The requests of a day. Raises DataError for a day without the world."""
    if day.fast is None:
        raise DataError(f"day {day.split}/{day.seed}: must be one of a scenario with fast_charging")
    return day.fast


def within_reach(fast: FastDay, reserve_soc_frac: float) -> BoolArray:
    """(4) for every request and station, (R, J)."""
    spare_kwh = (fast.soc0_frac - reserve_soc_frac) * fast.capacity_kwh
    needed_kwh = fast.distance_km * fast.consumption_kwh_per_km[:, None]
    return np.asarray(needed_kwh <= spare_kwh[:, None] + REACH_TOLERANCE_KWH)


def make_fast_world(scenario: "Scenario", days: Sequence[Day]) -> FastWorld:
    """Stack days for the kernels.

    Raises:
        ConfigError: no day, a scenario without fast charging. DataError: a day whose arrays do not fit the scenario, or
            with impossible requests.
    """
    spec, stations = scenario.fast_charging, scenario.fast_stations
    _check_days(scenario, days)
    return FastWorld(
        spec=spec,
        feeder=scenario.feeder,
        stations=stations,
        rules=FastRules(
            spec.absorb_eur_per_kw, spec.energy_weight, spec.stranded_eur, stations.plug_kw, stations.n_plugs
        ),
        bank_kvar=frozen(bank_kvar(scenario.devices, len(scenario.feeder))),
        days=_stacked_days(days, spec.reserve_soc_frac),
        source_pu=_stacked([day.source_pu for day in days]),
        capacitor_step=_stacked([day.capacitor_step for day in days]),
        seed=frozen(np.array([day.seed for day in days], dtype=np.int64)),
    )


def _stacked_days(days: Sequence[Day], reserve_soc_frac: float) -> FastDays:
    fasts = [requests_of(day) for day in days]
    forecasts = [day.forecast for day in days]
    return FastDays(
        import_eur_per_kwh=_stacked([day.import_eur_per_kwh for day in days]),
        base_kw=_stacked([fast.base_kw for fast in fasts]),
        dg_kw=_stacked([fast.dg_kw for fast in fasts]),
        load_kva=_stacked([day.load_kva for day in days]),
        base_voltage_pu=_stacked([day.base_voltage_pu for day in days]),
        vmin_pu=_stacked([day.vmin_pu for day in days]),
        vmax_pu=_stacked([day.vmax_pu for day in days]),
        slot_start=_stacked([np.searchsorted(fast.slot, np.arange(N_SLOTS + 1)) for fast in fasts]),
        car=_padded([fast.car for fast in fasts]),
        missing_kwh=_padded([(1.0 - fast.soc0_frac) * fast.capacity_kwh for fast in fasts]),
        spare_kwh=_padded([(fast.soc0_frac - reserve_soc_frac) * fast.capacity_kwh for fast in fasts]),
        consumption_kwh_per_km=_padded([fast.consumption_kwh_per_km for fast in fasts]),
        distance_km=_padded([fast.distance_km for fast in fasts]),
        growth_frac=_stacked([forecast.growth_frac for forecast in forecasts]),
        price_error_eur_per_kwh=_stacked([forecast.import_eur_per_kwh for forecast in forecasts]),
        base_error_kw=_stacked([forecast.fast_base_kw for forecast in forecasts]),
        dg_error_kw=_stacked([forecast.fast_dg_kw for forecast in forecasts]),
    )


def _stacked(values: Sequence[np.ndarray]) -> Any:
    """Read-only and C-contiguous: a kernel is compiled anew for every other memory layout, which takes seconds."""
    return frozen(np.ascontiguousarray(np.stack(values)))


def _padded(values: Sequence[np.ndarray]) -> Any:
    """Requests of each day along (D, R), zeros behind them."""
    width = max(1, max(len(value) for value in values))
    out = np.zeros((len(values), width, *values[0].shape[1:]), dtype=values[0].dtype)
    for row, value in enumerate(values):
        out[row, : len(value)] = value
    return frozen(out)


# ------------------------------------------------------------------------------------------------------- the steps


def initial_state(world: FastWorld, day: IntArray, episode: IntArray | None = None) -> FastState:
    """The first request of the given days, an array (B,) of rows of the world's stack; episode (B,), 0 by default."""
    day = np.array(day, dtype=np.int64)
    n, shape = len(day), (len(day), N_SLOTS, world.n_stations)
    slot, pending, load = np.empty(n, dtype=np.int64), np.empty((n, 2)), np.zeros(shape)
    arguments = (world.days, world.rules, day, load, slot, pending)
    run_rows(kernels.begin, n, arguments, parallel_from=PARALLEL_FROM_ROWS)
    return FastState(
        day=day,
        slot=slot,
        request=np.zeros(n, dtype=np.int64),
        load_kw=load,
        n_busy=np.zeros(shape, dtype=np.int64),
        beyond_kwh=np.zeros((n, world.n_stations)),
        pending_eur=pending,
        episode=np.zeros(n, dtype=np.int64) if episode is None else np.array(episode, dtype=np.int64),
    )


def with_reset_rows(world: FastWorld, state: FastState, rows: BoolArray, day: IntArray) -> FastState:
    """The state in which the marked rows (B,) begin the given days (number of marked rows,), their next episodes."""
    fresh, out = initial_state(world, day, state.episode[rows] + 1), _copied(state)
    for name in FastState.__dataclass_fields__:
        getattr(out, name)[rows] = getattr(fresh, name)
    return out


def _copied(state: FastState) -> FastState:
    return FastState(**{name: getattr(state, name).copy() for name in FastState.__dataclass_fields__})


def rows_of(state: FastState, rows: Any) -> FastState:
    """The state of some of the rows: indices or a mask."""
    return FastState(**{name: getattr(state, name)[rows] for name in FastState.__dataclass_fields__})


def action_masks(world: FastWorld, state: FastState) -> BoolArray:
    """Allowed actions (B, J + 1): stations within reach (4) that have a free plug, else the last one, stranded.

    Of rows whose day is over every action is allowed: none counts.
    """
    out = np.empty((len(state.day), world.n_stations + 1), dtype=np.bool_)
    arguments = (world.days, world.rules, state.day, state.slot, state.request, state.n_busy, out)
    run_rows(kernels.mask, len(state.day), arguments, parallel_from=PARALLEL_FROM_ROWS)
    return out


def step(world: FastWorld, state: FastState, action: IntArray) -> tuple[FastState, FastOutcome]:
    """Send the next request of every row to a station 0 .. J - 1, or strand it (J); pure.

    Args:
        action: (B,); or (B, K) for up to K requests at once, as many as are left in the row's slot: what stands behind
            these counts for nothing, `FastOutcome.station` is -1 there.

    Raises:
        InfeasibleError: an action that is not allowed; names the request, the station and why.
        DataError: actions of another shape or kind. ConfigError: the day of a row is over.
    """
    after, outcome = step_executed(world, state, action)
    if outcome.n_replaced.any():
        row = int(np.argmax(outcome.n_replaced))
        station, asked = outcome.station.reshape(len(state.day), -1)[row], np.reshape(action, (len(state.day), -1))[row]
        place = int(np.argmax((station >= 0) & (station != asked)))
        before = rows_of(state, slice(row, row + 1))
        if place:  # plugs that the step's earlier requests took
            before, _ = step_executed(world, before, station[None, :place])
        _refuse(world, int(state.day[row]), int(before.request[0]), int(asked[place]), before.n_busy[0])
    return after, outcome


def step_executed(world: FastWorld, state: FastState, action: IntArray) -> tuple[FastState, FastOutcome]:
    """As `step`, but where an action is not allowed the nearest allowed station is taken, J if there is none.

    Of equally near ones the first. n_replaced of the outcome (B,) counts how often that was so.
    """
    n = len(state.day)
    action = np.asarray(action)
    if action.shape[:1] != (n,) or not 1 <= action.ndim <= 2 or not np.issubdtype(action.dtype, np.integer):
        raise DataError(f"actions must be whole numbers of shape ({n},), got {action.dtype} of shape {action.shape}")
    if state.slot.max() >= N_SLOTS:
        raise ConfigError(f"the day of row {int(state.slot.argmax())} is over; start another one before the next step")
    asked = np.ascontiguousarray(action, dtype=np.int64).reshape(n, -1)
    after, station, terms = _copied(state), np.empty(asked.shape, dtype=np.int64), np.zeros((n, 5))
    changed = (after.slot, after.request, after.load_kw, after.n_busy, after.beyond_kwh, after.pending_eur)
    arguments = (world.days, world.rules, state.day, asked, *changed, station, terms)
    run_rows(kernels.advance, n, arguments, parallel_from=PARALLEL_FROM_ROWS)
    voltage_eur, found = _finished(world, state, after)
    return after, FastOutcome(
        absorb_eur=terms[:, 0],
        energy_eur=terms[:, 1],
        stranded_eur=terms[:, 2],
        voltage_eur=voltage_eur,
        station=station.reshape(action.shape),
        n_stranded=(station == world.n_stations).sum(axis=1),
        delivered_kwh=terms[:, 3],
        charge_eur=terms[:, 4],
        n_slots=after.slot - state.slot,
        n_replaced=((station >= 0) & (station != asked)).sum(axis=1),
        **found,
    )


def _finished(world: FastWorld, before: FastState, after: FastState) -> tuple[FloatArray, dict[str, Any]]:
    """Voltage term of the step (B,), and what was found in the slots that it finished; changes ``after.pending_eur``.

    Slots without any charging are not solved: they are the base case, which is inside the effective limits by
    definition.
    """
    n, price = len(before.day), world.spec.voltage_eur_per_pu
    n_done = after.slot - before.slot
    if not n_done.any():
        return _nothing_found(before, after)
    row = np.repeat(np.arange(n), n_done)
    slot = before.slot[row] + np.arange(len(row)) - np.repeat(np.cumsum(n_done) - n_done, n_done)
    charging = after.load_kw[row, slot].any(axis=1)
    row, slot = row[charging], slot[charging]
    if not len(row):
        return _nothing_found(before, after)
    flow, excess, count = _flows(world, before.day[row], slot, after.load_kw[row, slot])
    now = (slot == before.slot[row]) | (after.slot[row] >= N_SLOTS)
    voltage_eur = before.pending_eur[:, 1] + price * np.bincount(row[now], excess[now], minlength=n)
    after.pending_eur[:, 1] = price * np.bincount(row[~now], excess[~now], minlength=n)
    return voltage_eur, {
        "violation_pu": np.bincount(row, excess, minlength=n),
        "n_violations": np.bincount(row, count, minlength=n).astype(np.int64),
        "n_collapsed": np.bincount(row, ~flow.converged, minlength=n).astype(np.int64),
    }


def _nothing_found(before: FastState, after: FastState) -> tuple[FloatArray, dict[str, Any]]:
    """`_finished` where no power flow is due."""
    after.pending_eur[:, 1] = 0.0
    none = np.zeros(len(before.day), dtype=np.int64)
    found = {"violation_pu": none.astype(np.float64), "n_violations": none, "n_collapsed": none}
    return before.pending_eur[:, 1], found


def _flows(
    world: FastWorld, day: IntArray, slot: IntArray, station_kw: FloatArray
) -> tuple[PowerFlow, FloatArray, IntArray]:
    """Power flow of cases (K,) with the stations' power (K, J), and what breaks (3): excess [pu] and bus-phases."""
    n = len(day)
    load = np.empty((n, *world.feeder.load_kva.shape), dtype=np.complex128)
    arguments = (world.days, world.stations.bus, day, slot, np.ascontiguousarray(station_kw), load)
    run_rows(kernels.feed, n, arguments, parallel_from=PARALLEL_FROM_ROWS)
    capacitor_kvar = None
    if len(world.bank_kvar):
        capacitor_kvar = np.tensordot(world.capacitor_step[day, slot], world.bank_kvar, axes=1)
    flow = power_flow(world.feeder, load, source_pu=world.source_pu[day, slot], capacitor_kvar=capacitor_kvar)
    excess, count = np.empty(n), np.empty(n, dtype=np.int64)
    judged = (world.days, day, slot, flow.voltage_pu, flow.converged, excess, count)
    run_rows(kernels.judge, n, judged, parallel_from=PARALLEL_FROM_ROWS)
    return flow, excess, count


def _refuse(world: FastWorld, d: int, r: int, j: int, n_busy: IntArray) -> None:
    """InfeasibleError for request r of day d, which may not go to station j."""
    days, names = world.days, world.stations.name
    slot = int(np.searchsorted(days.slot_start[d], r, side="right")) - 1
    who = f"request {r} (car {int(days.car[d, r])}, slot {slot})"
    if not 0 <= j <= world.n_stations:
        raise InfeasibleError(f"{who} must go to a station 0..{world.n_stations - 1} or be stranded, got {j}")
    needed_kwh = days.distance_km[d, r] * days.consumption_kwh_per_km[d, r]
    near = needed_kwh <= days.spare_kwh[d, r] + REACH_TOLERANCE_KWH
    free = n_busy[slot] < world.rules.n_plugs
    if j == world.n_stations:
        raise InfeasibleError(f"{who} must not be stranded: station {names[int(np.argmax(near & free))]!r} is allowed")
    if not near[j]:
        raise InfeasibleError(
            f"{who} cannot reach station {names[j]!r}: it needs {needed_kwh[j]:.6g} kWh to get there and has "
            f"{days.spare_kwh[d, r]:.6g} above the reserve"
        )
    raise InfeasibleError(
        f"{who} cannot charge at station {names[j]!r}: all of its {int(world.rules.n_plugs[j])} plugs are in use"
    )


# ------------------------------------------------------------------------------------------- what policies may know


@dataclass(frozen=True, eq=False)
class FastView:
    """What a policy may know when it sends a request, batched (B, ...): nothing of requests of later slots.

    day (B,): row of the world's stack, slot (B,), request (B,): number of the present request in its day. n_slot (B,):
    all requests of the slot, n of (1); n_waiting (B,): those still to be sent, which all asked at its beginning. Of
    these, in the order in which they are sent, W the most of any row, padded with zeros: missing_kwh, spare_kwh (B, W):
    (1 - SoC0) C and (SoC0 - reserve) C; distance_km, drive_kwh (B, W, J): the way to each station and what it takes,
    inf where none leads. The first of them is the present request; allowed (B, J + 1) are its actions. load_kw, n_busy
    (B, T, J): committed so far, the present slot included. import_eur_per_kwh (B, T), base_kw and dg_kw (B, T, J): the
    truth up to the slot and forecasts beyond it.
    """

    day: IntArray
    slot: IntArray
    request: IntArray
    n_slot: IntArray
    n_waiting: IntArray
    missing_kwh: FloatArray
    spare_kwh: FloatArray
    distance_km: FloatArray
    drive_kwh: FloatArray
    allowed: BoolArray
    load_kw: FloatArray
    n_busy: IntArray
    import_eur_per_kwh: FloatArray
    base_kw: FloatArray
    dg_kw: FloatArray
    rules: FastRules

    @property
    def n_free(self) -> IntArray:
        """Plugs of each station that are free in the slot, (B, J)."""
        return np.asarray(self.rules.n_plugs - self.n_busy[np.arange(len(self.slot)), self.slot])

    @property
    def surplus_kw(self) -> FloatArray:
        """Local generation that neither base nor charging takes in the slot, (B, J); negative where there is none."""
        rows = np.arange(len(self.slot))
        return np.asarray((self.dg_kw - self.base_kw - self.load_kw)[rows, self.slot])


def view(world: FastWorld, state: FastState) -> FastView:
    """What a rule or a planning policy may know of rows whose day is not over; see `FastView`.

    Raises:
        ConfigError: the day of a row is over.
    """
    if state.slot.max() >= N_SLOTS:
        raise ConfigError(f"the day of row {int(state.slot.argmax())} is over; there is nothing to be sent")
    days, day, slot = world.days, state.day, state.slot
    stop = days.slot_start[day, slot + 1]
    n_waiting = stop - state.request
    place = np.arange(int(n_waiting.max()))[None]
    waits = place < n_waiting[:, None]
    at = (day[:, None], np.where(waits, state.request[:, None] + place, 0))
    distance = np.where(waits[:, :, None], days.distance_km[at], 0.0)
    lead = np.arange(N_SLOTS)[None] - slot[:, None]
    growth = np.where(lead > 0, np.take_along_axis(days.growth_frac[day], np.maximum(lead, 0), axis=1), 0.0)
    return FastView(
        day=day,
        slot=slot,
        request=state.request,
        n_slot=stop - days.slot_start[day, slot],
        n_waiting=n_waiting,
        missing_kwh=np.where(waits, days.missing_kwh[at], 0.0),
        spare_kwh=np.where(waits, days.spare_kwh[at], 0.0),
        distance_km=distance,
        drive_kwh=distance * days.consumption_kwh_per_km[at][:, :, None],
        allowed=action_masks(world, state),
        load_kw=state.load_kw,
        n_busy=state.n_busy,
        import_eur_per_kwh=days.import_eur_per_kwh[day] + growth * days.price_error_eur_per_kwh[day],
        base_kw=days.base_kw[day] + growth[:, :, None] * days.base_error_kw[day],
        dg_kw=days.dg_kw[day] + growth[:, :, None] * days.dg_error_kw[day],
        rules=world.rules,
    )


def observe(world: FastWorld, state: FastState) -> np.ndarray:
    """Observation float32 (B, F); rows whose day is over show only the time. Table in fast_observation.py."""
    n = len(state.day)
    out = np.zeros((n, kernels.n_features(world.n_stations)), dtype=np.float32)
    arguments = (world.days, world.rules, world.stations.bus, world.spec.mean_requests_per_slot)
    arguments_of_state = (state.day, state.slot, state.request, state.load_kw, state.n_busy, out)
    run_rows(kernels.observe, n, arguments + arguments_of_state, parallel_from=PARALLEL_FROM_ROWS)
    return out


# ---------------------------------------------------------------------------------------------------------- replay


@dataclass(frozen=True, eq=False)
class FastReplay:
    """A plan for one day put through the environment's kernel; terms of every slot (T,) [EUR].

    absorb_eur, energy_eur: the two terms of (1). stranded_eur, voltage_eur: beside it. charge_eur: sum of (2) over the
    slot's cars. load_kw (T, J), n_busy (T, J): power and plugs in use at the stations. beyond_kwh (J,): energy that is
    delivered after the day. n_stranded (T,). violation_pu (T,), n_violations (T,): of (3). voltage_pu (T, N, P),
    converged (T,). unabsorbed_kwh (T,): local generation at the stations' buses that neither base nor charging takes.
    """

    absorb_eur: FloatArray
    energy_eur: FloatArray
    stranded_eur: FloatArray
    voltage_eur: FloatArray
    charge_eur: FloatArray
    load_kw: FloatArray
    n_busy: IntArray
    beyond_kwh: FloatArray
    n_stranded: IntArray
    violation_pu: FloatArray
    n_violations: IntArray
    voltage_pu: ComplexArray
    converged: BoolArray
    unabsorbed_kwh: FloatArray

    @property
    def slot_eur(self) -> FloatArray:
        """Cost of every slot, (T,)."""
        return np.asarray(self.absorb_eur + self.energy_eur + self.stranded_eur + self.voltage_eur)

    @property
    def cost_eur(self) -> float:
        """Cost of the day."""
        return float(self.slot_eur.sum())


def replay(scenario: "Scenario", day: Day, station: IntArray) -> FastReplay:
    """Put a plan, the station of every request (R,) with J for stranded, through the environment.

    Raises:
        InfeasibleError: a request that may not go where the plan sends it: not in reach, no plug free, or stranded
            although a station is allowed. DataError: a plan of the wrong shape or kind.
    """
    fast, plan = requests_of(day), np.asarray(station)
    if plan.shape != (len(fast),) or not np.issubdtype(plan.dtype, np.integer):
        raise DataError(f"the plan must hold whole numbers ({len(fast)},), got {plan.dtype} of shape {plan.shape}")
    world = make_fast_world(scenario, [day])
    n_stations = world.n_stations
    for r in np.flatnonzero((plan < 0) | (plan > n_stations))[:1]:
        _refuse(world, 0, int(r), int(plan[r]), np.zeros((N_SLOTS, n_stations), dtype=np.int64))
    plan = np.ascontiguousarray(plan, dtype=np.int64)
    load, busy = np.zeros((N_SLOTS, n_stations)), np.zeros((N_SLOTS, n_stations), dtype=np.int64)
    beyond, terms = np.zeros(n_stations), np.zeros((N_SLOTS, 4))
    bad = kernels.play(world.days, world.rules, plan, load, busy, beyond, terms)
    if bad >= 0:
        _refuse(world, 0, bad, int(plan[bad]), busy)
    slots, zeros = np.arange(N_SLOTS), np.zeros(N_SLOTS, dtype=np.int64)
    flow, excess, count = _flows(world, zeros, slots, load)
    idle = ~load.any(axis=1)
    excess, count = np.where(idle, 0.0, excess), np.where(idle, 0, count)
    return FastReplay(
        absorb_eur=terms[:, 0],
        energy_eur=terms[:, 1],
        stranded_eur=terms[:, 2],
        voltage_eur=world.spec.voltage_eur_per_pu * excess,
        charge_eur=terms[:, 3],
        load_kw=load,
        n_busy=busy,
        beyond_kwh=beyond,
        n_stranded=np.bincount(fast.slot[plan == n_stations], minlength=N_SLOTS),
        violation_pu=excess,
        n_violations=count,
        voltage_pu=flow.voltage_pu,
        converged=flow.converged,
        unabsorbed_kwh=SLOT_H * np.maximum(fast.dg_kw - fast.base_kw - load, 0.0).sum(axis=1),
    )
