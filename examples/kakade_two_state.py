"""Two states in which the plain gradient waits on a plateau and the natural one does not, after Kakade (2001).

Staying is worth 1 in state 0 and 2 in state 1, going to the other state nothing; the average reward is to be large,
and is at most 2. The policy is a table of logits, and starts where the stationary distribution μ is (0.8, 0.2). The
plain gradient weighs each state by its share μ(s), Eq. (9.14): it first learns to stay in state 0, which makes state 1
rarer still, and rests at 1. The natural gradient F⁺∇r, F = Σ μ(s) F_s, is the advantage, whatever μ is, Eq. (9.13).

Curves follow dθ/dt = ∇r or F⁺∇r, the limit of small steps: n steps of size α come to the time t = αn. The table has
real steps too, of one α for both. μ = (0.8, 0.2) leaves one number of the first policy free, the probability of staying
in state 1, and on it depends whether there is a plateau, and how long it is. With 0.2 either state leads to state 0
with probability 0.8; 0.087 is chosen so that time and least μ(1) of the plain gradient come near the 1.7·10⁷ and 10⁻⁷
reported of the paper's figure.

    python examples/kakade_two_state.py        prints the table and writes kakade_two_state.png, in about ten seconds

``--alpha`` is the step size of both methods in the table, which gives up after ``--most`` steps.
"""

import itertools
from typing import NamedTuple

import numpy as np
from scipy.integrate import solve_ivp

import npg
from npg.features import OneHot
from npg.lab.plotting import arguments, figure, save
from npg.problems import two_state

MDP = two_state()  # its γ and ρ_0 play no part in the average reward
POLICY = npg.SoftmaxLinear(OneHot(2), 2)
X = MDP.features(POLICY)
BEST, GOAL = 2.0, 0.95
STAYS = (0.9, 0.4, 0.2, 0.1, 0.087)  # in state 1, at first
DRAWN = {0.2: "-", 0.087: "--"}
COLORS = {"plain": "C3", "natural": "C0"}


def start(stay: float) -> np.ndarray:
    """θ with μ = (0.8, 0.2) that stays in state 1 with this probability: 0.8 Pr(go | 0) = 0.2 Pr(go | 1)."""
    go = np.array([(1 - stay) / 4, 1 - stay])
    return np.log(np.append(1 - go, go))


def plain(theta: np.ndarray) -> np.ndarray:
    """∇r of the average reward: (4,)."""
    return MDP.average_reward_gradient(POLICY, theta)


def natural(theta: np.ndarray) -> np.ndarray:
    """F⁺∇r with F under the stationary distribution: (4,)."""
    F = POLICY.fisher(theta, X, MDP.stationary_distribution(POLICY, theta))
    return np.linalg.pinv(F, rcond=1e-12, hermitian=True) @ plain(theta)


FIELDS = {"plain": plain, "natural": natural}


def advantages(theta: np.ndarray) -> np.ndarray:
    """q(s, a) less its mean over actions, in the layout of θ: what F⁺∇r is in a table, Eq. (9.13)."""
    v = MDP.differential_value(POLICY, theta)
    q = MDP.expected_reward - MDP.average_reward(POLICY, theta) + MDP.P @ v
    return (q - q.mean(axis=1, keepdims=True)).T.ravel()


def flow(method: str, theta: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Time at which 95 % of the best average reward is reached, times (T,) and θ (T, 4) until 99.5 % are."""
    events = [lambda t, theta, f=f: MDP.average_reward(POLICY, theta) - f * BEST for f in (GOAL, 0.995)]
    events[1].terminal = True
    field = FIELDS[method]
    how = {"method": "LSODA", "rtol": 1e-8, "atol": 1e-10, "events": events}
    solution = solve_ivp(lambda t, theta: field(theta), (0, 1e10), theta, **how)
    return solution.t_events[0][0], solution.t, solution.y.T


def steps(method: str, theta: np.ndarray, alpha: float, most: int) -> int | None:
    """Steps of size α until 95 % of the best average reward are reached; None if ``most`` are not enough."""
    for n in range(most + 1):
        if MDP.average_reward(POLICY, theta) >= GOAL * BEST:
            return n
        theta = theta + alpha * FIELDS[method](theta)
    return None


class Curve(NamedTuple):
    """A flow at T times, and how many real steps the same takes, None if too many."""

    steps: int | None
    time: float
    t: np.ndarray
    thetas: np.ndarray
    share: np.ndarray  # μ(1)
    reward: np.ndarray


def compute(alpha: float, most: int) -> dict[tuple[float, str], Curve]:
    """A curve of each first policy and method."""
    curves = {}
    for stay, method in itertools.product(STAYS, FIELDS):
        time, t, thetas = flow(method, start(stay))
        share = np.array([MDP.stationary_distribution(POLICY, row)[1] for row in thetas])
        reward = np.array([MDP.average_reward(POLICY, row) for row in thetas])
        curves[stay, method] = Curve(steps(method, start(stay), alpha, most), time, t, thetas, share, reward)
    return curves


def show(curves: dict[tuple[float, str], Curve], alpha: float, most: int) -> None:
    print(f"until the average reward is {GOAL * BEST:g}, 95 % of the best; every first policy has μ = (0.8, 0.2)")
    print(f"{'Pr(stay) in state 0, 1':<26}{'method':<10}{f'steps, α = {alpha:g}':>18}{'time':>12}{'least μ(1)':>13}")
    for (stay, method), curve in curves.items():
        count = f"> {most}" if curve.steps is None else f"{curve.steps}"
        first = f"{1 - (1 - stay) / 4:g}, {stay:g}"
        print(f"{first:<26}{method:<10}{count:>18}{curve.time:>12.4g}{curve.share.min():>13.2g}")
    thetas = [theta for (_, method), curve in curves.items() if method == "natural" for theta in curve.thetas]
    error = max(np.abs(natural(theta) - advantages(theta)).max() for theta in thetas)
    print(f"largest difference of F⁺∇r from the advantages along the natural curves: {error:.1g}")


def draw(curves: dict[tuple[float, str], Curve]) -> None:
    picture, (of_reward, of_share, phase) = figure(17, 4.8, columns=3)
    for stay, method in itertools.product(DRAWN, FIELDS):
        curve, color = curves[stay, method], COLORS[method]
        odds = (curve.thetas[:, :2] - curve.thetas[:, 2:]).T
        for axes, x, y in (of_reward, curve.t, curve.reward), (of_share, curve.t, curve.share), (phase, *odds):
            label = f"{method}, Pr(stay | 1) = {stay:g} at first"
            axes.plot(x, y, color=color, linestyle=DRAWN[stay], label=label)
            axes.plot(*[np.interp(curve.time, curve.t, z) for z in (x, y)], "o", color=color, markersize=5)
        phase.plot(*odds[:, 0], "o", color="black", markersize=6, markerfacecolor="white", zorder=3)
    for reward, x, policy in (BEST, 1.3e-2, "best: stay in state 1"), (1, 1e4, "stay in state 0"):
        of_reward.axhline(reward, color="black", linestyle=":", linewidth=1)
        of_reward.text(x, reward + 0.02, policy, fontsize=9)
    time = {"xscale": "log", "xlim": (1e-2, 1e8), "xlabel": "time = step size × number of steps"}
    of_reward.set(
        title="average reward (dots: 95 % of the best)", ylabel="r(π), reward a step", ylim=(0.4, 2.15), **time
    )
    of_share.set(title="share of time in the better state", ylabel="μ(1)", yscale="log", **time)
    phase.set(title="parameters (rings: first policies)", ylabel="log-odds of staying in state 1")
    phase.set_xlabel("log-odds of staying in state 0")
    phase.legend(title="in all three", loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    save(picture, "kakade_two_state")


def main() -> None:
    args = arguments(__doc__, alpha=(0.1, 1e-4, 1), most=(2000, 1))
    curves = compute(args.alpha, args.most)
    show(curves, args.alpha, args.most)
    draw(curves)


if __name__ == "__main__":
    main()
