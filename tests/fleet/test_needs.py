"""What a session needs: energy, slots and power, in both modes."""

import dataclasses

import numpy as np
import pytest
from envs_fixtures import Car, sessions_of
from hypothesis import given, settings
from hypothesis import strategies as st

from evcs_gym.envs import Sessions
from evcs_gym.envs.fleet.needs import ChargingMode, session_needs

MODES: tuple[ChargingMode, ...] = ("on_off", "modulated")


@st.composite
def sessions_at_random(draw: st.DrawFn) -> Sessions:
    """One to five sessions anywhere in the day, from empty to full batteries."""
    n = draw(st.integers(1, 5))
    arrival = np.array(draw(st.lists(st.integers(0, 46), min_size=n, max_size=n)))
    stay = np.array(draw(st.lists(st.integers(1, 48), min_size=n, max_size=n)))

    def floats(low: float, high: float) -> np.ndarray:
        return np.array(draw(st.lists(st.floats(low, high), min_size=n, max_size=n)))

    return Sessions(
        bus=np.zeros(n, dtype=np.int64),
        phase=np.full(n, -1),
        arrival_slot=arrival,
        departure_slot=np.minimum(arrival + stay, 48),
        soc0_frac=floats(0.0, 1.0),
        capacity_kwh=floats(5.0, 120.0),
        power_kw=floats(1.0, 22.0),
        efficiency_frac=floats(0.5, 1.0),
        car=np.arange(n),
    )


def test_on_off_car_charges_in_the_fewest_slots_at_the_constant_power_that_makes_them_exact() -> None:
    # 40 % of 46 kWh are missing at the battery: 18.4 / 0.92 = 20 kWh from the grid; 11 kW give 5.5 kWh a slot:
    # 20 / 5.5 = 3.6, so 4 slots, at 20 kWh / 2 h = 10 kW
    sessions = dataclasses.replace(
        sessions_of(Car(1.0, 11.0, 10, 30)),
        soc0_frac=np.array([0.6]),
        capacity_kwh=np.array([46.0]),
        efficiency_frac=np.array([0.92]),
    )
    needs = session_needs(sessions, "on_off")
    assert needs.energy_kwh[0] == pytest.approx(20.0)
    assert needs.n_slots.tolist() == [4]
    assert needs.power_kw[0] == pytest.approx(10.0)
    assert needs.infeasible_kwh[0] == 0.0


def test_modulated_car_keeps_its_rated_power() -> None:
    needs = session_needs(sessions_of(Car(20.0, 11.0, 10, 30)), "modulated")
    assert (needs.power_kw[0], needs.n_slots[0]) == (11.0, 4)
    assert needs.energy_kwh[0] == pytest.approx(20.0)


@pytest.mark.parametrize("mode", MODES)
def test_car_that_cannot_be_full_charges_in_every_slot_and_reports_what_is_missing(mode: ChargingMode) -> None:
    # three slots at 10 kW give 15 of 40 kWh
    needs = session_needs(sessions_of(Car(40.0, 10.0, 10, 13)), mode)
    assert needs.energy_kwh[0] == pytest.approx(15.0)
    assert needs.infeasible_kwh[0] == pytest.approx(25.0)
    assert (needs.n_slots[0], needs.power_kw[0]) == (3, pytest.approx(10.0))


@pytest.mark.parametrize("mode", MODES)
def test_whole_number_of_slots_is_not_rounded_up(mode: ChargingMode) -> None:
    # (1 - 0.79) * 100 = 21.000000000000004 kWh at 6 kW: seven slots of 3 kWh
    assert session_needs(sessions_of(Car(21.0, 6.0)), mode).n_slots.tolist() == [7]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("soc0", [1.0, 1.0 - 3e-11])
def test_full_car_needs_nothing(mode: ChargingMode, soc0: float) -> None:
    sessions = dataclasses.replace(sessions_of(Car(0.0, 11.0)), soc0_frac=np.array([soc0]))
    needs = session_needs(sessions, mode)
    assert (needs.energy_kwh[0], needs.n_slots[0], needs.infeasible_kwh[0], needs.power_kw[0]) == (0.0, 0, 0.0, 11.0)


@settings(deadline=None, max_examples=60)
@given(sessions=sessions_at_random(), mode=st.sampled_from(MODES))
def test_energy_is_what_the_stay_allows_and_slots_deliver_it(sessions: Sessions, mode: ChargingMode) -> None:
    needs = session_needs(sessions, mode)
    stay = sessions.departure_slot - sessions.arrival_slot
    full = (1.0 - sessions.soc0_frac) * sessions.capacity_kwh / sessions.efficiency_frac
    np.testing.assert_allclose(needs.energy_kwh + needs.infeasible_kwh, full, atol=1e-7)
    assert (needs.infeasible_kwh >= 0.0).all()
    assert (needs.n_slots <= stay).all()
    assert (needs.power_kw <= sessions.power_kw * (1.0 + 1e-8)).all()
    slots_kwh = needs.n_slots * needs.power_kw * 0.5
    if mode == "on_off":
        np.testing.assert_allclose(slots_kwh, needs.energy_kwh, rtol=1e-12)
    assert (slots_kwh >= needs.energy_kwh * (1.0 - 1e-8)).all()
    one_less = np.maximum(needs.n_slots - 1, 0) * sessions.power_kw * 0.5
    assert (one_less <= needs.energy_kwh).all()


def test_inputs_are_untouched_and_results_read_only() -> None:
    sessions = sessions_of(Car(20.0, 11.0), Car(3.0, 7.4, car=1))
    before = {name: values.copy() for name, values in vars(sessions).items()}
    for mode in MODES:
        needs = session_needs(sessions, mode)
        with pytest.raises(ValueError, match="read-only"):
            needs.power_kw[0] = 1.0
    for name, values in before.items():
        np.testing.assert_array_equal(values, getattr(sessions, name))
