"""The market of charging stations: stations, auction, and the core that wires them with traffic and network."""

from evcs_gym.envs.market.auction import PRICE_RULES, Clearing, clear

__all__ = ["PRICE_RULES", "Clearing", "clear"]
