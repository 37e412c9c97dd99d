"""REINFORCE on the short corridor with switched actions: Figures 13.1 and 13.2 of Sutton & Barto (2018).

Left, return per episode for three step sizes; right, with and without a learned baseline; the dashed line is the
value of the best policy that cannot tell the states apart, found exactly: v(p) = (2p − 4)/(p(1 − p)) is largest at
p = 2 − √2. All runs begin at p = 0.05. One θ is used throughout an episode and changed at its end; the book's box
changes it at every step, which to first order in the step size is the same.

    python examples/short_corridor.py [--runs 100]        writes short_corridor.png; 10 runs, in 12 seconds, by default
"""

from itertools import islice

import numpy as np
from scipy.optimize import minimize_scalar

import npg
from npg.algorithms import Reinforce
from npg.envs import TabularEnv
from npg.features import Constant
from npg.lab.collect import Collector
from npg.lab.plotting import arguments, band, figure, mean_and_interval, repeated, save
from npg.lab.training import updates

MDP = npg.problems.short_corridor()
METHODS = {f"REINFORCE, α = 2^{k}": {"baseline": "none", "alpha": 2.0**k} for k in (-12, -13, -14)}
METHODS |= {"with baseline, α = 2^-9, α_w = 2^-6": {"baseline": "linear", "alpha": 2.0**-9, "alpha_w": 2.0**-6}}
FIGURES = {"Figure 13.1": [0, 1, 2], "Figure 13.2": [1, 3]}


def best_policy() -> tuple[float, float]:
    """p(right) of the best policy that cannot tell the states apart, and its value."""
    best = minimize_scalar(lambda p: -MDP.J(np.tile([1 - p, p], (4, 1))), bounds=(0.05, 0.95), options={"xatol": 1e-10})
    return best.x, -best.fun


def run(settings: dict[str, object], seed: np.random.SeedSequence, episodes: int) -> np.ndarray:
    """Return of each episode of one run: (episodes,)."""
    policy = npg.SoftmaxLinear(Constant(), 2)
    agent = Reinforce(policy, Constant(), gamma=1.0, episodes=1, optimizer="ascent", **settings)
    seeds = seed.generate_state(2)
    rng = np.random.default_rng(seeds[0])
    collector = Collector(TabularEnv(MDP), int(seeds[1]))
    agent.init(rng)
    agent.theta = np.log([0.95, 0.05])  # of left and right
    for _ in islice(updates(agent, collector, rng, rng), episodes):
        pass
    return np.array([total for total, _ in collector.finished])


def show(p: float, value: float, returns: np.ndarray) -> None:
    print(f"best policy: p(right) = {p:.6f} (2 − √2 = {2 - np.sqrt(2):.6f}), value {value:.6f}")
    print(f"return of the last 100 episodes, mean over {len(returns)} runs ± 95 % confidence")
    for label, *row in zip(METHODS, *mean_and_interval(returns[..., -100:].mean(axis=2)), strict=True):
        print("{:<38}{:8.2f} ± {:.2f}".format(label, *row))


def draw(value: float, returns: np.ndarray) -> None:
    runs, _, episodes = returns.shape
    blocks = returns[..., : episodes // 10 * 10].reshape(runs, len(METHODS), -1, 10).mean(axis=3)
    picture, panels = figure(12, 4.5, columns=2)
    for axes, (title, methods) in zip(panels, FIGURES.items(), strict=True):
        for m in methods:
            band(axes, 10 * np.arange(blocks.shape[2]) + 5, blocks[:, m], list(METHODS)[m], color=f"C{m}")
        axes.axhline(value, color="black", linestyle="--", linewidth=1, label="v* of the best policy")
        axes.set(title=title, xlabel="episode", ylabel="return, mean over runs and 10 episodes", ylim=(-90, -8))
        axes.legend(loc="lower right")
    save(picture, "short_corridor")


def main() -> None:
    args = arguments(__doc__, runs=(10, 2), episodes=(1000, 100), seed=(0, 0))
    p, value = best_policy()
    runs = repeated(lambda s: [run(how, s, args.episodes) for how in METHODS.values()], args.runs, args.seed)
    returns = np.array(runs)  # (runs, methods, episodes)
    show(p, value, returns)
    draw(value, returns)


if __name__ == "__main__":
    main()
