"""Normal charging: the pure core of model.md section 9, batched over environments.

A ``World`` is a scenario with its prepared days, a ``State`` is what changes. ``dispatch`` turns bus actions into car
powers (knee, then disaggregation), ``step`` takes car powers and prices the slot: equal inputs give equal outputs,
inputs are untouched. Environments, rules, learned policies and the replay of an exact plan all pass through ``step``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evcs_gym.envs.day import Day, check_sessions
from evcs_gym.envs.errors import ConfigError, DataError, InfeasibleError
from evcs_gym.envs.fleet import kernels
from evcs_gym.envs.fleet.kernels import DayArrays, Rules
from evcs_gym.envs.fleet.needs import session_needs
from evcs_gym.envs.grid import Feeder, power_flow
from evcs_gym.envs.grid.devices import bank_kvar
from evcs_gym.envs.threads import run_rows
from evcs_gym.envs.types import BoolArray, ComplexArray, FloatArray, IntArray, Sessions, frozen
from evcs_gym.envs.units import N_SLOTS, SLOT_H

if TYPE_CHECKING:
    from evcs_gym.envs.scenario import NormalChargingSpec, Scenario

PARALLEL_FROM_ROWS = 64
"""Rows from which a second thread pays: below that starting it costs more than it saves."""
PLAN_ENERGY_TOLERANCE_KWH = 1e-5
"""A plan leaves a car full if less than this is missing: the tolerance of the solvers, far below a cent."""


@dataclass(frozen=True, eq=False)
class World:
    """Everything about normal charging that does not change within a day.

    days: stacked arrays, leading axis D. source_pu (D, T): head voltage. capacitor_step (D, T, K): steps of the banks
    in service, bank_kvar (K, N, P): nominal kvar of one. need_kwh (D, S): energy each session receives, infeasible_kwh
    (D, S) what its stay is too short for. n_sessions (D,). mean_price_eur_per_kwh (D,): of the import price, for the
    reward shift.
    installed_kw, charging_bus: (C,).
    """

    spec: "NormalChargingSpec"
    feeder: Feeder
    source_pu: FloatArray
    capacitor_step: IntArray
    bank_kvar: FloatArray
    charging_bus: IntArray
    installed_kw: FloatArray
    rules: Rules
    days: DayArrays
    need_kwh: FloatArray
    infeasible_kwh: FloatArray
    n_sessions: IntArray
    mean_price_eur_per_kwh: FloatArray

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrays that were pickled or copied come back writable: freeze them, or every kernel is compiled again."""
        for name, value in state.items():
            for array in value if isinstance(value, DayArrays) else (value,):
                if isinstance(array, np.ndarray):
                    frozen(array)
            object.__setattr__(self, name, value)

    @property
    def n_days(self) -> int:
        """Number of stacked days D."""
        return int(self.need_kwh.shape[0])

    @property
    def n_buses(self) -> int:
        """Number of charging buses C."""
        return int(self.charging_bus.shape[0])


@dataclass(frozen=True, eq=False)
class State:
    """What changes: the row's day (B,), its slot (B,), the energy its sessions still need (B, S), and the voltages of
    the slot before (B, N, P), which the observation shows and the next power flow starts from."""

    day: IntArray
    slot: IntArray
    remaining_kwh: FloatArray
    voltage_pu: ComplexArray


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one slot cost, per charging bus, and what happened. The cost is the sum of the three named terms.

    gap_eur: omega1 * dt * |base + charging - DG|, energy_eur: weighted cost of charging, both (B, C) and of (5);
    voltage_eur (B, C): price of voltages outside the effective limits, shared among the buses.
    power_kw (B, S), bus_power_kw and must_run_kw (B, C). voltage_pu (B, N, P), converged (B,), violation_pu (B,) and
    n_violations (B,): sum and number of bus-phases outside the effective limits.
    """

    gap_eur: FloatArray
    energy_eur: FloatArray
    voltage_eur: FloatArray
    power_kw: FloatArray
    bus_power_kw: FloatArray
    must_run_kw: FloatArray
    voltage_pu: ComplexArray
    converged: BoolArray
    violation_pu: FloatArray
    n_violations: IntArray

    @property
    def cost_eur(self) -> FloatArray:
        """Cost of the slot per charging bus, (B, C)."""
        return np.asarray(self.gap_eur + self.energy_eur + self.voltage_eur)


@dataclass(frozen=True, eq=False)
class View:
    """What a policy may know in its slot, batched (B, ...): the cars present and forecasts; nothing of later arrivals.

    departure_slot, power_kw, remaining_kwh: (B, W) of the cars present that still need energy, those of each bus
    delimited by bus_start (B, C + 1) and in the order of arrival, then 0. import_eur_per_kwh (B, T), base_kw and
    dg_kw (B, T, C) hold the truth up to the slot and forecasts beyond it. least_kw, largest_kw (B, C): bounds of the
    bus power.
    """

    slot: IntArray
    bus_start: IntArray
    departure_slot: IntArray
    power_kw: FloatArray
    remaining_kwh: FloatArray
    import_eur_per_kwh: FloatArray
    base_kw: FloatArray
    dg_kw: FloatArray
    least_kw: FloatArray
    largest_kw: FloatArray
    rules: Rules

    @property
    def surplus_kw(self) -> FloatArray:
        """DG surplus of the present slot, (B, C)."""
        rows = np.arange(len(self.slot))
        return np.asarray((self.dg_kw - self.base_kw)[rows, self.slot])


def _padded(days: Sequence[Day], values: Sequence[np.ndarray], width: int, fill: float) -> np.ndarray:
    out = np.full((len(days), width), fill, dtype=values[0].dtype)
    for row, value in enumerate(values):
        out[row, : len(value)] = value
    return frozen(out)  # type: ignore[no-any-return]


def _stacked(days: Sequence[Day], name: str) -> np.ndarray:
    return _kernel_array(np.stack([getattr(day, name) for day in days]))


def _kernel_array(values: np.ndarray) -> np.ndarray:
    """Read-only and C-contiguous: a kernel is compiled anew for every other memory layout, which takes seconds."""
    return frozen(np.ascontiguousarray(values))  # type: ignore[no-any-return]


def _bus_start(sessions: Sessions, n_buses: int) -> IntArray:
    return np.searchsorted(sessions.bus, np.arange(n_buses + 1)).astype(np.int64)


def _check_days(scenario: "Scenario", days: Sequence[Day]) -> None:
    if not days:
        raise ConfigError("at least one day is needed, got none")
    n_buses = len(scenario.charging_buses)
    shapes = {"base_kw": (N_SLOTS, n_buses), "dg_kw": (N_SLOTS, n_buses), "import_eur_per_kwh": (N_SLOTS,)}
    shapes |= {"load_kva": (N_SLOTS, *scenario.feeder.load_kva.shape), "source_pu": (N_SLOTS,)}
    shapes["capacitor_step"] = (N_SLOTS, len(scenario.devices.banks))
    for day in days:
        check_sessions(day.sessions, n_buses)
        if not np.array_equal(day.charging_bus, scenario.charging_bus) or day.feeder.name != scenario.feeder.name:
            raise DataError(
                f"day {day.split}/{day.seed}: its charging buses and feeder must be those of scenario "
                f"{scenario.name!r}, got a day of {day.scenario!r}"
            )
        for name, shape in shapes.items():
            value = getattr(day, name)
            if value.shape != shape:
                raise DataError(f"day {day.split}/{day.seed}: {name} must have shape {shape}, got {value.shape}")
            if not np.isfinite(value).all():
                raise DataError(f"day {day.split}/{day.seed}: {name} must be finite, got NaN or infinity")


def make_world(scenario: "Scenario", days: Sequence[Day]) -> World:
    """Stack days for the kernels.

    Raises:
        ConfigError: no day. DataError: a day whose arrays do not fit the scenario, or with impossible sessions.
    """
    _check_days(scenario, days)
    spec, n_buses = scenario.normal_charging, len(scenario.charging_buses)
    needs = [session_needs(day.sessions, spec.mode) for day in days]
    width = max(1, max(len(day.sessions) for day in days))
    sessions = [day.sessions for day in days]
    arrays = DayArrays(
        import_eur_per_kwh=_stacked(days, "import_eur_per_kwh"),
        base_kw=_stacked(days, "base_kw"),
        dg_kw=_stacked(days, "dg_kw"),
        load_kva=_stacked(days, "load_kva"),
        base_voltage_pu=_stacked(days, "base_voltage_pu"),
        vmin_pu=_stacked(days, "vmin_pu"),
        vmax_pu=_stacked(days, "vmax_pu"),
        bus_start=frozen(np.stack([_bus_start(s, n_buses) for s in sessions])),
        phase=_padded(days, [s.phase for s in sessions], width, -1),
        arrival_slot=_padded(days, [s.arrival_slot for s in sessions], width, 0),
        departure_slot=_padded(days, [s.departure_slot for s in sessions], width, 0),
        power_kw=_padded(days, [n.power_kw for n in needs], width, 1.0),
        car=_padded(days, [s.car for s in sessions], width, 0),
        growth_frac=_kernel_array(np.stack([day.forecast.growth_frac for day in days])),
        price_error_eur_per_kwh=_kernel_array(np.stack([day.forecast.import_eur_per_kwh for day in days])),
        base_error_kw=_kernel_array(np.stack([day.forecast.base_kw for day in days])),
        dg_error_kw=_kernel_array(np.stack([day.forecast.dg_kw for day in days])),
    )
    return World(
        spec=spec,
        feeder=scenario.feeder,
        source_pu=_stacked(days, "source_pu"),
        capacitor_step=_stacked(days, "capacitor_step"),
        bank_kvar=frozen(bank_kvar(scenario.devices, len(scenario.feeder))),
        charging_bus=scenario.charging_bus,
        installed_kw=scenario.installed_kw,
        rules=Rules(
            on_off=spec.mode == "on_off",
            price_laxity=spec.disaggregation == "price_laxity",
            omega1_eur_per_kwh=spec.omega1_eur_per_kwh,
            energy_weight=spec.energy_weight,
        ),
        days=arrays,
        need_kwh=_padded(days, [n.energy_kwh for n in needs], width, 0.0),
        infeasible_kwh=_padded(days, [n.infeasible_kwh for n in needs], width, 0.0),
        n_sessions=frozen(np.array([len(s) for s in sessions], dtype=np.int64)),
        mean_price_eur_per_kwh=frozen(arrays.import_eur_per_kwh.mean(axis=1)),
    )


def initial_state(world: World, day: IntArray) -> State:
    """Slot 0 of the given days, an array (B,) of rows of the world's stack."""
    day = np.asarray(day, dtype=np.int64)
    slot = np.zeros(len(day), dtype=np.int64)
    return State(
        day=day, slot=slot, remaining_kwh=world.need_kwh[day], voltage_pu=_no_load_voltage_pu(world, day, slot)
    )


def _no_load_voltage_pu(world: World, day: IntArray, slot: IntArray) -> ComplexArray:
    """Voltages (B, N, P) of a network without loads: a power flow starts from them."""
    angle = np.exp(-2j * np.pi / 3.0 * np.arange(3))
    return np.asarray(world.source_pu[day, slot, None, None] * angle * world.feeder.phase_present)


def _capacitor_kvar(world: World, day: IntArray, slot: IntArray) -> FloatArray | None:
    """Nominal kvar of the capacitors in service, (B, N, P); None in a network without any."""
    if not len(world.bank_kvar):
        return None
    return np.tensordot(world.capacitor_step[day, slot], world.bank_kvar, axes=1)


def with_reset_rows(world: World, state: State, rows: BoolArray, day: IntArray) -> State:
    """The state in which the marked rows (B,) begin the given days (number of marked rows,)."""
    fresh = initial_state(world, day)
    out = {name: getattr(state, name).copy() for name in ("day", "slot", "remaining_kwh", "voltage_pu")}
    for name, values in out.items():
        values[rows] = getattr(fresh, name)
    return State(**out)


def dispatch(world: World, state: State, action: FloatArray) -> FloatArray:
    """Power of every car [kW], (B, S), for bus actions in [-1, 1], (B, C): the knee, then the disaggregation."""
    action = np.ascontiguousarray(action, dtype=np.float64)
    power_kw = np.zeros_like(state.remaining_kwh)
    arguments = (world.days, world.rules, state.day, state.slot, state.remaining_kwh, action, power_kw)
    run_rows(kernels.dispatch, len(state.day), arguments, parallel_from=PARALLEL_FROM_ROWS)
    return power_kw


def _raise_fault(world: World, state: State, power_kw: FloatArray, fault: IntArray) -> None:
    row = int(np.argmax(fault >= 0))
    i, d, t = int(fault[row]), int(state.day[row]), int(state.slot[row])
    days = world.days
    raise InfeasibleError(
        f"session {i} (car {int(days.car[d, i])}) cannot charge at {power_kw[row, i]:.6g} kW in slot {t}: "
        f"it stays in slots {int(days.arrival_slot[d, i])}..{int(days.departure_slot[d, i]) - 1}, charges at "
        f"{'exactly' if world.rules.on_off else 'up to'} {days.power_kw[d, i]:.6g} kW "
        f"and still needs {state.remaining_kwh[row, i]:.6g} kWh"
    )


def step(world: World, state: State, power_kw: FloatArray) -> tuple[State, Outcome]:
    """One slot of normal charging, pure.

    Args:
        power_kw: charging power of each session, (B, S).

    Returns:
        The state of the next slot and what this slot cost.

    Raises:
        InfeasibleError: a power that its car cannot take; names the session.
        DataError: powers of another shape. ConfigError: the day of a row is over.
    """
    days, day, slot = world.days, state.day, state.slot
    if np.shape(power_kw) != state.remaining_kwh.shape:  # the kernels do not look at bounds
        raise DataError(f"power_kw must have shape {state.remaining_kwh.shape}, got {np.shape(power_kw)}")
    power_kw = np.ascontiguousarray(power_kw, dtype=np.float64)
    if slot.max() >= N_SLOTS:
        raise ConfigError(f"the day of row {int(slot.argmax())} is over; start another one before the next step")
    n_rows, shape = len(day), (len(day), world.n_buses)
    remaining, bus_kw, must_kw = np.empty_like(state.remaining_kwh), np.empty(shape), np.empty(shape)
    load, fault = np.empty(state.voltage_pu.shape, dtype=np.complex128), np.empty(n_rows, dtype=np.int64)
    arguments = (days, world.rules, world.charging_bus, day, slot, state.remaining_kwh, power_kw)
    written = (remaining, load, bus_kw, must_kw, fault)
    run_rows(kernels.charge, n_rows, arguments + written, parallel_from=PARALLEL_FROM_ROWS)
    if fault.max() >= 0:
        _raise_fault(world, state, power_kw, fault)
    flow = power_flow(
        world.feeder,
        load,
        source_pu=world.source_pu[day, slot],
        warm_start=state.voltage_pu,
        capacitor_kvar=_capacitor_kvar(world, day, slot),
    )
    excess, count, share = np.empty(n_rows), np.empty(n_rows, dtype=np.int64), np.empty(shape)
    judged = (days, day, slot, flow.voltage_pu, flow.converged, bus_kw, must_kw, excess, count, share)
    run_rows(kernels.judge_voltage, n_rows, judged, parallel_from=PARALLEL_FROM_ROWS)
    spec = world.spec
    net = days.base_kw[day, slot] + bus_kw - days.dg_kw[day, slot]
    price = days.import_eur_per_kwh[day, slot][:, None]
    outcome = Outcome(
        gap_eur=spec.omega1_eur_per_kwh * SLOT_H * np.abs(net),  # (5), first term
        energy_eur=spec.energy_weight * SLOT_H * price * bus_kw,  # (5), second term, with the cost of (6)
        voltage_eur=spec.voltage_eur_per_pu * excess[:, None] * share,
        power_kw=power_kw,
        bus_power_kw=bus_kw,
        must_run_kw=must_kw,
        voltage_pu=flow.voltage_pu,
        converged=flow.converged,
        violation_pu=excess,
        n_violations=count,
    )
    # a collapsed flow is no start for the next one: the row starts flat again
    voltage = np.where(flow.converged[:, None, None], flow.voltage_pu, _no_load_voltage_pu(world, day, slot))
    return State(day=day, slot=slot + 1, remaining_kwh=remaining, voltage_pu=voltage), outcome


def reward_eur(world: World, state: State, outcome: Outcome, shifted: bool) -> FloatArray:
    """Reward of each charging bus, (B, C): minus its cost, or the shifted form of training.

    The shift removes what no policy can change: |base - DG|, and the mean price of the energy delivered. Both are
    constant over a day, because must-run fills every car that can be filled.
    """
    if not shifted:
        return -outcome.cost_eur
    days = world.days
    net = days.base_kw[state.day, state.slot] - days.dg_kw[state.day, state.slot]
    idle_eur = world.spec.omega1_eur_per_kwh * SLOT_H * np.abs(net)
    mean_price = world.mean_price_eur_per_kwh[state.day][:, None]
    return np.asarray(
        idle_eur + world.spec.energy_weight * SLOT_H * mean_price * outcome.bus_power_kw - outcome.cost_eur
    )


def observe(world: World, state: State) -> np.ndarray:
    """Observation float32 (B, C, F); rows whose day is over show only the time."""
    out = np.zeros((len(state.day), world.n_buses, kernels.N_FEATURES), dtype=np.float32)
    arguments = (world.days, world.rules, world.charging_bus, world.installed_kw)
    arguments_of_state = (state.day, state.slot, state.remaining_kwh, state.voltage_pu, out)
    run_rows(kernels.observe, len(state.day), arguments + arguments_of_state, parallel_from=PARALLEL_FROM_ROWS)
    return out


def view(world: World, state: State) -> View:
    """What a rule or a re-planning policy may know in this slot; see `View`."""
    days, day = world.days, state.day
    slot = state.slot[:, None]
    present = (
        (days.arrival_slot[day] <= slot)
        & (slot < days.departure_slot[day])
        & (state.remaining_kwh > kernels.ENERGY_ROUNDING_KWH)
    )
    bus_start, departure_slot, power_kw, remaining_kwh = _present_sessions(
        present, days.bus_start[day], days.departure_slot[day], days.power_kw[day], state.remaining_kwh
    )
    lead = np.arange(N_SLOTS)[None] - slot
    growth = np.where(lead > 0, np.take_along_axis(days.growth_frac[day], np.maximum(lead, 0), axis=1), 0.0)
    least, largest = bus_bounds(world, state)
    return View(
        slot=state.slot,
        bus_start=bus_start,
        departure_slot=departure_slot,
        power_kw=power_kw,
        remaining_kwh=remaining_kwh,
        import_eur_per_kwh=days.import_eur_per_kwh[day] + growth * days.price_error_eur_per_kwh[day],
        base_kw=days.base_kw[day] + growth[:, :, None] * days.base_error_kw[day],
        dg_kw=days.dg_kw[day] + growth[:, :, None] * days.dg_error_kw[day],
        least_kw=least,
        largest_kw=largest,
        rules=world.rules,
    )


def _present_sessions(present: BoolArray, bus_start: IntArray, *columns: np.ndarray) -> tuple[Any, ...]:
    """bus_start (B, C + 1) and columns (B, W) of the sessions present alone, W the most of any row, padded with zeros.

    Left in their places among the others, they would tell how many cars are still to come.
    """
    n_before = np.concatenate([np.zeros((len(present), 1), dtype=np.int64), np.cumsum(present, axis=1)], axis=1)
    width = max(1, int(n_before[:, -1].max(initial=0)))
    order = np.argsort(~present, axis=1, kind="stable")[:, :width]
    kept = np.take_along_axis(present, order, axis=1)
    packed = (np.where(kept, np.take_along_axis(column, order, axis=1), 0) for column in columns)
    return np.take_along_axis(n_before, bus_start, axis=1), *packed


def bus_bounds(world: World, state: State) -> tuple[FloatArray, FloatArray]:
    """Least and largest power of every charging bus, each (B, C)."""
    return kernels.all_bus_bounds(world.days, world.rules, state.day, state.slot, state.remaining_kwh)


def knee_action(
    power_kw: FloatArray, surplus_kw: FloatArray, least_kw: FloatArray, largest_kw: FloatArray
) -> FloatArray:
    """The action in [-1, 1] whose knee gives a bus power; the inverse of `kernels.knee_power`, all arrays (..., C).

    Powers outside the bounds are taken to the nearest bound: a rule may ask for what the cars cannot give.
    """
    power = np.clip(power_kw, least_kw, largest_kw)
    knee = np.clip(surplus_kw, least_kw, largest_kw)
    below, above = knee - least_kw, largest_kw - knee
    tiny = kernels.POWER_ROUNDING_KW
    down = np.where(below > tiny, (power - knee) / np.maximum(below, tiny), 0.0)
    up = np.where(above > tiny, (power - knee) / np.maximum(above, tiny), 0.0)
    return np.asarray(np.clip(np.where(power < knee, down, up), -1.0, 1.0))


@dataclass(frozen=True, eq=False)
class Replay:
    """A plan put through the environment's step. Terms are sums over the day and all buses [EUR].

    voltage_pu (T, N, P), converged (T,), violation_pu (T,), n_violations (T,), bus_power_kw (T, C), missing_kwh: what
    the plan leaves undelivered although the stay allows it.
    """

    gap_eur: float
    energy_eur: float
    voltage_eur: float
    voltage_pu: ComplexArray
    converged: BoolArray
    violation_pu: FloatArray
    n_violations: IntArray
    bus_power_kw: FloatArray
    missing_kwh: float

    @property
    def cost_eur(self) -> float:
        """Cost of the day."""
        return self.gap_eur + self.energy_eur + self.voltage_eur


def replay(scenario: "Scenario", day: Day, power_kw: FloatArray) -> Replay:
    """Put a plan, power of each session (T, S), through the environment slot by slot.

    Raises:
        InfeasibleError: a power that a car cannot take, or a car left unfilled that could have been filled.
        DataError: a plan of the wrong shape or with NaN.
    """
    shape = (N_SLOTS, len(day.sessions))
    if np.shape(power_kw) != shape or not np.isfinite(power_kw).all():
        raise DataError(f"the plan must be a finite array {shape}, got shape {np.shape(power_kw)}")
    world = make_world(scenario, [day])
    plan = np.zeros((N_SLOTS, 1, world.need_kwh.shape[1]))
    plan[:, 0, : len(day.sessions)] = power_kw
    state = initial_state(world, np.zeros(1, dtype=np.int64))
    outcomes = []
    for slot in range(N_SLOTS):
        state, outcome = step(world, state, plan[slot])
        outcomes.append(outcome)
    missing = state.remaining_kwh[0]
    if missing.max() > PLAN_ENERGY_TOLERANCE_KWH:
        worst = int(np.argmax(missing))
        raise InfeasibleError(
            f"session {worst} (car {int(world.days.car[0, worst])}) must be full at its departure in slot "
            f"{int(world.days.departure_slot[0, worst])}, the plan leaves {missing[worst]:.6g} kWh missing"
        )
    return Replay(
        gap_eur=float(sum(o.gap_eur.sum() for o in outcomes)),
        energy_eur=float(sum(o.energy_eur.sum() for o in outcomes)),
        voltage_eur=float(sum(o.voltage_eur.sum() for o in outcomes)),
        voltage_pu=np.concatenate([o.voltage_pu for o in outcomes]),
        converged=np.concatenate([o.converged for o in outcomes]),
        violation_pu=np.concatenate([o.violation_pu for o in outcomes]),
        n_violations=np.concatenate([o.n_violations for o in outcomes]),
        bus_power_kw=np.concatenate([o.bus_power_kw for o in outcomes]),
        missing_kwh=float(missing.sum()),
    )
