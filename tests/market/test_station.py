"""One station: sums by hand, and what must hold for every station and slot."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from market_fixtures import stations

from evcs_gym.envs.errors import DataError
from evcs_gym.envs.market.station import (
    Assets,
    Slot,
    dispatch,
    follow,
    hold_unsold,
    kernel_assets,
    missing_cost_eur,
    next_energy,
    power_interval,
)

LOSSY = kernel_assets(
    stations(1, charge_efficiency_frac=0.8, discharge_efficiency_frac=0.5, self_discharge_frac=0.1, energy_min_kwh=20.0)
)
"""Storage of 20..100 kWh and 50 kW, with losses in round numbers."""


# --- by hand -----------------------------------------------------------------------------------------------


def test_energy_after_charging_and_discharging() -> None:
    """50 kWh lose 5; half an hour at 20 kW adds 10 * 0.8 or takes 10 / 0.5."""
    assert next_energy(50.0, 20.0, LOSSY, 0) == pytest.approx(45.0 + 8.0)
    assert next_energy(50.0, -20.0, LOSSY, 0) == pytest.approx(45.0 - 20.0)
    assert next_energy(50.0, 0.0, LOSSY, 0) == pytest.approx(45.0)


def test_power_ends_where_the_energy_does() -> None:
    """From 45 kWh: 25 above the least give 12.5 kWh, 25 kW; room of 55 takes more than 50 kW for half an hour."""
    assert power_interval(50.0, LOSSY, 0) == pytest.approx((-25.0, 50.0))
    assert power_interval(100.0, LOSSY, 0) == pytest.approx((-50.0, 25.0))
    assert power_interval(21.0, LOSSY, 0) == pytest.approx((0.0, 50.0))  # self-discharge alone goes below the least


def test_a_wish_is_projected_and_the_position_follows() -> None:
    assert dispatch(30.0, 100.0, -80.0, -25.0, 50.0, 1e3) == Slot(-45.0, -25.0, 0.0, 0.0)
    assert dispatch(30.0, 100.0, 80.0, -25.0, 50.0, 1e3) == Slot(-120.0, 50.0, 0.0, 0.0)


def test_under_a_cap_the_storage_moves_first_then_pv_is_curtailed_or_drivers_wait_in_vain() -> None:
    export = Slot(80.0, -10.0, 0.0, 0.0)  # 70 of PV, 10 out of the storage
    assert follow(export, 60.0, -50.0, 50.0) == Slot(60.0, 10.0, 0.0, 0.0)
    assert follow(export, 10.0, -50.0, 50.0) == Slot(10.0, 50.0, 10.0, 0.0)
    imported = Slot(-80.0, 10.0, 0.0, 0.0)  # 70 for cars, 10 into the storage
    assert follow(imported, 60.0, -50.0, 50.0) == Slot(-60.0, -10.0, 0.0, 0.0)
    assert follow(imported, 10.0, -50.0, 50.0) == Slot(-10.0, -50.0, 0.0, 10.0)
    assert follow(export, 80.0, -50.0, 50.0) == export


def test_the_connection_is_a_cap_before_the_market() -> None:
    """200 kW of cars behind 100 kW: the storage gives its 25 kW against its wish, 75 kW are not served."""
    assert dispatch(0.0, 200.0, 50.0, -25.0, 50.0, 100.0) == Slot(-100.0, -25.0, 0.0, 75.0)


def test_what_is_not_sold_stays_in_the_storage_as_far_as_it_came_from_there() -> None:
    offer = Slot(80.0, -30.0, 0.0, 0.0)
    assert hold_unsold(offer, 60.0, 0.05, 0.03) == Slot(60.0, -10.0, 0.0, 0.0)
    assert hold_unsold(offer, 20.0, 0.05, 0.03) == Slot(50.0, 0.0, 0.0, 0.0)  # 30 of PV go to the utility
    assert hold_unsold(offer, 20.0, 0.03, 0.03) == offer  # would export at the utility's price
    charging = Slot(80.0, 30.0, 0.0, 0.0)
    assert hold_unsold(charging, 20.0, 0.05, 0.03) == charging


def test_missing_energy_is_bought_at_the_dearest_price_and_surplus_is_worth_nothing() -> None:
    assert missing_cost_eur(34.0, 0.10, LOSSY, 0) == pytest.approx(16.0 * 0.10 / 0.8)
    assert missing_cost_eur(60.0, 0.10, LOSSY, 0) == 0.0


# --- what must hold ----------------------------------------------------------------------------------------

powers = st.floats(0.0, 500.0)
shares = st.floats(0.3, 1.0)


@st.composite
def lossy(draw: Any) -> Assets:
    least = draw(st.floats(0.0, 40.0))
    return kernel_assets(
        stations(
            1,
            storage_kw=draw(powers),
            charge_efficiency_frac=draw(shares),
            discharge_efficiency_frac=draw(shares),
            self_discharge_frac=draw(st.floats(0.0, 0.2)),
            energy_min_kwh=least,
            connection_kw=draw(powers),
        )
    )


@settings(deadline=None, max_examples=200)
@given(lossy(), st.floats(0.0, 1.0), powers, powers, st.floats(-1e3, 1e3), powers)
def test_every_slot_balances_and_stays_within_its_bounds(
    assets: Assets, filled: float, pv_kw: float, ev_kw: float, wish_kw: float, cap_kw: float
) -> None:
    least = assets.energy_min_kwh[0]
    energy = least + filled * (assets.storage_kwh[0] - least)
    low, high = power_interval(energy, assets, 0)
    assert low <= 0.0 <= high
    first = dispatch(pv_kw, ev_kw, wish_kw, low, high, assets.connection_kw[0])
    second = follow(first, cap_kw, low, high)
    for done, limit in ((first, assets.connection_kw[0]), (second, min(cap_kw, assets.connection_kw[0]))):
        balance = pv_kw - done.curtailed_kw - (ev_kw - done.unserved_kw) - done.storage_kw
        assert done.position_kw == pytest.approx(balance, abs=1e-9)
        assert abs(done.position_kw) <= limit
        assert low - 1e-9 <= done.storage_kw <= high + 1e-9
        assert -1e-9 <= done.curtailed_kw <= pv_kw + 1e-9
        assert -1e-9 <= done.unserved_kw <= ev_kw + 1e-9
        after = next_energy(energy, done.storage_kw, assets, 0)
        kept = energy * (1 - assets.self_discharge_frac[0])
        assert min(least, kept) - 1e-9 <= after <= assets.storage_kwh[0] + 1e-9
    assert first.position_kw * second.position_kw >= 0.0


# --- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("storage_kwh", np.nan, "storage_kwh must be finite and in its range 0..inf, got nan"),
        ("charge_efficiency_frac", 0.0, r"charge_efficiency_frac must be finite and in its range 0..1, got 0\.0"),
        ("self_discharge_frac", 1.5, r"self_discharge_frac must be finite and in its range 0..1, got 1\.5"),
        ("energy_start_kwh", 200.0, r"energy_start_kwh must lie in energy_min_kwh..storage_kwh, got 200\.0"),
    ],
)
def test_impossible_stations_are_refused_by_name(column: str, value: float, message: str) -> None:
    with pytest.raises(DataError, match=rf"station 's1': {message}"):
        kernel_assets(stations(2, **{column: [50.0 if column.endswith("kwh") else 0.5, value]}))


def test_columns_of_another_length_and_no_stations_are_refused() -> None:
    with pytest.raises(DataError, match=r"stations.storage_kw must have shape \(2,\), got \(3,\)"):
        kernel_assets(dataclasses.replace(stations(2), storage_kw=np.ones(3)))
    with pytest.raises(DataError, match="at least one station is needed, got none"):
        kernel_assets(stations(0))
