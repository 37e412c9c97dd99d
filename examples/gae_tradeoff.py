"""Bias and variance of the advantage estimate GAE(γ, λ) against λ, exactly: every trajectory is enumerated.

The problem is a random one unrolled in time, so that each episode ends by itself, no value is bootstrapped at a cut,
and λ = 1 is the Monte-Carlo advantage. For each step S_t = s, A_t = a, the estimate, Eq. (7.20), has a bias, which the
script also computes by Eq. (7.21), and a variance given (s, a); drawn are their means under the on-policy weights of
the pairs (s, a). The critics are v_π, v_π plus one random error in two sizes, and zero. Dotted: without the mean of the
bias over actions, a baseline error that a policy gradient does not see, Eq. (1.11).

Neither curve need be monotone: bottom right is the example of chapter 7, where the bias from the first state is zero at
both ends and largest in the middle, and the variance falls with λ.

    python examples/gae_tradeoff.py        prints the table and writes gae_tradeoff.png, in a second

``--seed`` is that of the random problem, policy and error of the critic, whose smaller size is ``--error``.
"""

import numpy as np

import npg
from npg.exact import TabularMDP, enumerate_trajectories
from npg.features import OneHot
from npg.lab.plotting import arguments, figure, save
from npg.problems import garnet
from npg.returns import gae
from npg.trajectories import Trajectories

STEPS = 6
LAM = np.linspace(0, 1, 51)


def unrolled(mdp: TabularMDP, steps: int) -> TabularMDP:
    """The first ``steps`` steps of a problem, with the time in the state: state tS + s, and the last is terminal."""
    live = ~mdp.terminal
    S, A, end = live.sum(), mdp.n_actions, steps * live.sum()
    P, R = np.zeros((end + 1, A, end + 1)), np.zeros((end + 1, A))
    R[:end] = np.tile(mdp.R[live], (steps, 1))
    for t in range(steps - 1):
        P[t * S : (t + 1) * S, :, (t + 1) * S : (t + 2) * S] = mdp.P[live][..., live]
    P[..., end] = 1 - P.sum(axis=2)
    return TabularMDP(P, R, mdp.gamma, np.pad(mdp.rho0[live], (0, end + 1 - S)))


def moments(
    mdp: TabularMDP, traj: Trajectories, p: np.ndarray, v: np.ndarray, lam: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of GAE given (s, a), over all trajectories; 0 where (s, a) never occurs: (S, A) each."""
    estimate = gae(traj.rewards, v[traj.obs], v[traj.next_obs], traj.terminated, traj.truncated, mdp.gamma, lam)
    pair = (traj.obs * mdp.n_actions + traj.actions)[traj.valid]
    weight, estimate = np.broadcast_to(p, traj.valid.shape)[traj.valid], estimate[traj.valid]

    def total(x: np.ndarray) -> np.ndarray:
        return np.bincount(pair, x, mdp.n_states * mdp.n_actions)

    visits = np.where(total(weight) > 0, total(weight), 1.0)
    mean = total(weight * estimate) / visits
    variance = total(weight * (estimate - mean[pair]) ** 2) / visits
    return mean.reshape(mdp.n_states, -1), variance.reshape(mdp.n_states, -1)


def exact_bias(mdp: TabularMDP, pi: np.ndarray, e: np.ndarray, lam: float) -> np.ndarray:
    """−e(s) + γ(1 − λ) Σ_k (γλ)^k (P_a P_π^k e)(s), Eq. (7.21), with e = 0 at terminal states: (S, A)."""
    chain = np.einsum("sa,sat->st", pi, mdp.P)
    series = np.linalg.solve(np.eye(mdp.n_states) - mdp.gamma * lam * np.where(mdp.terminal, 0.0, chain), e)
    return -e[:, None] + mdp.gamma * (1 - lam) * mdp.P @ np.where(mdp.terminal, 0.0, series)


def not_monotone() -> tuple[np.ndarray, np.ndarray]:
    """Bias and variance from s_0 at each λ, in the example after Eq. (7.7)."""
    P, end = np.zeros((5, 2, 5)), 4  # both actions do the same
    P[0, :, [1, 2]] = 0.5
    P[[1, 2, 3, end], :, [end, 3, end, end]] = 1
    mdp = TabularMDP(P, np.zeros((5, 2)), 1.0, np.eye(5)[0])
    policy = npg.SoftmaxLinear(OneHot(5), 2)
    traj, p = enumerate_trajectories(mdp, policy, np.zeros(policy.n_params), 3)
    v = np.array([0.0, 1.0, -1.0, 1.0, 0.0])
    mean, variance = np.moveaxis([moments(mdp, traj, p, v, lam) for lam in LAM], 1, 0)
    bias, variance = mean[:, 0, 0], variance[:, 0, 0]
    assert np.allclose(bias, LAM * (1 - LAM) / 2), "chapter 7"
    assert np.allclose(variance, (1 - LAM) ** 2 * (2 - LAM) ** 2 / 4), "chapter 7"
    return bias, variance


def compute(seed: int, size: float) -> tuple[str, dict[str, np.ndarray]]:
    """The problem in words; of each critic (λ, 3): bias², bias² without what all actions share, variance."""
    rng = np.random.default_rng(seed)
    mdp = unrolled(garnet(3, 2, 2, gamma=0.95, termination=0.05, seed=rng), STEPS)
    policy = npg.SoftmaxLinear(OneHot(mdp.n_states), mdp.n_actions)
    theta = rng.normal(size=policy.n_params)
    pi, v, advantage = mdp.policy_matrix(policy, theta), mdp.value(policy, theta), mdp.advantage(policy, theta)
    traj, p = enumerate_trajectories(mdp, policy, theta, STEPS)
    assert not traj.truncated.any(), "every episode ends by itself"
    weights = mdp.visitation(policy, theta, gamma=1, normalized=True)[:, None] * pi
    noise = rng.normal(size=mdp.n_states) * ~mdp.terminal
    critics = {"v_π": v} | {f"v_π + error of size {c:g}": v + c * noise for c in (size, 3 * size)} | {"zero": 0 * v}
    curves = {name: np.empty((len(LAM), 3)) for name in critics}
    for name, critic in critics.items():
        for row, lam in zip(curves[name], LAM, strict=True):
            mean, variance = moments(mdp, traj, p, critic, lam)
            bias = np.where(weights > 0, mean - advantage, 0.0)
            expected = np.where(weights > 0, exact_bias(mdp, pi, critic - v, lam), 0.0)
            assert np.allclose(bias, expected, rtol=0, atol=1e-10), "Eq. (7.21)"
            seen = bias - (pi * bias).sum(axis=1, keepdims=True)
            row[:] = [(weights * x).sum() for x in (bias**2, seen**2, variance)]
    problem = f"{len(p)} trajectories of at most {STEPS} steps; means over (s, a), of the squared advantage\n"
    return problem + f"{(weights * advantage**2).sum():.4f}", curves


def show(problem: str, curves: dict[str, np.ndarray], bias: np.ndarray, variance: np.ndarray) -> None:
    print(f"{problem}; bias* is without what all actions share, mse = bias² + variance")
    print(f"{'critic':<28}{'λ':>6}" + "".join(f"{x:>10}" for x in ("bias²", "bias*²", "variance", "mse", "mse*")))
    for name, curve in curves.items():
        mse = curve[:, :2] + curve[:, 2:]  # with the whole bias, and with what a gradient sees of it
        best = mse.argmin(axis=0)
        for i in sorted({0, len(LAM) // 2, *best, len(LAM) - 1}):
            numbers = "".join(f"{x:>10.4f}" for x in np.abs([*curve[i], *mse[i]]))
            least = [f"least {x}" for x, j in zip(("mse", "mse*"), best, strict=True) if i == j]
            print(f"{name:<28}{LAM[i]:>6.2f}{numbers}  {', '.join(least)}".rstrip())
    print("example of chapter 7, from the first state: bias and variance")
    for i in (0, len(LAM) // 2, len(LAM) - 1):
        print(f"λ = {LAM[i]:.2f}{bias[i]:>10.4f}{variance[i]:>10.4f}")


def draw(curves: dict[str, np.ndarray], bias: np.ndarray, variance: np.ndarray) -> None:
    picture, panels = figure(11, 8.5, 2, 2)
    of_bias, of_variance, of_mse, example = panels
    for color, (name, curve) in zip(("C0", "C1", "C2", "C3"), curves.items(), strict=True):
        of_variance.plot(LAM, curve[:, 2], color=color)
        for bias2, style, label in zip(curve.T[:2], ("-", ":"), (name, f"{name}, bias*"), strict=True):
            mse = bias2 + curve[:, 2]
            of_bias.plot(LAM, np.sqrt(bias2), style, color=color)
            of_mse.plot(LAM, mse, style, color=color, label=label)
            of_mse.plot(LAM[mse.argmin()], mse.min(), "o", color=color)
    of_bias.set(title="bias (dotted: bias*, what a gradient sees of it)", ylabel="root mean square bias, in return")
    of_variance.set(title="variance given (s, a)", ylabel="variance, in squared return")
    of_mse.set(title="mean squared error (dots: least)", ylabel="bias² + variance, in squared return")
    example.set(title="not monotone: the example of chapter 7", ylabel="bias in return, variance in squared return")
    example.plot(LAM, bias, color="black", label="bias")
    example.plot(LAM, variance, "--", color="black", label="variance")
    example.legend()
    for axes in panels:
        axes.set_ylim(bottom=0)
        axes.set_xlabel("λ")
    picture.legend(*of_mse.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    save(picture, "gae_tradeoff")


def main() -> None:
    args = arguments(__doc__, seed=(1, 0), error=(0.3, 1e-6, 100))
    problem, curves = compute(args.seed, args.error)
    example = not_monotone()
    show(problem, curves, *example)
    draw(curves, *example)


if __name__ == "__main__":
    main()
