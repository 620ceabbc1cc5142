"""The four-stage method (model.md section 7 (iii)) as a policy of the market.

Its structure is that of Affolabi et al., *Hierarchical Transactive Energy Scheduling of EVCSs in Constrained Power
Distribution and Transportation Networks*, IEEE Trans. Transp. Electrification 9(2), 2023; the formulas are ours.

Stations and operator talk before a slot, in rounds. Traffic is given (stage 1). Each station plans the rest of the day
alone, at the utility's tariffs and under its own caps (2). The auction clears all slots that are left (3), the operator
puts caps where a limit breaks (4). Caps go back to the stations, and the next round begins.

Rounds are played by `evcs_gym.envs.market.core.step` itself on the day as it is foreseen, so that prices, profits and
curtailment of a round are those that the environment would show. Caps only tighten: a round that tightens none ends the
talks, and every other one lowers some cap. In the last round that is allowed roles are frozen, and what the operator
makes of it stands.
"""

from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numba import njit

from evcs_gym.baselines.policy_market import MarketStage
from evcs_gym.baselines.receding_market import DayPlan, Outlook, RestOfDay, outlook_of, rest_of_day
from evcs_gym.envs.errors import ConfigError, ConvergenceError
from evcs_gym.envs.grid.operator import Limits
from evcs_gym.envs.market.core import MarketAction, MarketOutcome, MarketState, MarketWorld, step
from evcs_gym.envs.market.core_kernels import MarketDays
from evcs_gym.envs.market.operators import PRO_RATA, Operator, make_grid
from evcs_gym.envs.market.station import Assets
from evcs_gym.envs.market.station_dp import Decision, truthful_ask
from evcs_gym.envs.market.view import MarketView, some_rows
from evcs_gym.envs.types import FloatArray, IntArray, StationAssets, frozen
from evcs_gym.envs.units import SLOT_H

MAX_ROUNDS: Final = 5
"""Rounds of a talk at most."""
TIGHTER_KW: Final = 1e-6
"""A cap that falls by less stays as it is."""
ASK_ROUNDING_EUR_PER_KWH: Final = 1e-6
"""An ask that is above the export price by less is the export price: duals are known no better."""
AS_FORESEEN_KWH: Final = 1e-6
"""What stored energies may differ from the plan's before stations talk again."""


@dataclass(frozen=True, eq=False)
class Round:
    """What a round of a talk came to, over the slots from the present one to the end of the day, T'.

    number: from 1. cap_kw (T', S): under which stations planned; asked_kw: what the operator asked for then; both
    infinite without a cap. position_kw (T', S) that would stand. price_eur_per_kwh (T',). curtailed_kwh, unserved_kwh:
    of all stations. profit_eur (S,) of the slots left, change_eur: its change against the round before, 0 in the first.
    """

    number: int
    cap_kw: FloatArray
    asked_kw: FloatArray
    position_kw: FloatArray
    price_eur_per_kwh: FloatArray
    curtailed_kwh: float
    unserved_kwh: float
    profit_eur: FloatArray
    change_eur: FloatArray


@dataclass(frozen=True, eq=False)
class Talk:
    """A talk before a slot of a row's day. agreed: its last round tightened no cap; else the operator's word stands."""

    row: int
    slot: int
    rounds: tuple[Round, ...]
    agreed: bool


@dataclass(frozen=True, eq=False)
class _Agreement:
    """What a talk left for the rest of the day: what was foreseen, the stations' plan (T, S), asks and caps."""

    outlook: Outlook
    storage_kw: FloatArray
    energy_kwh: FloatArray
    ask_eur_per_kwh: FloatArray
    cap_kw: FloatArray

    def stands(self, now: Outlook) -> bool:
        """Whether everything is as it was foreseen."""
        left, before = slice(now.slot, None), self.outlook
        series = ("import_eur_per_kwh", "export_eur_per_kwh", "pv_kw", "ev_kw")
        same = all(np.array_equal(getattr(before, name)[left], getattr(now, name)[left]) for name in series)
        return same and bool((np.abs(self.energy_kwh[now.slot] - now.energy_kwh) <= AS_FORESEEN_KWH).all())


@dataclass(eq=False)
class FourStage:
    """The four-stage method at the beginning of the day, and before every slot in which something is not as foreseen.

    operator: with whom the stations talk. max_rounds: of a talk. talks: those of the last decision, in order of rows.
    """

    operator: Operator = PRO_RATA
    max_rounds: int = MAX_ROUNDS
    talks: list[Talk] = field(default_factory=list, repr=False)
    _programmes: tuple[StationAssets, tuple[RestOfDay, ...]] | None = field(default=None, repr=False)
    _agreed: dict[int, tuple[tuple[int, int], _Agreement]] = field(default_factory=dict, repr=False)
    """Of each row: day and slot of the last decision, and what was agreed on."""

    def __post_init__(self) -> None:
        if self.max_rounds < 1:
            raise ConfigError(f"four_stage: max_rounds must be at least 1, got {self.max_rounds}")

    def decide(self, stage: MarketStage) -> MarketAction:
        """See `MarketPolicy`.

        Raises:
            InfeasibleError, SolverError: see `RestOfDay.solve`. ConvergenceError: caps that do not tighten.
        """
        view, self.talks, programmes = stage.view(), [], self._stations(stage.world)
        keys = list(zip(view.day.tolist(), view.slot.tolist(), strict=True))
        kept = {row: self._agreed[row][1] for row, key in enumerate(keys) if self._stands(view, row, key)}
        unforeseen = np.array([row for row in range(len(keys)) if row not in kept], dtype=np.int64)
        for slot in np.unique(view.slot[unforeseen]).tolist():
            rows = unforeseen[view.slot[unforeseen] == slot]
            for row, (talk, agreed) in zip(rows.tolist(), self._talk(stage, rows, programmes), strict=True):
                kept[row] = agreed
                self.talks.append(talk)
        self.talks.sort(key=lambda talk: talk.row)
        self._agreed = {row: (key, kept[row]) for row, key in enumerate(keys)}
        n_rounds = np.zeros(len(keys), dtype=np.int64)
        for talk in self.talks:
            n_rounds[talk.row] = len(talk.rounds)
        names = ("storage_kw", "ask_eur_per_kwh", "cap_kw")
        storage, ask, cap = (
            np.stack([getattr(kept[row], name)[slot] for row, (_, slot) in enumerate(keys)]) for name in names
        )
        return MarketAction(storage, ask, cap, n_rounds)

    def _stands(self, view: MarketView, row: int, key: tuple[int, int]) -> bool:
        if row not in self._agreed:
            return False
        (day, slot), agreed = self._agreed[row]
        return (day, slot + 1) == key and agreed.stands(outlook_of(view, row))

    def _talk(
        self, stage: MarketStage, rows: IntArray, programmes: tuple[RestOfDay, ...]
    ) -> list[tuple[Talk, _Agreement]]:
        """Talks of rows that are in one slot, and what they leave; a row leaves the table when it has agreed."""
        table = _Table.of(MarketStage(stage.world, some_rows(stage.state, rows)), programmes)
        talking = np.arange(len(rows))
        for number in range(1, self.max_rounds + 1):
            talking = table.round(number, talking, self.operator, freeze=1 < number == self.max_rounds)
            if len(talking) == 0:
                break
        return [
            (Talk(int(row), table.slot, tuple(table.log[place]), place not in talking), table.agreement(place))
            for place, row in enumerate(rows)
        ]

    def _stations(self, world: MarketWorld) -> tuple[RestOfDay, ...]:
        """Each station's own programme; what was agreed on with others is forgotten."""
        stations = world.stations
        if self._programmes is None or self._programmes[0] is not stations:
            alone = (one_station(stations, n) for n in range(len(stations)))
            self._programmes = stations, tuple(rest_of_day(own, 0.0, world.days.pv_kw.shape[1]) for own in alone)
            self._agreed.clear()
        return self._programmes[1]


@dataclass(eq=False)
class _Table:
    """A talk while it goes on: n rows of one slot, on the day as they foresee it.

    cap_kw, position_kw, ask_eur_per_kwh (n, T, S): caps so far, and positions and asks of the last round.
    """

    world: MarketWorld
    state: MarketState
    programmes: tuple[RestOfDay, ...]
    outlooks: list[Outlook]
    cap_kw: FloatArray
    position_kw: FloatArray
    ask_eur_per_kwh: FloatArray
    plans: list[list[DayPlan]]
    log: list[list[Round]]

    @classmethod
    def of(cls, stage: MarketStage, programmes: tuple[RestOfDay, ...]) -> "_Table":
        """Rows of a stage."""
        view = stage.view()
        n_rows, shape = len(view.slot), view.pv_kw.shape
        return cls(
            world=foreseen(stage.world, view),
            state=replace(stage.state, day=np.arange(n_rows)),
            programmes=programmes,
            outlooks=[outlook_of(view, row) for row in range(n_rows)],
            cap_kw=np.full(shape, np.inf),
            position_kw=np.zeros(shape),
            ask_eur_per_kwh=np.zeros(shape),
            plans=[[] for _ in range(n_rows)],
            log=[[] for _ in range(n_rows)],
        )

    @property
    def slot(self) -> int:
        """The present slot."""
        return self.outlooks[0].slot

    def round(self, number: int, rows: IntArray, operator: Operator, freeze: bool) -> IntArray:
        """One round of some rows; those in which a cap got tighter come back.

        Raises:
            ConvergenceError: a cap got looser.
        """
        before = self.cap_kw[rows]
        for row in rows.tolist():
            self._plan(row, freeze)
        planned_with = self.cap_kw[rows]
        outcomes, asked = self._play(rows, operator)
        tighter = np.minimum(planned_with, asked)
        check_tighter(before, tighter, number)
        for place, row in enumerate(rows.tolist()):
            caps = (planned_with[place, self.slot :], asked[place, self.slot :])
            self.log[row].append(_round(number, *caps, outcomes, place, self.log[row]))
        self.cap_kw[rows] = tighter
        return rows[(planned_with > tighter + TIGHTER_KW).any(axis=(1, 2))]

    def _plan(self, row: int, freeze: bool) -> None:
        """Every station's own plan under its own caps; with roles of the round before where they are frozen."""
        cap, position = self.cap_kw[row], self.position_kw[row]
        least, largest = (np.where(position < 0.0, -cap, 0.0), np.where(position > 0.0, cap, 0.0))
        bounds = (least, largest) if freeze else (-cap, cap)
        outlook = replace(self.outlooks[row], least_kw=bounds[0], largest_kw=bounds[1])
        bases = [plan.basis for plan in self.plans[row]] or [None] * len(self.programmes)
        self.plans[row] = [
            programme.solve(outlook.station(n), basis)
            for n, (programme, basis) in enumerate(zip(self.programmes, bases, strict=True))
        ]
        if freeze:  # a station that gave its role up is held to that, whatever sun it would have to sell
            self.cap_kw[row] = np.where(np.abs(self._planned(row, "position_kw")) < TIGHTER_KW, 0.0, cap)
        storage, water, energy = (
            self._planned(row, name) for name in ("storage_kw", "water_eur_per_kwh", "energy_kwh")
        )
        tariffs = (outlook.import_eur_per_kwh, outlook.export_eur_per_kwh)
        fee = self.world.rules.network_fee_eur_per_kwh
        _asks(self.slot, storage, water, energy, *tariffs, self.world.assets, fee, self.ask_eur_per_kwh[row])

    def _planned(self, row: int, name: str) -> FloatArray:
        """A series of all stations' plans, side by side."""
        return np.concatenate([getattr(plan, name) for plan in self.plans[row]], axis=1)

    def _play(self, rows: IntArray, operator: Operator) -> tuple[list[MarketOutcome], FloatArray]:
        """The slots left as the plans would have them, and the caps (rows, T, S) that the operator asks for."""
        storage = np.stack([self._planned(row, "storage_kw") for row in rows.tolist()])
        state, outcomes, asked = some_rows(self.state, rows), [], np.full(storage.shape, np.inf)
        for slot in range(self.slot, storage.shape[1]):
            action = MarketAction(storage[:, slot], self.ask_eur_per_kwh[rows, slot], self.cap_kw[rows, slot])
            state, outcome = step(self.world, state, action, operator)
            asked[:, slot], self.position_kw[rows, slot] = outcome.cap_kw, outcome.position_kw
            outcomes.append(outcome)
        return outcomes, asked

    def agreement(self, row: int) -> _Agreement:
        """What the last round of a row leaves for the rest of its day."""
        series = (self._planned(row, "storage_kw"), self._planned(row, "energy_kwh"))
        return _Agreement(self.outlooks[row], *series, self.ask_eur_per_kwh[row], self.cap_kw[row])


def check_tighter(before_kw: FloatArray, after_kw: FloatArray, number: int) -> None:
    """Caps of a talk must never get looser: that ends it.

    Raises:
        ConvergenceError: names round, slot and station.
    """
    looser = ~(after_kw <= before_kw)
    if looser.any():
        place = tuple(int(i) for i in np.argwhere(looser)[0])
        raise ConvergenceError(
            f"four_stage: caps must only tighten, but in round {number} that of station {place[-1]}, slot {place[-2]}, "
            f"went from {before_kw[place]} to {after_kw[place]} kW; the operator must answer with bounds on |position|"
        )


def _round(
    number: int,
    cap_kw: FloatArray,
    asked_kw: FloatArray,
    outcomes: list[MarketOutcome],
    place: int,
    earlier: list[Round],
) -> Round:
    profit = np.asarray(sum(outcome.profit_eur[place] for outcome in outcomes))
    return Round(
        number=number,
        cap_kw=cap_kw,
        asked_kw=asked_kw,
        position_kw=np.stack([outcome.position_kw[place] for outcome in outcomes]),
        price_eur_per_kwh=np.array([outcome.price_eur_per_kwh[place] for outcome in outcomes]),
        curtailed_kwh=float(SLOT_H * sum(outcome.curtailed_kw[place].sum() for outcome in outcomes)),
        unserved_kwh=float(SLOT_H * sum(outcome.unserved_kw[place].sum() for outcome in outcomes)),
        profit_eur=profit,
        change_eur=profit - earlier[-1].profit_eur if earlier else np.zeros_like(profit),
    )


def one_station(stations: StationAssets, n: int) -> StationAssets:
    """Station ``n`` alone."""
    columns = {name: getattr(stations, name)[n : n + 1] for name in StationAssets.__dataclass_fields__}
    return StationAssets(**columns)


def foreseen(world: MarketWorld, view: MarketView) -> MarketWorld:
    """The days of a view's rows as they are foreseen, a day of its own for each row; the network as it is, since its
    base load is known to the operator a day ahead, who sets its devices by it."""
    n_slots, grid = view.pv_kw.shape[1], world.grid
    at = (view.day[:, None] * n_slots + np.arange(n_slots)).ravel()
    series = [
        np.ascontiguousarray(x) for x in (view.import_eur_per_kwh, view.export_eur_per_kwh, view.pv_kw, view.ev_kw)
    ]
    days = MarketDays(
        import_eur_per_kwh=series[0],
        export_eur_per_kwh=series[1],
        largest_import_eur_per_kwh=series[0].max(axis=1),
        pv_kw=series[2],
        ev_kw=series[3],
        growth_frac=np.zeros_like(series[0]),
        price_error_eur_per_kwh=np.zeros_like(series[0]),
        pv_error_kw=np.zeros_like(series[2]),
        ev_error_kw=np.zeros_like(series[3]),
    )
    limits = Limits(**{name: getattr(grid.limits, name)[at] for name in Limits.__dataclass_fields__})
    load = grid.load_kva[at]
    kvar = np.zeros(load.shape) if grid.capacitor_kvar is None else grid.capacitor_kvar[at]
    network = make_grid(world.feeder, grid.station_bus, load, grid.source_pu[at], kvar, limits)
    return replace(world, days=MarketDays(*(frozen(values) for values in days)), grid=network)


@njit(cache=True, nogil=True)
def _asks(
    slot: int,
    storage_kw: FloatArray,
    water: FloatArray,
    energy_kwh: FloatArray,
    imports: FloatArray,
    exports: FloatArray,
    assets: Assets,
    fee: float,
    ask: FloatArray,
) -> None:
    """What a kWh sold costs each station under its plan, from a slot on, (T, S).

    A plan that discharges into the network does so because that costs no more than the export price, up to the
    solver's rounding: it must not be kept in the storage (M6) for the rounding's sake.
    """
    for t in range(slot, storage_kw.shape[0]):
        for n in range(storage_kw.shape[1]):
            done = Decision(storage_kw[t, n], water[t, n])
            cost = truthful_ask(done, energy_kwh[t, n], imports[t], exports[t], fee, assets, n)
            ask[t, n] = exports[t] if cost < exports[t] + ASK_ROUNDING_EUR_PER_KWH else cost
