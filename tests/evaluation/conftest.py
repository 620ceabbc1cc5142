"""A small comparison and a day that the tests of records, figures, report and command line share."""

import numpy as np
import pytest

from evcs_gym.evaluation.records import Comparison, DayTrace, PolicyResult, Provenance, policy_result

NAIVE_EUR = (10.0, 20.0, 12.0)
BOUND_EUR = (6.0, 10.0, 8.0)


def scored(label: str, kind: str, cost_eur: object, **changes: object) -> PolicyResult:
    """A result on the three days; nothing is violated or unmet unless said."""
    shape = np.atleast_2d(np.asarray(cost_eur, dtype=float)).shape
    fields = {
        "cost_eur": cost_eur,
        "naive_cost_eur": NAIVE_EUR,
        "lower_bound_eur": BOUND_EUR,
        "n_violations": np.zeros(shape, dtype=int),
        "violation_pu": np.zeros(shape),
        "unmet_kwh": np.zeros(shape),
    }
    return policy_result(label, kind, **(fields | changes))  # type: ignore[arg-type]


@pytest.fixture
def provenance() -> Provenance:
    return Provenance(
        version="0.1.0",
        git_hash="0123abc",
        config_hash="c0ffee",
        python="3.11.7",
        numpy="2.4.6",
        torch="2.13.0",
        highspy="1.15.1",
        platform="Linux x86_64, 2 cores",
        training_seeds=(0, 1),
        solver="HiGHS 1.15.1",
        relative_gap=1e-3,
        timestamp="2026-01-01T00:00:00+00:00",
        command="evcs-gym compare normal_charging",
    )


@pytest.fixture
def comparison(provenance: Provenance) -> Comparison:
    return Comparison(
        problem="normal_charging",
        scenario="ieee33_residential",
        split="test",
        day_seeds=(0, 1, 2),
        naive_label="charge_on_arrival",
        bound_label="network-free LP",
        naive_cost_eur=NAIVE_EUR,
        lower_bound_eur=BOUND_EUR,
        infeasible_kwh=(0.0, 3.0, 0.0),
        results=(
            scored("charge_on_arrival", "rule", NAIVE_EUR, n_violations=[[0, 4, 0]], violation_pu=[[0.0, 0.01, 0.0]]),
            scored("ppo", "learned", [[7, 12, 9], [8, 11, 9]], training_seeds=(0, 1), ms_per_decision=0.35),
            scored("optimum", "optimum", (6.5, 10.5, 8.0), relative_gap=(0.0, 5e-4, 1e-4)),
        ),
        provenance=provenance,
    )


@pytest.fixture
def trace() -> DayTrace:
    """48 slots, two buses, nothing on phase c of bus 1; bus 1 dips below its limit in slot 12."""
    time_h = 12.0 + 0.5 * np.arange(48)
    voltage_pu = np.full((48, 2, 3), 1.0)
    voltage_pu[:, 1, 2] = 0.0
    voltage_pu[12, 1, 0] = 0.93
    return DayTrace(
        time_h=time_h,
        base_kw=100.0 + 10.0 * np.sin(time_h),
        dg_kw=np.full(48, 120.0),
        import_eur_per_kwh=np.full(48, 0.1),
        charging_kw={"charge_on_arrival": np.full(48, 30.0), "ppo": np.full(48, 20.0)},
        voltage_pu={"charge_on_arrival": voltage_pu, "ppo": np.full((48, 2, 3), 0.99)},
        vmin_pu=np.full((48, 2, 3), 0.95),
        vmax_pu=np.full((48, 2, 3), 1.05),
        title="test day 0",
    )
