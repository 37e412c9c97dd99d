"""Environment steps per second: the bare environment, collection alone, and training.

REINFORCE on CartPole-v1 by default; ``--method actor_critic_lambda`` is the online actor–critic with traces on
MountainCarContinuous-v0, mean, log σ and value on tile coding (11 tilings of 10×10), one update a step. One row
per number of parallel environments; "scalar" steps one environment without a vector around it. Medians over
repeats taken in turn, so that a machine that slows down slows all columns alike. Writes throughput.png where
matplotlib is installed.

    python examples/throughput.py [--method reinforce] [--repeats 5] [--steps 100000]
"""

import argparse
import time
from collections.abc import Callable

import numpy as np

import npg
from npg.lab.collect import Collector

SIZES = {"scalar": 0, "8": 8, "64": 64, "512": 512}
TILES = {"kind": "tile", "n_tilings": 11, "n_tiles": 10}
ON_TILES = {"features": TILES, "scale_features": TILES, "value_features": TILES, "alpha": 1e-4, "alpha_w": 1e-2}
METHODS = {"reinforce": ("CartPole-v1", {}), "actor_critic_lambda": ("MountainCarContinuous-v0", ON_TILES)}


def make(method: str, n: int):
    env_id, settings = METHODS[method]
    env = npg.make_vec(env_id, n) if n else npg.make_env(env_id)
    return env, npg.make_agent(method, env, **settings)


def bare(method: str, n: int, steps: int) -> float:
    """Step with actions drawn beforehand; episodes begin again as they end."""
    (env, _), columns = make(method, n), max(n, 1)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(steps // columns)]
    env.reset(seed=0)
    start = time.perf_counter()
    for action in actions:
        _, _, terminated, truncated, _ = env.step(action)
        if not n and (terminated or truncated):
            env.reset()
    return len(actions) * columns / (time.perf_counter() - start)


def collection(method: str, n: int, steps: int) -> float:
    """The collector with a policy that samples its actions, and no learning."""
    (env, agent), columns = make(method, n), max(n, 1)
    agent.init(np.random.default_rng(0))
    collector, rng = Collector(env, 0), np.random.default_rng(0)
    start = time.perf_counter()
    traj = collector.collect(agent, npg.Steps(steps // columns), rng)
    return np.count_nonzero(traj.valid) / (time.perf_counter() - start)


def training(method: str, n: int, steps: int) -> float:
    """npg.train."""
    env, agent = make(method, n)
    history = npg.train(agent, env, steps=steps, seed=0)
    return history["steps"][-1] / history["seconds"][-1]


MEASURES: dict[str, Callable[[str, int, int], float]] = {
    "bare environment": bare,
    "collection": collection,
    "training": training,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=METHODS, default="reinforce")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100_000)
    args = parser.parse_args()
    if args.repeats < 1 or args.steps < max(SIZES.values()):
        parser.error(f"--repeats must be at least 1 and --steps at least {max(SIZES.values())}")

    print(f"{'environments':<14}" + "".join(f"{name:>22}" for name in MEASURES) + f"{'train/bare':>12}")
    medians = {}
    for label, n in SIZES.items():
        runs = [[measure(args.method, n, args.steps) for measure in MEASURES.values()] for _ in range(args.repeats)]
        medians[label] = np.median(runs, axis=0)
        ratio = np.median([run[2] / run[0] for run in runs])
        print(f"{label:<14}" + "".join(f"{rate:>22,.0f}" for rate in medians[label]) + f"{ratio:>12.2f}", flush=True)

    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for i, name in enumerate(MEASURES):
        axes.plot(list(SIZES), [medians[label][i] for label in SIZES], marker="o", label=name)
    axes.set_yscale("log")
    axes.set_xlabel("parallel environments")
    axes.set_ylabel("environment steps per second")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig("throughput.png", dpi=150)
    print("throughput.png")


if __name__ == "__main__":
    main()
