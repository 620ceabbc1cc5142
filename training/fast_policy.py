"""The policy of fast charging that MaskablePPO trains: every station gets a score from one network that all share."""

from typing import Any, cast

import torch
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from evcs_gym.envs.fleet.fast_kernels import N_COMMON, N_PER_STATION


class StationScores(nn.Module):
    """Latent of the actor (B, J + 1): a score of every station, and 0 for stranding, which only ever stands alone.

    A station's score comes from the request, its own features, the mean of all stations' features and which station it
    is. The critic (B, H) sees the observation as it is.
    """

    def __init__(self, n_stations: int, hidden_units: tuple[int, ...]) -> None:
        super().__init__()
        self.n_stations = n_stations
        self.latent_dim_pi, self.latent_dim_vf = n_stations + 1, hidden_units[-1]
        self.score = _layers(N_COMMON + 2 * N_PER_STATION + n_stations, hidden_units)
        self.last = nn.Linear(hidden_units[-1], 1)
        self.value = _layers(N_COMMON + n_stations * N_PER_STATION, hidden_units)
        self.register_buffer("which", torch.eye(n_stations), persistent=False)

    def forward(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and the critic's latent."""
        return self.forward_actor(observation), self.forward_critic(observation)

    def forward_actor(self, observation: torch.Tensor) -> torch.Tensor:
        """Scores (B, J + 1) of observations (B, F)."""
        n, shape = len(observation), (-1, self.n_stations, -1)
        own = observation[:, N_COMMON:].reshape(n, self.n_stations, N_PER_STATION)
        common = observation[:, None, :N_COMMON].expand(*shape)
        others = own.mean(dim=1, keepdim=True).expand(*shape)
        which = self.which.expand(n, -1, -1)  # type: ignore[operator]  # a buffer, which is a tensor
        score = self.last(self.score(torch.cat([common, own, others, which], dim=2)))[:, :, 0]
        return torch.cat([score, torch.zeros_like(score[:, :1])], dim=1)

    def forward_critic(self, observation: torch.Tensor) -> torch.Tensor:
        """Latent (B, H) of observations (B, F)."""
        latent: torch.Tensor = self.value(observation)
        return latent


def _layers(n_inputs: int, hidden_units: tuple[int, ...]) -> nn.Sequential:
    sizes = (n_inputs, *hidden_units)
    parts: list[nn.Module] = []
    for before, after in zip(sizes, hidden_units, strict=False):
        parts += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*parts)


class StationPolicy(MaskableActorCriticPolicy):
    """sb3-contrib's policy with `StationScores` as its actor; the scores are the logits, all 0 before it learns."""

    def __init__(self, *args: Any, hidden_units: tuple[int, ...] = (64, 64), **kwargs: Any) -> None:
        self._hidden_units = hidden_units
        super().__init__(*args, **kwargs)

    def _build_mlp_extractor(self) -> None:
        n_stations = int(self.action_space.n) - 1  # type: ignore[attr-defined]  # Discrete
        scores = StationScores(n_stations, self._hidden_units)
        self.mlp_extractor = scores  # type: ignore[assignment]  # SB3 knows its own extractor only

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        self.action_net = nn.Identity()
        for parameter in cast(StationScores, self.mlp_extractor).last.parameters():
            nn.init.zeros_(parameter)
        rate = lr_schedule(1)
        self.optimizer = self.optimizer_class(self.parameters(), lr=rate, **self.optimizer_kwargs)  # type: ignore[call-arg]
