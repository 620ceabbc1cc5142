"""Run by `make wheel-test` in an environment that holds the wheel only, outside the repository.

An editable install hides what a wheel forgets: packages, data files, declared dependencies. Argument: the repository,
from which nothing may be imported.
"""

import importlib
import importlib.metadata
import importlib.resources
import subprocess
import sys
from pathlib import Path

PORTIONS = ("envs", "baselines", "training", "evaluation", "configs")


def main(repository: Path) -> None:
    """Everything; the first failure ends it with its own traceback."""
    check_portions(repository)
    check_data()
    check_environments()
    check_optimum()
    check_command_line()
    print(f"wheel of evcs-gym {importlib.metadata.version('evcs-gym')}: all is there, all works")


def must(holds: bool, what: str) -> None:
    """End the run where something does not hold (`assert` would vanish under -O)."""
    if not holds:
        raise SystemExit(f"wheel: {what}")


def check_portions(repository: Path) -> None:
    """Every portion is importable, typed, and comes from the wheel."""
    for portion in PORTIONS:
        module = importlib.import_module(f"evcs_gym.{portion}")
        place = Path(str(module.__file__)).resolve()
        must(repository.resolve() not in place.parents, f"{place} is in the repository, not in the wheel")
        must((place.parent / "py.typed").is_file(), f"evcs_gym.{portion} has no py.typed")


def check_data() -> None:
    """Every data file that the code names can be read."""
    from evcs_gym.envs import load_scenario, shipped_scenarios
    from evcs_gym.envs.data import load_profiles, load_travel_tables, load_vehicle_models
    from evcs_gym.envs.grid import load_feeder
    from evcs_gym.envs.specs import shipped
    from evcs_gym.training.config import load_preset

    must(len(load_profiles().price_eur_per_kwh) > 0, "profiles are empty")
    load_travel_tables()
    load_vehicle_models()
    for feeder, n_buses in (("synthetic33", 33), ("case33bw", 33), ("ieee13", 17), ("ieee123", 131)):
        must(len(load_feeder(feeder)) == n_buses, f"feeder {feeder} is not whole")
    must(bool(shipped_scenarios()) and bool(shipped("training")), "scenarios or training presets are missing")
    for scenario in shipped_scenarios():
        load_scenario(scenario)
    for preset in shipped("training"):
        load_preset(preset)
    for package, name in (("data", "SOURCES.md"), ("fleet", "env.py"), ("market", "env.py")):
        must((importlib.resources.files(f"evcs_gym.envs.{package}") / name).is_file(), f"{name} is missing")
    must((importlib.resources.files("evcs_gym.evaluation") / "report.html").is_file(), "report.html is missing")


def check_environments() -> None:
    """Every id takes a step, alone and batched, by both of its names."""
    import gymnasium as gym

    from evcs_gym.envs import ENVIRONMENT_IDS

    for name in ENVIRONMENT_IDS:
        for full_name in (name, f"evcs_gym.envs:{name}"):
            env = gym.make(full_name, pool_days=2)
            env.reset(seed=0)
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            must(not terminated and not truncated, f"{full_name} ended after one slot")
            env.close()
        envs = gym.make_vec(name, num_envs=3, pool_days=2)
        observation, _ = envs.reset(seed=0)
        stepped, _, _, _, _ = envs.step(envs.action_space.sample())
        must(observation.shape == stepped.shape == envs.observation_space.shape, f"{name} changes its shape")
        envs.close()


def check_optimum() -> None:
    """A day of every world of every city is solved: Pyomo, the solvers, and the process they run in are all there."""
    from evcs_gym.baselines import optimum
    from evcs_gym.envs import load_scenario, shipped_scenarios

    for name in shipped_scenarios():
        scenario = load_scenario(name)
        worlds = {"normal_charging": scenario.has_home_charging, "market": scenario.has_stations}
        for problem in (problem for problem, there in worlds.items() if there):
            solution = optimum(scenario, scenario.day(0, "test"), problem)
            must(solution.lower_bound_eur <= solution.cost_eur + 1e-6, f"bound above cost: {solution.as_dict()}")


def check_command_line() -> None:
    """The entry point is installed and names its commands."""
    command = Path(sys.executable).parent / "evcs-gym"
    done = subprocess.run([str(command), "--help"], capture_output=True, text=True, timeout=120, check=True)
    for name in ("demo", "train", "compare", "solve", "doctor", "city", "render"):
        must(name in done.stdout, f"`evcs-gym --help` does not name {name}")
    subprocess.run([str(command), "train", "--help"], capture_output=True, timeout=120, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
