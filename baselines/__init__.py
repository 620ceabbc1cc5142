"""What the best possible day costs, the rules to beat, and how any policy is scored."""

if __name__ != "evcs_gym.baselines":
    raise ImportError(
        f"this folder is the package evcs_gym.baselines, but it was imported as {__name__!r}: "
        "install the project (pip install -e .) and write 'import evcs_gym.baselines'"
    )

from evcs_gym.baselines.certificate import Certificate, Solution
from evcs_gym.baselines.policy import Policy
from evcs_gym.baselines.policy_market import MarketPolicy
from evcs_gym.baselines.registry import RULES, make_policy, make_rule
from evcs_gym.baselines.solve import optimum

__all__ = ["RULES", "Certificate", "MarketPolicy", "Policy", "Solution", "make_policy", "make_rule", "optimum"]
