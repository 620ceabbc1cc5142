"""What the base load of a scenario's days leaves of the nominal limits of its network."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from evcs_gym.envs import day as day_module
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.grid.devices import moves_of
from evcs_gym.envs.network import nominal_limits

if TYPE_CHECKING:
    from evcs_gym.envs.scenario import Scenario

MIN_ROOM_PU: Final = 0.005
"""Least distance of the base load's voltages from the nominal limits that devices must keep."""


@dataclass(frozen=True)
class DayCheck:
    """One day's base load under its device schedule.

    room_pu: least distance to a nominal voltage limit, negative outside, found in ``slot`` at ``bus``, ``phase``.
    current_frac, head_frac: largest current and apparent power at the head over their nominal limits. vuf_frac: largest
    voltage unbalance. n_tap_moves, n_switchings: movements from the start positions on, of each bank.
    """

    split: str
    seed: int
    date: str
    room_pu: float
    slot: int
    bus: str
    phase: str
    current_frac: float
    head_frac: float
    vuf_frac: float
    n_tap_moves: int
    n_switchings: tuple[int, ...]


@dataclass(frozen=True)
class NetworkCheck:
    """The days that were looked at, in the order of splits and seeds."""

    scenario: str
    days: tuple[DayCheck, ...]

    @property
    def worst(self) -> DayCheck:
        """The day with the least room to a voltage limit."""
        return min(self.days, key=lambda day: day.room_pu)

    def as_dict(self) -> dict[str, Any]:
        """Least room and where, largest use of each limit and of each budget, over all days."""
        worst = self.worst
        switchings = np.array([day.n_switchings for day in self.days]).reshape(len(self.days), -1)
        return {
            "scenario": self.scenario,
            "n_days": len(self.days),
            "room_pu": worst.room_pu,
            "day": f"{worst.split}/{worst.seed} ({worst.date})",
            "slot": worst.slot,
            "bus": worst.bus,
            "phase": worst.phase,
            "current_frac": max(day.current_frac for day in self.days),
            "head_frac": max(day.head_frac for day in self.days),
            "vuf_frac": max(day.vuf_frac for day in self.days),
            "n_tap_moves": max(day.n_tap_moves for day in self.days),
            "n_switchings": switchings.max(axis=0).tolist(),
        }


def check_base_load(scenario: "Scenario", split: str | None = None, n_days: int | None = None) -> NetworkCheck:
    """See `Scenario.check`."""
    if n_days is not None and n_days < 1:
        raise ConfigError(f"n_days must be at least 1, got {n_days}")
    found = []
    for name in day_module.SPLITS if split is None else (split,):
        n_windows = len(day_module.split_windows(name))
        for seed in range(n_windows if n_days is None else min(n_days, n_windows)):
            found.append(_check_day(scenario, name, seed))
    return NetworkCheck(scenario.name, tuple(found))


def _check_day(scenario: "Scenario", split: str, seed: int) -> DayCheck:
    date, state = day_module.base_of(scenario, seed, split)
    feeder, limits = scenario.feeder, nominal_limits(scenario)
    room = np.minimum(state.size_pu - limits.vmin_pu, limits.vmax_pu - state.size_pu)
    room = np.where(feeder.phase_present, room, np.inf)
    slot, bus, phase = (int(i) for i in np.unravel_index(int(np.argmin(room)), room.shape))
    excess = state.excesses(feeder, limits).max(axis=0)
    n_tap_moves, n_switchings = moves_of(scenario.devices, state.schedule)
    day = DayCheck(
        split=split,
        seed=seed,
        date=date,
        room_pu=float(room[slot, bus, phase]),
        slot=slot,
        bus=feeder.bus_name[bus],
        phase="abc"[phase],
        current_frac=float(excess[2] + 1.0),
        head_frac=float(excess[3] + 1.0),
        vuf_frac=float(excess[4] + scenario.feeder_spec.vuf_max_frac),
        n_tap_moves=n_tap_moves,
        n_switchings=tuple(n_switchings.tolist()),
    )
    if scenario.feeder_spec.devices is not None:
        _refuse(scenario, day)
    return day


def _refuse(scenario: "Scenario", day: DayCheck) -> None:
    where = f"{scenario.name}: the base load of {day.split}/{day.seed} ({day.date})"
    if day.room_pu < MIN_ROOM_PU:
        raise ConfigError(
            f"{where} must stay at least {MIN_ROOM_PU} pu inside the voltage limits, got {day.room_pu:.4f} pu in slot "
            f"{day.slot} at bus {day.bus!r}, phase {day.phase}; change feeder.devices or lower profiles.base_load_frac"
        )
    uses = (("current", day.current_frac, 1.0), ("apparent power at the head", day.head_frac, 1.0))
    for what, got, allowed in (*uses, ("voltage unbalance", day.vuf_frac, scenario.feeder_spec.vuf_max_frac)):
        if got > allowed:
            raise ConfigError(
                f"{where} must stay inside the nominal limits, but its {what} reaches {got:.3f} of {allowed} allowed; "
                "raise the limit in feeder or lower profiles.base_load_frac"
            )
