"""Five off-policy critics on the Collision task of Ghiassian & Sutton (2021): error against step size, for each λ.

A car in one of eight states goes forward, and in the last four its behaviour turns away with probability 1/2; the
target never does, so that ρ is 2 or 0 there. Learned is the discounted probability of a collision, on six binary
features, of which each state has three; every run draws them anew. The error is the root of Σ d_b (v̂ − v_π)², Eq.
(12.9), averaged over all steps of a run, and the bands are 95 % confidence intervals over runs. Off-policy TD(λ), Eq.
(12.7), GTD2(λ), (12.10), GTD(λ), (12.11), TDRC(λ) with β = 1, (12.13), and emphatic TD(λ), (12.16), see the same walks.
Second weights have ``--ratio`` times the step size of the first. (50 runs, 20,000 steps and step sizes that are powers
of 2 are as in the code of the authors, who try many ratios.) Dotted is the least error that the features allow.

A curve ends where a run diverges, or above the frame. The last panel has the error in the course of learning, at the
λ and α that are best for each critic. What a small λ costs is mostly not speed: it is the error of the fixed point,
which the table has too. All critics but the emphatic one share it; with emphatic TD it depends much less on λ.

All runs, λ and α are learned at once, as arrays; of the first run the script checks that the critics of ``npg.traces``
have the same weights.

    python examples/off_policy_prediction.py [--runs 50] [--steps 20000] [--ratio 1.0] [--seed 0]

prints the table and writes off_policy_prediction.png; 50 runs take about 30 seconds.
"""

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np
from tqdm import trange

from npg.lab.plotting import arguments, band, figure, mean_and_interval, save
from npg.off_policy import OffPolicy
from npg.problems import COLLISION_BEHAVIOUR, COLLISION_TARGET, collision, collision_features
from npg.traces import GTD2, TDRC, EmphaticTD, GTDLambda, OffPolicyTD
from npg.trajectories import Trajectories
from npg.values import LinearValue

MDP = collision()
GAMMA, END = MDP.gamma, 8
PROBLEM = OffPolicy(MDP, COLLISION_TARGET, COLLISION_BEHAVIOUR)
TRUE = PROBLEM.value()[:END]
NEXT = MDP.P.argmax(axis=2)  # nothing in the dynamics is random
LAM = np.array([0, 0.5, 0.75, 0.9, 1])
ALPHA = 2.0 ** np.arange(-12, 1)
BETA = 1.0
EVERY = 20  # steps between two records of the error
CHECKED = 500  # steps
CRITICS = ("off-policy TD(λ)", "GTD2(λ)", "GTD(λ)", "TDRC(λ)", "emphatic TD(λ)")


class Walk(NamedTuple):
    """What the behaviour does in each run, one episode after another: (T, runs) each."""

    s: np.ndarray
    a: np.ndarray
    s_next: np.ndarray


def walked(rng: np.random.Generator, steps: int, runs: int) -> Walk:
    s = np.empty((steps + 1, runs), dtype=int)
    a, s_next = np.empty((2, steps, runs), dtype=int)
    starts, u = rng.integers(4, size=s.shape), rng.random(a.shape)
    s[0] = starts[0]
    for t in range(steps):
        a[t] = u[t] >= COLLISION_BEHAVIOUR[s[t], 0]
        s_next[t] = NEXT[s[t], a[t]]
        s[t + 1] = np.where(s_next[t] == END, starts[t + 1], s_next[t])
    return Walk(s[:-1], a, s_next)


def error(v: np.ndarray, x: np.ndarray) -> np.ndarray:
    """√Σ d_b (v̂ − v_π)² of weights (runs, λ, α, 6) on features (runs, 9, 6): (runs, λ, α)."""
    values = v.reshape(len(v), -1, 6) @ np.swapaxes(x[:, :END], 1, 2)
    return np.sqrt((values - TRUE) ** 2 @ PROBLEM.d[:END]).reshape(v.shape[:3])


class Learner:
    """A critic of ``CRITICS`` in all runs at all λ and α: v and w (runs, λ, α, 6), e (runs, λ, 1, 6), F (runs,)."""

    def __init__(self, name: str, runs: int, ratio: float) -> None:
        self.name, self.ratio = name, ratio
        self.v, self.w = np.zeros((2, runs, len(LAM), len(ALPHA), 6))
        self.e = np.zeros((runs, len(LAM), 1, 6))
        self.F, self.rho = np.zeros(runs), np.ones(runs)

    def step(
        self,
        x: np.ndarray,
        r: np.ndarray,
        x_next: np.ndarray,
        gamma: np.ndarray,
        gamma_next: np.ndarray,
        rho: np.ndarray,
    ) -> None:
        """One row of each run, with γ of the transitions into S and out of it: x (runs, 6), the others (runs,)."""
        alpha, lam = ALPHA[:, None], LAM[:, None, None]
        x, x_next = x[:, None, None], x_next[:, None, None]
        delta = np.subtract(r[:, None, None, None], dot(self.v, x - gamma_next[:, None, None, None] * x_next))
        M: np.ndarray | float = 1.0
        if self.name == "emphatic TD(λ)":
            self.F = 1 + gamma * self.rho * self.F
            M = lam + (1 - lam) * self.F[:, None, None, None]
            self.rho = rho
        self.e = rho[:, None, None, None] * (M * x + gamma[:, None, None, None] * lam * self.e)
        if self.name in ("off-policy TD(λ)", "emphatic TD(λ)"):
            self.v += alpha * delta * self.e
            return
        w_x, correction = dot(self.w, x), gamma_next[:, None, None, None] * (1 - lam) * dot(self.w, self.e)
        of_error = delta * self.e
        self.v += alpha * ((w_x * x if self.name == "GTD2(λ)" else of_error) - correction * x_next)
        ridge = BETA * self.w if self.name == "TDRC(λ)" else 0.0
        self.w += self.ratio * alpha * (of_error - w_x * x - ridge)


def dot(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """wᵀx along the last axis, which is kept."""
    return np.einsum("...i,...i->...", w, x)[..., None]


def learn(walk: Walk, x: np.ndarray, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Errors every ``EVERY`` steps (n, critic, runs, λ, α), and weights after ``CHECKED`` steps of the first run."""
    steps, runs = walk.s.shape
    learners, each = [Learner(name, runs, ratio) for name in CRITICS], np.arange(runs)
    gamma, errors, checked = np.zeros(runs), [], np.empty(0)
    with np.errstate(over="ignore", invalid="ignore"):  # large step sizes diverge
        for t in trange(steps, unit="step", mininterval=1):
            if t % EVERY == 0:
                errors.append([error(learner.v, x) for learner in learners])
            s, a, s_next = walk.s[t], walk.a[t], walk.s_next[t]
            gamma_next = GAMMA * (s_next != END)
            for learner in learners:
                learner.step(x[each, s], MDP.R[s, a], x[each, s_next], gamma, gamma_next, PROBLEM.rho[s, a])
            gamma = gamma_next
            if t + 1 == min(CHECKED, steps):
                checked = np.array([learner.v[0] for learner in learners])
    return np.array(errors), checked


class Features:
    """x of each state in one run."""

    n_features = 6

    def __init__(self, x: np.ndarray) -> None:
        self.x = x

    def __call__(self, states: np.ndarray) -> np.ndarray:
        return self.x[states]


def check(walk: Walk, x: np.ndarray, ratio: float, weights: np.ndarray) -> None:
    """The weights of the first run, (critic, λ, α, 6), are those of the critics of the library."""
    value, steps, no = LinearValue(Features(x[0])), min(CHECKED, len(walk.s)), np.array([[False]])
    for (i, lam), (j, alpha) in product(enumerate(LAM), list(enumerate(ALPHA))[2::4]):
        first, second = (value, 1, alpha, GAMMA, lam), (value, 1, alpha, ratio * alpha, GAMMA, lam)
        critics = OffPolicyTD(*first), GTD2(*second), GTDLambda(*second), TDRC(*second, BETA), EmphaticTD(*first)
        for t in range(steps):
            s, a, s_next = (part[t, :1] for part in walk)
            row = Trajectories(
                s[None],
                s[None],
                a[None],
                MDP.R[s, a][None],
                s_next[None],
                (s_next == END)[None],
                no,
                ~no,
                np.array([[t]]),
            )
            for critic in critics:
                critic.update(row, PROBLEM.rho[s, a])
        for k, critic in enumerate(critics):
            if np.abs(weights[k, i, j]).max() < 100:
                assert np.allclose(critic.v, weights[k, i, j], rtol=0, atol=1e-10), (CRITICS[k], lam, alpha)


def best(mean: np.ndarray) -> tuple[int, int]:
    """Indices of the λ and α with the least mean (λ, α)."""
    i, j = np.unravel_index(np.where(np.isfinite(mean), mean, np.inf).argmin(), mean.shape)
    return int(i), int(j)


def fixed_points(x: np.ndarray, emphatic: bool) -> Iterator[tuple[np.ndarray, float]]:
    """Error of the fixed point of the mean update in each run, (runs,), at each λ."""
    for lam in LAM:
        problem = OffPolicy(MDP, COLLISION_TARGET, COLLISION_BEHAVIOUR, lam=lam)
        points = np.array([problem.fixed_point(x_run, emphatic=emphatic) for x_run in x])
        yield error(points[:, None, None], x)[:, 0, 0], lam


def show(mean: np.ndarray, half: np.ndarray, errors: np.ndarray, least: np.ndarray, x: np.ndarray, steps: int) -> None:
    runs = errors.shape[2]
    print(f"error averaged over {steps} steps, least over α and, below, over λ too; {runs} runs ± 95 % confidence")
    print(f"{'λ':<10}" + "".join(f"{name:>30}" for name in CRITICS))
    for i, lam in enumerate(LAM):
        js = [best(mean[k, i : i + 1])[1] for k in range(len(CRITICS))]
        cells = [f"{mean[k, i, j]:.4f} ± {half[k, i, j]:.4f} at {ALPHA[j]:.2g}" for k, j in enumerate(js)]
        print(f"{lam:<10g}" + "".join(f"{cell:>30}" for cell in cells))
    which = [best(mean[k]) for k in range(len(CRITICS))]
    tail = errors[-max(1, len(errors) // 10) :].mean(axis=0)
    cells = [f"{tail[k, :, i, j].mean():.4f} at {LAM[i]:g}, {ALPHA[j]:.2g}" for k, (i, j) in enumerate(which)]
    print(f"{'at last':<10}" + "".join(f"{cell:>30}" for cell in cells))
    for emphatic, name in (False, CRITICS[0]), (True, CRITICS[4]):
        cells = (f"{errors.mean():.4f}, {errors.max():.4f} at {lam:g}" for errors, lam in fixed_points(x, emphatic))
        print(f"error of the fixed points of {name}, mean and largest: " + "; ".join(cells))
    print(f"error at first {errors[0].mean():.4f}; least that the features allow {least.mean():.4f}")


def draw(mean: np.ndarray, half: np.ndarray, average: np.ndarray, errors: np.ndarray, least: np.ndarray) -> None:
    picture, (*panels, course) = figure(17, 10, 2, 3)
    for k, (axes, name) in enumerate(zip(panels, CRITICS, strict=True)):
        for i, lam in enumerate(LAM):
            shown = np.isfinite(half[k, i]) & (mean[k, i] < 0.75)
            band(axes, ALPHA[shown], average[k, :, i, shown].T, f"λ = {lam:g}", marker=".")
        axes.set(title=name, xlabel="step size α", xlim=(ALPHA[0], ALPHA[-1]), ylim=(0, 0.75))
        axes.set_xscale("log", base=2)
        axes.set_ylabel("error, average over all steps")
    panels[-1].legend(loc="upper left")
    t = EVERY * np.arange(len(errors))
    for k, name in enumerate(CRITICS):
        i, j = best(mean[k])
        label = f"{name}, λ = {LAM[i]:g}, α = {ALPHA[j]:.2g}"
        band(course, t[1:], errors[1:, k, :, i, j].T, label)
    course.set(title="in the course of learning, best λ and α", xlabel="steps", ylim=(0, 0.75), ylabel="error")
    course.set_xscale("log")
    for axes in *panels, course:
        axes.axhline(least.mean(), color="black", linestyle=":", linewidth=1)
    course.legend()
    save(picture, "off_policy_prediction")


def main() -> None:
    args = arguments(__doc__, runs=(50, 2), steps=(20_000, 100), ratio=(1.0, 1e-6), seed=(0, 0))
    rng = np.random.default_rng(args.seed)
    x = np.array([collision_features(rng) for _ in range(args.runs)])
    walk = walked(rng, args.steps, args.runs)
    errors, weights = learn(walk, x, args.ratio)
    check(walk, x, args.ratio, weights)
    root = np.sqrt(PROBLEM.d[:END])
    fits = np.array([np.linalg.lstsq(root[:, None] * x_run[:END], root * TRUE, rcond=None)[0] for x_run in x])
    least = error(fits[:, None, None], x)[:, 0, 0]
    with np.errstate(over="ignore", invalid="ignore"):
        average = errors.mean(axis=0)  # (critic, runs, λ, α)
        mean, half = mean_and_interval(np.moveaxis(average, 1, 0))
    show(mean, half, errors, least, x, args.steps)
    draw(mean, half, average, errors, least)


if __name__ == "__main__":
    main()
