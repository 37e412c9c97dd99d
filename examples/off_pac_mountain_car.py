"""Off-PAC on MountainCar: the return of a policy that is learned while another one drives, uniformly at random.

The behaviour finds the goal once in many thousand steps, and so the time limit is 5000 while learning. Each point is
the mean return of 20 episodes of the target policy, sampled, with the usual limit of 200 steps: −200 is not to arrive.
Thin lines are runs, thick ones their means.
The values begin at v₀ = −100 = −1 / (1 − γ), which is what never arriving is worth, so that no optimism explores. Then
nothing but the goal can teach, and two controls have to stay at −200:

goal hidden     The goal ends no episode.
ρ = 1           What follows the actions of b is learned as if it followed those of π: the critic learns the values of
                b, and the actor is not told how rare an action has become.

With v₀ = 0 and the goal hidden a place is worth less the more often b has been there, so that the policy climbs to
where b has not been: it comes to a goal that it never saw. The emphatic weights of η = 1 make the mean direction the
gradient of the excursion objective, Eq. (12.6); but F is a sum over the past with a product of γρ for each step of it,
whose variance has no bound where b is far from π. Its step size is smaller.

λ is 0. As b takes each of three actions with probability 1/3, ρ comes up to 3, and traces grow where γλρ > 1: with
λ = 0.4 the policy arrives and is lost again, with 0.8 the critic diverges. The published step sizes, α_v = 0.05 and
α_u = 1 divided by the tilings, fail from v₀ = −100: the first arrival has δ = 99, and the one step makes the softmax
deterministic wherever its tiles reach. From then on ρ = 0 there for every other action, which is never learned of.

    python examples/off_pac_mountain_car.py [--runs 2] [--seed 0] [--steps 300000]
                                                        writes off_pac_mountain_car.png; about 8 minutes on one core
"""

import dataclasses
from typing import Any

import gymnasium
import numpy as np

import npg
from npg.algorithms.off_pac import OffPAC
from npg.lab.plotting import arguments, figure, mean_and_interval, repeated, save
from npg.lab.runs import Row

POINTS = 10
EPISODES = 20
ENV = "MountainCar-v0"


class NoGoal(gymnasium.Wrapper[np.ndarray, int, np.ndarray, int]):
    """The goal does not end the episode, so nothing tells it from the rest."""

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, object]]:
        obs, reward, _, truncated, info = self.env.step(action)
        return obs, float(reward), False, truncated, info


class NoRatio(OffPAC):
    """Off-PAC that takes the actions of b for those of π: log b is given as log π."""

    def behaviour_log_prob(self, x: Any, a: np.ndarray) -> np.ndarray:
        return self.policy.log_prob(self.theta, x, a)


# label: class, whether the goal is hidden, settings beyond the preset
CASES: dict[str, tuple[type[OffPAC], bool, dict[str, object]]] = {
    "preset": (OffPAC, False, {}),
    "emphatic, η = 1": (OffPAC, False, {"eta": 1.0, "alpha_u": 0.0005}),
    "published step sizes": (OffPAC, False, {"alpha_u": 0.1, "alpha_v": 0.005}),
    "goal hidden": (OffPAC, True, {}),
    "ρ = 1": (NoRatio, False, {}),
    "v₀ = 0, goal hidden": (OffPAC, True, {"v0": 0.0}),
}


def learning_curve(case: str, steps: int, seed: int) -> np.ndarray:
    """Mean returns of the target policy at equally spaced environment steps: (POINTS,)."""
    cls, hidden, settings = CASES[case]
    env, of_200_steps = npg.make_env(ENV, max_episode_steps=5000), npg.make_env(ENV)
    agent = npg.make_agent("off_pac", env, **settings)
    agent = cls(**{f.name: getattr(agent, f.name) for f in dataclasses.fields(agent)})
    points = []

    def point(row: Row) -> None:
        points.append(npg.evaluate(agent, of_200_steps, EPISODES, seed, deterministic=False).mean())

    try:
        npg.train(
            agent,
            NoGoal(env) if hidden else env,
            steps=steps,
            seed=seed,
            record_every=steps // POINTS,
            callback=point,
        )
    except npg.DivergenceError:
        points += [-200.0] * (POINTS - len(points))  # nothing is left that could arrive
    return np.array(points[:POINTS])


def main() -> None:
    args = arguments(__doc__, runs=(2, 2), seed=(0, 0), steps=(300_000, 1000))

    def run(seed: np.random.SeedSequence) -> list[np.ndarray]:
        return [learning_curve(case, args.steps, int(seed.generate_state(1)[0])) for case in CASES]

    curves = np.array(repeated(run, args.runs, args.seed)).swapaxes(0, 1)  # (cases, runs, POINTS)
    print(f"return of the target policy after {args.steps:,} steps: mean over {curves.shape[1]} runs ± 95 %, and each")
    for case, of_case in zip(CASES, curves, strict=True):
        mean, half = mean_and_interval(of_case[:, -1])
        print(f"{case:<22}{mean:>7.1f} ± {half:<7.1f}{' '.join(f'{each:.0f}' for each in of_case[:, -1])}")
    picture, (axes,) = figure()
    x, styles = np.linspace(0, args.steps, POINTS + 1)[1:], ["-", "-", (0, (6, 6)), (6, (6, 6)), ":", "-"]
    for k, (case, of_case) in enumerate(zip(CASES, curves, strict=True)):  # those that never arrive are one line
        axes.plot(x, of_case.T, color=f"C{k}", linewidth=0.7, alpha=0.6)
        axes.plot(x, of_case.mean(axis=0), color=f"C{k}", linestyle=styles[k], linewidth=2.5, label=case)
    axes.set(xlabel="environment steps of the behaviour", ylabel="return of the target policy", ylim=(-205, -90))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="upper left", fontsize="small")
    save(picture, "off_pac_mountain_car")


if __name__ == "__main__":
    main()
