"""Feeders through the OpenDSS engine, and the power flow against its own: needs the package dss_python."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ieee_decks import ieee34, ieee37, ieee123

from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.grid import Feeder, load_feeder, power_flow

HEAD = """Clear
New Circuit.test basekv=4.16 pu=1.02 phases=3 bus1=head MVAsc3=2000 MVAsc1=2100
New Linecode.full nphases=3 units=mi rmatrix=(0.3465 | 0.1560 0.3375 | 0.1580 0.1535 0.3414)
~ xmatrix=(1.0179 | 0.5017 1.0478 | 0.4236 0.3849 1.0348) cmatrix=(15 | -4 14 | -3 -2 13)
New Linecode.two nphases=2 units=mi rmatrix=(1.3238 | 0.2066 1.3294) xmatrix=(1.3569 | 0.4591 1.3471)
~ cmatrix=(10 | -2 9)
New Linecode.cable nphases=3 units=mi rmatrix=(0.4 | 0.05 0.4 | 0.05 0.05 0.4) xmatrix=(0.3 | 0.03 0.3 | 0.03 0.03 0.3)
~ cmatrix=(400 | 0 390 | 0 0 420)
New Linecode.one nphases=1 units=mi rmatrix=(1.3292) xmatrix=(1.3475) cmatrix=(8)
New Line.main bus1=head bus2=mid linecode=full length=2000 units=ft
New Load.mid bus1=mid phases=3 conn=wye kV=4.16 kW=600 kvar=250
"""
TAIL = """
Batchedit load..* vminpu=0.5 vmaxpu=1.5
Set voltagebases=[4.16 2.4 0.48 0.208]
Calcvoltagebases
Set tolerance=1e-11 maxiterations=200
"""
CIRCUITS = {
    "untransposed lines with missing phases": """
New Line.pair phases=2 bus1=mid.3.2 bus2=pair.3.2 linecode=two length=900 units=ft
New Line.single phases=1 bus1=pair.3 bus2=single.3 linecode=one length=700 units=ft
New Load.pair bus1=pair.2 phases=1 kV=2.4 kW=170 kvar=125
New Load.single bus1=single.3 phases=1 kV=2.4 kW=90 kvar=-20""",
    "delta loads": """
New Load.d3 bus1=mid phases=3 conn=delta kV=4.16 kW=500 kvar=300
New Load.d1 bus1=mid.3.1 phases=1 conn=delta kV=4.16 kW=150 kvar=60""",
    "constant current and impedance, wye and delta": """
New Line.far bus1=mid bus2=far linecode=full length=1500 units=ft
New Load.i bus1=mid.1 phases=1 kV=2.4 kW=100 kvar=41.6666666666667 model=5
New Load.z bus1=far.2 phases=1 kV=2.3 kW=130 kvar=80 model=2
New Load.di bus1=far.1.2 phases=1 conn=delta kV=4.16 kW=170 kvar=151 model=5
New Load.dz bus1=far.2.3 phases=1 conn=delta kV=4.16 kW=230 kvar=132 model=2""",
    "capacitors in wye and delta": """
New Capacitor.wye bus1=mid phases=3 kvar=600 kV=4.16
New Capacitor.one bus1=mid.3 phases=1 kvar=100 kV=2.4
New Capacitor.delta bus1=mid phases=3 conn=delta kvar=150 kV=4.16""",
    "three single-phase regulators": """
New Transformer.ra phases=1 xhl=0.5 kvas=[1666 1666] buses=[mid.1 reg.1] kvs=[2.4 2.4] %loadloss=0.1 taps=[1 1.0625]
New Transformer.rb phases=1 xhl=0.5 kvas=[1666 1666] buses=[mid.2 reg.2] kvs=[2.4 2.4] %loadloss=0.1 taps=[1 0.99375]
New Transformer.rc phases=1 xhl=0.5 kvas=[1666 1666] buses=[mid.3 reg.3] kvs=[2.4 2.4] %loadloss=0.1 taps=[1 1.03125]
New Load.reg bus1=reg phases=3 kV=4.16 kW=500 kvar=200""",
    "wye-wye transformer": """
New Transformer.yy phases=3 windings=2 xhl=4 buses=[mid low] conns=[wye wye] kvs=[4.16 0.48] kvas=[500 500]
~ %rs=[0.5 0.5]
New Load.low bus1=low.1 phases=1 kV=0.277 kW=120 kvar=60
New Load.all bus1=low phases=3 kV=0.48 kW=150 kvar=70""",
    "delta-delta transformer at the end": """
New Transformer.dd phases=3 windings=2 xhl=2.72 buses=[mid low] conns=[delta delta] kvs=[4.16 0.48] kvas=[150 150]""",
    "a network behind an ungrounded winding": """
New Transformer.dd phases=3 windings=2 xhl=4 buses=[mid low] conns=[delta delta] kvs=[4.16 0.48] kvas=[500 500]
~ %rs=[0.5 0.5]
New Line.far bus1=low bus2=end linecode=cable length=900 units=ft
New Transformer.dy phases=3 windings=2 xhl=4 buses=[end house] conns=[delta wye] kvs=[0.48 0.208] kvas=[100 100]
New Load.pair bus1=end.1.2 phases=1 conn=delta kV=0.48 kW=60 kvar=20
New Load.three bus1=end phases=3 conn=delta kV=0.48 kW=90 kvar=30
New Load.house bus1=house.3 phases=1 kV=0.12 kW=10 kvar=4""",
    "two ungrounded windings, one behind the other": """
New Transformer.first phases=3 windings=2 xhl=4 buses=[mid low] conns=[wye delta] kvs=[4.16 2.4] kvas=[500 500]
~ %rs=[0.5 0.5]
New Line.far bus1=low bus2=end linecode=cable length=3000 units=ft
New Transformer.second phases=3 windings=2 xhl=4 buses=[end last] conns=[delta delta] kvs=[2.4 0.48] kvas=[300 300]
New Line.last bus1=last bus2=stop linecode=cable length=200 units=ft
New Load.end bus1=end.2.3 phases=1 conn=delta kV=2.4 kW=60 kvar=20
New Load.stop bus1=stop.3.1 phases=1 conn=delta kV=0.48 kW=40 kvar=10""",
    "loads of different models and power factors on one phase": """
New Load.p bus1=mid.1 phases=1 kV=2.4 kW=90 kvar=0 model=5
New Load.q bus1=mid.1 phases=1 kV=2.4 kW=40 kvar=80 model=2
New Load.r bus1=mid.1.2 phases=1 conn=delta kV=4.16 kW=80 kvar=10
New Load.s bus1=mid.1.2 phases=1 conn=delta kV=4.16 kW=30 kvar=70 model=2""",
    "delta-wye transformer": """
New Transformer.dy phases=3 windings=2 xhl=4 buses=[mid low] conns=[delta wye] kvs=[4.16 0.48] kvas=[500 500]
~ %rs=[0.5 0.5]
New Load.low bus1=low.1 phases=1 kV=0.277 kW=120 kvar=60
New Load.all bus1=low phases=3 kV=0.48 kW=150 kvar=70""",
}
IEEE13 = """Clear
New Circuit.ieee13 basekv=115 pu=1.0001 phases=3 bus1=sourcebus MVAsc3=20000 MVAsc1=21000
New Transformer.sub phases=3 xhl=0.008 buses=[sourcebus 650] conns=[delta wye] kvs=[115 4.16] kvas=[5000 5000]
~ %rs=[0.0005 0.0005]
New Transformer.r1 phases=1 xhl=0.01 kvas=[1666 1666] buses=[650.1 rg60.1] kvs=[2.4 2.4] %loadloss=0.01 taps=[1 1.0625]
New Transformer.r2 phases=1 xhl=0.01 kvas=[1666 1666] buses=[650.2 rg60.2] kvs=[2.4 2.4] %loadloss=0.01 taps=[1 1.05]
New Transformer.r3 phases=1 xhl=0.01 kvas=[1666 1666] buses=[650.3 rg60.3] kvs=[2.4 2.4] %loadloss=0.01 taps=[1 1.06875]
New Transformer.xfm1 phases=3 xhl=2 buses=[633 634] conns=[wye wye] kvs=[4.16 0.48] kvas=[500 500] %rs=[0.55 0.55]
New Linecode.601 nphases=3 units=mi rmatrix=(0.3465 | 0.1560 0.3375 | 0.1580 0.1535 0.3414)
~ xmatrix=(1.0179 | 0.5017 1.0478 | 0.4236 0.3849 1.0348)
New Linecode.602 nphases=3 units=mi rmatrix=(0.7526 | 0.1580 0.7475 | 0.1560 0.1535 0.7436)
~ xmatrix=(1.1814 | 0.4236 1.1983 | 0.5017 0.3849 1.2112)
New Linecode.603 nphases=2 units=mi rmatrix=(1.3238 | 0.2066 1.3294) xmatrix=(1.3569 | 0.4591 1.3471)
New Linecode.605 nphases=1 units=mi rmatrix=(1.3292) xmatrix=(1.3475)
New Linecode.606 nphases=3 units=mi rmatrix=(0.7982 | 0.3192 0.7891 | 0.2849 0.3192 0.7982)
~ xmatrix=(0.4463 | 0.0328 0.4041 | -0.0143 0.0328 0.4463) cmatrix=(257 | 0 257 | 0 0 257)
New Linecode.607 nphases=1 units=mi rmatrix=(1.3425) xmatrix=(0.5124) cmatrix=(236)
New Line.650632 bus1=rg60 bus2=632 linecode=601 length=2000 units=ft
New Line.632670 bus1=632 bus2=670 linecode=601 length=667 units=ft
New Line.670671 bus1=670 bus2=671 linecode=601 length=1333 units=ft
New Line.671680 bus1=671 bus2=680 linecode=601 length=1000 units=ft
New Line.632633 bus1=632 bus2=633 linecode=602 length=500 units=ft
New Line.632645 phases=2 bus1=632.3.2 bus2=645.3.2 linecode=603 length=500 units=ft
New Line.645646 phases=2 bus1=645.3.2 bus2=646.3.2 linecode=603 length=300 units=ft
New Line.671692 bus1=671 bus2=692 switch=y r1=1e-4 r0=1e-4 x1=0 x0=0 c1=0 c0=0
New Line.692675 bus1=692 bus2=675 linecode=606 length=500 units=ft
New Line.671684 phases=2 bus1=671.1.3 bus2=684.1.3 linecode=603 length=300 units=ft
New Line.684611 phases=1 bus1=684.3 bus2=611.3 linecode=605 length=300 units=ft
New Line.684652 phases=1 bus1=684.1 bus2=652.1 linecode=607 length=800 units=ft
New Load.671 bus1=671 phases=3 conn=delta kV=4.16 kW=1155 kvar=660
New Load.634a bus1=634.1 phases=1 kV=0.277 kW=160 kvar=110
New Load.634b bus1=634.2 phases=1 kV=0.277 kW=120 kvar=90
New Load.634c bus1=634.3 phases=1 kV=0.277 kW=120 kvar=90
New Load.645 bus1=645.2 phases=1 kV=2.4 kW=170 kvar=125
New Load.646 bus1=646.2.3 phases=1 conn=delta model=2 kV=4.16 kW=230 kvar=132
New Load.692 bus1=692.3.1 phases=1 conn=delta model=5 kV=4.16 kW=170 kvar=151
New Load.675a bus1=675.1 phases=1 kV=2.4 kW=485 kvar=190
New Load.675b bus1=675.2 phases=1 kV=2.4 kW=68 kvar=60
New Load.675c bus1=675.3 phases=1 kV=2.4 kW=290 kvar=212
New Load.611 bus1=611.3 phases=1 model=5 kV=2.4 kW=170 kvar=80
New Load.652 bus1=652.1 phases=1 model=2 kV=2.4 kW=128 kvar=86
New Load.670a bus1=670.1 phases=1 kV=2.4 kW=17 kvar=10
New Load.670b bus1=670.2 phases=1 kV=2.4 kW=66 kvar=38
New Load.670c bus1=670.3 phases=1 kV=2.4 kW=117 kvar=68
New Capacitor.c1 bus1=675 phases=3 kvar=600 kV=4.16
New Capacitor.c2 bus1=611.3 phases=1 kvar=100 kV=2.4
Batchedit load..* vminpu=0.5 vmaxpu=1.5
Set voltagebases=[115 4.16 0.48]
Calcvoltagebases
Set tolerance=1e-11 maxiterations=200
"""


def test_without_the_engine_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "circuit.dss"
    file.write_text(HEAD + TAIL)
    monkeypatch.setitem(sys.modules, "dss", None)
    with pytest.raises(ConfigError, match=r"the OpenDSS engine is not installed; pip install 'evcs-gym\[peers\]'"):
        Feeder.from_opendss(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file .*nowhere\.dss"):
        Feeder.from_opendss(tmp_path / "nowhere.dss")


def engine_voltages(path: Path) -> dict[tuple[str, int], float]:
    """Voltage magnitude [pu] of every node, by OpenDSS."""
    engine = pytest.importorskip("dss", reason="dss_python is not installed").dss.NewContext()
    engine.AllowChangeDir = False
    for line in (f'redirect "{path}"', "set controlmode=off", "solve"):
        engine.Text.Command = line
    circuit = engine.ActiveCircuit
    assert circuit.Solution.Converged
    found: dict[tuple[str, int], float] = {}
    for name in circuit.AllBusNames:
        bus = circuit.Buses(name)
        flat: Any = np.asarray(bus.puVoltages)
        size = np.abs(flat if np.iscomplexobj(flat) else flat[0::2] + 1j * flat[1::2])
        found |= {(name, int(node)): float(v) for node, v in zip(bus.Nodes, size, strict=True)}
    return found


def read(tmp_path: Path, text: str) -> Feeder:
    pytest.importorskip("dss", reason="dss_python is not installed")
    file = tmp_path / "circuit.dss"
    file.write_text(text)
    return Feeder.from_opendss(file)


def largest_difference_pu(tmp_path: Path, text: str) -> float:
    feeder = read(tmp_path, text)
    flow = power_flow(feeder, feeder.load_kva[None], tolerance_pu=1e-12, max_iterations=200)
    assert flow.converged.all()
    theirs = engine_voltages(tmp_path / "circuit.dss")
    ours = {
        (name, phase + 1): abs(flow.voltage_pu[0, bus, phase])
        for bus, name in enumerate(feeder.bus_name)
        for phase in range(3)
        if bus > 0 and feeder.phase_present[bus, phase] and "#" not in name
    }
    assert ours.keys() == theirs.keys()
    return max(abs(ours[node] - theirs[node]) for node in ours)


@pytest.mark.parametrize("name", CIRCUITS)
def test_every_part_agrees_with_the_engine(name: str, tmp_path: Path) -> None:
    assert largest_difference_pu(tmp_path, HEAD + CIRCUITS[name] + TAIL) <= 1e-6


def test_the_13_bus_feeder_agrees_with_the_engine(tmp_path: Path) -> None:
    """IEEE 13 Node Test Feeder: parameters of the IEEE PES Test Feeder Working Group, taps as published."""
    assert largest_difference_pu(tmp_path, IEEE13) <= 1e-7


@pytest.mark.parametrize("deck", [ieee34(), ieee37(), ieee123()], ids=["34", "37", "123"])
def test_the_34_37_and_123_bus_feeders_agree_with_the_engine(deck: str, tmp_path: Path) -> None:
    """34: loads of two kinds on one phase. 37: three wires without ground, behind an open-delta regulator."""
    assert largest_difference_pu(tmp_path, deck) <= 1e-7


def test_the_shipped_123_bus_feeder_agrees_with_the_engine(tmp_path: Path) -> None:
    """Its matrices are built from the published tables without the engine; the deck holds the same tables."""
    pytest.importorskip("dss", reason="dss_python is not installed")
    (tmp_path / "circuit.dss").write_text(ieee123())
    theirs = engine_voltages(tmp_path / "circuit.dss")
    feeder = load_feeder("ieee123")
    voltage = np.abs(power_flow(feeder, feeder.load_kva[None], tolerance_pu=1e-12).voltage_pu[0])
    places = [(bus, phase) for bus, phase in np.argwhere(feeder.phase_present).tolist() if bus > 0]
    assert {(feeder.bus_name[bus], phase + 1) for bus, phase in places} == theirs.keys()
    worst = max(abs(voltage[bus, phase] - theirs[feeder.bus_name[bus], phase + 1]) for bus, phase in places)
    assert worst <= 1e-7


@pytest.mark.parametrize(
    ("extra", "error", "message"),
    [
        ("New Generator.g bus1=mid phases=3 kV=4.16 kW=10", ConfigError, "no element like 'generator.g'"),
        ("New Load.x bus1=mid.2 phases=1 kV=2.4 kW=10 model=4", ConfigError, "'load.x' is of model 4"),
        (
            "New Line.a bus1=mid bus2=far linecode=full length=1 units=mi\n"
            "New Line.b bus1=far bus2=head linecode=full length=1 units=mi",
            DataError,
            "closes a loop",
        ),
        (
            "New Transformer.dd phases=3 xhl=4 buses=[mid low] conns=[delta delta] kvs=[4.16 0.48] kvas=[500 500]\n"
            "New Line.below bus1=low bus2=end linecode=full length=10 units=ft\n"
            "New Load.end bus1=end.2 phases=1 kV=0.277 kW=1",
            ConfigError,
            "bus 'end' has a load between phase b and ground, but is fed by an ungrounded winding",
        ),
        ("New Vsource.second bus1=mid basekv=4.16", ConfigError, "'vsource.second' is a second"),
        ("New Line.broken bus1=mid bus2=far linecode=nothing", DataError, "the engine could not run"),
    ],
)
def test_what_a_feeder_cannot_be_is_refused(tmp_path: Path, extra: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read(tmp_path, HEAD + extra + TAIL)


def test_an_open_switch_conducts_nothing(tmp_path: Path) -> None:
    text = HEAD + "New Line.tie bus1=mid bus2=head linecode=full length=1 units=mi\nOpen line.tie 1" + TAIL
    assert len(read(tmp_path, text)) == 3
