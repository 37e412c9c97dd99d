"""What a baseline does to the variance of the policy gradient, exactly: every trajectory is enumerated.

The variance, tr Cov of the estimate from one trajectory, is a parabola in a constant baseline b, Eq. (5.8). Its
lowest point is not at the mean return. Baselines that know the state, the parameter or the action are drawn as
levels; none of them is always the best.

    python examples/baseline_variance.py        prints the table and writes baseline_variance.png, in 2 seconds

``--seed`` is that of the random problem and policy.
"""

import numpy as np

import npg
from npg.baselines import optimal_baseline
from npg.estimators import action_baseline, all_actions, reward_to_go, score_sums, scores, total_return
from npg.exact import enumerate_trajectories
from npg.features import OneHot
from npg.lab.plotting import arguments, figure, save
from npg.problems import garnet

HORIZON = 5
MARKERS = {"b = 0": "s", "b = J": "o", "b = b*": "v"}
Curves = dict[str, np.ndarray]  # of each form of the return, n constants b and their tr Cov: (2, n)


def compute(seed: int) -> tuple[str, Curves, Curves, dict[str, float]]:
    """The problem in words; tr Cov on a grid of b, at the MARKERS, and with the other baselines."""
    rng = np.random.default_rng(seed)
    mdp = garnet(3, 2, 2, gamma=0.9, termination=0.1, seed=rng)
    policy = npg.SoftmaxLinear(OneHot(mdp.n_states), mdp.n_actions)
    theta = rng.normal(size=policy.n_params)
    traj, p = enumerate_trajectories(mdp, policy, theta, HORIZON)
    g, J = mdp.gradient(policy, theta, HORIZON), mdp.J(policy, theta, HORIZON)

    def variance(X: np.ndarray) -> float:
        assert np.allclose(p @ X, g, rtol=0, atol=1e-10), "every estimator here is unbiased"
        return float(np.trace(np.cov(X.T, aweights=p, ddof=0)))

    psi = scores(policy, theta, traj)
    X, Psi = reward_to_go(psi, traj, mdp.gamma), score_sums(psi, mdp.gamma**traj.t * traj.valid)
    forms = {"total return": (total_return(psi, traj, mdp.gamma), psi.sum(axis=0)), "reward-to-go": (X, Psi)}
    curves, points = {}, {}
    for name, (X_0, of_b) in forms.items():
        best = float(optimal_baseline(X_0, of_b, probabilities=p))
        width = 1.5 * max(abs(best), abs(J - best), 0.5)
        for results, bs in (curves, np.linspace(best - width, best + width, 101)), (points, [0, J, best]):
            results[name] = np.array([bs, [variance(X_0 - b * of_b) for b in bs]])
    q = np.array([mdp.action_value(policy, theta, HORIZON - t)[traj.obs[t]] for t in range(HORIZON)])
    v = np.array([mdp.value(policy, theta, HORIZON - t)[traj.obs[t]] for t in range(HORIZON)])
    levels = {
        "reward-to-go, b = v(s)": reward_to_go(psi, traj, mdp.gamma, v),
        "reward-to-go, b* per parameter": X - optimal_baseline(X, Psi, probabilities=p, per_parameter=True) * Psi,
        "reward-to-go, b = q(s, a), corrected": action_baseline(policy, theta, traj, mdp.gamma, q),
        "all actions, exact q": all_actions(policy, theta, traj, mdp.gamma, q),
    }
    problem = f"{len(p)} trajectories of at most {HORIZON} steps, squared norm of the gradient {g @ g:.4f}"
    return problem, curves, points, {name: variance(X) for name, X in levels.items()}


def show(problem: str, points: Curves, levels: dict[str, float]) -> None:
    print(problem)
    for name, of_form in points.items():
        for label, (b, variance) in zip(MARKERS, of_form.T, strict=True):
            print(f"{name + ', ' + label:<38}b = {b:8.4f}   tr Cov {variance:10.4f}")
    for name, variance in levels.items():
        print(f"{name:<38}{'':12}   tr Cov {variance:10.4f}")


def draw(curves: Curves, points: Curves, levels: dict[str, float]) -> None:
    picture, (axes,) = figure(8, 5)
    for color, name in zip(("C0", "C1"), curves, strict=True):
        axes.plot(*curves[name], color=color, label=name)
        for (label, marker), point in zip(MARKERS.items(), points[name].T, strict=True):
            axes.plot(*point, marker, color=color, label=f"{name}, {label}")
    for (name, variance), style in zip(levels.items(), ("-", "--", "-.", ":"), strict=True):
        axes.axhline(variance, color="black", linestyle=style, linewidth=1, label=name)
    axes.set(yscale="log", ylabel="tr Cov of the estimate from one trajectory")
    axes.set_xlabel("constant baseline b (J: the mean return, b*: the best)")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    save(picture, "baseline_variance")


def main() -> None:
    problem, curves, points, levels = compute(arguments(__doc__, seed=(1, 0)).seed)
    show(problem, points, levels)
    draw(curves, points, levels)


if __name__ == "__main__":
    main()
