"""Time of Off-PAC through ``npg.train`` beside a bare loop that learns the same θ, and of drawing a minibatch.

MountainCar-v0, one environment, 10 tilings of 10 by 10 for actor and critic, a uniformly random behaviour. The bare
loop has the environment, the tiles and the arithmetic of the box and nothing else: no checks, records, checkpoints or
other settings than these. Both draw the same numbers, and the script fails unless they end with the same θ. A draw from
the replay buffer is beside a ``take`` from the same rows. Medians over repeats taken in turn, so that a machine that
slows down slows both alike.

    python examples/off_pac_speed.py [--repeats 7] [--steps 20000]        takes about 20 seconds
"""

import time

import numpy as np

import npg
from npg.features import TileCoding
from npg.lab.plotting import arguments
from npg.replay import Replay

GAMMA, LAM, V0, ALPHA_U, ALPHA_V, ALPHA_W = 0.99, 0.4, -90.0, 0.005, 0.05, 1e-5
TILES = {"kind": "tile", "n_tilings": 10, "n_tiles": 10}
STEPS = {"gamma": GAMMA, "lam": LAM, "v0": V0, "alpha_u": ALPHA_U, "alpha_v": ALPHA_V, "alpha_w": ALPHA_W}
ROWS, BATCH = 100_000, 4096


def environment():
    return npg.make_env("MountainCar-v0", max_episode_steps=5000)


def through_the_library(steps: int) -> tuple[np.ndarray, float]:
    """θ and seconds."""
    env = environment()
    agent = npg.make_agent("off_pac", env, features=TILES, value_features=TILES, **STEPS)
    start = time.perf_counter()
    npg.train(agent, env, steps=steps, seed=0)
    return agent.theta, time.perf_counter() - start


def bare(steps: int) -> tuple[np.ndarray, float]:
    """θ and seconds, from the random numbers of ``npg.train``."""
    env = environment()
    tiles, k = TileCoding(env.observation_space, n_tilings=10, n_tiles=10), 3
    rng = np.random.default_rng(np.random.SeedSequence(0, spawn_key=(2,)))
    start, episode, gamma_t, ended = time.perf_counter(), 0, 0.0, True
    v, w, e_v = np.zeros((3, tiles.n_features))
    theta, e_u = np.zeros((2, k, tiles.n_features))
    for _ in range(steps):
        if ended:
            sequence = np.random.SeedSequence(0, spawn_key=(0, 0, episode + 1))
            obs, _ = env.reset(seed=int(sequence.generate_state(1)[0]))
            x, episode, gamma_t, ended = tiles(obs[None])[0], episode + 1, 0.0, False
        a = int(rng.gumbel(size=k).argmax())
        obs, r, terminated, truncated, _ = env.step(a)
        x_next, gamma_next = tiles(obs[None])[0], 0.0 if terminated else GAMMA
        logits = theta[:, x].sum(axis=1)
        pi = np.exp(logits - logits.max())
        pi /= pi.sum()
        delta = r + gamma_next * (V0 + v[x_next].sum()) - V0 - v[x].sum()
        rho = pi[a] * k
        e_v *= rho * gamma_t * LAM
        e_v[x] += rho
        e_u *= rho * gamma_t * LAM
        e_u[:, x] -= rho * pi[:, None]
        e_u[a, x] += rho
        w_x, correction = w[x].sum(), gamma_next * (1 - LAM * (not truncated)) * (e_v @ w)
        v += ALPHA_V * delta * e_v
        v[x_next] -= ALPHA_V * correction
        w += ALPHA_W * delta * e_v
        w[x] -= ALPHA_W * w_x
        theta += ALPHA_U * delta * e_u
        x, gamma_t, ended = x_next, gamma_next, terminated or truncated
        if ended:
            e_v[:], e_u[:] = 0, 0
    return theta.ravel(), time.perf_counter() - start


def minibatch() -> tuple[float, float]:
    """Seconds of ``Replay.sample``, and of a ``take`` from the same rows at indices that were drawn beforehand."""
    rng = np.random.default_rng(0)
    columns = {"obs": rng.random((ROWS, 4), dtype=np.float32), "actions": rng.integers(2, size=ROWS)}
    columns |= {"rewards": rng.random(ROWS), "next_obs": columns["obs"], "terminated": rng.random(ROWS) < 0.1}
    replay = Replay(ROWS)
    replay.insert(**columns)
    indices, seconds = rng.integers(ROWS, size=(200, BATCH)), []
    for draw in (lambda _: replay.sample(BATCH, rng), replay.rows.take):
        start = time.perf_counter()
        for index in indices:
            draw(index)
        seconds.append((time.perf_counter() - start) / len(indices))
    return seconds[0], seconds[1]


def main() -> None:
    args = arguments(__doc__, repeats=(7, 1), steps=(20_000, 1))
    runs = []
    for _ in range(args.repeats):
        (theta, seconds), (theta_bare, seconds_bare) = through_the_library(args.steps), bare(args.steps)
        size = np.abs(theta_bare).max()
        assert np.abs(theta - theta_bare).max() <= 1e-9 * size, "the bare loop learned something else"
        runs.append((args.steps / seconds, args.steps / seconds_bare, *minibatch()))
    rate, rate_bare, sample, take = np.median(runs, axis=0)
    ratio = np.median([run[0] / run[1] for run in runs])
    print(f"Off-PAC, steps per second: npg.train {rate:,.0f}, bare loop {rate_bare:,.0f}, ratio {ratio:.2f}")
    ratio = np.median([run[2] / run[3] for run in runs])
    print(f"minibatch of {BATCH}, µs: Replay.sample {1e6 * sample:.0f}, take {1e6 * take:.0f}, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
