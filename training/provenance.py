"""Where a run came from, as plain values for its record."""

import hashlib
import importlib.metadata
import platform
from datetime import UTC, datetime
from typing import Any

PACKAGES = ("evcs-gym", "gymnasium", "numpy", "stable-baselines3", "torch")


def config_hash(text: str) -> str:
    """Short digest of a configuration's JSON."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def provenance(config_json: str, scenario_json: str) -> dict[str, Any]:
    """Versions, digests of preset and scenario, and the time at which the record was written."""
    return {
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "config_hash": config_hash(config_json),
        "scenario_hash": config_hash(scenario_json),
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
