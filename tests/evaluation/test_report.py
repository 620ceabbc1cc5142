"""The report: its numbers, that it is self-contained, escapes, is honest, and that its drawings are drawings."""

import dataclasses
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from evcs_gym.envs.errors import DataError
from evcs_gym.evaluation import figures, report
from evcs_gym.evaluation.records import Comparison, DayTrace, PolicyResult, TrainingCurve, read_csv, read_json

CURVE = TrainingCurve(np.array([0, 0, 1, 1]), np.array([1000, 2000, 1000, 2000]), np.array([0.2, 0.8, 0.1, 0.7]))
VOID = {"meta", "br", "link", "img", "hr"}


class Page(HTMLParser):
    """Collects ids, addresses and visible text, and checks that tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "xlink:href"):
                self.addresses.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += f" {data.strip()}"


@pytest.fixture
def page(comparison: Comparison, trace: DayTrace) -> Page:
    return Page(report.report_html(comparison, [trace], CURVE))


def test_the_table_holds_the_bound_and_the_policies_from_best_to_worst(comparison: Comparison) -> None:
    bound, optimum, ppo, naive = report.table_rows(comparison)
    assert (bound.label, bound.cost, bound.captured) == ("proven bound", "8.00", "1.000")
    assert (optimum.label, optimum.captured, optimum.ms) == ("optimum", "0.944", "–")
    assert optimum.note == "solved to a certified gap of 0.05 % or less"
    # naive 42, bound 24, mean over seeds (28 + 28) / 2 = 28: 14 / 18
    assert (ppo.label, ppo.cost, ppo.captured, ppo.gap, ppo.ms) == ("ppo", "9.33", "0.778", "0.222", "0.35")
    assert ppo.kind_words == "learned, 2 seeds"
    assert (naive.label, naive.captured, naive.violations) == ("charge_on_arrival", "0.000", "1.3")


def test_the_page_shows_the_numbers_and_where_they_come_from(page: Page) -> None:
    words = ("0.778", "9.33", "charge_on_arrival", "network-free LP", "0123abc", "HiGHS 1.15.1", "seeds 0-2")
    for word in (
        *words,
        "evcs-gym compare normal_charging",
        "test day 0",
        "Normal charging: 3 policies on 3 test days",
    ):
        assert word in page.text


def test_the_page_is_well_formed_and_needs_nothing_else(page: Page, comparison: Comparison) -> None:
    assert page.open == []
    assert len(set(page.ids)) == len(page.ids)
    assert all(address.startswith("#") and address[1:] in page.ids for address in page.addresses)
    text = report.report_html(comparison)
    assert "<script" not in text
    assert re.findall(r"@import|url\((?!#)", text) == []


def test_labels_are_escaped_in_text_and_drawings(comparison: Comparison, trace: DayTrace) -> None:
    evil = '<b>x</b> & $y_1$ "quoted"'
    result = comparison.results[1].model_copy(update={"label": evil, "note": "<script>"})
    changed = comparison.model_copy(update={"results": (result,)})
    day = dataclasses.replace(
        trace, title=evil, charging_kw={evil: np.zeros(48)}, voltage_pu={evil: np.ones((48, 2, 3))}
    )
    text = report.report_html(changed, [day])
    assert "<script>" not in text
    assert "<b>x</b>" not in text
    assert evil in Page(text).text


def test_the_report_is_readable_on_light_and_dark(comparison: Comparison, trace: DayTrace) -> None:
    text = report.report_html(comparison, [trace])
    assert "prefers-color-scheme: dark" in text
    assert "currentColor" in text
    assert figures.INK not in text
    assert figures.GRID not in text


def test_days_without_violation_are_scored_apart(comparison: Comparison) -> None:
    rows = {row.label: (row.n_days, row.captured) for row in report.clean_rows(comparison)}
    assert rows == {"charge_on_arrival": (2, "0.000"), "ppo": (3, "0.778"), "optimum": (3, "0.944")}
    assert "Days without violation" in report.report_html(comparison)


def test_a_policy_that_is_never_clean_has_no_share_on_clean_days(comparison: Comparison) -> None:
    result = comparison.results[0].model_copy(update={"n_violations": ((1, 1, 1),)})
    changed = comparison.model_copy(update={"results": (result,)})
    assert report.clean_rows(changed) == (report.CleanRow("charge_on_arrival", 0, "–"),)


def test_without_violations_nothing_is_said_about_them(comparison: Comparison) -> None:
    changed = comparison.model_copy(update={"results": comparison.results[1:]})
    assert report.clean_rows(changed) == ()
    assert "Days without violation" not in report.report_html(changed)


def _notes(comparison: Comparison, **changes: object) -> str:
    return "\n".join(report.honest_notes(comparison.model_copy(update=changes)))


def test_notes_say_what_weakens_a_number(comparison: Comparison) -> None:
    notes = _notes(comparison, notes=("mind the gap",))
    assert "1.0 kWh cannot be charged by any policy" in notes
    assert "as few as 2 seeds" in notes
    assert "sees the whole day before it happens" in notes
    assert notes.endswith("mind the gap")
    assert "DEFECT" not in notes
    assert "interrupted" not in notes


def test_a_cost_below_the_bound_is_called_a_defect_first(comparison: Comparison) -> None:
    changes = {"lower_bound_eur": (6.0, 11.5, 8.0)}
    assert _notes(comparison, **changes).startswith("DEFECT: 2 costs lie below the proven bound (ppo on day 1, optimum")
    assert 'class="warn"' in report.report_html(comparison.model_copy(update=changes))


def test_an_unfinished_comparison_says_so(comparison: Comparison) -> None:
    assert _notes(comparison, complete=False).startswith("This comparison was interrupted")
    assert 'class="warn"' not in report.report_html(comparison)


def test_uncommitted_changes_are_admitted(comparison: Comparison) -> None:
    changed = comparison.provenance.model_copy(update={"git_hash": "0123abc+changed"})
    assert "not exactly what ran" in _notes(comparison, provenance=changed)


def test_one_day_gives_no_intervals(comparison: Comparison) -> None:
    result = PolicyResult(
        label="ppo", kind="learned", cost_eur=((7.0,),), captured=0.75, captured_low=None, captured_high=None,
        gap=0.25, n_violations=((0,),), violation_pu=((0.0,),), unmet_kwh=((2.5,),),
    )  # fmt: skip
    single = Comparison.model_validate(
        comparison.model_dump()
        | {"day_seeds": (4,), "naive_cost_eur": (10.0,), "lower_bound_eur": (6.0,), "infeasible_kwh": (0.0,)}
        | {"results": (result,)}
    )
    assert report.table_rows(single)[1].interval == ""
    assert "One day has no spread" in "\n".join(report.honest_notes(single))
    text = Page(report.report_html(single)).text
    assert "1 policies" not in text
    assert "seeds 4" in text


def test_the_terminal_shows_the_same_numbers(comparison: Comparison) -> None:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report.rich_table(comparison))
    text = console.export_text()
    for row in report.table_rows(comparison):
        for cell in (row.label, row.cost, row.captured, row.interval, row.gap, row.violations, row.ms):
            assert cell in text


def test_publish_writes_everything_and_can_be_repeated(comparison: Comparison, trace: DayTrace, tmp_path: Path) -> None:
    partial = comparison.model_copy(update={"results": comparison.results[:1], "complete": False})
    report.publish(tmp_path / "out", partial)
    path = report.publish(tmp_path / "out", comparison, [trace], CURVE)
    assert sorted(file.name for file in path.parent.iterdir()) == ["comparison.json", "days.csv", "report.html"]
    assert read_json(path.parent / "comparison.json") == comparison
    assert len(read_csv(path.parent / "days.csv")) == 12


# --- drawings ----------------------------------------------------------------------------------------------


def _texts(svg: str) -> list[str]:
    return ["".join(node.itertext()) for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("}text")]


def test_the_day_is_drawn_with_a_panel_for_every_policy(trace: DayTrace) -> None:
    figure = figures.day_figure(trace)
    words = _texts(figures.svg_text(figure, "day", "a day"))
    for word in ("Import price", "charge_on_arrival", "ppo", "charging", "local generation (DG)", "12:00", "18:00"):
        assert word in words
    # prices are drawn in ct/kWh: 0.1 EUR/kWh is 10
    assert figure.axes[0].lines[0].get_ydata()[0] == pytest.approx(10.0)  # type: ignore[index]


def test_a_day_can_be_drawn_for_chosen_policies(trace: DayTrace) -> None:
    words = _texts(figures.svg_text(figures.day_figure(trace, ["ppo"]), "day", "a day"))
    assert "ppo" in words
    assert "charge_on_arrival" not in words


@pytest.mark.parametrize("labels", [["ppo", "somebody"], []])
def test_policies_that_the_day_does_not_hold_cannot_be_drawn(trace: DayTrace, labels: list[str]) -> None:
    with pytest.raises(DataError, match=r"must be in DayTrace.charging_kw, which holds .*'ppo'.*, got"):
        figures.day_figure(trace, labels)
    with pytest.raises(DataError, match=r"must be in DayTrace.voltage_pu"):
        figures.voltage_figure(trace, labels)


def test_voltage_is_the_range_over_the_buses_that_have_the_phase(trace: DayTrace) -> None:
    figure = figures.voltage_figure(trace, ["charge_on_arrival"])
    phase_a, _, phase_c = figure.axes
    crosses = [line for line in phase_a.lines if line.get_marker() == "x"]
    assert len(crosses) == 1
    # slot 12 is the only one outside, drawn in the middle of [18:00, 18:30) at its lowest voltage
    assert np.asarray(crosses[0].get_xydata()).tolist() == [[18.25, 0.93]]
    # the absent phase of bus 1 is 0 pu in the record and must not be drawn
    assert phase_c.dataLim.y0 == pytest.approx(0.95)
    assert "outside the limits" in _texts(figures.svg_text(figure, "v", "voltage"))


def test_voltage_above_the_limit_is_marked_and_rounding_is_not(trace: DayTrace) -> None:
    voltage_pu = np.full((48, 2, 3), 1.05 + 1e-9)
    voltage_pu[3, 0, 1] = 1.06
    figure = figures.voltage_figure(dataclasses.replace(trace, voltage_pu={"a": voltage_pu}))
    marked = [np.asarray(line.get_xydata()) for axes in figure.axes for line in axes.lines if line.get_marker() == "x"]
    assert [points.tolist() for points in marked] == [[[13.75, 1.06]]]


def test_a_phase_that_no_bus_has_is_said_to_be_absent(trace: DayTrace) -> None:
    voltage_pu = np.ones((48, 2, 3))
    voltage_pu[:, :, 2] = 0.0
    svg = figures.svg_text(figures.voltage_figure(dataclasses.replace(trace, voltage_pu={"a": voltage_pu})), "v", "v")
    assert "no bus on this phase" in _texts(svg)


def test_captured_shares_are_drawn_best_on_top(comparison: Comparison) -> None:
    figure = figures.captured_figure(comparison)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["charge_on_arrival", "ppo", "optimum"]
    assert [bar.get_width() for bar in figure.axes[0].patches] == pytest.approx([0.0, 14 / 18, 17 / 18])  # type: ignore[attr-defined]


def test_a_share_below_the_naive_rule_is_still_in_the_picture(comparison: Comparison) -> None:
    result = comparison.results[1].model_copy(update={"captured": -0.5, "captured_low": -0.7})
    figure = figures.captured_figure(comparison.model_copy(update={"results": (result,)}))
    assert figure.axes[0].get_xlim()[0] < -0.7


def test_training_is_drawn_with_a_line_for_every_seed() -> None:
    figure = figures.training_figure({"": CURVE})
    lines = [np.asarray(line.get_xydata()).tolist() for line in figure.axes[0].lines[:2]]
    assert lines == [[[1000, 0.2], [2000, 0.8]], [[1000, 0.1], [2000, 0.7]]]
    assert "2,000" in _texts(figures.svg_text(figure, "t", "training"))


def test_runs_whose_seeds_have_the_same_numbers_are_drawn_apart(comparison: Comparison) -> None:
    figure = figures.training_figure({"short": CURVE, "long": CURVE})
    axes = figure.axes[0]
    assert len(axes.lines) == 2 + 2 + 1
    assert axes.get_legend_handles_labels()[1] == ["short", "long"]
    assert axes.lines[0].get_color() == axes.lines[1].get_color() != axes.lines[2].get_color()
    text = Page(report.report_html(comparison, [], {"short": CURVE, "long": CURVE})).text
    assert "short" in text
    assert "Training" not in Page(report.report_html(comparison, [], {})).text


def test_a_drawing_is_the_same_every_time_and_leaves_no_global_trace(comparison: Comparison) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    first, second = (figures.svg_text(figures.captured_figure(comparison), "c", 'a "<b>"') for _ in range(2))
    assert first == second
    assert dict(mpl.rcParams) == before
    assert 'aria-label="a &quot;&lt;b>&quot;"' in first
