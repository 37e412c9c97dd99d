"""Does it pay to learn from a batch again? Environment steps until REINFORCE has solved CartPole, by estimator.

Batches of two episodes, an affine policy and a baseline fitted to earlier batches; without γ^t. Between two batches n
updates of Adam over the last K batches, by the estimators of Eq. (12.23): ratios of single steps, Eq. (6.21), products
per decision, Eq. (6.17), products of whole trajectories, Eq. (6.16), and these normalised, Eq. (6.20). On-policy is
n = K = 1. Solved is a mean of 475 over 20 sampled episodes of evaluation, which is asked every 1000 steps; a run ends
there, or after 40,000 steps.

The step size of each line is the one of ALPHAS with the least mean over the five seeds from 100 on; ``--tune yes``
shows what each reaches. The runs shown have other seeds. The interval of a median is that of the second and the last
but one of ten, which covers 98 % whatever the distribution.

    python examples/off_policy_reinforce.py [--runs 10]        writes off_policy_reinforce.png, in about 4 minutes
"""

import itertools

import numpy as np

import npg
from npg.lab.plotting import arguments, figure, save
from npg.lab.presets import preset

LIMIT, EVERY, SOLVED = 40_000, 1000, 475.0
ALPHAS = (0.0125, 0.025, 0.05, 0.1, 0.2)
LINES = {  # estimate, K, n, step size
    "on-policy": ("first_order", 1, 1, 0.2),
    "single steps": ("first_order", 1, 8, 0.05),
    "single steps, K = 4": ("first_order", 4, 8, 0.05),
    "per decision": ("per_decision", 1, 8, 0.05),
    "per decision, K = 4": ("per_decision", 4, 8, 0.025),
    "whole": ("whole", 1, 8, 0.1),
    "whole, K = 4": ("whole", 4, 8, 0.1),
    "normalised": ("weighted", 1, 8, 0.1),
    "normalised, K = 4": ("weighted", 4, 8, 0.05),
}


class Solved(Exception):
    """Ends a run."""


def steps(name: str, alpha: float, seed: int) -> float:
    """Environment steps until the task is solved, ``LIMIT`` if it never is."""
    estimate, batches, updates, _ = LINES[name]
    env, elsewhere = npg.make_env("CartPole-v1"), npg.make_vec("CartPole-v1", 20)
    settings = {"estimate": estimate, "batches": batches, "updates": updates, "alpha": alpha, "outer_discount": False}
    scale = preset("reinforce", "CartPole-v1").settings["scale"]
    agent = npg.make_agent("off_policy_reinforce", env, episodes=2, scale=scale, **settings)

    def ask(row: dict[str, float]) -> None:
        if npg.evaluate(agent, elsewhere, 20, seed, deterministic=False).mean() >= SOLVED:
            raise Solved

    try:
        npg.train(agent, env, steps=LIMIT, seed=seed, record_every=EVERY, callback=ask)
    except Solved as end:
        return min(end.history["steps"][-1], LIMIT)  # type: ignore[attr-defined]
    except npg.DivergenceError:
        pass
    return LIMIT


def tune() -> None:
    print(f"mean steps of seeds 100 to 104 by step size\n{'':<22}" + "".join(f"{alpha:>10g}" for alpha in ALPHAS))
    for name in LINES:
        means = [np.mean([steps(name, alpha, seed) for seed in range(100, 105)]) for alpha in ALPHAS]
        print(f"{name:<22}" + "".join(f"{mean:>10,.0f}" for mean in means), flush=True)


def show(results: dict[str, np.ndarray]) -> None:
    print(f"environment steps to {SOLVED:g}\n{'':<22}{'step size':>10}{'median':>10}{'interval':>20}{'solved':>10}")
    for name, runs in results.items():
        low, high = np.sort(runs)[[1, -2]] if len(runs) > 2 else (runs.min(), runs.max())
        solved = f"{(runs < LIMIT).sum()} of {len(runs)}"
        print(f"{name:<22}{LINES[name][3]:>10g}{np.median(runs):>10,.0f}{f'{low:,.0f} to {high:,.0f}':>20}{solved:>10}")


def draw(results: dict[str, np.ndarray]) -> None:
    picture, (axes,) = figure(9, 4.5)
    for k, runs in enumerate(results.values()):
        axes.plot(runs, np.full(len(runs), k), "o", color="C0", alpha=0.5, markersize=5)
        axes.plot(np.median(runs), k, "|", color="C3", markersize=22, markeredgewidth=3)
    axes.set_yticks(range(len(results)), results)
    axes.invert_yaxis()
    axes.set(xlabel=f"environment steps to {SOLVED:g}; bars: medians", xlim=(0, 1.02 * LIMIT))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    save(picture, "off_policy_reinforce")


def main() -> None:
    from tqdm import tqdm

    args = arguments(__doc__, runs=(10, 2), seed=(0, 0), tune=("no", "yes"))
    if args.tune == "yes":
        tune()
        return
    seeds, results = range(args.seed, args.seed + args.runs), {name: [] for name in LINES}
    for name, seed in tqdm(list(itertools.product(LINES, seeds)), unit="run"):
        results[name].append(steps(name, LINES[name][3], seed))
    arrays = {name: np.array(runs) for name, runs in results.items()}
    show(arrays)
    draw(arrays)


if __name__ == "__main__":
    main()
