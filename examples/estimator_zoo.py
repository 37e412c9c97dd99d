"""Every gradient estimator on one problem: exact bias² and variance, from all trajectories and all pairs of them.

A batch of N trajectories has mean squared error bias² + variance/N, Eq. (5.1): the last column is the N from
which on the bias is the larger part. Estimators that need a batch are taken with N = 2, and their variance is
that of one such estimate, times 2. On-policy estimators use trajectories of π_θ; the others use those of an older
policy.

    python examples/estimator_zoo.py        prints the table and writes estimator_zoo.png
"""

import argparse

import numpy as np
from matplotlib.figure import Figure

import npg
from npg import estimators as E
from npg.exact import enumerate_trajectories
from npg.features import OneHot
from npg.problems import garnet
from npg.returns import discounted_returns

HORIZON = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="of the random problem and policy")
    parser.add_argument("--distance", type=float, default=1.0, help="from θ to the older policy's parameters")
    args = parser.parse_args()
    if args.seed < 0 or not 0 <= args.distance <= 10:
        parser.error("--seed must be at least 0 and --distance lie in [0, 10]")

    rng = np.random.default_rng(args.seed)
    mdp = garnet(3, 2, 2, gamma=0.9, termination=0.1, seed=rng)
    gamma = mdp.gamma
    policy = npg.SoftmaxLinear(OneHot(mdp.n_states), mdp.n_actions)
    theta = rng.normal(size=policy.n_params)
    direction = rng.normal(size=policy.n_params)
    older = theta + args.distance * direction / np.linalg.norm(direction)
    gradient = mdp.gradient(policy, theta, HORIZON)
    error = 0.2 * rng.normal(size=(mdp.n_states, mdp.n_actions))

    traj, p = enumerate_trajectories(mdp, policy, theta, HORIZON)
    psi = E.scores(policy, theta, traj)
    G = discounted_returns(traj.rewards, traj.terminated, traj.truncated, gamma)
    q = np.array([mdp.action_value(policy, theta, HORIZON - t)[traj.obs[t]] for t in range(HORIZON)])
    v = np.array([mdp.value(policy, theta, HORIZON - t)[traj.obs[t]] for t in range(HORIZON)])
    wrong_q = q + error[traj.obs]
    taken = np.take_along_axis(q, traj.actions[..., None], axis=2)[..., 0]
    discount = gamma**traj.t * traj.valid
    X, Psi = E.reward_to_go(psi, traj, gamma), E.score_sums(psi, discount)
    best = E.optimal_baseline(X, Psi, probabilities=p)
    best_j = E.optimal_baseline(X, Psi, probabilities=p, per_parameter=True)
    X_total, Psi_total = E.total_return(psi, traj, gamma), psi.sum(axis=0)
    best_total = E.optimal_baseline(X_total, Psi_total, probabilities=p)
    on_policy = {
        "total return": X_total,
        "total return, b*": X_total - best_total * Psi_total,
        "reward-to-go": X,
        "reward-to-go without the outer γ^t": E.score_sums(psi, G * traj.valid),
        "GPOMDP": E.gpomdp(psi, traj, gamma),
        "GPOMDP, a constant at each reward": E.gpomdp(psi, traj, gamma, traj.rewards @ p[:, None]),
        "GPOMDP, b(S_k) = v(S_k) at each reward": E.gpomdp(psi, traj, gamma, v * traj.valid),
        "reward-to-go, b = v(s)": E.reward_to_go(psi, traj, gamma, v),
        "reward-to-go, b*": X - best * Psi,
        "reward-to-go, b* per parameter": X - best_j * Psi,
        "exact q(s, a) for the return": E.score_sums(psi, discount * taken),
        "exact advantage for the return": E.score_sums(psi, discount * (taken - v)),
        "b(s, a) near q, not corrected": E.action_baseline(policy, theta, traj, gamma, wrong_q, corrected=False),
        "b(s, a) near q, corrected": E.action_baseline(policy, theta, traj, gamma, wrong_q),
        "all actions, exact q": E.all_actions(policy, theta, traj, gamma, q),
        "all actions, q slightly wrong": E.all_actions(policy, theta, traj, gamma, wrong_q),
    }

    old, p_old = enumerate_trajectories(mdp, policy, older, HORIZON)
    log_prob = np.zeros(old.valid.shape)
    log_prob[old.valid] = policy.log_prob(older, old.x[old.valid], old.actions[old.valid])
    ratios = E.importance_ratios(policy, theta, old, log_prob)
    psi_old = E.scores(policy, theta, old)
    X_old = E.reward_to_go(psi_old, old, gamma)
    off_policy = {
        "older policy, no ratios": X_old,
        "older policy, whole-trajectory ratio": E.importance_sampled(psi_old, old, gamma, ratios),
        "older policy, per-decision ratios": E.per_decision(psi_old, old, gamma, ratios),
        "older policy, first-order ratio": E.first_order(psi_old, old, gamma, ratios),
    }

    i, j = np.indices((len(p), len(p))).reshape(2, -1)
    total, sums, rho = G[0], psi.sum(axis=0), ratios.prod(axis=0)[:, None]
    own = ((X * Psi).sum(axis=1) / (Psi**2).sum(axis=1))[:, None]  # b* as one trajectory estimates it
    own_j = np.divide(X, Psi, out=np.zeros_like(X), where=Psi != 0)
    fitted = X[i] + X[j]  # with the tabular fit to both trajectories, the mean return of each state
    for s in range(mdp.n_states - 1):
        here = (traj.obs == s) & traj.valid
        visits, returns, Psi_s = here.sum(axis=0), (G * here).sum(axis=0), E.score_sums(psi, discount * here)
        v_s = (returns[i] + returns[j]) / np.maximum(visits[i] + visits[j], 1)
        fitted -= v_s[:, None] * (Psi_s[i] + Psi_s[j])
    pairs = {
        "total return, mean of both as b": (total[i] - total[j])[:, None] * (sums[i] - sums[j]) / 4,
        "total return, b from the other": (total[i] - total[j])[:, None] * (sums[i] - sums[j]) / 2,
        "reward-to-go, b* from the other": (X[i] - own[j] * Psi[i] + X[j] - own[i] * Psi[j]) / 2,
        "the same, b* per parameter": (X[i] - own_j[j] * Psi[i] + X[j] - own_j[i] * Psi[j]) / 2,
        "reward-to-go, v(s) fitted to both": fitted / 2,
    }
    weighted = (rho[i] * X_old[i] + rho[j] * X_old[j]) / (rho[i] + rho[j])
    off_policy_pairs = {"older policy, weighted": weighted}

    print(f"{len(p)} trajectories of at most {HORIZON} steps, squared norm of the gradient {gradient @ gradient:.4f}")
    print(f"{'estimator':<42}{'bias²':>12}{'variance':>12}{'N':>10}")
    names, bias2, variance = [], [], []
    for estimates, weights, n in (
        (on_policy, p, 1),
        (pairs, p[i] * p[j], 2),
        (off_policy, p_old, 1),
        (off_policy_pairs, p_old[i] * p_old[j], 2),
    ):
        for name, estimate in estimates.items():
            bias = weights @ estimate - gradient
            names.append(name + (f" (N = {n})" if n > 1 else ""))
            bias2.append(float(bias @ bias) if np.abs(bias).max() > 1e-10 else 0.0)  # else rounding
            variance.append(n * float(weights @ ((estimate - weights @ estimate) ** 2).sum(axis=1)))
            crossing = f"{variance[-1] / bias2[-1]:,.0f}" if bias2[-1] and n == 1 else "–"
            print(f"{names[-1]:<42}{bias2[-1]:>12.6f}{variance[-1]:>12.4f}{crossing:>10}")

    figure = Figure(figsize=(9, 7), layout="constrained")
    axes = figure.add_subplot()
    y = np.arange(len(names))
    axes.barh(y - 0.2, variance, height=0.4, label="variance, one trajectory (N = 2: times 2)")
    axes.barh(y + 0.2, bias2, height=0.4, label="bias² (none where there is no bar)")
    axes.axvline(gradient @ gradient, color="black", linestyle="--", linewidth=1, label="squared norm of the gradient")
    axes.set_yticks(y, names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.grid(alpha=0.3, axis="x")
    axes.legend(loc="upper center", bbox_to_anchor=(0.3, -0.04), ncols=3, fontsize="small")
    figure.savefig("estimator_zoo.png", dpi=150)
    print("estimator_zoo.png")


if __name__ == "__main__":
    main()
