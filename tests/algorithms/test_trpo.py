"""TRPO against its box, its guarantee over whole runs; and what the tests of all trust-region methods are made of."""

from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from oracles import (
    CASES,
    ONE_STATE,
    Case,
    Row,
    bandit,
    batch_of,
    batches,
    blocks,
    check_the_scale_of_rewards_does_not_matter,
    collected,
    density,
    divergence,
    first_probability,
    fit,
    kl,
    log_odds,
    made,
    near,
    repeated,
    scores,
    split,
    turned,
)
from scipy.optimize import brentq
from strategies import examples, problems, seeds

import npg
from npg import features as F
from npg.algorithms import TRPO
from npg.distributions import Categorical
from npg.envs.tabular import TabularVectorEnv
from npg.exact import TabularMDP
from npg.problems import random_walk

# A batch and its policies written out in NumPy, rows in the order of time and then of columns


def fisher_matrix(policy, theta, X):
    """The mean over rows of E[∇ log π ∇ log πᵀ], all actions: (n, n)."""
    B = len(X[0])
    if isinstance(policy.distribution, Categorical):
        p = np.exp(split(policy, theta, X)[0])
        psi = [scores(policy, theta, X, np.full(B, b)) for b in range(p.shape[1])]
        return sum((p[:, [b]] * psi_b).T @ psi_b for b, psi_b in enumerate(psi)) / B
    m, (_, sigma) = policy.distribution.n_actions, split(policy, theta, X)
    parts = []
    for j in range(m):
        unit = np.eye(m)[[j] * B]
        parts += [blocks((unit / sigma[:, [j]], X[0]), (0 * unit, X[1]))]
        parts += [blocks((0 * unit, X[0]), (np.sqrt(2) * unit, X[1]))]
    return sum(part.T @ part for part in parts) / B


# TRPO and its box

SETTINGS = {"gamma": 0.8, "lam": 0.7, "ridge": 0.5, "delta": 0.02, "damping": 1e-2, "cg_iterations": 3}
CONSTANTS = {"cg_tol": 1e-8, "sufficient": 0.1, "shrink": 0.5, "max_backtracks": 10}


def conjugate_gradients(A, b, iterations, tol):
    """The box of chapter 10."""
    x, r = np.zeros_like(b), b
    p = r
    for _ in range(iterations):
        if np.sqrt(r @ r) <= tol * np.sqrt(b @ b):
            break
        alpha = (r @ r) / (p @ A @ p)
        x = x + alpha * p
        r_next = r - alpha * (A @ p)
        p = r_next + (r_next @ r_next) / (r @ r) * p
        r = r_next
    return x


def box(case, theta, w, traj, direct=False, *, gamma, lam, ridge, delta, damping, cg_iterations, cg_tol, sufficient,
        shrink, max_backtracks):  # fmt: skip
    """The box of chapter 11: new θ, new w, and j, or None if no step was taken."""
    policy, b = case.policy, batch_of(*case[:2], traj, w, gamma=gamma, lam=lam)
    g = np.mean(b.A[:, None] * scores(policy, theta, b.X, b.a), axis=0)
    fisher = fisher_matrix(policy, theta, b.X)
    damped = fisher + damping * np.eye(len(g))
    u = np.linalg.solve(damped, g) if direct else conjugate_gradients(damped, g, cg_iterations, cg_tol)
    step = np.sqrt(2 * delta / (u @ fisher @ u)) * u
    p, taken, theta_new = density(policy, theta, b.X, b.a), None, theta
    for j in range(max_backtracks + 1):
        candidate = theta + shrink**j * step
        gain = np.mean(density(policy, candidate, b.X, b.a) / p * b.A) - np.mean(b.A)
        enough = gain >= sufficient * shrink**j * (g @ step)
        if enough and np.mean(divergence(policy, theta, candidate, b.X)) <= delta:
            taken, theta_new = j, candidate
            break
    return theta_new, fit(b.X_v, b.A + b.v, ridge, w), taken


def check_box(kind, seed, direct=False, **changed):
    """Two updates, so that what is kept from one to the next counts; which j they took."""
    turn = {name: changed.pop(name) for name in CONSTANTS if name in changed}
    case, setting, taken = CASES[kind], SETTINGS | changed, []
    agent = made(TRPO, case, seed, **setting)
    theta, w = agent.theta.copy(), agent.w.copy()
    for traj in batches(case, seed):
        theta, w, j = box(case, theta, w, traj, direct, **setting, **CONSTANTS | turn)
        with turned("trpo", **turn) if turn else nullcontext():
            diagnostics = agent.update(traj, np.random.default_rng(0))
        near(agent.theta, theta)
        near(agent.w, w)
        assert diagnostics["accepted"] == (j is not None)
        assert diagnostics["backtracks"] == ((CONSTANTS | turn)["max_backtracks"] if j is None else j)
        taken += [j]
    return taken


@pytest.mark.equation("7.20", "10.4", "10.14", "11.2", "11.3", "11.4", "11.5", "11.6")
@pytest.mark.parametrize("kind", CASES)
@given(seeds, st.sampled_from([0.0, 0.7, 1.0]), st.integers(1, 4), st.sampled_from([0.005, 0.5]), st.booleans())
@examples(20)
def test_update_is_its_box_line_by_line(kind, seed, lam, cg_iterations, delta, stingy):
    search = {"sufficient": 0.9, "shrink": 0.8} if stingy else {}
    check_box(kind, seed, lam=lam, cg_iterations=cg_iterations, delta=delta, **search)


@pytest.mark.equation("7.20", "10.14", "11.3", "11.4", "11.5")
@pytest.mark.parametrize("kind", CASES)
@given(seeds, st.sampled_from([0.005, 0.5]))
@examples(10)
def test_where_conjugate_gradient_converges_the_update_is_the_one_by_direct_solution(kind, seed, delta):
    check_box(kind, seed, direct=True, cg_iterations=200, cg_tol=1e-14, delta=delta)


@pytest.mark.equation("11.5")
@pytest.mark.parametrize(
    ("changed", "j"),
    [
        ({"delta": 0.02}, 0),
        ({"delta": 0.3}, 1),
        ({"delta": 3.0, "shrink": 0.8}, 5),
        ({"delta": 3.0, "max_backtracks": 0}, None),
    ],
)
def test_the_box_is_met_with_every_outcome_of_the_search(changed, j):
    assert j in [taken for seed in range(6) for taken in check_box("one-hot", seed, **changed)]


@pytest.mark.equation("11.4")
@given(seeds, st.sampled_from(["dense", "gaussian"]))
@examples(20)
def test_without_damping_the_step_solves_the_quadratic_model(seed, kind):
    case, delta = CASES[kind], 1e-4
    agent = made(TRPO, case, seed, gamma=0.8, delta=delta, damping=0.0, cg_iterations=200)
    theta, w, (traj,) = agent.theta, agent.w, batches(case, seed, count=1)
    b = batch_of(*case[:2], traj, w, gamma=0.8, lam=agent.lam)
    with turned("trpo", cg_tol=1e-14):
        c = 0.5 ** agent.update(traj, np.random.default_rng(0))["backtracks"]
    step, fisher = (agent.theta - theta) / c, fisher_matrix(case.policy, theta, b.X)
    g = np.mean(b.A[:, None] * scores(case.policy, theta, b.X, b.a), axis=0)
    multiplier = np.sqrt(g @ np.linalg.pinv(fisher, rcond=1e-10, hermitian=True) @ g / (2 * delta))
    np.testing.assert_allclose(multiplier * fisher @ step, g, rtol=0, atol=1e-9 * np.abs(g).max())
    assert step @ fisher @ step / 2 == pytest.approx(delta, rel=1e-9)
    rng = np.random.default_rng(seed)
    for other in rng.normal(size=(20, len(g))):
        other = np.sqrt(2 * delta / (other @ fisher @ other)) * other
        assert g @ other <= g @ step * (1 + 1e-9)


# The guarantee, over whole runs


class Update(NamedTuple):
    """One update of a run, recomputed."""

    accepted: bool
    backtracks: int
    divergence: float
    gain: float


def make_lqr():
    return npg.make_vec("npg/LQR-v0", 4, max_episode_steps=20)


RUNS = {
    "CartPole": (lambda: npg.make_vec("CartPole-v1", 4), {"gamma": 0.98, "scale": [2.4, 3.0, 0.21, 3.0]}),
    "random walk": (lambda: TabularVectorEnv(random_walk(9), 4, 30), {"gamma": 0.95}),
    "LQR": (make_lqr, {"gamma": 0.9, "features": {"kind": "affine", "scale": 1.0}, "scale": 3.0}),
    "Pendulum": (lambda: npg.make_vec("Pendulum-v1", 4), {"gamma": 0.95, "features": {"kind": "polynomial"}}),
}


def follow(make_env, seed: int, count: int = 12, max_backtracks: int = 10, **setting) -> list[Update]:
    """What each of ``count`` updates did, without the library's surrogate, divergence or Fisher matrix."""
    env = make_env()
    agent = npg.make_agent("trpo", env, n_steps=96, **{"delta": 0.05, "damping": 1e-3, "cg_iterations": 10} | setting)
    agent.init(np.random.default_rng(seed))
    found = []
    for traj in collected(agent, env, count, seed):
        policy, theta = agent.policy, agent.theta.copy()
        b = batch_of(policy, agent.value_features, traj, agent.w, gamma=agent.gamma, lam=agent.lam)
        with turned("trpo", max_backtracks=max_backtracks):
            told = agent.update(traj, np.random.default_rng(0))
        p = density(policy, theta, b.X, b.a)

        def divergence_and_gain(new, policy=policy, theta=theta, b=b, p=p):
            gain = np.mean((density(policy, new, b.X, b.a) / p - 1) * b.A)
            return np.mean(divergence(policy, theta, new, b.X)), gain

        D, gain = divergence_and_gain(agent.theta)
        assert told["kl"] == pytest.approx(D, rel=1e-9, abs=1e-15)
        assert told["improvement"] == pytest.approx(gain, rel=1e-9, abs=1e-12 * np.abs(b.A).max())
        accepted, j, c = bool(told["accepted"]), int(told["backtracks"]), CONSTANTS["shrink"]
        if accepted:
            step = (agent.theta - theta) / c**j
            g = np.mean(b.A[:, None] * scores(policy, theta, b.X, b.a), axis=0)
            slope = g @ step
            assert D <= agent.delta * (1 + 1e-12)
            assert gain >= CONSTANTS["sufficient"] * c**j * slope * (1 - 1e-9)
            assert slope > 0
            assert gain > 0
            # In the random walk log-odds reach 1000, which costs seven digits of the step's own.
            assert step @ fisher_matrix(policy, theta, b.X) @ step / 2 == pytest.approx(agent.delta, rel=1e-7)
            for i in range(j):  # each longer one was refused for a reason
                D_i, gain_i = divergence_and_gain(theta + c**i * step)
                assert D_i > agent.delta * (1 - 1e-9) or gain_i < CONSTANTS["sufficient"] * c**i * slope * (1 + 1e-9)
        else:
            assert j == max_backtracks
            assert np.array_equal(agent.theta, theta)
        found += [Update(accepted, j, D, gain)]
    env.close()
    return found


@pytest.mark.equation("11.3", "11.5")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", RUNS)
def test_in_a_whole_run_every_step_keeps_to_the_radius_and_raises_the_surrogate(name, seed):
    make_env, setting = RUNS[name]
    updates = follow(make_env, seed, **setting)
    assert sum(update.accepted for update in updates) >= 8


@pytest.mark.equation("11.5")
def test_in_whole_runs_steps_are_accepted_at_once_after_backtracking_and_not_at_all():
    outcomes, (make_env, setting) = {False: set(), True: set()}, RUNS["CartPole"]
    for seed in range(3):
        for most in (0, 10):
            for update in follow(make_env, seed, **setting, delta=1.0, max_backtracks=most):
                outcomes[update.accepted].add(update.backtracks)
                assert update.divergence == 0 or update.accepted
    assert 0 in outcomes[True]
    assert len(outcomes[True]) >= 2
    assert 0 in outcomes[False]


@pytest.mark.equation("11.5")
@pytest.mark.parametrize("kind", ["one-hot", "dense", "gaussian"])
def test_a_refused_step_leaves_theta_as_it_is_and_the_critic_is_fitted(kind):
    refused = made(TRPO, CASES[kind], 0, **SETTINGS | {"delta": 3.0})
    accepted = made(TRPO, CASES[kind], 0, **SETTINGS)
    theta, w, (traj,) = refused.theta.copy(), refused.w.copy(), batches(CASES[kind], 0, count=1)
    with turned("trpo", sufficient=0.99, max_backtracks=0):
        diagnostics = refused.update(traj, np.random.default_rng(0))
    assert accepted.update(traj, np.random.default_rng(0))["accepted"] == 1
    assert np.array_equal(refused.theta, theta)
    assert not np.array_equal(refused.w, w)
    assert np.array_equal(refused.w, accepted.w)
    assert [diagnostics[name] for name in ("accepted", "kl", "improvement", "backtracks")] == [0, 0, 0, 0]


@pytest.mark.equation("11.15")
def test_the_scale_of_rewards_does_not_matter():
    check_the_scale_of_rewards_does_not_matter(TRPO, **SETTINGS)


# What the radius does not promise


def two_steps() -> TabularMDP:
    """The example of chapter 11: action 1 pays 0.9 and then −2, action 0 ends the episode."""
    P = np.zeros((3, 2, 3))
    P[0, 1, 1] = P[0, 0, 2] = 1
    P[1:, :, 2] = 1
    return TabularMDP(P, np.array([[0, 0.9], [0, -2.0], [0, 0]]), 0.9, np.array([1.0, 0, 0]))


def aliased(p: float) -> np.ndarray:
    """Action 1 with probability p in every state."""
    return np.array([[1 - p, p]] * 3)


@pytest.mark.equation("11.3")
def test_within_the_radius_the_surrogate_may_rise_and_the_return_fall():
    mdp, p = two_steps(), 0.24
    J, old = mdp.J(aliased(p)), aliased(p)
    best = brentq(lambda q: kl(p, q) - 0.01, p, 0.9, xtol=1e-15)  # L is linear and rises with p: the edge
    assert best == pytest.approx(0.30359, abs=1e-5)
    assert J == pytest.approx(0.112320, abs=1e-12)
    assert mdp.surrogate(aliased(best), old) - J == pytest.approx(0.002289, abs=1e-6)
    assert mdp.J(aliased(best)) == pytest.approx(0.107330, abs=1e-6)
    for q in np.linspace(0.05, 0.95, 19):
        assert mdp.surrogate(aliased(q), old) - J == pytest.approx(0.036 * (q - p), abs=1e-14)
        assert mdp.J(aliased(q)) == pytest.approx(0.9 * q - 1.8 * q**2, abs=1e-14)


@pytest.mark.equation("11.3")
@pytest.mark.parametrize(("p", "radius"), [(0.2, 0.0257), (0.24, 0.00106), (0.249, 0.0000107)])
def test_no_radius_is_safe_for_every_policy(p, radius):
    mdp, turn = two_steps(), kl(p, 0.5 - p)
    assert turn == pytest.approx(radius, rel=5e-3)
    for delta, falls in ((1.01 * turn, True), (0.99 * turn, False)):
        q = brentq(lambda q, delta=delta: kl(p, q) - delta, p, 0.9, xtol=1e-15)
        assert (mdp.J(aliased(q)) < mdp.J(aliased(p))) == falls
        assert mdp.surrogate(aliased(q), aliased(p)) > mdp.J(aliased(p))


@pytest.mark.equation("11.3")
def test_the_step_that_the_bound_allows_raises_the_return_a_little():
    mdp, p = two_steps(), 0.24
    epsilon = np.abs(mdp.advantage(aliased(p))).max()
    C = 2 * epsilon * 0.9 / 0.1**2
    assert (epsilon, C) == pytest.approx((1.52, 273.6), abs=1e-12)
    q = brentq(lambda q: 0.036 - C * (q - p) / (q * (1 - q)), p, 0.3, xtol=1e-16)  # the derivative of the bound
    assert q == pytest.approx(0.240024, abs=5e-7)
    assert mdp.surrogate(aliased(q), aliased(p)) - C * kl(p, q) > mdp.J(aliased(p))
    assert mdp.J(aliased(q)) - mdp.J(aliased(p)) == pytest.approx(8.6e-7, abs=5e-9)


@pytest.mark.equation("11.3", defining=True)
@given(problems(discounted=True))
@examples(200)
def test_maximising_the_bound_along_a_line_never_lowers_the_return(p):
    gradient, old = p.mdp.gradient(p.policy, p.theta), p.mdp.policy_matrix(p.policy, p.theta)
    gamma, J = p.mdp.gamma, p.mdp.J(old)
    C = 2 * np.abs(p.mdp.advantage(old)).max() * gamma / (1 - gamma) ** 2
    candidates = []
    for t in np.append(0.0, np.geomspace(1e-6, 10, 8)):
        new = p.mdp.policy_matrix(p.policy, p.theta + t * gradient)
        worst = (old * np.log(old / new)).sum(axis=1).max()
        bound = p.mdp.surrogate(new, old) - C * worst
        rounding = 1e-13 * (1 + C)
        assert p.mdp.J(new) >= bound - rounding
        candidates.append((bound, p.mdp.J(new)))
    assert max(candidates)[0] >= J - rounding
    assert max(candidates)[1] >= J - rounding


@pytest.mark.equation("11.3", "11.5")
def test_trpo_itself_lowers_the_return_on_exact_expectations():
    # States 0 and 1 in the proportion of the visitation (1, 0.216), actions in that of the policy (0.76, 0.24).
    mdp, p = two_steps(), 0.24
    case = Case(ONE_STATE.policy, F.OneHot(3), spaces.Discrete(3))
    rows = [Row(0, 0, 0.0, 2, True, False, 0), Row(0, 1, 0.9, 1, False, False, 0)]
    rows += [Row(1, 0, 0.0, 2, True, False, 1), Row(1, 1, -2.0, 2, True, False, 1)]
    traj = repeated(case, rows, [2375, 750, 513, 162])
    agent = TRPO(*case[:2], gamma=0.9, lam=0.0, delta=0.01, damping=0.0)
    agent.init(np.random.default_rng(0))
    agent.theta, agent.w = np.array([0.0, log_odds(p)]), mdp.value(aliased(p))
    np.testing.assert_allclose(
        batch_of(*case[:2], traj, agent.w, gamma=0.9, lam=0.0).A,
        mdp.advantage(aliased(p))[traj.obs[0], traj.actions[0]],
        rtol=0,
        atol=1e-15,
    )
    old = agent.theta
    diagnostics = agent.update(traj, np.random.default_rng(0))
    new = 1 - first_probability(agent)
    assert (diagnostics["accepted"], diagnostics["backtracks"]) == (1, 1)
    assert new == pytest.approx(0.27148, abs=5e-6)
    full = old + 2 * (agent.theta - old)
    q = 1 / (1 + np.exp(full[0] - full[1]))
    assert (q, kl(p, q)) == (pytest.approx(0.30544, abs=5e-6), pytest.approx(0.01056, abs=5e-6))
    assert diagnostics["kl"] == pytest.approx(0.00257, abs=5e-6)
    assert diagnostics["improvement"] * 1.216 == pytest.approx(0.036 * (new - p), rel=1e-10)
    slope = diagnostics["gradient_norm"] * np.linalg.norm(agent.theta - old)  # both along (−1, 1)
    assert diagnostics["improvement"] / slope == pytest.approx(1.042, abs=5e-4)
    assert mdp.J(aliased(new)) - mdp.J(aliased(p)) == pytest.approx(-0.00065, abs=5e-6)


@pytest.mark.equation("11.4", "11.5")
@pytest.mark.parametrize(
    ("p", "full", "half"),
    [(0.05, 0.01221, 0.00276), (0.5, 0.00997, None), (0.95, 0.00829, None), (0.001, 0.0787, 0.00609)],
)
def test_the_full_step_of_the_bandit_has_the_divergences_of_the_chapter(p, full, half):
    agent = TRPO(*ONE_STATE[:2], delta=0.01, damping=0.0)
    agent.init(np.random.default_rng(0))
    agent.theta = np.array([log_odds(p), 0.0])
    counts = [round(1000 * p), 1000 - round(1000 * p)]
    diagnostics = agent.update(bandit((1.0, 0.0), counts), np.random.default_rng(0))
    moved = (agent.theta[0] - agent.theta[1] - log_odds(p)) * (1 if half is None else 2)
    assert moved == pytest.approx(np.sqrt(0.02 / (p * (1 - p))), rel=1e-10)
    assert kl(p, 1 / (1 + np.exp(-log_odds(p) - moved))) == pytest.approx(full, abs=6e-6 if full < 0.05 else 6e-5)
    assert diagnostics["kl"] == pytest.approx(half or full, abs=6e-6)
    assert diagnostics["backtracks"] == (half is not None)


@pytest.mark.equation("11.6")
def test_the_radius_is_one_of_the_divergence_from_the_old_policy_to_the_new():
    agent = TRPO(*ONE_STATE[:2], delta=0.01, damping=0.0)
    agent.init(np.random.default_rng(0))
    agent.theta = np.array([log_odds(0.1), 0.0])
    with turned("trpo", shrink=0.999, max_backtracks=200):
        diagnostics = agent.update(bandit((1.0, 0.0), [1, 9]), np.random.default_rng(0))
    q = first_probability(agent)
    edges = [brentq(lambda q, D=D: D(q) - 0.01, 0.1, 0.9) for D in (lambda q: kl(0.1, q), lambda q: kl(q, 0.1))]
    assert edges == pytest.approx([0.14768, 0.14495], abs=5e-6)
    assert diagnostics["backtracks"] > 10
    assert edges[0] - 1e-4 < q < edges[0]
