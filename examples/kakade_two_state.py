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
"""

import argparse

import numpy as np
from matplotlib.figure import Figure
from scipy.integrate import solve_ivp

import npg
from npg.features import OneHot
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
    solution = solve_ivp(
        lambda t, theta: field(theta), (0, 1e10), theta, method="LSODA", rtol=1e-8, atol=1e-10, events=events
    )
    return solution.t_events[0][0], solution.t, solution.y.T


def steps(method: str, theta: np.ndarray, alpha: float, most: int) -> int | None:
    """Steps of size α until 95 % of the best average reward are reached; None if ``most`` are not enough."""
    for n in range(most + 1):
        if MDP.average_reward(POLICY, theta) >= GOAL * BEST:
            return n
        theta = theta + alpha * FIELDS[method](theta)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alpha", type=float, default=0.1, help="step size of both methods in the table")
    parser.add_argument("--most", type=int, default=2000, help="steps after which the table gives up")
    args = parser.parse_args()
    if not 0 < args.alpha <= 1 or args.most < 1:
        parser.error("--alpha must lie in (0, 1] and --most be at least 1")

    print(f"until the average reward is {GOAL * BEST:g}, 95 % of the best; every first policy has μ = (0.8, 0.2)")
    print(
        f"{'Pr(stay) in state 0, 1':<26}{'method':<10}{f'steps, α = {args.alpha:g}':>18}{'time':>12}{'least μ(1)':>13}"
    )
    curves, error = {}, 0.0
    for stay in STAYS:
        theta = start(stay)
        for method in FIELDS:
            time, t, thetas = flow(method, theta)
            mu = np.array([MDP.stationary_distribution(POLICY, row)[1] for row in thetas])
            reward = np.array([MDP.average_reward(POLICY, row) for row in thetas])
            curves[stay, method] = time, t, thetas, mu, reward
            count = steps(method, theta, args.alpha, args.most)
            label = f"> {args.most}" if count is None else f"{count}"
            print(f"{f'{1 - (1 - stay) / 4:g}, {stay:g}':<26}{method:<10}{label:>18}{time:>12.4g}{mu.min():>13.2g}")
            if method == "natural":
                error = max(error, *(np.abs(natural(row) - advantages(row)).max() for row in thetas))
    print(f"largest difference of F⁺∇r from the advantages along the natural curves: {error:.1g}")

    figure = Figure(figsize=(15, 4.8), layout="constrained")
    reward_axes, share_axes, phase_axes = figure.subplots(1, 3)
    for (stay, method), (time, t, thetas, mu, reward) in curves.items():
        if stay not in DRAWN:
            continue
        style = {"color": COLORS[method], "linestyle": DRAWN[stay]}
        reward_axes.plot(t, reward, label=f"{method}, from Pr(stay | 1) = {stay:g}", **style)
        share_axes.plot(t, mu, **style)
        at = {"color": COLORS[method], "marker": "o", "markersize": 5}
        reward_axes.plot(time, GOAL * BEST, **at)
        share_axes.plot(time, np.interp(time, t, mu), **at)
        odds = thetas[:, :2] - thetas[:, 2:]
        phase_axes.plot(*odds.T, **style)
        phase_axes.plot(*odds[0], "o", color="black", markersize=6, markerfacecolor="white", zorder=3)
        phase_axes.plot(*[np.interp(time, t, x) for x in odds.T], **at)
    reward_axes.axhline(BEST, color="black", linestyle=":", linewidth=1)
    reward_axes.text(1.3e-2, BEST + 0.02, "best: stay in state 1", fontsize=9)
    reward_axes.axhline(1, color="black", linestyle=":", linewidth=1)
    reward_axes.text(1e4, 1.02, "stay in state 0", fontsize=9)
    reward_axes.set_ylabel("average reward r(π)")
    reward_axes.set_ylim(0.4, 2.15)
    reward_axes.set_title("average reward (dots: 95 % of the best)")
    share_axes.set_yscale("log")
    share_axes.set_ylabel("μ(1)")
    share_axes.set_title("share of time in the better state")
    for axes in (reward_axes, share_axes):
        axes.set_xscale("log")
        axes.set_xlim(1e-2, 1e8)
        axes.set_xlabel("time = step size × number of steps")
    reward_axes.legend(loc="lower right", fontsize=8.5)
    phase_axes.set_xlabel("log-odds of staying in state 0")
    phase_axes.set_ylabel("log-odds of staying in state 1")
    phase_axes.set_title("parameters (rings: first policies)")
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    figure.savefig("kakade_two_state.png", dpi=150)
    print("kakade_two_state.png")


if __name__ == "__main__":
    main()
