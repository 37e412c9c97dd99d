"""From REINFORCE to A2C on CartPole and the short corridor: return in training against environment steps.

Each curve is the mean over runs, with a 95 % confidence band; a run's points are means over the episodes that ended
since the last point. Batch methods take a whole batch of episodes at once and so have few points. Settings
were tuned by hand on other seeds, with a handful of trials for each method: another tuning may change the order.

The corridor's features cannot tell its states apart, and all runs begin at p(right) = 0.05; the dashed line is the best
such policy. One-step actor–critic must fail there, whatever its step sizes. Its critic is one number w < 0, so that
δ = −1 inside an episode and −1 − w at the end. Only *right* in the third state ends one, so the mean step favours
*right* at every p, the bias of Eq. (8.2), and at p = 1 no episode ends before the limit of 1000 steps. With λ = 0.8 and
the critic at its fixed point, Eq. (7.16), the actor comes to rest at p = 0.620, which is worth −11.71; with λ = 1 at
the best policy, p = 0.586, worth −11.66.

    python examples/actor_critic_race.py [--runs 10]        writes actor_critic_race.png; about 3 minutes on one core
"""

import argparse
import sys
import time

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from scipy.stats import t
from tqdm import tqdm

import npg
from npg.lab.collect import Collector
from npg.lab.training import updates

SCALE = {"scale": [2.4, 3.0, 0.21, 3.0]}  # half-widths; the policy is affine in the observation, the critic quadratic
CORRIDOR = {"features": "constant", "gamma": 1.0}
ONE_VALUE = CORRIDOR | {"value_features": "constant"}
ONE_BASELINE = CORRIDOR | {"baseline_features": "constant", "episodes": 1, "optimizer": "ascent"}
START = np.log([0.95, 0.05])  # logits of left and right in the corridor

# method: algorithm, number of environments (0: one, not in a vector), settings beyond the defaults
CARTPOLE_METHODS = {
    "REINFORCE": ("reinforce", 16, SCALE | {"baseline": "none", "outer_discount": False, "alpha": 0.2}),
    "REINFORCE with baseline": ("reinforce", 16, SCALE | {"outer_discount": False, "alpha": 0.4}),
    "one-step AC": ("one_step_actor_critic", 0, SCALE | {"alpha": 0.05, "alpha_w": 0.1}),
    "AC(λ)": ("actor_critic_lambda", 0, SCALE | {"alpha": 0.02, "alpha_w": 0.02, "lam_theta": 0.8, "lam_w": 0.8}),
    "batch AC": ("batch_actor_critic", 16, SCALE | {"lam": 0.95, "alpha": 0.3}),
    "A2C": ("a2c", 16, SCALE | {"n_steps": 32, "lam": 0.98, "alpha": 0.05, "alpha_w": 1.0}),
}
CORRIDOR_METHODS = {
    "REINFORCE": ("reinforce", 0, ONE_BASELINE | {"baseline": "none", "alpha": 2**-12}),
    "REINFORCE with baseline": ("reinforce", 0, ONE_BASELINE | {"alpha": 2**-9, "alpha_w": 2**-6}),
    "one-step AC": ("one_step_actor_critic", 0, ONE_VALUE | {"alpha": 2**-9, "alpha_w": 2**-6}),
    "AC(λ)": (
        "actor_critic_lambda",
        0,
        ONE_VALUE | {"alpha": 2**-9, "alpha_w": 2**-6, "lam_theta": 0.8, "lam_w": 0.8},
    ),
    "batch AC": ("batch_actor_critic", 0, ONE_VALUE | {"episodes": 4, "lam": 0.95, "alpha": 0.1}),
    "A2C": ("a2c", 4, ONE_VALUE | {"n_steps": 32, "lam": 0.95, "beta": 0.0, "alpha": 0.05, "alpha_w": 0.5}),
}
RACES = {  # environment: its methods, environment steps, first logits
    "CartPole-v1": (CARTPOLE_METHODS, 100_000, None),
    "npg/ShortCorridor-v0": (CORRIDOR_METHODS, 20_000, START),
}
POINTS = 50


def learning_curve(
    env_id: str,
    method: tuple[str, int, dict[str, object]],
    steps: int,
    seed: np.random.SeedSequence,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """Mean return of the latest episodes of one run at equally spaced environment steps: (POINTS,)."""
    algorithm, num_envs, settings = method
    env = npg.make_vec(env_id, num_envs) if num_envs else npg.envs.make_env(env_id)
    agent = npg.make_agent(algorithm, env, **settings)
    seeds = seed.generate_state(2)
    rng = np.random.default_rng(seeds[0])
    collector = Collector(env, int(seeds[1]))
    agent.init(rng)
    if start is not None:
        agent.theta = start.copy()
    grid = np.linspace(0, steps, POINTS + 1)[1:]
    due, points = grid[0], []
    for done, _ in updates(agent, collector, rng, rng):
        if collector.finished and done >= due:
            points.append((done, np.mean([total for total, _ in collector.finished])))
            collector.finished, due = [], done + grid[0]
        if done >= grid[-1]:
            break
    return np.interp(grid, *zip(*points, strict=True))


def race(
    description: str, races: dict[str, tuple[dict[str, tuple[str, int, dict[str, object]]], int, np.ndarray | None]]
) -> dict[tuple[str, str], np.ndarray]:
    """Curves (runs, POINTS) of every method in every environment, as the command line says, after printing a table."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.runs < 2 or args.seed < 0:
        parser.error("--runs must be at least 2 and --seed at least 0")

    results: dict[tuple[str, str], list[np.ndarray]] = {
        (env_id, name): [] for env_id, (methods, *_) in races.items() for name in methods
    }
    seconds = dict.fromkeys(results, 0.0)
    try:
        for seed in tqdm(np.random.SeedSequence(args.seed).spawn(args.runs), unit="run"):
            for env_id, name in results:
                methods, steps, start = races[env_id]
                begin = time.perf_counter()
                results[env_id, name].append(learning_curve(env_id, methods[name], steps, seed, start))
                seconds[env_id, name] += time.perf_counter() - begin
    except KeyboardInterrupt:
        complete = min(map(len, results.values()))
        if complete < 2:
            sys.exit("interrupted before two runs were complete: there is nothing to draw")
        print(f"interrupted: the figure is of the {complete} runs that are complete", file=sys.stderr)

    runs = min(map(len, results.values()))
    print(f"mean return over {runs} runs ± 95 % confidence, of all steps and of the last fifth, and seconds a run")
    for (env_id, name), curves in results.items():
        cells = ""
        for part in (slice(None), slice(-POINTS // 5, None)):
            mean, error = mean_and_error(np.array(curves[:runs])[:, part].mean(axis=1))
            cells += f"{f'{mean:.1f} ± {error:.1f}':>18}"
        print(f"{env_id:<22}{name:<25}{cells}{seconds[env_id, name] / len(curves):>8.1f}")
    return {key: np.array(curves[:runs]) for key, curves in results.items()}


def draw(axes: Axes, env_id: str, steps: int, results: dict[tuple[str, str], np.ndarray]) -> None:
    """The curves of one environment with their bands."""
    for (of_env, name), curves in results.items():
        if of_env == env_id:
            mean, error = mean_and_error(curves)
            x = np.linspace(0, steps, POINTS + 1)[1:]
            (line,) = axes.plot(x, mean, label=name)
            axes.fill_between(x, mean - error, mean + error, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_title(env_id)
    axes.set_xlabel("environment steps")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)


def mean_and_error(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over runs, the first axis, and half the width of its 95 % confidence interval."""
    return x.mean(axis=0), t.ppf(0.975, len(x) - 1) * x.std(axis=0, ddof=1) / np.sqrt(len(x))


def main() -> None:
    results = race(__doc__, RACES)
    figure = Figure(figsize=(13, 5), layout="constrained")
    for axes, (env_id, (_, steps, _)) in zip(figure.subplots(1, 2), RACES.items(), strict=True):
        draw(axes, env_id, steps, results)
    left, right = figure.axes
    left.set_ylabel("mean return of training episodes")
    left.set_ylim(0, 520)
    left.legend(loc="lower right")
    p = 2 - np.sqrt(2)  # the best, Eq. (4.17)
    right.axhline((2 * p - 4) / (p * (1 - p)), color="black", linestyle="--", linewidth=1)
    right.set_yscale("symlog", linthresh=10)
    right.set_ylim(-1000, -8)
    right.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
    figure.savefig("actor_critic_race.png", dpi=150)
    print("actor_critic_race.png")


if __name__ == "__main__":
    main()
