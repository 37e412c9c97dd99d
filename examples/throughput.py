"""Environment steps per second on CartPole-v1: the bare environment, collection alone, and REINFORCE training.

One row per number of parallel environments; "scalar" steps one environment without a vector around it. Medians
over repeats taken in turn, so that a machine that slows down slows all columns alike. Writes throughput.png
where matplotlib is installed.

    python examples/throughput.py [--repeats 5] [--steps 100000]
"""

import argparse
import time
from collections.abc import Callable

import numpy as np

import npg
from npg.rollout import Collector

SIZES = {"scalar": 0, "8": 8, "64": 64, "512": 512}


def make(n: int):
    return npg.make_vec("CartPole-v1", n) if n else npg.make_env("CartPole-v1")


def bare(n: int, steps: int) -> float:
    """Step with actions drawn beforehand; episodes begin again as they end."""
    env, columns = make(n), max(n, 1)
    actions = np.random.default_rng(0).integers(2, size=(steps // columns, columns))
    choices = actions if n else [int(a) for a in actions[:, 0]]
    env.reset(seed=0)
    start = time.perf_counter()
    for action in choices:
        _, _, terminated, truncated, _ = env.step(action)
        if not n and (terminated or truncated):
            env.reset()
    return actions.size / (time.perf_counter() - start)


def collection(n: int, steps: int) -> float:
    """The collector with a policy that samples its actions, and no learning."""
    env, columns = make(n), max(n, 1)
    agent = npg.make_agent("reinforce", env)
    agent.init(np.random.default_rng(0))
    collector, rng = Collector(env, 0), np.random.default_rng(0)
    start = time.perf_counter()
    traj = collector.collect(agent, npg.Steps(steps // columns), rng)
    return np.count_nonzero(traj.valid) / (time.perf_counter() - start)


def training(n: int, steps: int) -> float:
    """npg.train with the preset."""
    env = make(n)
    history = npg.train(npg.make_agent("reinforce", env), env, steps=steps, seed=0)
    return history["steps"][-1] / history["seconds"][-1]


MEASURES: dict[str, Callable[[int, int], float]] = {
    "bare environment": bare,
    "collection": collection,
    "REINFORCE training": training,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100_000)
    args = parser.parse_args()

    print(f"{'environments':<14}" + "".join(f"{name:>22}" for name in MEASURES) + f"{'train/bare':>12}")
    medians = {}
    for label, n in SIZES.items():
        runs = [[measure(n, args.steps) for measure in MEASURES.values()] for _ in range(args.repeats)]
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
