"""Receding horizon in the market: every slot the rest of the day is planned anew, and its first slot played.

The programme is that of the network-free optimum, from the slot that begins to the end of the day, with the energies
that are there and with what every policy may know: the truth of this slot, forecasts beyond it. It is made into a
matrix once; from slot to slot its numbers change, and the simplex starts where it ended in the slot before.
"""

from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from evcs_gym.baselines.forms.market import market
from evcs_gym.baselines.policy_market import MarketStage
from evcs_gym.baselines.problems.market import MarketProblem
from evcs_gym.baselines.solvers import Basis, Compiled, StandardForm, Status, Task, compile_model, solve
from evcs_gym.envs.errors import InfeasibleError, SolverError
from evcs_gym.envs.market.core import MarketAction, MarketWorld
from evcs_gym.envs.market.view import MarketView
from evcs_gym.envs.types import FloatArray, IntArray, StationAssets
from evcs_gym.envs.units import SLOT_H

TIME_LIMIT_S: Final = 10.0
"""Longest time of one programme; it takes milliseconds."""


@dataclass(frozen=True, eq=False)
class Outlook:
    """What is known of a day in one of its slots, for S stations.

    energy_kwh (S,): at the beginning of the slot. Tariffs (T,), pv_kw, ev_kw (T, S): truth up to the slot, forecasts
    beyond it. least_kw, largest_kw (T, S): bounds on net positions beside the connection's, None without any.
    """

    slot: int
    energy_kwh: FloatArray
    import_eur_per_kwh: FloatArray
    export_eur_per_kwh: FloatArray
    pv_kw: FloatArray
    ev_kw: FloatArray
    least_kw: FloatArray | None = None
    largest_kw: FloatArray | None = None

    def station(self, n: int) -> "Outlook":
        """What station ``n`` alone knows."""
        own = slice(n, n + 1)
        return replace(
            self,
            energy_kwh=self.energy_kwh[own],
            pv_kw=self.pv_kw[:, own],
            ev_kw=self.ev_kw[:, own],
            least_kw=None if self.least_kw is None else self.least_kw[:, own],
            largest_kw=None if self.largest_kw is None else self.largest_kw[:, own],
        )


def outlook_of(view: MarketView, row: int) -> Outlook:
    """What a row of a view knows."""
    series = (view.import_eur_per_kwh, view.export_eur_per_kwh, view.pv_kw, view.ev_kw)
    return Outlook(int(view.slot[row]), view.energy_kwh[row], *(values[row] for values in series))


@dataclass(frozen=True, eq=False)
class DayPlan:
    """A plan of the rest of a day, (T, S), zero before it begins: storage_kw, position_kw, and water_eur_per_kwh, the
    value of a kWh more in storage after the slot. energy_kwh (T + 1, S): stored before each slot and at the end."""

    storage_kw: FloatArray
    position_kw: FloatArray
    water_eur_per_kwh: FloatArray
    energy_kwh: FloatArray
    basis: Basis | None


@dataclass(frozen=True, eq=False)
class RestOfDay:
    """The linear programme of the rest of a day, a matrix for all slots; see `rest_of_day`.

    Columns and rows by slot and station, (T, S), or by slot: energy (T + 1, S), imported, exported (T,), missing (S,).
    """

    stations: StationAssets
    network_fee_eur_per_kwh: float
    compiled: Compiled
    columns: dict[str, IntArray]
    s1_energy: IntArray
    s2_position: IntArray

    def numbers(self, now: Outlook) -> StandardForm:
        """The programme as it stands in a slot: what is over is fixed to nothing, and the rest begins with the energy
        that is there."""
        form, own, column = self.compiled.form, self.stations, self.columns
        n_slots, gone = len(now.import_eur_per_kwh), np.arange(len(now.import_eur_per_kwh)) < now.slot
        low, high, cost = form.col_lower.copy(), form.col_upper.copy(), form.cost.copy()
        high[column["curtailed_kw"]], high[column["unserved_kw"]] = now.pv_kw, now.ev_kw
        if now.least_kw is not None:
            low[column["position_kw"]] = np.maximum(now.least_kw, -own.connection_kw)
        if now.largest_kw is not None:
            high[column["position_kw"]] = np.minimum(now.largest_kw, own.connection_kw)
        for name in _BY_SLOT:
            low[column[name][gone]], high[column[name][gone]] = 0.0, 0.0
        age = np.maximum(np.arange(n_slots + 1) - now.slot, 0)[:, None]
        floor = np.minimum(own.energy_min_kwh, now.energy_kwh) * (1.0 - own.self_discharge_frac) ** age
        low[column["energy_kwh"]] = np.where(age > 0, floor, now.energy_kwh)  # self-discharge alone goes that low
        high[column["energy_kwh"]] = np.where(age > 0, own.storage_kwh, now.energy_kwh)
        cost[column["imported_kw"]] = SLOT_H * now.import_eur_per_kwh
        cost[column["exported_kw"]] = -SLOT_H * (now.export_eur_per_kwh + self.network_fee_eur_per_kwh)
        cost[column["missing_kwh"]] = now.import_eur_per_kwh.max() / own.charge_efficiency_frac
        row_lower, row_upper = form.row_lower.copy(), form.row_upper.copy()
        row_lower[self.s1_energy[gone]], row_upper[self.s1_energy[gone]] = -np.inf, np.inf
        surplus = np.where(gone[:, None], 0.0, now.pv_kw - now.ev_kw)
        row_lower[self.s2_position], row_upper[self.s2_position] = surplus, surplus
        return replace(form, cost=cost, col_lower=low, col_upper=high, row_lower=row_lower, row_upper=row_upper)

    def solve(self, now: Outlook, basis: Basis | None = None, time_limit_s: float = TIME_LIMIT_S) -> DayPlan:
        """The cheapest rest of the day, from the basis of an earlier slot where there is one.

        Raises:
            InfeasibleError: no plan keeps the rules; names stations, slot and energies.
            SolverError: no solver, one that failed, or no optimum in time.
        """
        names = ", ".join(repr(name) for name in self.stations.name)
        try:
            result = solve(Task(self.numbers(now), basis=basis, keep_basis=True), time_limit_s)
        except InfeasibleError as error:
            raise InfeasibleError(
                f"market, slot {now.slot}: stations {names} have no plan for the rest of the day from energies "
                f"{now.energy_kwh.tolist()} kWh, which must lie in 0..{self.stations.storage_kwh.tolist()}, and under "
                f"their caps, which must be >= 0 ({error})"
            ) from error
        if result.status is not Status.OPTIMAL or result.x is None or result.row_dual is None:
            raise SolverError(
                f"market, slot {now.slot}: the plan of stations {names} must be optimal, got status "
                f"{result.status.value!r} after {result.seconds:.1f} s; raise time_limit_s"
            )
        x = {name: result.x[column] for name, column in self.columns.items()}
        return DayPlan(
            storage_kw=x["charge_kw"] - x["discharge_kw"],
            position_kw=x["position_kw"],
            water_eur_per_kwh=-result.row_dual[self.s1_energy],  # energy after a slot counts positive in (S1)
            energy_kwh=x["energy_kwh"],
            basis=result.basis,
        )


_BY_SLOT: Final = (
    "charge_kw", "discharge_kw", "curtailed_kw", "unserved_kw", "position_kw", "offered_kw", "imported_kw",
    "exported_kw",
)  # fmt: skip
"""Variables of one slot: nothing of them is left when it is over."""


def rest_of_day(stations: StationAssets, network_fee_eur_per_kwh: float, n_slots: int) -> RestOfDay:
    """The programme of all the stations together; that of one is its own day at the utility's tariffs."""
    nothing = np.zeros((n_slots, len(stations)))
    imports = np.ones(n_slots)
    problem = MarketProblem(stations, imports, 0.0 * imports, network_fee_eur_per_kwh, nothing, nothing)
    model = market(problem).model
    compiled = compile_model(model)
    shape = {"energy_kwh": (n_slots + 1, -1), "imported_kw": (-1,), "exported_kw": (-1,), "missing_kwh": (-1,)}
    columns = {
        name: compiled.columns(list(getattr(model, name).values())).reshape(shape.get(name, nothing.shape))
        for name in (*_BY_SLOT, "energy_kwh", "missing_kwh")
    }
    rows = [compiled.rows(list(row.values())).reshape(nothing.shape) for row in (model.s1_energy, model.s2_position)]
    return RestOfDay(stations, network_fee_eur_per_kwh, compiled, columns, *rows)


@dataclass(eq=False)
class RecedingHorizon:
    """All stations planned together every slot, without network: the cooperative optimum of what is known.

    Asks stand at the export price: nobody holds back what is not sold (M6), so the positions of the plan stand,
    whatever others ask; the money that moves between stations for it is no part of what the community pays.
    """

    _programme: RestOfDay | None = field(default=None, repr=False)
    _ended: dict[int, tuple[int, int, Basis | None]] = field(default_factory=dict, repr=False)
    """Of each row: day, slot and basis of the last plan."""

    def decide(self, stage: MarketStage) -> MarketAction:
        """See `MarketPolicy`.

        Raises:
            InfeasibleError, SolverError: see `RestOfDay.solve`.
        """
        view, programme = stage.view(), self._programme_of(stage.world)
        wish = np.empty_like(view.energy_kwh)
        for row, (day, slot) in enumerate(zip(view.day.tolist(), view.slot.tolist(), strict=True)):
            last_day, last_slot, basis = self._ended.get(row, (-1, -1, None))
            follows = (last_day, last_slot + 1) == (day, slot)
            plan = programme.solve(outlook_of(view, row), basis if follows else None)
            self._ended[row] = (day, slot, plan.basis)
            wish[row] = plan.storage_kw[slot]
        return MarketAction(wish, stage.least_ask_eur_per_kwh())

    def _programme_of(self, world: MarketWorld) -> RestOfDay:
        known, fee = self._programme, world.rules.network_fee_eur_per_kwh
        if known is None or known.stations is not world.stations or known.network_fee_eur_per_kwh != fee:
            self._programme = rest_of_day(world.stations, fee, world.days.pv_kw.shape[1])
            self._ended.clear()
        assert self._programme is not None
        return self._programme
