"""IEEE 34- and 37-bus test feeders as text for OpenDSS, written out from short tables of their public parameters.

Parameters: IEEE PES Test Feeder Working Group; lengths in 1000 ft, matrices in ohm and nF per 1000 ft, as in OpenDSS's
edition of both. Taps are fixed: those of the 34-bus feeder as published, those of the 37-bus feeder chosen here.
"""

import csv
import importlib.resources
import math

NF_PER_MICROSIEMENS = 1e3 / (2 * math.pi * 60)
CODES_34 = """
300 3 [.253181818|.039791667 .250719697|.040340909 .039128788 .251780303]
 [.252708333|.109450758 .256988636|.094981061 .086950758 .255132576]
 [2.680150309|-.769281006 2.5610381|-.499507676 -.312072984 2.455590387]
301 3 [.365530303|.04407197 .36282197|.04467803 .043333333 .363996212]
 [.267329545|.122007576 .270473485|.107784091 .099204545 .269109848]
 [2.572492163|-.72160598 2.464381882|-.472329395 -.298961096 2.368881119]
302 1 [.530208] [.281345] [2.12257]
303 1 [.530208] [.281345] [2.12257]
304 1 [.363958] [.269167] [2.1922]
"""
LINES_34 = """
800 802 300 2.58|802 806 300 1.73|806 808 300 32.23|808.2 810.2 303 5.804|808 812 300 37.5|812 814 300 29.73
814r 850 301 .01|816.1 818.1 302 1.71|816 824 301 10.21|818.1 820.1 302 48.15|820.1 822.1 302 13.74
824.2 826.2 303 3.03|824 828 301 .84|828 830 301 20.44|830 854 301 .52|832 858 301 4.9|834 860 301 2.02
834 842 301 .28|836 840 301 .86|836 862 301 .28|842 844 301 1.35|844 846 301 3.64|846 848 301 .53|850 816 301 .31
852r 832 301 .01|854.2 856.2 303 23.33|854 852 301 36.83|858.1 864.1 302 1.62|858 834 301 5.83|860 836 301 2.68
862.2 838.2 304 4.86|888 890 300 10.56
"""
LOADS_34 = """
860 1 60 48|840 5 27 21|844 2 405 315|848.1.2.3 d1 60 48|830.1.2 2 10 5|830.2.3 2 10 5|830.3.1 2 25 10
890.1.2.3 d5 450 225|802.2 1 15 7.5|806.2 1 15 7.5|802.3 1 12.5 7|806.3 1 12.5 7|808.2 5 8 4|810.2 5 8 4
818.1 2 17 8.5|820.1 2 17 8.5|820.1 1 67.5 35|822.1 1 67.5 35|816.2.3 5 2.5 1|824.2.3 5 2.5 1|824.2 5 20 10
826.2 5 20 10|824.3 1 2 1|828.3 1 2 1|828.1 1 3.5 1.5|830.1 1 3.5 1.5|854.2 1 2 1|856.2 1 2 1|832.1.2 2 3.5 1.5
858.1.2 2 3.5 1.5|832.2.3 2 1 .5|858.2.3 2 1 .5|832.3.1 2 3 1.5|858.3.1 2 3 1.5|858.1 1 1 .5|864.1 1 1 .5
858.1.2 1 2 1|834.1.2 1 2 1|858.2.3 1 7.5 4|834.2.3 1 7.5 4|858.3.1 1 6.5 3.5|834.3.1 1 6.5 3.5|834.1.2 2 8 4
860.1.2 2 8 4|834.2.3 2 10 5|860.2.3 2 10 5|834.3.1 2 55 27.5|860.3.1 2 55 27.5|860.1.2 1 15 7.5|836.1.2 1 15 7.5
860.2.3 1 5 3|836.2.3 1 5 3|860.3.1 1 21 11|836.3.1 1 21 11|836.1.2 5 9 4.5|840.1.2 5 9 4.5|836.2.3 5 11 5.5
840.2.3 5 11 5.5|862.2 1 14 7|838.2 1 14 7|842.1 1 4.5 2.5|844.1 1 4.5 2.5|844.2 1 12.5 6|846.2 1 12.5 6
844.3 1 10 5.5|846.3 1 10 5.5|846.2 1 11.5 5.5|848.2 1 11.5 5.5
"""
CODES_37 = """
721 3 [.055416667|.012746212 .050113636|.006382576 .012746212 .055416667]
 [.037367424|-.006969697 .035984848|-.007897727 -.006969697 .037367424] [80.27484728|0 80.27484728|0 0 80.27484728]
722 3 [.089981061|.030852273 .085|.023371212 .030852273 .089981061]
 [.056306818|-.006174242 .050719697|-.011496212 -.006174242 .056306818] [64.2184109|0 64.2184109|0 0 64.2184109]
723 3 [.245|.092253788 .246628788|.086837121 .092253788 .245]
 [.127140152|.039981061 .119810606|.028806818 .039981061 .127140152] [37.5977112|0 37.5977112|0 0 37.5977112]
724 3 [.396818182|.098560606 .399015152|.093295455 .098560606 .396818182]
 [.146931818|.051856061 .140113636|.040208333 .051856061 .146931818] [30.26701029|0 30.26701029|0 0 30.26701029]
"""
LINES_37 = """
701 702 722 .96|702 705 724 .4|702 713 723 .36|702 703 722 1.32|703 727 724 .24|703 730 723 .6|704 714 724 .08
704 720 723 .8|705 742 724 .32|705 712 724 .24|706 725 724 .28|707 724 724 .76|707 722 724 .12|708 733 723 .32
708 732 724 .32|709 731 723 .6|709 708 723 .32|710 735 724 .2|710 736 724 1.28|711 741 723 .4|711 740 724 .2
713 704 723 .52|714 718 724 .52|720 707 724 .92|720 706 723 .6|727 744 723 .28|730 709 723 .2|733 734 723 .56
734 737 723 .64|734 710 724 .52|737 738 723 .4|738 711 723 .4|744 728 724 .2|744 729 724 .28|799r 701 721 1.85
"""
LOADS_37 = """
701.1.2 1 140 70|701.2.3 1 140 70|701.3.1 1 350 175|712.3.1 1 85 40|713.3.1 1 85 40|714.1.2 5 17 8|714.2.3 5 21 10
718.1.2 2 85 40|720.3.1 1 85 40|722.2.3 5 140 70|722.3.1 5 21 10|724.2.3 2 42 21|725.2.3 1 42 21|727.3.1 1 42 21
728.1.2.3 d1 126 63|729.1.2 5 42 21|730.3.1 2 85 40|731.2.3 2 85 40|732.3.1 1 42 21|733.1.2 5 85 40|734.3.1 1 42 21
735.3.1 1 85 40|736.2.3 2 42 21|737.1.2 5 140 70|738.1.2 1 126 62|740.3.1 1 85 40|741.3.1 5 42 21|742.1.2 2 8 4
742.2.3 2 85 40|744.1.2 1 42 21
"""
TAPS_123 = """
150r_1 7|9r_1 -1|25r_1 0|25r_3 -1|160r_1 8|160r_2 1|160r_3 5
"""
SWITCHES_123 = "150r 149|13 152|18 135|60 160|97 197|61 61s"
MODELS = {"PQ": 1, "Z": 2, "I": 5}
END = "Set tolerance=1e-11 maxiterations=200\n"


def ieee34(taps: tuple[float, ...] = (12, 5, 5, 13, 11, 12)) -> str:
    """Taps: positions of 0.625 % of the regulators at 814 and at 852, phases a, b, c each."""
    text = "Clear\nNew Circuit.ieee34 basekv=69 pu=1.05 angle=30 MVAsc3=200000 bus1=sourcebus\n"
    text += transformer("sub", "sourcebus 800", "delta wye", "69 24.9", 25000, 0.01, 0.0005)
    text += transformer("xfm1", "832 888", "wye wye", "24.9 4.16", 500, 4.08, 0.95)
    for row, tap in enumerate(taps):
        bus, phase = ("814", "852")[row // 3], row % 3 + 1
        text += (
            f"New Transformer.r{row} phases=1 xhl=1 buses=[{bus}.{phase} {bus}r.{phase}] kvs=[14.376 14.376] "
            f"kvas=[20000 20000] taps=[1 {1 + 0.00625 * tap}]\n"
        )
    text += "New Capacitor.c844 bus1=844 kvar=300 kV=24.9\nNew Capacitor.c848 bus1=848 kvar=450 kV=24.9\n"
    text += codes(CODES_34) + lines(LINES_34) + loads(LOADS_34, {"890": (4.16, 2.402)}, (24.9, 14.376))
    return text + "Set voltagebases=[69 24.9 4.16]\nCalcvoltagebases\n" + END


def ieee37(taps: tuple[float, float] = (7, 4)) -> str:
    """Taps: positions of 0.625 % of the open-delta regulator, pairs ab and cb."""
    text = "Clear\nNew Circuit.ieee37 basekv=230 pu=1.00 MVAsc3=200000 MVAsc1=210000 bus1=sourcebus\n"
    text += transformer("sub", "sourcebus 799", "delta delta", "230 4.8", 2500, 8, 1)
    text += transformer("xfm1", "709 775", "delta delta", "4.8 0.48", 500, 1.81, 0.045)
    for phase, tap in zip((1, 3), taps, strict=True):
        text += (
            f"New Transformer.r{phase} phases=1 windings=2 buses=(799.{phase}.2 799r.{phase}.2) conns='delta delta' "
            f"kvs='4.8 4.8' kvas='2000 2000' xhl=1 taps=[1 {1 + 0.00625 * tap}]\n"
        )
    text += "New Line.jumper phases=1 bus1=799.2 bus2=799r.2 r0=1e-3 r1=1e-3 x0=0 x1=0 c0=0 c1=0\n"
    text += codes(CODES_37) + lines(LINES_37) + loads(LOADS_37, {}, (4.8, 2.771))
    return text + "Set voltagebases=[230 4.8 0.48]\nCalcvoltagebases\n" + END


def ieee123() -> str:
    """From the tables of the shipped feeder, but nothing else of it: the engine forms all matrices."""
    text = "Clear\nNew Circuit.ieee123 basekv=4.16 bus1=150 pu=1.00 R1=0 X1=0.0001 R0=0 X0=0.0001\n"
    text += (
        "New Transformer.head phases=3 windings=2 buses=[150 150r] conns=[wye wye] kvs=[4.16 4.16] kvas=[5000 5000] "
        "xhl=.001 %loadloss=0.00001 ppm=0 taps=[1 1.04375]\n"
    )
    for entry in TAPS_123.strip().split("|")[1:]:
        place, tap = entry.split()
        bus, phase = place.split("r_")
        text += (
            f"New Transformer.r{bus}_{phase} phases=1 windings=2 buses=[{bus}.{phase} {bus}r.{phase}] "
            f"kvs=[2.402 2.402] kvas=[2000 2000] xhl=.01 %loadloss=0.00001 ppm=0 taps=[1 {1 + 0.00625 * int(tap)}]\n"
        )
    for entry in SWITCHES_123.split("|"):
        one, other = entry.split()
        text += f"New Line.s{other} phases=3 bus1={one} bus2={other} r1=1e-3 r0=1e-3 x1=0 x0=0 c1=0 c0=0 length=.001\n"
    text += "New Transformer.xfm1 phases=3 windings=2 xhl=2.72 buses=[61s 610] conns=[delta delta] kvs=[4.16 0.48] "
    text += "kvas=[150 150] %rs=[0.635 0.635]\nNew Capacitor.c83 bus1=83 phases=3 kvar=600 kV=4.16\n"
    for place in ("88.1", "90.2", "92.3"):
        text += f"New Capacitor.c{place[:2]} bus1={place} phases=1 kvar=50 kV=2.402\n"
    return text + segments_123() + loads_123() + "Set voltagebases=[4.16 0.48]\nCalcvoltagebases\n" + END


def segments_123() -> str:
    text, phases = "", {}
    for row in table_123("configurations"):
        kept = [phase for phase in "abc" if float(row[f"r{phase}{phase}"])]
        phases[row["configuration"]] = ".".join(str("abc".index(phase) + 1) for phase in kept)
        text += f"New Linecode.c{row['configuration']} nphases={len(kept)} units=mi"
        for name, letter, factor in (
            ("rmatrix", "r", 1.0),
            ("xmatrix", "x", 1.0),
            ("cmatrix", "b", NF_PER_MICROSIEMENS),
        ):
            lower = [[factor * float(row[letter + one + two]) for one in kept if one <= two] for two in kept]
            text += f" {name}=[{' | '.join(' '.join(map(str, line)) for line in lower)}]"
        text += "\n"
    for row in table_123("segments"):
        nodes = phases[row["configuration"]]
        text += (
            f"New Line.l{row['to']} phases={nodes.count('.') + 1} bus1={row['from']}.{nodes} bus2={row['to']}.{nodes} "
            f"linecode=c{row['configuration']} length={row['length_ft']} units=ft\n"
        )
    return text


def loads_123() -> str:
    text = ""
    for row in table_123("loads"):
        kva = [(float(row[f"P{phase}_kW"]), float(row[f"Q{phase}_kvar"])) for phase in "abc"]
        head = f"New Load.l{row['bus']}"
        tail = f"model={MODELS[row['kind']]} vminpu=0.5 vmaxpu=1.5\n"
        if row["connection"] == "Y" and kva[0] == kva[1] == kva[2]:
            p, q = 3 * kva[0][0], 3 * kva[0][1]
            text += f"{head} bus1={row['bus']} phases=3 conn=wye kV=4.16 kW={p} kvar={q} {tail}"
            continue
        for phase, (p, q) in enumerate(kva, start=1):
            if p:
                delta = row["connection"] == "D"
                nodes = f"{phase}.{phase % 3 + 1}" if delta else f"{phase}"
                kind = "conn=delta kV=4.16" if delta else "conn=wye kV=2.4"
                text += f"{head}_{phase} bus1={row['bus']}.{nodes} phases=1 {kind} kW={p} kvar={q} {tail}"
    return text


def table_123(name: str) -> list[dict[str, str]]:
    path = importlib.resources.files("evcs_gym.envs.data") / f"ieee123_{name}.csv"
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def transformer(name: str, buses: str, conns: str, kvs: str, kva: float, xhl: float, r: float) -> str:
    return (
        f"New Transformer.{name} phases=3 windings=2 xhl={xhl} buses=[{buses}] conns=[{conns}] kvs=[{kvs}] "
        f"kvas=[{kva} {kva}] %rs=[{r} {r}]\n"
    )


def codes(table: str) -> str:
    """Rows NAME PHASES [r] [x] [c]; a row that begins with a blank continues the one before."""
    rows = table.strip().replace("\n ", " ").splitlines()
    text = ""
    for row in rows:
        head, r, x, c = (part.rstrip(" ]") for part in row.split("["))
        name, n_phases = head.split()
        text += f"New Linecode.{name} nphases={n_phases} rmatrix=[{r}] xmatrix=[{x}] cmatrix=[{c}] units=kft\n"
    return text


def lines(table: str) -> str:
    """Entries BUS[.PHASE] BUS[.PHASE] CODE LENGTH."""
    text = ""
    for entry in table.strip().replace("\n", "|").split("|"):
        one, other, code, length = entry.split()
        n_phases = 1 if "." in one else 3
        name = f"{one.split('.')[0]}_{other.split('.')[0]}"
        text += f"New Line.{name} phases={n_phases} bus1={one} bus2={other} linecode={code} length={length} units=kft\n"
    return text


def loads(table: str, own_kv: dict[str, tuple[float, float]], kv: tuple[float, float]) -> str:
    """Entries BUS[.PHASES] MODEL kW kvar; two or three phases, or d before the model, mean delta."""
    text = ""
    for number, entry in enumerate(table.strip().replace("\n", "|").split("|")):
        place, model, kw, kvar = entry.split()
        bus, *phases = place.split(".")
        line_kv, phase_kv = own_kv.get(bus, kv)
        delta = model.startswith("d") or len(phases) == 2
        rated = phase_kv if len(phases) == 1 else line_kv
        n_phases = 3 if len(phases) in (0, 3) else 1
        text += (
            f"New Load.l{number} bus1={place} phases={n_phases} conn={'delta' if delta else 'wye'} "
            f"model={model.lstrip('d')} kV={rated} kW={kw} kvar={kvar} vminpu=0.5 vmaxpu=1.5\n"
        )
    return text
