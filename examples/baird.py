"""Baird's counterexample: Figures 11.2, 11.5 and the expected curve of 11.6 of Sutton & Barto (2018), chapter 11.

Seven states whose values are all zero, eight weights that can say so, and a target policy that the behaviour follows in
one step of seven. (a) Off-policy TD, Eq. (12.7), and (b) its mean update b − Av in every state at once, the step of
dynamic programming: both diverge, α = 0.01. (c) A run of TDC, which is GTD(0), Eq. (12.11), and (d) its mean update,
Eq. (12.12), with α_v = 0.005 and α_w = 0.05: √PBE goes to zero, and √VE stays near 2. (e) The mean update of emphatic
TD, Eqs. (12.5), (12.16), α = 0.03, with the mean of the follow-on trace from its first step on: values go to zero.
There is no run beside it. E[F²] grows like 6.86^t, so that a run shows nothing of the mean.

√VE and √PBE are the roots of Eq. (12.9), with d_b = 1/7 in every state. TDC is stable, but takes millions of steps. The
table has the largest real parts of eigenvalues of each mean update, of v, or of v and w together, Eq. (12.14), on the
range of xᵀ, which no step leaves. "The wrong feature" is TDC with x(S_t) for x(S_{t+1}) in its correction, as
its box circulates.

    python examples/baird.py        prints the table and writes baird.png, in about 2 seconds

``--steps`` steps are made, of the runs that ``--seed`` gives and of the mean updates.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.linalg import block_diag, orth

from npg.envs import TabularEnv
from npg.features import rows
from npg.lab.collect import Collector
from npg.lab.plotting import arguments, figure, save
from npg.off_policy import OffPolicy, joint_system
from npg.problems import BAIRD_BEHAVIOUR, BAIRD_FEATURES, BAIRD_TARGET, BAIRD_WEIGHTS, baird
from npg.traces import GTDLambda, OffPolicyTD
from npg.trajectories import Steps, Trajectories
from npg.values import LinearValue

MDP = baird()
GAMMA = MDP.gamma
PROBLEM = OffPolicy(MDP, BAIRD_TARGET, BAIRD_BEHAVIOUR)
ALPHA, ALPHA_V, ALPHA_W, ALPHA_EMPHATIC = 0.01, 0.005, 0.05, 0.03
X = BAIRD_FEATURES
TITLES = (
    "(a) off-policy TD, a run",
    "(b) off-policy TD, mean update",
    "(c) TDC, a run",
    "(d) TDC, mean update",
    "(e) emphatic TD, mean update",
)


class Features:
    """x of each state."""

    n_features = 8

    def __call__(self, states: np.ndarray) -> np.ndarray:
        return X[states]


class Behaviour:
    """Observations are the states."""

    def act(self, obs: np.ndarray, rng: np.random.Generator, explore: bool = True) -> tuple[np.ndarray, np.ndarray]:
        return (rng.random(len(obs)) >= BAIRD_BEHAVIOUR[obs, 0]).astype(int), obs


VALUE = LinearValue(Features())


def walked(steps: int, seed: int) -> Trajectories:
    """What the behaviour does."""
    return Collector(TabularEnv(MDP), seed).collect(Behaviour(), Steps(steps), np.random.default_rng(seed))


def run(critic: OffPolicyTD, walk: Trajectories) -> np.ndarray:
    """v before and after each step: (n + 1, 8)."""
    critic.v = BAIRD_WEIGHTS.copy()
    path = [critic.v.copy()]
    rho = PROBLEM.rho[walk.obs, walk.actions]
    for t in range(len(walk.t)):
        row = Trajectories(**{name: rows(array, slice(t, t + 1)) for name, array in walk.arrays().items()})
        critic.update(row, rho[t])
        path.append(critic.v.copy())
    return np.array(path)


def iterated(step: Callable[[np.ndarray], np.ndarray], start: np.ndarray, n: int) -> np.ndarray:
    """What n additions of a step make of the start: (n + 1, …)."""
    path = [start]
    for _ in range(n):
        path.append(path[-1] + step(path[-1]))
    return np.array(path)


def emphatic(n: int) -> np.ndarray:
    """The mean update of emphatic TD with M = F: (n + 1, 8)."""
    P, m, path = MDP.P[:, 0], np.zeros(7), [BAIRD_WEIGHTS]
    for _ in range(n):
        m = PROBLEM.d + GAMMA * P.T @ m  # d_b(s) E_b[F_t | S_t = s], Eq. (12.5)
        v = X @ path[-1]
        path.append(path[-1] + ALPHA_EMPHATIC * X.T @ (m * (GAMMA * P @ v - v)))
    return np.array(path)


def compute(steps: int, seed: int) -> list[np.ndarray]:
    """The weights in the course of each of ``TITLES``: (n + 1, 8)."""
    A, b, C = PROBLEM.key_matrices(X)
    walk = walked(steps, seed)
    G = block_diag(ALPHA_V * np.eye(8), ALPHA_V * np.eye(8)) @ joint_system(A, C, ALPHA_W / ALPHA_V)  # b = 0
    return [
        run(OffPolicyTD(VALUE, 1, ALPHA, GAMMA, 0.0), walk),
        iterated(lambda v: ALPHA * (b - A @ v), BAIRD_WEIGHTS, steps),
        run(GTDLambda(VALUE, 1, ALPHA_V, ALPHA_W, GAMMA, 0.0), walk),
        iterated(lambda vw: G @ vw, np.append(BAIRD_WEIGHTS, np.zeros(8)), steps)[:, :8],
        emphatic(steps),
    ]


class Errors(NamedTuple):
    """√VE and √PBE in the course of a path."""

    ve: np.ndarray
    pbe: np.ndarray


def errors(path: np.ndarray) -> Errors:
    return Errors(*(np.sqrt([error(X, v) for v in path]) for error in (PROBLEM.msve, PROBLEM.mspbe)))


def show(paths: list[np.ndarray], of_paths: list[Errors]) -> None:
    A, _, C = PROBLEM.key_matrices(X @ orth(X.T))
    A_M, *_ = PROBLEM.key_matrices(X @ orth(X.T), emphatic=True)
    wrong = np.block([[-A, -GAMMA * C], [-ALPHA_W / ALPHA_V * A, -ALPHA_W / ALPHA_V * C]])
    systems = {
        f"off-policy TD, α = {ALPHA:g}": -ALPHA * A,
        f"TDC, α_v, α_w = {ALPHA_V:g}, {ALPHA_W:g}": ALPHA_V * joint_system(A, C, ALPHA_W / ALPHA_V),
        "the same with the wrong feature": ALPHA_V * wrong,
        f"GTD2, α_v, α_w = {ALPHA_V:g}, {ALPHA_W:g}": ALPHA_V * joint_system(A, C, ALPHA_W / ALPHA_V, gtd2=True),
        f"emphatic TD, α = {ALPHA_EMPHATIC:g}": -ALPHA_EMPHATIC * A_M,
    }
    print("largest real part of the eigenvalues of the mean update, on the range of xᵀ; below 0 it is stable")
    for name, G in systems.items():
        print(f"{name:<34}{np.linalg.eigvals(G).real.max():>+12.3g}")
    print(f"\n{f'after {len(paths[0]) - 1} steps':<34}{'√VE':>12}{'√PBE':>12}{'largest |v|':>14}{'v of state 7':>14}")
    for title, path, of_path in zip(TITLES, paths, of_paths, strict=True):
        last = f"{of_path.ve[-1]:>12.4g}{of_path.pbe[-1]:>12.4g}{np.abs(path[-1]).max():>14.4g}{path[-1] @ X[6]:>14.4g}"
        print(f"{title:<34}{last}")
    mean, square = 1.0, 1.0
    for t in range(31):
        if t in (10, 30):
            print(
                f"follow-on trace after {t} steps: mean {mean:.3g}, standard deviation {np.sqrt(square - mean**2):.3g}"
            )
        mean, square = 1 + GAMMA * mean, 1 + 2 * GAMMA * mean + 7 * GAMMA**2 * square


def draw(paths: list[np.ndarray], of_paths: list[Errors]) -> None:
    picture, panels = figure(17, 9, 2, 3)
    *panels, last = (panels[i] for i in (0, 3, 1, 4, 5, 2))  # mean updates below runs
    for axes, title, path, of_path in zip(panels, TITLES, paths, of_paths, strict=True):
        for i in range(6):
            axes.plot(path[:, i], color="C0", linewidth=0.8, alpha=0.6, label="v₁ … v₆" if i == 0 else None)
        axes.plot(path[:, 6], color="C1", label="v₇")
        axes.plot(path[:, 7], color="C2", label="v₈")
        axes.plot(of_path.ve, color="black", linewidth=2, label="√VE")
        axes.plot(of_path.pbe, color="C3", linewidth=2, linestyle="--", label="√PBE")
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set(title=title, xlabel="steps", ylabel="weights v, and errors", xlim=(0, len(path) - 1))
    handles, labels = panels[0].get_legend_handles_labels()
    last.axis("off")
    last.legend(handles, labels, loc="center", fontsize="large")
    save(picture, "baird")


def main() -> None:
    args = arguments(__doc__, steps=(1000, 1, 100_000), seed=(0, 0))
    paths = compute(args.steps, args.seed)
    of_paths = [errors(path) for path in paths]
    show(paths, of_paths)
    draw(paths, of_paths)


if __name__ == "__main__":
    main()
