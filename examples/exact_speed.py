"""How fast the exact oracle and the tabular vector environment are, on this machine: medians over repeats.

python examples/exact_speed.py [--repeats 7]        prints the tables, in 3 seconds
"""

from collections.abc import Iterator

import numpy as np
from fisher_products import medians

import npg
from npg.envs import TabularVectorEnv
from npg.features import OneHot
from npg.lab.plotting import arguments
from npg.problems import four_rooms, garnet

ENVS, STEPS = 1024, 500


def gradients(rng: np.random.Generator, repeats: int) -> Iterator[tuple[str, float]]:
    """Seconds for an exact gradient, of each problem."""
    for S, A in ((10, 4), (100, 4), (1000, 4)):
        mdp, policy = garnet(S, A, S, gamma=0.99, seed=rng), npg.SoftmaxLinear(OneHot(S), A)
        theta = rng.normal(size=policy.n_params)
        (seconds,) = medians(repeats, lambda: mdp.gradient(policy, theta))  # noqa: B023 (called at once)
        yield f"{S} states, {A} actions, every successor possible", seconds


def transitions(rng: np.random.Generator, repeats: int) -> Iterator[tuple[str, float]]:
    """Transitions a second, of each problem."""
    problems = {f"{S} states, every successor possible": garnet(S, 4, S) for S in (2, 10, 100)}
    for name, mdp in (problems | {"four rooms": four_rooms()}).items():
        env = TabularVectorEnv(mdp, ENVS)
        env.reset(seed=0)
        actions = rng.integers(mdp.n_actions, size=(STEPS, ENVS))
        (seconds,) = medians(repeats, lambda: [env.step(a) for a in actions])  # noqa: B023
        yield name, ENVS * STEPS / seconds


def main() -> None:
    repeats, rng = arguments(__doc__, repeats=(7, 1)).repeats, np.random.default_rng(0)
    print(f"{'exact gradient, tabular softmax':<50}{'seconds':>10}")
    for name, seconds in gradients(rng, repeats):
        print(f"{name:<50}{seconds:>10.4f}", flush=True)
    print(f"\n{f'vector environment, N = {ENVS}':<50}{'million transitions per second':>30}")
    for name, rate in transitions(rng, repeats):
        print(f"{name:<50}{rate / 1e6:>30.1f}", flush=True)


if __name__ == "__main__":
    main()
