"""How fast the vectorised classic control is, on this machine: steps per second beside Gymnasium's.

Actions are drawn beforehand; a scalar environment of ``gymnasium.make`` is reset as its episodes end. Medians over
repeats taken in turn, so that a machine that slows down slows all columns alike; so are the ratios.

    python examples/envs_speed.py [--repeats 7] [--steps 3000]        takes about 30 seconds
"""

import time

import gymnasium
import numpy as np

import npg
from npg.lab.plotting import arguments

TASKS = ("CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Acrobot-v1", "Pendulum-v1")
SIZES = (512, 64)


def scalar(env_id: str, steps: int) -> float:
    """Steps per second of Gymnasium's scalar environment."""
    env = gymnasium.make(env_id)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(steps)]
    env.reset(seed=0)
    start = time.perf_counter()
    for action in actions:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    return steps / (time.perf_counter() - start)


def vector(env: gymnasium.vector.VectorEnv, steps: int) -> float:
    """Steps per second of all columns together."""
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(steps)]
    env.reset(seed=0)
    start = time.perf_counter()
    for action in actions:
        env.step(action)
    return steps * env.num_envs / (time.perf_counter() - start)


def compute(env_id: str, repeats: int, steps: int) -> np.ndarray:
    """Steps per second of the scalar one, then npg's of each of SIZES, then Gymnasium's own, or 0: (repeats, 4)."""
    own = gymnasium.spec(env_id).vector_entry_point is not None
    runs = []
    for _ in range(repeats):
        rates = [scalar(env_id, steps), *(vector(npg.make_vec(env_id, n), steps // 4) for n in SIZES)]
        theirs = vector(gymnasium.make_vec(env_id, num_envs=SIZES[0]), steps // 4) if own else 0.0
        runs.append([*rates, theirs])
    return np.array(runs)


def show(env_id: str, runs: np.ndarray) -> None:
    rates = "".join(f"{rate:>14,.0f}" for rate in np.median(runs[:, :3], axis=0))
    ratios = "".join(f"{ratio:>12.1f}" for ratio in np.median(runs[:, 1:3] / runs[:, :1], axis=0))
    beside = f"{np.median(runs[:, 1] / runs[:, 3]):>18.2f}" if runs[:, 3].all() else ""
    print(f"{env_id:<26}{rates}{ratios}{beside}", flush=True)


def main() -> None:
    args = arguments(__doc__, repeats=(7, 1), steps=(3000, 4))
    names = "".join(f"{name:>14}" for name in ("scalar", *(f"N = {n}" for n in SIZES)))
    names += "".join(f"{name:>12}" for name in (f"× at {n}" for n in SIZES))
    print(f"{'steps per second':<26}{names}{'× its vector':>18}")
    for env_id in TASKS:
        show(env_id, compute(env_id, args.repeats, args.steps))


if __name__ == "__main__":
    main()
