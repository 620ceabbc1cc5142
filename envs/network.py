"""The distribution network of a scenario: its section of the YAML, its devices, and a day's base load in it."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from evcs_gym.envs.errors import ConfigError, ConvergenceError
from evcs_gym.envs.grid import Feeder, PowerFlow, branch_current_a, load_feeder, power_flow
from evcs_gym.envs.grid import devices as devices_module
from evcs_gym.envs.grid.device_plan import planned_schedule
from evcs_gym.envs.grid.devices import CapacitorBank, Devices, DeviceSchedule, LocalControl, Oltc
from evcs_gym.envs.grid.operator import PASS_TOLERANCE, Limits, effective_limits, excesses
from evcs_gym.envs.specs import BusName, Spec, nearest
from evcs_gym.envs.types import ComplexArray, FloatArray, frozen
from evcs_gym.envs.units import N_SLOTS

if TYPE_CHECKING:
    from evcs_gym.envs.scenario import Scenario

Step = Annotated[int, Field(ge=0, le=100)]
Budget = Annotated[int, Field(ge=0, le=500)]


class TapChangerSpec(Spec):
    """On-load tap changer at the head; see `devices.Oltc`."""

    step_pu: Annotated[float, Field(gt=0.0, le=0.1)] = 0.00625
    lowest: Annotated[int, Field(ge=-100, le=100)] = -16
    highest: Annotated[int, Field(ge=-100, le=100)] = 16
    start: Annotated[int, Field(ge=-100, le=100)] = 0
    max_moves: Budget = 12


class CapacitorSpec(Spec):
    """A capacitor bank; see `devices.CapacitorBank`."""

    bus: BusName
    kvar_per_step: Annotated[float, Field(gt=0.0, le=1e5)]
    n_steps: Annotated[int, Field(ge=1, le=100)] = 1
    start: Step = 0
    max_switchings: Budget = 4


class LocalSpec(Spec):
    """Relays; see `devices.LocalControl`."""

    bus: BusName
    target_pu: Annotated[float, Field(ge=0.8, le=1.2)] = 1.0
    deadband_pu: Annotated[float, Field(gt=0.0, le=0.2)] = 0.02
    capacitor_deadband_pu: Annotated[float, Field(gt=0.0, le=0.2)] = 0.06


class ScheduleSpec(Spec):
    """Positions of every day: one number per slot, for each bank by its bus."""

    tap_position: tuple[int, ...]
    capacitor_step: dict[BusName, tuple[int, ...]] = Field(default_factory=dict)


class DevicesSpec(Spec):
    """What moves in the network, and who moves it: a programme that knows the day's base load, relays, or a list."""

    controller: Literal["dynamic_programme", "local", "schedule"] = "dynamic_programme"
    tap_changer: TapChangerSpec = TapChangerSpec()
    capacitors: tuple[CapacitorSpec, ...] = ()
    local: LocalSpec | None = None
    schedule: ScheduleSpec | None = None

    @model_validator(mode="after")
    def _of_the_controller(self) -> Self:
        for key in ("local", "schedule"):
            if (getattr(self, key) is not None) != (self.controller == key):
                raise ValueError(
                    f"{key} must be given with controller: {key}, and only then, got controller: {self.controller}"
                )
        if self.local is not None and self.local.deadband_pu <= self.tap_changer.step_pu:
            raise ValueError(
                "local.deadband_pu must be wider than tap_changer.step_pu, or the tap changer hunts, got "
                f"{self.local.deadband_pu} and {self.tap_changer.step_pu}"
            )
        return self


class FeederSpec(Spec):
    """Distribution network: a shipped feeder's name, head voltage, nominal limits and devices.

    ``source_pu`` is the voltage ahead of the tap changer. With ``ampacity_factor`` a branch may carry that many times
    the largest phase current that it has at the feeder's nominal load, at least ``ampacity_least_a``; else the
    feeder's own ampacities hold. ``head_kva`` limits the apparent power at the head, ``vuf_max_frac`` the unbalance.
    """

    name: str
    source_pu: Annotated[float, Field(ge=0.8, le=1.2)] = 1.0
    vmin_pu: Annotated[float, Field(ge=0.5, lt=1.0)] = 0.90
    vmax_pu: Annotated[float, Field(gt=1.0, le=1.5)] = 1.10
    ampacity_factor: Annotated[float, Field(gt=0.0, le=100.0)] | None = None
    ampacity_least_a: Annotated[float, Field(ge=0.0, le=1e5)] = 100.0
    head_kva: Annotated[float, Field(gt=0.0, le=1e7)] | None = None
    vuf_max_frac: Annotated[float, Field(gt=0.0, le=1.0)] = 0.02
    devices: DevicesSpec | None = None


def feeder_of(spec: FeederSpec) -> Feeder:
    """The feeder, with the ampacities that the section asks for."""
    feeder = load_feeder(spec.name)
    if spec.ampacity_factor is None:
        return feeder
    nominal = feeder.load_kva[None]
    flow = power_flow(feeder, nominal, source_pu=spec.source_pu)
    if not flow.converged[0]:
        raise ConfigError(
            f"feeder.ampacity_factor needs the currents of the nominal load, and {spec.name!r} has no power flow at "
            f"source_pu {spec.source_pu}; raise it, or leave ampacity_factor out"
        )
    current = np.abs(branch_current_a(feeder, nominal, flow.voltage_pu))[0].max(axis=-1)
    ampacity = np.maximum(spec.ampacity_factor * current, spec.ampacity_least_a)
    return dataclasses.replace(feeder, ampacity_a=frozen(ampacity))


def devices_of(spec: FeederSpec, feeder: Feeder) -> Devices:
    """The devices of the section, their buses as rows of the feeder; `FIXED` where there are none."""
    if spec.devices is None:
        return devices_module.FIXED
    row = {name: index for index, name in enumerate(feeder.bus_name)}
    banks = tuple(
        CapacitorBank(row[bank.bus], bank.kvar_per_step, bank.n_steps, bank.start, bank.max_switchings)
        for bank in spec.devices.capacitors
    )
    return Devices(Oltc(**spec.devices.tap_changer.model_dump()), banks)


def check_device_specs(spec: FeederSpec, feeder: Feeder, source: str) -> None:
    """Refuse devices at buses that do not exist, impossible ones, and schedules that they cannot follow.

    Raises:
        ConfigError: names the key.
    """
    if spec.devices is None:
        return
    where, names = f"{source}: feeder.devices", feeder.bus_name
    places = [(f"capacitors.{k}.bus", bank.bus) for k, bank in enumerate(spec.devices.capacitors)]
    own = [bank.bus for bank in spec.devices.capacitors]
    if spec.devices.local is not None:
        places.append(("local.bus", spec.devices.local.bus))
    for key, bus in places:
        if bus not in names:
            raise ConfigError(f"{where}.{key} must be a bus of the feeder, got {bus!r}{nearest(bus, names)}")
    twice = [bus for k, bus in enumerate(own) if bus in own[:k]]
    if twice:
        raise ConfigError(f"{where}.capacitors must be at different buses, got {twice[0]!r} twice; add up their steps")
    devices = devices_of(spec, feeder)
    devices_module.check_devices(devices, feeder, where)
    if spec.devices.schedule is not None:
        _given_schedule(spec, devices, where)


def _given_schedule(spec: FeederSpec, devices: Devices, where: str) -> DeviceSchedule:
    if spec.devices is None or spec.devices.schedule is None:
        raise ConfigError(f"{where}.schedule is missing")
    given, own = spec.devices.schedule, [bank.bus for bank in spec.devices.capacitors]
    if sorted(given.capacitor_step) != sorted(own):
        raise ConfigError(
            f"{where}.schedule.capacitor_step must have one list per bank ({', '.join(own) or 'none'}), got "
            f"{', '.join(given.capacitor_step) or 'none'}"
        )
    lengths = {"tap_position": given.tap_position, **{f"capacitor_step.{b}": given.capacitor_step[b] for b in own}}
    for key, values in lengths.items():
        if len(values) != N_SLOTS:
            raise ConfigError(f"{where}.schedule.{key} must have one number per slot, {N_SLOTS}, got {len(values)}")
    steps = np.array([given.capacitor_step[bus] for bus in own], dtype=np.int64).reshape(len(own), N_SLOTS)
    schedule = DeviceSchedule(np.array(given.tap_position, dtype=np.int64), steps.T)
    return devices_module.checked_schedule(devices, schedule, N_SLOTS, f"{where}.schedule")


@dataclass(frozen=True, eq=False)
class NetworkState:
    """A base load (T, N, P) in the network: positions, head voltage (T,), nominal kvar of the capacitors in service
    (T, N, P), and the power flow."""

    load_kva: ComplexArray
    schedule: DeviceSchedule
    source_pu: FloatArray
    capacitor_kvar: FloatArray
    flow: PowerFlow

    @property
    def size_pu(self) -> FloatArray:
        """Magnitude of the voltages, (T, N, P)."""
        return np.abs(self.flow.voltage_pu)

    def excesses(self, feeder: Feeder, limits: Limits) -> FloatArray:
        """(T, 5) by how much the limits are exceeded, see `operator.excesses`."""
        return excesses(feeder, limits, self.load_kva, self.flow, self.source_pu, self.capacitor_kvar)


def controlled(scenario: "Scenario", load_kva: ComplexArray, date: str) -> NetworkState:
    """The network under a base load (T, N, P) and the positions that the scenario's controller takes for it.

    Raises:
        ConvergenceError: no power flow in a slot.
    """
    spec, feeder, devices = scenario.feeder_spec, scenario.feeder, scenario.devices
    if spec.devices is None:
        schedule = devices_module.held(devices, N_SLOTS)
    elif spec.devices.controller == "schedule":
        schedule = _given_schedule(spec, devices, f"{scenario.name}: feeder.devices")
    elif spec.devices.local is not None:
        local = spec.devices.local
        bus = feeder.bus_name.index(local.bus)
        relays = LocalControl(bus, local.target_pu, local.deadband_pu, local.capacitor_deadband_pu)
        schedule = devices_module.local_schedule(feeder, devices, load_kva, spec.source_pu, relays)
    else:
        schedule = planned_schedule(feeder, devices, load_kva, spec.source_pu, spec.vmin_pu, spec.vmax_pu)
    return under_schedule(scenario, load_kva, schedule, date)


def under_schedule(scenario: "Scenario", load_kva: ComplexArray, schedule: DeviceSchedule, date: str) -> NetworkState:
    """The network under a base load (T, N, P) and given positions.

    Raises:
        ConvergenceError: no power flow in a slot.
    """
    feeder, devices, source_pu = scenario.feeder, scenario.devices, scenario.feeder_spec.source_pu
    flow = devices_module.base_flow(feeder, devices, schedule, load_kva, source_pu)
    if not flow.converged.all():
        slot = int(np.argmin(flow.converged))
        raise ConvergenceError(
            f"{scenario.name}: load and DG of {date} have no power flow in slot {slot}; "
            "lower profiles.base_load_frac or the charging buses' pv_kw and wind_kw"
        )
    kvar = devices_module.capacitor_kvar(devices, schedule.capacitor_step, len(feeder))
    head = devices_module.head_voltage_pu(devices, schedule.tap_position, source_pu)
    return NetworkState(load_kva, schedule, frozen(head), frozen(kvar), flow)


def nominal_limits(scenario: "Scenario", n_slots: int = N_SLOTS) -> Limits:
    """The limits of the scenario's feeder section, one row per slot."""
    spec, feeder = scenario.feeder_spec, scenario.feeder
    present = np.broadcast_to(feeder.phase_present, (n_slots, *feeder.phase_present.shape))
    return Limits(
        vmin_pu=np.where(present, spec.vmin_pu, 0.0),
        vmax_pu=np.where(present, spec.vmax_pu, np.inf),
        current_a=np.broadcast_to(feeder.ampacity_a, (n_slots, len(feeder))),
        head_kva=np.full(n_slots, np.inf if spec.head_kva is None else spec.head_kva),
        unbalance_frac=np.full((n_slots, len(feeder)), spec.vuf_max_frac),
    )


def limits_of(scenario: "Scenario", state: NetworkState) -> Limits:
    """Effective limits of a day, from its base load under the day's schedule."""
    spec = scenario.feeder_spec
    return effective_limits(
        scenario.feeder,
        state.load_kva,
        state.source_pu,
        vmin_pu=spec.vmin_pu,
        vmax_pu=spec.vmax_pu,
        unbalance_frac=spec.vuf_max_frac,
        head_kva=np.inf if spec.head_kva is None else spec.head_kva,
        capacitor_kvar=state.capacitor_kvar if scenario.devices.banks else None,
    )


def refuse_broken(scenario: "Scenario", state: NetworkState, limits: Limits, date: str) -> None:
    """Refuse positions under which the base load alone breaks the effective limits of the day.

    Raises:
        ConfigError: names the slot, and the bus and phase where voltage is concerned.
    """
    size = state.size_pu
    room = np.minimum(size - limits.vmin_pu, limits.vmax_pu - size)
    slot, bus, phase = (int(i) for i in np.unravel_index(int(np.argmin(room)), room.shape))
    if room[slot, bus, phase] < -PASS_TOLERANCE:
        raise ConfigError(
            f"devices: the base load of {date} must stay inside its effective limits, but in slot {slot} bus "
            f"{scenario.feeder.bus_name[bus]!r} has {size[slot, bus, phase]:.4f} pu on phase {'abc'[phase]}, limits "
            f"{limits.vmin_pu[slot, bus, phase]:.4f} and {limits.vmax_pu[slot, bus, phase]:.4f}; take other positions"
        )
    excess = state.excesses(scenario.feeder, limits)
    for column, what in ((2, "current"), (3, "kVA at the head"), (4, "unbalance")):
        slot = int(np.argmax(excess[:, column]))
        if excess[slot, column] > PASS_TOLERANCE:
            raise ConfigError(
                f"devices: the base load of {date} must stay inside its effective limits, but in slot {slot} the "
                f"{what} exceeds its limit by {excess[slot, column]:.2e}; take other positions"
            )
