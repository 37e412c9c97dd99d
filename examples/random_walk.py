"""TD(λ) on the random walk of 19 states: Figures 12.3, 12.6 and 12.8 of Sutton & Barto (2018).

Error of the values, a table that begins at zero, against the step size α, one curve for each λ: the offline λ-return
algorithm, which after each episode makes one pass of w ← w + α (G_t^λ − wᵀx_t) x_t with targets from the weights of
its beginning, Eq. (7.9); TD(λ) with accumulating traces, Eq. (7.11); true online TD(λ), with dutch traces, Eq. (7.14).
The error is the root mean square over the 19 states after an episode, averaged over the first 10 episodes. All settings
see the same walks; the bands are 95 % confidence intervals over runs. With large λ and α, accumulating traces make the
values diverge. With the other two, for α ≤ 1, a value is always a mean of earlier values and returns, by Eq. (7.15).

All λ and α are learned at once, as arrays; on the first run the script checks that ``npg.traces.TDLambda`` has the
same weights.

    python examples/random_walk.py [--runs 100]        writes random_walk.png; 100 runs take about 10 seconds
"""

import argparse
import sys

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import t
from tqdm import tqdm

from npg.envs import TabularEnv
from npg.features import OneHot, rows
from npg.lab.collect import Collector
from npg.problems import random_walk
from npg.returns import lambda_returns
from npg.traces import TDLambda
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
    rewards, terminated, truncated = (
        np.broadcast_to(a, columns) for a in (walk.rewards, walk.terminated, walk.truncated)
    )
    targets = [
        lambda_returns(rewards, w[s_next, i], terminated, truncated, MDP.gamma, lam) for i, lam in enumerate(LAM)
    ]
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


def errors(walk: Trajectories, method: str, w: np.ndarray) -> np.ndarray:
    """Error averaged over the episodes of one run: (λ, α). Leaves the last weights in w (S, λ, α)."""
    total = np.zeros(w.shape[1:])
    ends = np.flatnonzero(walk.terminated[:, 0]) + 1
    with np.errstate(over="ignore", invalid="ignore"):  # accumulating traces may diverge
        for begin, end in zip([0, *ends[:-1]], ends, strict=True):
            episode = steps(walk, slice(begin, end))
            if method == "offline":
                offline(w, episode)
            else:
                online(w, episode, method)
            total += np.sqrt(((w[:STATES] - TRUE[:, None, None]) ** 2).mean(axis=0))
    return total / len(ends)


def steps(walk: Trajectories, index: slice) -> Trajectories:
    """Some rows of a walk."""
    return Trajectories(**{name: rows(getattr(walk, name), index) for name in Trajectories.__slots__})


def check(walk: Trajectories, method: str, w: np.ndarray) -> None:
    """The weights of ``online`` are those of TDLambda, where they did not diverge."""
    for i, lam in enumerate(LAM):
        for j in range(5, len(ALPHA), 10):
            critic = TDLambda(LinearValue(OneHot(STATES + 1)), 1, ALPHA[j], MDP.gamma, lam, method)
            for k in range(len(walk.t)):
                critic.update(steps(walk, slice(k, k + 1)))
            if np.abs(w[:, i, j]).max() < 10:
                assert np.allclose(critic.w, w[:, i, j], rtol=0, atol=1e-12), (method, lam, ALPHA[j])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.runs < 2 or args.seed < 0:
        parser.error("--runs must be at least 2 and --seed at least 0")

    env = TabularEnv(MDP)
    results: list[list[np.ndarray]] = []
    try:
        for run, seed in enumerate(tqdm(np.random.SeedSequence(args.seed).spawn(args.runs), unit="run")):
            env_seed, action_seed = seed.generate_state(2)
            walk = Collector(env, int(env_seed)).collect(
                Walker(), Episodes(EPISODES), np.random.default_rng(action_seed)
            )
            result = []
            for method in FIGURES:
                w = np.zeros((STATES + 1, len(LAM), len(ALPHA)))
                result.append(errors(walk, method, w))
                if run == 0 and method != "offline":
                    check(walk, method, w)
            results.append(result)
    except KeyboardInterrupt:
        if len(results) < 2:
            sys.exit("interrupted before two runs were complete: there is nothing to draw")
        print(f"interrupted: the figure is of the {len(results)} runs that are complete", file=sys.stderr)

    error = np.array(results)  # (runs, method, λ, α)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = error.mean(axis=0)
        half_width = t.ppf(0.975, len(error) - 1) * error.std(axis=0, ddof=1) / np.sqrt(len(error))
    best = np.where(np.isfinite(mean), mean, np.inf).argmin(axis=2)
    print(f"least RMS error over the first {EPISODES} episodes, mean of {len(error)} runs ± 95 % confidence, and its α")
    print(f"{'λ':<7}" + "".join(f"{name:>28}" for name in FIGURES))
    for i, lam in enumerate(LAM):
        cells = (f"{mean[m, i, j]:.3f} ± {half_width[m, i, j]:.3f} at {ALPHA[j]:.3f}" for m, j in enumerate(best[:, i]))
        print(f"{lam:<7g}" + "".join(f"{cell:>28}" for cell in cells))

    figure = Figure(figsize=(15, 5), layout="constrained")
    for axes, title, y, e in zip(figure.subplots(1, 3, sharey=True), FIGURES.values(), mean, half_width, strict=True):
        for i, lam in enumerate(LAM):
            shown = np.isfinite(e[i]) & (y[i] < 1)  # beyond the frame
            (line,) = axes.plot(ALPHA[shown], y[i, shown], label=f"λ = {lam:g}")
            low, high = (y[i] - e[i])[shown], (y[i] + e[i])[shown]
            axes.fill_between(ALPHA[shown], low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        axes.set_title(title)
        axes.set_xlabel("step size α")
        axes.set_xlim(0, 1)
        axes.set_ylim(0.22, 0.58)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel(f"RMS error over {STATES} states and the first {EPISODES} episodes")
    figure.axes[2].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig("random_walk.png", dpi=150)
    print("random_walk.png")


if __name__ == "__main__":
    main()
