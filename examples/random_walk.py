"""TD(λ) on the random walk of 19 states: Figures 12.3, 12.6 and 12.8 of Sutton & Barto (2018).

Error of the values, a table that begins at zero, against the step size α, one curve for each λ: the offline λ-return
algorithm, which after each episode makes one pass of w ← w + α (G_t^λ − wᵀx_t) x_t with targets from the weights of
its beginning, Eq. (7.9); TD(λ) with accumulating traces, Eq. (7.11); true online TD(λ), with dutch traces, Eq. (7.14).
The error is the root mean square over the 19 states after an episode, averaged over the first 10 episodes. All settings
see the same walks; the bands are 95 % confidence intervals over runs. With large λ and α, accumulating traces make the
values diverge. With the other two, for α ≤ 1, a value is always a mean of earlier values and returns, by Eq. (7.15).

All λ and α are learned at once, as arrays; on the first run the script checks that the critics of ``npg.traces``
have the same weights.

    python examples/random_walk.py [--runs 100]        writes random_walk.png; 100 runs take about 10 seconds
"""

from itertools import product

import numpy as np

from npg.envs import TabularEnv
from npg.features import OneHot, rows
from npg.lab.collect import Collector
from npg.lab.plotting import arguments, band, figure, mean_and_interval, repeated, save
from npg.problems import random_walk
from npg.returns import lambda_returns
from npg.traces import online_critic
from npg.trajectories import Episodes, Trajectories
from npg.values import LinearValue

STATES, EPISODES = 19, 10
LAM = np.array([0, 0.4, 0.8, 0.9, 0.95, 0.975, 0.99, 1])
ALPHA = np.concatenate([np.arange(20) / 200, np.arange(20, 201, 5) / 200])
MDP = random_walk(STATES)
UNIFORM = np.full((STATES + 1, 2), 0.5)
TRUE = MDP.value(UNIFORM)[:STATES]
FIGURES = {
    "offline": "Figure 12.3: offline λ-return algorithm",
    "accumulating": "Figure 12.6: TD(λ), accumulating traces",
    "dutch": "Figure 12.8: true online TD(λ), dutch traces",
}


class Walker:
    """Left or right, each with probability 1/2; observations are the states."""

    def act(self, obs: np.ndarray, rng: np.random.Generator, explore: bool = True) -> tuple[np.ndarray, np.ndarray]:
        return rng.integers(2, size=len(obs)), obs


def offline(w: np.ndarray, walk: Trajectories) -> None:
    """One episode of the offline λ-return algorithm at all λ and α: w (S, λ, α) changes in place."""
    s, s_next = walk.obs[:, 0], walk.next_obs[:, 0]
    columns = (len(s), len(ALPHA))
    r, *ends = (np.broadcast_to(a, columns) for a in (walk.rewards, walk.terminated, walk.truncated))
    targets = [lambda_returns(r, w[s_next, i], *ends, MDP.gamma, lam) for i, lam in enumerate(LAM)]
    for s_t, G in zip(s, np.stack(targets, axis=1), strict=True):
        w[s_t] += ALPHA * (G - w[s_t])


def online(w: np.ndarray, walk: Trajectories, trace: str) -> None:
    """One episode of TD(λ) at all λ and α: w (S, λ, α) changes in place."""
    decay = MDP.gamma * LAM[:, None]
    z = np.zeros_like(w if trace == "dutch" else w[..., :1])  # an accumulating trace does not depend on α
    v_old = 0.0
    for s, r, s_next in zip(walk.obs[:, 0], walk.rewards[:, 0], walk.next_obs[:, 0], strict=True):
        v, v_next = w[s].copy(), w[s_next].copy()  # the terminal state is never updated: its value stays 0
        delta = r + MDP.gamma * v_next - v
        z *= decay
        if trace == "accumulating":
            z[s] += 1
            w += ALPHA * delta * z
        else:
            z[s] += 1 - ALPHA * z[s]
            w += ALPHA * (delta + v - v_old) * z
            w[s] -= ALPHA * (v - v_old)
            v_old = v_next


def learn(walk: Trajectories, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Error averaged over the episodes of one run: (λ, α), and the last weights (S, λ, α)."""
    w = np.zeros((STATES + 1, len(LAM), len(ALPHA)))
    total = np.zeros(w.shape[1:])
    ends = np.flatnonzero(walk.terminated[:, 0]) + 1
    with np.errstate(over="ignore", invalid="ignore"):  # accumulating traces may diverge
        for begin, end in zip([0, *ends[:-1]], ends, strict=True):
            episode = Trajectories(**{name: rows(array, slice(begin, end)) for name, array in walk.arrays().items()})
            if method == "offline":
                offline(w, episode)
            else:
                online(w, episode, method)
            total += np.sqrt(((w[:STATES] - TRUE[:, None, None]) ** 2).mean(axis=0))
    return total / len(ends), w


def walked(seed: np.random.SeedSequence) -> Trajectories:
    """The episodes of one run."""
    env_seed, action_seed = seed.generate_state(2)
    collector = Collector(TabularEnv(MDP), int(env_seed))
    return collector.collect(Walker(), Episodes(EPISODES), np.random.default_rng(action_seed))


def check(walk: Trajectories) -> None:
    """The weights of ``online`` are those of the critics of the library, where they did not diverge."""
    for method in ("accumulating", "dutch"):
        _, w = learn(walk, method)
        for i, j in product(range(len(LAM)), range(5, len(ALPHA), 10)):
            critic = online_critic(LinearValue(OneHot(STATES + 1)), 1, ALPHA[j], MDP.gamma, LAM[i], method)
            for step in walk.by_step():
                critic.update(step)
            if np.abs(w[:, i, j]).max() < 10:
                assert np.allclose(critic.w, w[:, i, j], rtol=0, atol=1e-12), (method, LAM[i], ALPHA[j])


def show(error: np.ndarray, mean: np.ndarray, half: np.ndarray) -> None:
    best = np.where(np.isfinite(mean), mean, np.inf).argmin(axis=2)
    print(f"least RMS error over the first {EPISODES} episodes, mean of {len(error)} runs ± 95 % confidence, and its α")
    print(f"{'λ':<7}" + "".join(f"{name:>28}" for name in FIGURES))
    for i, lam in enumerate(LAM):
        cells = (f"{mean[m, i, j]:.3f} ± {half[m, i, j]:.3f} at {ALPHA[j]:.3f}" for m, j in enumerate(best[:, i]))
        print(f"{lam:<7g}" + "".join(f"{cell:>28}" for cell in cells))


def draw(error: np.ndarray, mean: np.ndarray, half: np.ndarray) -> None:
    picture, panels = figure(16, 5, columns=3)
    for m, (axes, title) in enumerate(zip(panels, FIGURES.values(), strict=True)):
        for i, lam in enumerate(LAM):
            shown = np.isfinite(half[m, i]) & (mean[m, i] < 1)  # beyond the frame
            band(axes, ALPHA[shown], error[:, m, i, shown], f"λ = {lam:g}")
        axes.set(title=title, xlabel="step size α", xlim=(0, 1), ylim=(0.22, 0.58))
        axes.set_ylabel(f"RMS error over {STATES} states and {EPISODES} episodes")
    panels[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    save(picture, "random_walk")


def main() -> None:
    args = arguments(__doc__, runs=(100, 2), seed=(0, 0))

    def run(seed: np.random.SeedSequence) -> list[np.ndarray]:
        walk = walked(seed)
        if seed.spawn_key == (0,):
            check(walk)
        return [learn(walk, method)[0] for method in FIGURES]

    error = np.array(repeated(run, args.runs, args.seed))  # (runs, method, λ, α)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, half = mean_and_interval(error)
    show(error, mean, half)
    draw(error, mean, half)


if __name__ == "__main__":
    main()
