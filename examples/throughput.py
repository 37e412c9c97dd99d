"""Environment steps per second: the bare environment, collection alone, and training.

REINFORCE on CartPole-v1 by default; ``--method actor_critic_lambda`` is the online actor–critic with traces on
MountainCarContinuous-v0, mean, log σ and value on tile coding (11 tilings of 10×10), one update a step. One row
per number of parallel environments; "scalar" steps one environment without a vector around it. Medians over
repeats taken in turn, so that a machine that slows down slows all columns alike. Writes throughput.png where
matplotlib is installed.

    python examples/throughput.py [--method reinforce] [--repeats 5] [--steps 100000]        takes about 60 seconds
"""

import time
from contextlib import suppress

import numpy as np

import npg
from npg.lab.collect import Collector
from npg.lab.plotting import arguments, figure, save

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


MEASURES = {"bare environment": bare, "collection": collection, "training": training}


def compute(method: str, n: int, repeats: int, steps: int) -> np.ndarray:
    """Steps per second of each of MEASURES: (repeats, 3)."""
    return np.array([[measure(method, n, steps) for measure in MEASURES.values()] for _ in range(repeats)])


def show(label: str, runs: np.ndarray) -> None:
    rates = "".join(f"{rate:>22,.0f}" for rate in np.median(runs, axis=0))
    print(f"{label:<14}{rates}{np.median(runs[:, 2] / runs[:, 0]):>12.2f}", flush=True)


def draw(runs: list[np.ndarray]) -> None:
    picture, (axes,) = figure()
    for name, rates in zip(MEASURES, np.median(runs, axis=1).T, strict=True):
        axes.plot(list(SIZES), rates, marker="o", label=name)
    axes.set(xlabel="parallel environments", ylabel="environment steps per second", yscale="log")
    axes.legend()
    save(picture, "throughput")


def main() -> None:
    args = arguments(__doc__, method=tuple(METHODS), repeats=(5, 1), steps=(100_000, max(SIZES.values())))
    print(f"{'environments':<14}" + "".join(f"{name:>22}" for name in MEASURES) + f"{'train/bare':>12}")
    results = []
    for label, n in SIZES.items():
        results.append(compute(args.method, n, args.repeats, args.steps))
        show(label, results[-1])
    with suppress(ImportError):  # without matplotlib there is the table
        draw(results)


if __name__ == "__main__":
    main()
