"""What a baseline does to the variance of the policy gradient, exactly: every trajectory is enumerated.

The variance, tr Cov of the estimate from one trajectory, is a parabola in a constant baseline b, Eq. (5.8). Its
lowest point is not at the mean return. Baselines that know the state, the parameter or the action are drawn as
levels; none of them is always the best.

    python examples/baseline_variance.py        prints the table and writes baseline_variance.png
"""

import argparse

import numpy as np
from matplotlib.figure import Figure

import npg
from npg.estimators import (
    action_baseline,
    all_actions,
    optimal_baseline,
    reward_to_go,
    score_sums,
    scores,
    total_return,
)
from npg.exact import enumerate_trajectories
from npg.features import OneHot
from npg.problems import garnet

HORIZON = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="of the random problem and policy")
    args = parser.parse_args()
    if args.seed < 0:
        parser.error("--seed must be at least 0")

    rng = np.random.default_rng(args.seed)
    mdp = garnet(3, 2, 2, gamma=0.9, termination=0.1, seed=rng)
    policy = npg.SoftmaxLinear(OneHot(mdp.n_states), mdp.n_actions)
    theta = rng.normal(size=policy.n_params)
    traj, p = enumerate_trajectories(mdp, policy, theta, HORIZON)
    gradient = mdp.gradient(policy, theta, HORIZON)
    print(f"{len(p)} trajectories of at most {HORIZON} steps, squared norm of the gradient {gradient @ gradient:.4f}")

    def variance(X: np.ndarray) -> float:
        assert np.allclose(p @ X, gradient, rtol=0, atol=1e-10), "every estimator here is unbiased"
        return float(np.trace(np.cov(X.T, aweights=p, ddof=0)))

    psi = scores(policy, theta, traj)
    total, to_go = total_return(psi, traj, mdp.gamma), reward_to_go(psi, traj, mdp.gamma)
    discount = mdp.gamma**traj.t * traj.valid
    forms = {  # X without a baseline, what b multiplies, and the mean of the return that b is to match
        "total return": (total, psi.sum(axis=0), mdp.J(policy, theta, HORIZON)),
        "reward-to-go": (to_go, score_sums(psi, discount), mdp.J(policy, theta, HORIZON)),
    }
    of_steps_to_go = [(mdp.action_value(policy, theta, HORIZON - t), t) for t in range(HORIZON)]
    q = np.array([values[traj.obs[t]] for values, t in of_steps_to_go])  # of each action, in the steps that are left
    v = np.array([mdp.value(policy, theta, HORIZON - t)[traj.obs[t]] for t in range(HORIZON)])
    X, Psi, _ = forms["reward-to-go"]
    levels = {
        "reward-to-go, b = v(s)": reward_to_go(psi, traj, mdp.gamma, v),
        "reward-to-go, b* per parameter": X - optimal_baseline(X, Psi, probabilities=p, per_parameter=True) * Psi,
        "reward-to-go, b = q(s, a), corrected": action_baseline(policy, theta, traj, mdp.gamma, q),
        "all actions, exact q": all_actions(policy, theta, traj, mdp.gamma, q),
    }

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for name, (X, Psi, mean_return) in forms.items():
        best = float(optimal_baseline(X, Psi, probabilities=p))
        for label, b in (("b = 0", 0.0), ("b = J", mean_return), ("b = b*", best)):
            print(f"{name + ', ' + label:<38}b = {b:8.4f}   tr Cov {variance(X - b * Psi):10.4f}")
        width = 1.5 * max(abs(best), abs(mean_return - best), 0.5)
        grid = np.linspace(best - width, best + width, 101)
        (line,) = axes.plot(grid, [variance(X - b * Psi) for b in grid], label=name)
        color = line.get_color()
        axes.plot(best, variance(X - best * Psi), "v", color=color, label=f"{name}, b*")
        axes.plot(
            mean_return, variance(X - mean_return * Psi), "o", color=color, label=f"{name}, b = J, the mean return"
        )
    for (name, X), style in zip(levels.items(), ("-", "--", "-.", ":"), strict=True):
        print(f"{name:<38}{'':12}   tr Cov {variance(X):10.4f}")
        axes.axhline(variance(X), color="black", linestyle=style, linewidth=1, label=name)
    axes.set_yscale("log")
    axes.set_xlabel("constant baseline b")
    axes.set_ylabel("tr Cov of the estimate from one trajectory")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig("baseline_variance.png", dpi=150)
    print("baseline_variance.png")


if __name__ == "__main__":
    main()
