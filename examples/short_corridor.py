"""REINFORCE on the short corridor with switched actions: Figures 13.1 and 13.2 of Sutton & Barto (2018).

Left, return per episode for three step sizes; right, with and without a learned baseline; the dashed line is the
value of the best policy that cannot tell the states apart, found exactly: v(p) = (2p − 4)/(p(1 − p)) is largest at
p = 2 − √2. All runs begin at p = 0.05. One θ is used throughout an episode and changed at its end; the book's box
changes it at every step, which to first order in the step size is the same.

    python examples/short_corridor.py [--runs 100]        writes short_corridor.png; 10 runs by default
"""

import argparse
import sys
from itertools import islice

import numpy as np
from matplotlib.figure import Figure
from scipy.optimize import minimize_scalar
from scipy.stats import t
from tqdm import tqdm

import npg
from npg.algorithms import Reinforce
from npg.envs import TabularEnv
from npg.features import Constant
from npg.lab.collect import Collector
from npg.lab.training import updates
from npg.problems import short_corridor

START = np.log([0.95, 0.05])  # logits of left and right
WITHOUT = {f"REINFORCE, α = 2^{k}": {"baseline": "none", "alpha": 2.0**k} for k in (-12, -13, -14)}
WITH = {"with baseline, α = 2^-9, α_w = 2^-6": {"baseline": "linear", "alpha": 2.0**-9, "alpha_w": 2.0**-6}}
FIGURES = {"Figure 13.1": list(WITHOUT), "Figure 13.2": ["REINFORCE, α = 2^-13", *WITH]}


def episode_returns(settings: dict[str, object], seed: np.random.SeedSequence, episodes: int) -> np.ndarray:
    """Return of each episode of one run: (episodes,)."""
    env = TabularEnv(short_corridor())
    policy = npg.SoftmaxLinear(Constant(), 2)
    agent = Reinforce(policy, Constant(), gamma=1.0, episodes=1, optimizer="ascent", **settings)
    seeds = seed.generate_state(2)
    rng = np.random.default_rng(seeds[0])
    collector = Collector(env, int(seeds[1]))
    agent.init(rng)
    agent.theta = START.copy()
    for _ in islice(updates(agent, collector, rng, rng), episodes):
        pass
    return np.array([total for total, _ in collector.finished])


def mean_and_error(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over runs, the first axis, and half the width of its 95 % confidence interval."""
    return x.mean(axis=0), t.ppf(0.975, len(x) - 1) * x.std(axis=0, ddof=1) / np.sqrt(len(x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.runs < 2 or args.episodes < 100 or args.seed < 0:
        parser.error("--runs must be at least 2, --episodes at least 100 and --seed at least 0")

    mdp = short_corridor()
    best = minimize_scalar(lambda p: -mdp.J(np.tile([1 - p, p], (4, 1))), bounds=(0.05, 0.95), options={"xatol": 1e-10})
    print(f"best policy: p(right) = {best.x:.6f} (2 − √2 = {2 - np.sqrt(2):.6f}), value {-best.fun:.6f}")

    returns: dict[str, list[np.ndarray]] = {label: [] for label in WITHOUT | WITH}
    try:
        for seed in tqdm(np.random.SeedSequence(args.seed).spawn(args.runs), unit="run"):
            for label, settings in (WITHOUT | WITH).items():
                returns[label].append(episode_returns(settings, seed, args.episodes))
    except KeyboardInterrupt:
        complete = min(map(len, returns.values()))
        if complete < 2:
            sys.exit("interrupted before two runs were complete: there is nothing to draw")
        returns = {label: runs[:complete] for label, runs in returns.items()}
        print(f"interrupted: the figures are of the {complete} runs that are complete", file=sys.stderr)

    print(f"return of the last 100 episodes, mean over {min(map(len, returns.values()))} runs ± 95 % confidence")
    for label, runs in returns.items():
        mean, error = mean_and_error(np.array(runs)[:, -100:].mean(axis=1))
        print(f"{label:<38}{mean:8.2f} ± {error:.2f}")

    figure = Figure(figsize=(12, 4.5), layout="constrained")
    for axes, (title, labels) in zip(figure.subplots(1, 2, sharey=True), FIGURES.items(), strict=True):
        for label in labels:
            blocks = (
                np.array(returns[label])[:, : args.episodes // 10 * 10].reshape(len(returns[label]), -1, 10).mean(2)
            )
            episode = 10 * np.arange(blocks.shape[1]) + 5
            mean, error = mean_and_error(blocks)
            (line,) = axes.plot(episode, mean, label=label)
            axes.fill_between(episode, mean - error, mean + error, color=line.get_color(), alpha=0.2, linewidth=0)
        axes.axhline(-best.fun, color="black", linestyle="--", linewidth=1, label="v* of the best policy")
        axes.set_title(title)
        axes.set_xlabel("episode")
        axes.set_ylim(-90, -8)
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
    figure.axes[0].set_ylabel("return, mean over runs and 10 episodes")
    figure.savefig("short_corridor.png", dpi=150)
    print("short_corridor.png")


if __name__ == "__main__":
    main()
