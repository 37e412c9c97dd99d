"""Every gradient estimator on one problem: exact bias² and variance, from all trajectories and all pairs of them.

A batch of N trajectories has mean squared error bias² + variance/N, Eq. (5.1): the last column is the N from
which on the bias is the larger part. Estimators that need a batch are taken with N = 2, and their variance is
that of one such estimate, times 2. On-policy estimators use trajectories of π_θ; the others use those of an older
policy.

    python examples/estimator_zoo.py        prints the table and writes estimator_zoo.png, in 3 seconds

``--seed`` is that of the random problem and policy, ``--distance`` the distance from θ to the older parameters.
"""

from collections.abc import Iterator

import numpy as np

import npg
from npg import estimators as E
from npg.baselines import optimal_baseline
from npg.exact import TabularMDP, enumerate_trajectories
from npg.features import OneHot
from npg.lab.plotting import arguments, figure, save
from npg.problems import garnet
from npg.returns import discounted_returns
from npg.trajectories import Trajectories

HORIZON = 4
POLICY = npg.SoftmaxLinear(OneHot(4), 2)  # three states and the terminal one
Estimates = dict[str, np.ndarray]  # one row for each trajectory, or for each pair of them
Row = tuple[str, float, float, float]  # name, bias², variance, and the N at which they meet


def on_policy(mdp: TabularMDP, theta: np.ndarray, traj: Trajectories, p: np.ndarray, error: np.ndarray) -> Estimates:
    """From one trajectory of π_θ; ``error`` (S, A) is that of the wrong q."""
    gamma, psi = mdp.gamma, E.scores(POLICY, theta, traj)
    G = discounted_returns(traj.rewards, traj.terminated, traj.truncated, gamma)
    q = np.array([mdp.action_value(POLICY, theta, HORIZON - t)[traj.obs[t]] for t in range(HORIZON)])
    v = np.array([mdp.value(POLICY, theta, HORIZON - t)[traj.obs[t]] for t in range(HORIZON)])
    wrong_q = q + error[traj.obs]
    taken = np.take_along_axis(q, traj.actions[..., None], axis=2)[..., 0]
    discount = gamma**traj.t * traj.valid
    X, Psi = E.reward_to_go(psi, traj, gamma), E.score_sums(psi, discount)
    X_total, Psi_total = E.total_return(psi, traj, gamma), psi.sum(axis=0)
    return {
        "total return": X_total,
        "total return, b*": X_total - optimal_baseline(X_total, Psi_total, probabilities=p) * Psi_total,
        "reward-to-go": X,
        "reward-to-go without the outer γ^t": E.score_sums(psi, G * traj.valid),
        "GPOMDP": E.gpomdp(psi, traj, gamma),
        "GPOMDP, a constant at each reward": E.gpomdp(psi, traj, gamma, traj.rewards @ p[:, None]),
        "GPOMDP, b(S_k) = v(S_k) at each reward": E.gpomdp(psi, traj, gamma, v * traj.valid),
        "reward-to-go, b = v(s)": E.reward_to_go(psi, traj, gamma, v),
        "reward-to-go, b*": X - optimal_baseline(X, Psi, probabilities=p) * Psi,
        "reward-to-go, b* per parameter": X - optimal_baseline(X, Psi, probabilities=p, per_parameter=True) * Psi,
        "exact q(s, a) for the return": E.score_sums(psi, discount * taken),
        "exact advantage for the return": E.score_sums(psi, discount * (taken - v)),
        "b(s, a) near q, not corrected": E.action_baseline(POLICY, theta, traj, gamma, wrong_q, corrected=False),
        "b(s, a) near q, corrected": E.action_baseline(POLICY, theta, traj, gamma, wrong_q),
        "all actions, exact q": E.all_actions(POLICY, theta, traj, gamma, q),
        "all actions, q slightly wrong": E.all_actions(POLICY, theta, traj, gamma, wrong_q),
    }


def pairs(mdp: TabularMDP, psi: np.ndarray, traj: Trajectories) -> Estimates:
    """From two trajectories of π_θ, each with a baseline that the two give."""
    G = discounted_returns(traj.rewards, traj.terminated, traj.truncated, mdp.gamma)
    discount = mdp.gamma**traj.t * traj.valid
    X, Psi = E.reward_to_go(psi, traj, mdp.gamma), E.score_sums(psi, discount)
    i, j = np.indices((len(X), len(X))).reshape(2, -1)
    own = ((X * Psi).sum(axis=1) / (Psi**2).sum(axis=1))[:, None]  # b* as one trajectory estimates it
    own_j = np.divide(X, Psi, out=np.zeros_like(X), where=Psi != 0)
    total = (G[0][i] - G[0][j])[:, None] * (psi.sum(axis=0)[i] - psi.sum(axis=0)[j])
    fitted = X[i] + X[j]  # with the tabular fit to both trajectories, the mean return of each state
    for s in range(mdp.n_states - 1):
        here = (traj.obs == s) & traj.valid
        visits, returns, Psi_s = here.sum(axis=0), (G * here).sum(axis=0), E.score_sums(psi, discount * here)
        v_s = (returns[i] + returns[j]) / np.maximum(visits[i] + visits[j], 1)
        fitted -= v_s[:, None] * (Psi_s[i] + Psi_s[j])
    return {
        "total return, mean of both as b": total / 4,
        "total return, b from the other": total / 2,
        "reward-to-go, b* from the other": (X[i] - own[j] * Psi[i] + X[j] - own[i] * Psi[j]) / 2,
        "the same, b* per parameter": (X[i] - own_j[j] * Psi[i] + X[j] - own_j[i] * Psi[j]) / 2,
        "reward-to-go, v(s) fitted to both": fitted / 2,
    }


def off_policy(theta: np.ndarray, older: np.ndarray, traj: Trajectories, gamma: float) -> tuple[Estimates, Estimates]:
    """From one trajectory of the older policy, and from two."""
    log_prob = np.zeros(traj.valid.shape)
    log_prob[traj.valid] = POLICY.log_prob(older, traj.x[traj.valid], traj.actions[traj.valid])
    ratios, psi = E.importance_ratios(POLICY, theta, traj, log_prob), E.scores(POLICY, theta, traj)
    X, rho = E.reward_to_go(psi, traj, gamma), ratios.prod(axis=0)[:, None]
    i, j = np.indices((len(X), len(X))).reshape(2, -1)
    return {
        "older policy, no ratios": X,
        "older policy, whole-trajectory ratio": E.importance_sampled(psi, traj, gamma, ratios),
        "older policy, per-decision ratios": E.per_decision(psi, traj, gamma, ratios),
        "older policy, first-order ratio": E.first_order(psi, traj, gamma, ratios),
    }, {"older policy, weighted": (rho[i] * X[i] + rho[j] * X[j]) / (rho[i] + rho[j])}


def moments(estimates: Estimates, p: np.ndarray, n: int, gradient: np.ndarray) -> Iterator[Row]:
    """Of estimates from n = 1 or 2 trajectories of probabilities p; a bias of rounding errors is 0."""
    weights = p if n == 1 else np.outer(p, p).ravel()
    for name, estimate in estimates.items():
        bias = weights @ estimate - gradient
        bias2 = bias @ bias if np.abs(bias).max() > 1e-10 else 0.0
        variance = n * (weights @ ((estimate - weights @ estimate) ** 2).sum(axis=1))
        yield name + (n > 1) * f" (N = {n})", bias2, variance, variance / bias2 if bias2 and n == 1 else np.inf


def compute(seed: int, distance: float) -> tuple[str, list[Row], float]:
    """The problem in words, a row for each estimator, and the squared norm of the gradient."""
    rng = np.random.default_rng(seed)
    mdp = garnet(3, 2, 2, gamma=0.9, termination=0.1, seed=rng)
    theta, direction = rng.normal(size=(2, POLICY.n_params))
    older = theta + distance * direction / np.linalg.norm(direction)
    g, error = mdp.gradient(POLICY, theta, HORIZON), 0.2 * rng.normal(size=(mdp.n_states, mdp.n_actions))
    traj, p = enumerate_trajectories(mdp, POLICY, theta, HORIZON)
    old, p_old = enumerate_trajectories(mdp, POLICY, older, HORIZON)
    one, two = off_policy(theta, older, old, mdp.gamma)
    rows = [
        *moments(on_policy(mdp, theta, traj, p, error), p, 1, g),
        *moments(pairs(mdp, E.scores(POLICY, theta, traj), traj), p, 2, g),
        *moments(one, p_old, 1, g),
        *moments(two, p_old, 2, g),
    ]
    problem = f"{len(p)} trajectories of at most {HORIZON} steps, squared norm of the gradient {g @ g:.4f}"
    return problem, rows, float(g @ g)


def show(problem: str, rows: list[Row]) -> None:
    print(problem)
    print(f"{'estimator':<42}{'bias²':>12}{'variance':>12}{'N':>10}")
    for name, bias2, variance, crossing in rows:
        print(f"{name:<42}{bias2:>12.6f}{variance:>12.4f}{f'{crossing:,.0f}'.replace('inf', '–'):>10}")


def draw(rows: list[Row], squared_norm: float) -> None:
    names, bias2, variance, _ = zip(*rows, strict=True)
    y = np.arange(len(rows))
    picture, (axes,) = figure(9, 7)
    axes.barh(y - 0.2, variance, height=0.4, label="variance, one trajectory (N = 2: times 2)")
    axes.barh(y + 0.2, bias2, height=0.4, label="bias² (none where there is no bar)")
    axes.axvline(squared_norm, color="black", linestyle="--", linewidth=1, label="squared norm of the gradient")
    axes.set_yticks(y, names)
    axes.set(xscale="log", xlabel="bias², variance: squared units of the gradient", ylabel="estimator")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    picture.legend(loc="outside lower center", ncols=3, fontsize="small")
    save(picture, "estimator_zoo")


def main() -> None:
    args = arguments(__doc__, seed=(1, 0), distance=(1.0, 0, 10))
    problem, rows, squared_norm = compute(args.seed, args.distance)
    show(problem, rows)
    draw(rows, squared_norm)


if __name__ == "__main__":
    main()
