"""How fast the exact oracle and the tabular vector environment are, on this machine: medians over repeats.

python examples/exact_speed.py
"""

import argparse
import time
from collections.abc import Callable

import numpy as np

import npg
from npg.envs import TabularVectorEnv
from npg.features import OneHot
from npg.problems import four_rooms, garnet

ENVS, STEPS = 1024, 500


def median_seconds(repeats: int, f: Callable[..., object], *args: object) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        f(*args)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def run(env: TabularVectorEnv, actions: np.ndarray) -> None:
    for a in actions:
        env.step(a)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    if args.repeats < 1:
        parser.error("--repeats must be at least 1")
    rng = np.random.default_rng(0)

    print(f"{'exact gradient, tabular softmax':<50}{'seconds':>10}")
    for S, A in ((10, 4), (100, 4), (1000, 4)):
        mdp = garnet(S, A, S, gamma=0.99, seed=rng)
        policy = npg.SoftmaxLinear(OneHot(S), A)
        theta = rng.normal(size=policy.n_params)
        seconds = median_seconds(args.repeats, mdp.gradient, policy, theta)
        print(f"{f'{S} states, {A} actions, every successor possible':<50}{seconds:>10.4f}")

    print(f"\n{f'vector environment, N = {ENVS}':<50}{'million transitions per second':>30}")
    problems = {f"{S} states, every successor possible": garnet(S, 4, S) for S in (2, 10, 100)}
    for name, mdp in (problems | {"four rooms": four_rooms()}).items():
        env = TabularVectorEnv(mdp, ENVS)
        env.reset(seed=0)
        actions = rng.integers(mdp.n_actions, size=(STEPS, ENVS))
        seconds = median_seconds(args.repeats, run, env, actions)
        print(f"{name:<50}{ENVS * STEPS / seconds / 1e6:>30.1f}", flush=True)


if __name__ == "__main__":
    main()
