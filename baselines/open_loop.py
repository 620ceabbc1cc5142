"""The exact plan's bus totals replayed through the environment's disaggregation: what an open-loop controller of bus
powers makes of perfect foresight. Not an upper bound: a closed-loop policy can do better."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evcs_gym.baselines.policy import ViewSource
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.fleet.normal import knee_action
from evcs_gym.envs.types import FloatArray, Sessions


def bus_totals_kw(sessions: Sessions, power_kw: FloatArray, n_buses: int) -> FloatArray:
    """Power of every charging bus, (T, C), of a plan (T, S)."""
    out = np.zeros((len(power_kw), n_buses))
    np.add.at(out.T, sessions.bus, power_kw.T)
    return out


@dataclass
class OpenLoop:
    """Asks for stored bus totals, (D, T, C) kW; row d of the batch it is attached to plays day d."""

    totals_kw: Sequence[FloatArray]
    source: ViewSource | None = None

    def attach(self, source: ViewSource) -> None:
        """Read slots and bounds of this batch."""
        self.source = source

    def predict(
        self,
        observation: np.ndarray,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Actions (B, C) that come closest to the stored totals."""
        if self.source is None:
            raise ConfigError("the open-loop plan needs a batch of days: call attach(source) before predict")
        view = self.source.view()
        wanted = np.stack([self.totals_kw[row][slot] for row, slot in enumerate(view.slot)])
        return knee_action(wanted, view.surplus_kw, view.least_kw, view.largest_kw).astype(np.float32), None
