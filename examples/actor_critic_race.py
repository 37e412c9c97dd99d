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

import time

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import npg
from npg.lab.collect import Collector
from npg.lab.plotting import arguments, band, figure, mean_and_interval, repeated, save
from npg.lab.training import updates

SCALE = {"scale": [2.4, 3.0, 0.21, 3.0]}  # half-widths; the policy is affine in the observation, the critic quadratic
CORRIDOR = {"features": "constant", "gamma": 1.0}
ONE_VALUE = CORRIDOR | {"value_features": "constant"}
ONE_BASELINE = CORRIDOR | {"baseline_features": "constant", "episodes": 1, "optimizer": "ascent"}
STEPS = {"alpha": 2**-9, "alpha_w": 2**-6}
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
    "REINFORCE with baseline": ("reinforce", 0, ONE_BASELINE | STEPS),
    "one-step AC": ("one_step_actor_critic", 0, ONE_VALUE | STEPS),
    "AC(λ)": ("actor_critic_lambda", 0, ONE_VALUE | STEPS | {"lam_theta": 0.8, "lam_w": 0.8}),
    "batch AC": ("batch_actor_critic", 0, ONE_VALUE | {"episodes": 4, "lam": 0.95, "alpha": 0.1}),
    "A2C": ("a2c", 4, ONE_VALUE | {"n_steps": 32, "lam": 0.95, "beta": 0.0, "alpha": 0.05, "alpha_w": 0.5}),
}
RACES = {  # environment: its methods, environment steps, first logits
    "CartPole-v1": (CARTPOLE_METHODS, 100_000, None),
    "npg/ShortCorridor-v0": (CORRIDOR_METHODS, 20_000, START),
}
POINTS = 50
Method = tuple[str, int, dict[str, object]]
Races = dict[str, tuple[dict[str, Method], int, np.ndarray | None]]
Curves = dict[tuple[str, str], np.ndarray]  # of an environment and a method: (runs, POINTS)


def learning_curve(
    env_id: str, method: Method, steps: int, seed: np.random.SeedSequence, start: np.ndarray | None
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


def compute(races: Races, runs: int, seed: int) -> tuple[Curves, dict[tuple[str, str], float]]:
    """Curves, and mean seconds of a run."""
    names = [(env_id, name) for env_id, (methods, *_) in races.items() for name in methods]

    def run(seed: np.random.SeedSequence) -> tuple[list[np.ndarray], list[float]]:
        curves, seconds = [], []
        for env_id, name in names:
            methods, steps, start = races[env_id]
            begin = time.perf_counter()
            curves.append(learning_curve(env_id, methods[name], steps, seed, start))
            seconds.append(time.perf_counter() - begin)
        return curves, seconds

    curves, seconds = map(np.array, zip(*repeated(run, runs, seed), strict=True))  # (runs, methods, …)
    return dict(zip(names, curves.swapaxes(0, 1), strict=True)), dict(zip(names, seconds.mean(axis=0), strict=True))


def show(curves: Curves, seconds: dict[tuple[str, str], float]) -> None:
    runs = len(next(iter(curves.values())))
    print(f"mean return over {runs} runs ± 95 % confidence, of all steps and of the last fifth, and seconds a run")
    for (env_id, name), of_method in curves.items():
        parts = (of_method, of_method[:, -POINTS // 5 :])
        cells = (f"{'{:.1f} ± {:.1f}'.format(*mean_and_interval(part.mean(axis=1))):>18}" for part in parts)
        print(f"{env_id:<22}{name:<25}{''.join(cells)}{seconds[env_id, name]:>8.1f}")


def draw(races: Races, curves: Curves) -> tuple[Figure, list[Axes]]:
    """The curves with their bands, one panel for each environment."""
    picture, panels = figure(7.5 * len(races), 5, columns=len(races))
    for axes, (env_id, (methods, steps, _)) in zip(panels, races.items(), strict=True):
        for name in methods:
            band(axes, np.linspace(0, steps, POINTS + 1)[1:], curves[env_id, name], name)
        axes.set(title=env_id, xlabel="environment steps", ylabel="mean return of training episodes")
        axes.xaxis.set_major_formatter("{x:,.0f}")
    return picture, panels


def main() -> None:
    args = arguments(__doc__, runs=(10, 2), seed=(0, 0))
    curves, seconds = compute(RACES, args.runs, args.seed)
    show(curves, seconds)
    picture, (left, right) = draw(RACES, curves)
    left.set_ylim(0, 520)
    p = 2 - np.sqrt(2)  # the best, Eq. (4.17)
    best = (2 * p - 4) / (p * (1 - p))
    right.axhline(best, color="black", linestyle="--", linewidth=1, label="best policy of the corridor")
    right.set_yscale("symlog", linthresh=10)
    right.set_ylim(-1000, -8)
    right.yaxis.set_major_formatter("{x:,.0f}")
    right.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    save(picture, "actor_critic_race")


if __name__ == "__main__":
    main()
