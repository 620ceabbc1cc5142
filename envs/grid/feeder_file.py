"""Feeders with equipment in one JSON file, bus by bus; what is plain (no shunt, constant power) is left out."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from evcs_gym.envs.errors import DataError
from evcs_gym.envs.grid.equipment import Equipment

if TYPE_CHECKING:
    from evcs_gym.envs.grid.feeder import Feeder

_COMPLEX: Final = {
    "impedance_ohm": (3, 3),
    "transfer": (3, 3),
    "shunt_siemens": (3, 3),
    "load_kva": (3,),
    "delta_kva": (3,),
}
_REAL: Final = {"share_frac": (3, 3), "delta_share_frac": (3, 3), "ampacity_a": (), "kv": ()}
_KEYS: Final = ("name", "parent", *_COMPLEX, *_REAL)


def feeder_text(feeder: "Feeder", source: str) -> str:
    """The file's text; complex numbers as [real, imaginary]. source: where the data come from."""
    parts = feeder.equipment or Equipment.of(len(feeder), feeder.line_to_line_kv)
    buses = []
    for bus, name in enumerate(feeder.bus_name):
        values = {
            "impedance_ohm": feeder.impedance_ohm[bus],
            "transfer": parts.transfer[bus],
            "shunt_siemens": parts.shunt_siemens[bus],
            "load_kva": feeder.load_kva[bus],
            "delta_kva": parts.delta_kva[bus],
            "share_frac": parts.share_frac[bus],
            "delta_share_frac": parts.delta_share_frac[bus],
        }
        plain = _plain(feeder.line_to_line_kv)
        written: dict[str, Any] = {"name": name}
        if bus > 0:
            written["parent"] = feeder.bus_name[int(feeder.parent[bus])]
        written["kv"] = float(parts.bus_kv[bus])
        if math.isfinite(feeder.ampacity_a[bus]):
            written["ampacity_a"] = float(feeder.ampacity_a[bus])
        written |= {key: _listed(value) for key, value in values.items() if not np.array_equal(value, plain[key])}
        buses.append(json.dumps(written))
    head = json.dumps({"name": feeder.name, "source": source, "line_to_line_kv": feeder.line_to_line_kv}, indent=1)
    return head[:-2] + ',\n "buses": [\n  ' + ",\n  ".join(buses) + "\n ]\n}\n"


def read_feeder(text: str, where: str) -> dict[str, Any]:
    """Arguments of ``Feeder.from_arrays`` from a file's text.

    Raises DataError for text that is no JSON, missing or unknown keys, a parent that does not exist, wrong shapes.
    """
    try:
        content = json.loads(text)
        level, buses, name = float(content["line_to_line_kv"]), content["buses"], str(content["name"])
        names = [str(bus["name"]) for bus in buses]
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{where}: a feeder file holds name, line_to_line_kv and buses with a name each, got "
            f"{type(error).__name__}: {error}"
        ) from error
    index = {label: row for row, label in enumerate(names)}
    columns: dict[str, list[Any]] = {key: [] for key in (*_COMPLEX, *_REAL)}
    parent = []
    for row, bus in enumerate(buses):
        label = f"{where}: bus {names[row]!r}"
        unknown = sorted(set(bus) - set(_KEYS))
        if unknown:
            raise DataError(f"{label} has an unknown key {unknown[0]!r}; known are {', '.join(_KEYS)}")
        if row > 0 and bus.get("parent") not in index:
            raise DataError(f"{label} must have a parent among the buses, got {bus.get('parent')!r}")
        parent.append(index[bus["parent"]] if row > 0 else -1)
        plain = _plain(level)
        for key in columns:
            columns[key].append(_array(bus[key], key, label) if key in bus else plain[key])
    general = {key: np.array(columns.pop(key)) for key in ("transfer", "shunt_siemens", "delta_kva")}
    general |= {key: np.array(columns.pop(key)) for key in ("share_frac", "delta_share_frac")}
    bus_kv = np.array(columns.pop("kv"))
    parts = Equipment.of(len(names), level, bus_kv=bus_kv, **general)
    arrays = {key: np.array(value) for key, value in columns.items()}
    return {**arrays, "parent": parent, "line_to_line_kv": level, "bus_name": names, "name": name, "equipment": parts}


def _plain(level_kv: float) -> dict[str, Any]:
    """Values of what a file leaves out."""
    power_only = np.broadcast_to([1.0, 0.0, 0.0], (3, 3))
    zero = {key: np.zeros(shape, dtype=np.complex128) for key, shape in _COMPLEX.items()}
    shares = {"share_frac": power_only, "delta_share_frac": power_only}
    return {**zero, "transfer": np.eye(3, dtype=np.complex128), **shares, "ampacity_a": math.inf, "kv": level_kv}


def _listed(value: Any) -> Any:
    """Nested lists; a complex number as [real, imaginary]."""
    return (np.stack([value.real, value.imag], axis=-1) if np.iscomplexobj(value) else value).tolist()


def _array(value: Any, key: str, label: str) -> Any:
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{label}: {key} must hold numbers: {error}") from error
    shape = (*_COMPLEX[key], 2) if key in _COMPLEX else _REAL[key]
    if array.shape != shape:
        raise DataError(f"{label}: {key} must have shape {shape}, got {array.shape}")
    return array[..., 0] + 1j * array[..., 1] if key in _COMPLEX else array


def save_feeder(feeder: "Feeder", path: str | Path, source: str) -> None:
    """See ``Feeder.save``."""
    Path(path).write_text(feeder_text(feeder, source), encoding="utf-8")
