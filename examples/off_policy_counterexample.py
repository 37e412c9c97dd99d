"""A counterexample to Off-PAC (Imani, Graves & White 2018), in two actions and in continuous ones: chapters 12 and 13.

In s₀ action a₀ leads to s₁ and a₁ to s₂. In s₁ a₀ is worth 2, in s₂ a₁ is worth 1, and the actor cannot tell the two
apart; the behaviour is in s₂ three times as often as in s₁. p and y are the probabilities of a₀ in s₀, and in s₁ and
s₂. Off-PAC, η = 0, leaves a term of the gradient of J_b out, Eq. (12.4); with η = 1 it is there, Eq. (12.6).

(a) The flow dθ/dt = (1 − η)g + η∇J_b from θ = 0, over J_b, which has a second local maximum and a saddle. y moves the
wrong way at first for all η < ½, but p moves the right way and may turn it: the flow ends wrong only for η < 0.1524.
(b), (c) OffPAC by samples, with a critic that is a table and learns by TD, α_v = 0.1: runs with small steps end where
the flow does, and with large ones η = 1 misses too. The table has runs with the exact values besides. All runs are
learned at once, as arrays; the script checks that the first has the parameters of the agent ``OffPAC``.

(d) Its continuous twin. An action a in s₀ leads to s₁ with probability ς(−a), and otherwise to s₂, where it is worth
2ς(−a) and ς(a), with the logistic function ς; a policy has one mean for s₀ and one for s₁ and s₂, and the behaviour
takes a = log 3. Of the deterministic policy the direction of Silver et al. (2014) is the first sum of Eq. (13.15), in
which there is no ratio, and the term is left out all the same. In p = ς(−a) and y the flow is that of (a), at twice the
speed, so it ends wrong for the same η. Gaussian policies of σ = 1, dashed, are deterministic ones in a smoother
process, Eq. (13.6), and do likewise.

    python examples/off_policy_counterexample.py [--runs 30] [--episodes 2000] [--seed 0]

prints the tables and writes off_policy_counterexample.png, in about 5 seconds.
"""

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from scipy.integrate import solve_ivp
from scipy.special import expit, logit

from npg.algorithms.off_pac import OffPAC
from npg.distributions import Categorical
from npg.features import OneHot
from npg.lab.plotting import arguments, figure, save
from npg.models import Linear
from npg.off_policy import OffPolicy
from npg.policies import Policy
from npg.problems import IMANI_BEHAVIOUR, IMANI_FEATURES, imani
from npg.trajectories import Trajectories

MDP = imani()
TAKES = IMANI_BEHAVIOUR[0, 0]  # a₀, in every state
POLICY = Policy(lambda states: IMANI_FEATURES[states], Linear(2, 2), Categorical(2))
ALPHA_V = 0.1
ETAS = (0.0, 0.1, 0.15, 0.155, 0.25, 0.5, 1.0)
BEST, SECOND, SADDLE = (1, 1), (0, 0), (5 / 12, 1 / 3)
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(40)
TWIN_D = np.array([1, TAKES, 1 - TAKES])  # where the behaviour of the twin is


class Setting(NamedTuple):
    eta: float
    alpha: float
    exact: bool

    def __str__(self) -> str:
        return f"η = {self.eta:g}, α = {self.alpha:g}, {'exact values' if self.exact else 'TD critic'}"


SETTINGS = [
    Setting(eta, alpha, exact) for alpha, exact in ((0.01, True), (0.01, False), (0.1, False)) for eta in (0, 1)
]


def J_b(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The excursion objective."""
    return (3 * p * y - p - 1.25 * y + 1.75) / 2


def values(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    """v of s₀, s₁, s₂."""
    return np.array([2 * p * y + (1 - p) * (1 - y), 2 * y, 1 - y])


def weighted(eta: float, d: np.ndarray, p: float) -> np.ndarray:
    """(1 − η)d_b + ηm of s₀, s₁, s₂, Eqs. (12.3), (13.15)."""
    return d + eta * d[0] * np.array([0, p, 1 - p])


def direction(x: np.ndarray, eta: float) -> np.ndarray:
    """(1 − η)g + η∇J_b by the differences of logits, of which p and y are the logistic functions: (2,)."""
    p, y = expit(x)
    weight = weighted(eta, np.array([1, TAKES, 1 - TAKES]) / 2, p)
    return np.array([weight[0] * p * (1 - p) * (3 * y - 1), (2 * weight[1] - weight[2]) * y * (1 - y)])


def smooth(a: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """E ς(−a − σξ) of a normal ξ, and its derivative."""
    of_noise = expit(-np.asarray(a)[..., None] - sigma * NODES)
    return of_noise @ WEIGHTS / WEIGHTS.sum(), -(of_noise * (1 - of_noise)) @ WEIGHTS / WEIGHTS.sum()


def twin_direction(a: np.ndarray, eta: float, sigma: float) -> np.ndarray:
    """Σ_s ((1 − η)d_b(s) + ηm(s)) ∇_a q(s, μ(s)) of the twin, of a deterministic policy (σ = 0) or a Gaussian: (2,)."""
    (p, y), slope = smooth(a, sigma)
    weight = weighted(eta, TWIN_D, p)
    return np.array([weight[0] * (3 * y - 1), 2 * weight[1] - weight[2]]) * slope


def flow(field: Callable[..., np.ndarray], eta: float, *settings: float) -> np.ndarray:
    """A path from 0 until it is near a corner: (T, 2)."""

    def near(t: float, x: np.ndarray, *_: float) -> float:
        return np.abs(x).min() - 4

    near.terminal = True
    how = {"args": (eta, *settings), "method": "LSODA", "rtol": 1e-9, "atol": 1e-12, "events": near}
    return solve_ivp(field, (0, 1e6), np.zeros(2), **how).y.T


def discrete_flow(eta: float) -> np.ndarray:
    """p and y along the flow: (T, 2)."""
    return expit(flow(lambda t, x, eta: direction(x, eta), eta))


def twin_flow(eta: float, sigma: float) -> np.ndarray:
    """The means in s₀, and in s₁ and s₂: (T, 2)."""
    return flow(lambda t, a, eta, sigma: twin_direction(a, eta, sigma), eta, sigma)


def threshold() -> float:
    """The η above which the flow from θ = 0 ends right."""
    low, high = 0.0, 1.0
    while high - low > 1e-6:
        eta = (low + high) / 2
        low, high = (low, eta) if discrete_flow(eta)[-1, 1] > 0.5 else (eta, high)
    return high


def learn(setting: Setting, actions: np.ndarray) -> np.ndarray:
    """p and y before and after each episode, of given actions (runs, episodes, 2): (episodes + 1, 2, runs)."""
    runs, episodes, _ = actions.shape
    x, v, each = np.zeros((2, runs)), np.zeros((3, runs)), np.arange(runs)
    path = [expit(x)]
    for k in range(episodes):
        s, F = np.zeros(runs, dtype=int), 1.0
        for row in range(2):
            a, pi = actions[:, k, row], expit(x[row])
            if setting.exact:
                v = values(*expit(x))
            rho = np.where(a == 0, pi / TAKES, (1 - pi) / (1 - TAKES))
            delta = (MDP.R[s, a] if row else v[1 + a, each]) - v[s, each]
            M = 1 - setting.eta + setting.eta * F
            if not setting.exact:
                v[s, each] += ALPHA_V * delta * rho
            x[row] += 2 * setting.alpha * delta * rho * M * ((a == 0) - pi)  # of two logits, which part
            s, F = 1 + a, 1 + rho * F
        path.append(expit(x))
    return np.array(path)


def check(setting: Setting, actions: np.ndarray) -> np.ndarray:
    """p and y that the agent of the library has after these episodes of one run, (episodes, 2)."""
    how = {"alpha_u": setting.alpha, "alpha_v": 0.0 if setting.exact else ALPHA_V, "alpha_w": 0.0}
    rng = np.random.default_rng(0)
    agent = OffPAC(POLICY, OneHot(4), gamma=1.0, lam=0.0, eta=setting.eta, **how)
    agent.init(rng)
    agent.theta = np.zeros(4)
    for first, second in actions:
        for t, (s, a, s_next) in enumerate(((0, first, 1 + first), (1 + first, second, 3))):
            p, y = expit(agent.theta[:2] - agent.theta[2:])
            if setting.exact:
                agent.critic.v = np.append(values(p, y), 0)
            state, ends = np.array([[s]]), np.array([[t == 1]])
            row = Trajectories(
                state, POLICY.features(state[0])[None], np.array([[a]]), MDP.R[state, a], np.array([[s_next]]), ends,
                ~ends & False, np.array([[True]]), np.array([[t]]), np.log(IMANI_BEHAVIOUR[state, a]),
            )  # fmt: skip
            agent.update(row, rng)
    return expit(agent.theta[:2] - agent.theta[2:])


def agree() -> None:
    """The closed forms have the weights of the library, and the twin has their flow."""
    for x in np.random.default_rng(0).normal(size=(20, 2)):
        (p, y), target = expit(x), IMANI_BEHAVIOUR.copy()
        target[:3, 0], target[:3, 1] = [p, y, y], [1 - p, 1 - y, 1 - y]
        problem = OffPolicy(MDP, target, IMANI_BEHAVIOUR)
        assert np.allclose(problem.follow_on()[:3], weighted(1, problem.d[:3], p))
        assert np.allclose(problem.value()[:3], values(p, y))
        assert np.isclose(problem.d @ problem.value(), J_b(p, y))
        for eta in ETAS:
            assert np.allclose(twin_direction(-x, eta, 0.0), -2 * direction(x, eta))


def show(paths: dict[Setting, np.ndarray], flows: dict[float, np.ndarray], twins: dict[tuple, np.ndarray]) -> None:
    print(f"flow from θ = 0: at first y falls for η < 1/2; it ends right for η > {threshold():.5f}")
    print(f"{'η':<8}{'direction of y':>16}{'p, y at the end':>20}{'twin, σ = 0: means':>24}{'σ = 1: means':>20}")
    for eta, path in flows.items():
        ends = (f"{a:.1f}, {b:.1f}" for a, b in (twins[eta, sigma][-1] for sigma in (0.0, 1.0)))
        twin = "".join(f"{end:>{width}}" for end, width in zip(ends, (24, 20), strict=True))
        first = direction(np.zeros(2), eta)[1]
        print(f"{eta:<8g}{first:>+16.4f}{f'{path[-1, 0]:.2f}, {path[-1, 1]:.2f}':>20}{twin}")
    episodes, _, runs = (n - i for n, i in zip(next(iter(paths.values())).shape, (1, 0, 0), strict=True))
    print(f"\n{f'{runs} runs of {episodes} episodes':<36}{'p, y > 1/2':>12}{'y < 1/2':>12}{'mean p':>9}{'mean y':>9}")
    for setting, path in paths.items():
        right, wrong = (path[-1] > 0.5).all(axis=0).sum(), (path[-1, 1] < 0.5).sum()
        p, y = path[-1].mean(axis=1)
        print(f"{setting!s:<36}{right:>12}{wrong:>12}{p:>9.3f}{y:>9.3f}")


def landscape(axes: Any, x: np.ndarray, y: np.ndarray, J: np.ndarray) -> None:
    axes.contourf(x, y, J, levels=16, cmap="Greys_r", alpha=0.35)
    axes.contour(x, y, J, levels=[J_b(*SADDLE)], colors="black", linewidths=0.8, linestyles=":")
    axes.grid(visible=False)


def draw(paths: dict[Setting, np.ndarray], flows: dict[float, np.ndarray], twins: dict[tuple, np.ndarray]) -> None:
    picture, (of_flow, small, large, of_twin) = figure(13, 12.2, 2, 2)
    grid = np.linspace(0, 1, 101)
    colors = {eta: f"C{i}" for i, eta in enumerate(ETAS)}
    for axes in of_flow, small, large:
        landscape(axes, grid, grid, J_b(*np.meshgrid(grid, grid)))
        mark = {"markeredgecolor": "black", "clip_on": False, "zorder": 5}
        axes.plot(*BEST, "*", color="gold", markersize=20, label="best policy, J_b = 5/4", **mark)
        axes.plot(*SECOND, "*", color="white", markersize=15, label="second maximum, J_b = 7/8", **mark)
        axes.plot(*SADDLE, "X", color="white", markersize=10, label="saddle, J_b = 2/3; dotted: its level", **mark)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="p, probability of a₀ in s₀")
        axes.set_ylabel("y, probability of a₀ in s₁ and s₂")
    for eta, path in flows.items():
        of_flow.plot(*path.T, color=colors[eta], linewidth=2, label=f"η = {eta:g}")
    of_flow.set_title("(a) the flow from θ = 0, exact, over J_b")
    for axes, alpha, letter in (small, 0.01, "b"), (large, 0.1, "c"):
        for eta in (0.0, 1.0):
            path = paths[Setting(eta, alpha, False)]
            for i, run in enumerate(np.moveaxis(path, 2, 0)):
                axes.plot(*run.T, color=colors[eta], linewidth=0.6, alpha=0.6, label=None if i else f"η = {eta:g}")
            axes.plot(*path[-1], "o", color=colors[eta], markersize=5, clip_on=False, zorder=4)
        axes.set_title(f"({letter}) {path.shape[2]} runs of {len(path) - 1} episodes, α = {alpha:g}, TD critic")
    a = np.linspace(-4, 4, 101)
    landscape(of_twin, a, a, J_b(*np.meshgrid(expit(-a), expit(-a))))
    for eta, sigma in product((0.0, 0.25, 1.0), (0.0, 1.0)):
        style = {"linestyle": "--" if sigma else "-", "label": None if sigma else f"η = {eta:g}"}
        of_twin.plot(*twins[eta, sigma].T, color=colors[eta], linewidth=2, **style)
    of_twin.plot(*-logit(SADDLE), "X", color="white", markersize=10, markeredgecolor="black", zorder=5)
    title = "(d) continuous twin: deterministic; dashed: Gaussian, σ = 1"
    of_twin.set(title=title, xlim=(-4, 4), ylim=(-4, 4), xlabel="mean action in s₀", ylabel="mean action in s₁ and s₂")
    of_twin.text(-3.9, -3.9, "best", va="bottom")
    of_twin.text(3.9, 3.9, "second maximum", ha="right", va="top")
    for axes in of_flow, small, large, of_twin:
        axes.plot(*(2 * [0.0 if axes is of_twin else 0.5]), "o", color="black", markerfacecolor="white", zorder=6)
    of_flow.legend(loc="upper left", fontsize="small")
    for axes in small, large:
        learned = [line for line in axes.get_lines() if "η" in line.get_label()]
        for line in axes.legend(handles=learned, loc="upper left").get_lines():
            line.set_linewidth(2)
    save(picture, "off_policy_counterexample")


def main() -> None:
    args = arguments(__doc__, runs=(30, 1), episodes=(2000, 1), seed=(0, 0))
    agree()
    rng = np.random.default_rng(args.seed)
    actions = (rng.random((args.runs, args.episodes, 2)) >= TAKES).astype(int)
    paths = {setting: learn(setting, actions) for setting in SETTINGS}
    for setting, path in paths.items():
        assert np.allclose(path[-1, :, 0], check(setting, actions[0]), rtol=0, atol=1e-9), setting
    flows = {eta: discrete_flow(eta) for eta in ETAS}
    twins = {(eta, sigma): twin_flow(eta, sigma) for eta in ETAS for sigma in (0.0, 1.0)}
    show(paths, flows, twins)
    draw(paths, flows, twins)


if __name__ == "__main__":
    main()
