"""Off-policy REINFORCE against the estimators of chapter 6; its exact means, and the bias of using a batch again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import (
    CASES,
    ONE_STATE,
    bandit,
    batch,
    d_pi,
    episodes_of,
    every_episode,
    in_quarters,
    make,
    near,
    probabilities,
    row_of,
    score,
    vector,
)
from strategies import examples, seeds

import npg
from npg.algorithms import OffPolicyReinforce
from npg.features import OneHot
from npg.lab.collect import Collector
from npg.trajectories import LEAST_LOG_B

ESTIMATES = ["first_order", "per_decision", "whole", "weighted"]


def ratio(case, theta, row, log_b):
    """π/b of a row of a softmax policy."""
    return probabilities(case.policy, theta, row.obs)[row.a] / np.exp(log_b)


def estimate(case, theta, episodes, kind, gamma, outer_discount=True):
    """The mean of X over episodes, lists of rows with log b and a baseline, from their definitions."""
    total, weight = 0.0, 0.0
    for episode in episodes:
        rho = [ratio(case, theta, row, log_b) for row, log_b, _ in episode]
        X = 0.0
        for t, (row, _, v) in enumerate(episode):
            later = range(t, len(episode))
            if kind == "per_decision":
                G = sum(gamma ** (k - t) * np.prod(rho[t + 1 : k + 1]) * episode[k][0].r for k in later)
                w = np.prod(rho[: t + 1])
            else:
                G = sum(gamma ** (k - t) * episode[k][0].r for k in later)
                w = rho[t] if kind == "first_order" else np.prod(rho)
            X = X + (gamma**t if outer_discount else 1) * w * (G - v) * score(case.policy, theta, row.obs, row.a)
        total, weight = total + X, weight + np.prod(rho)
    return total / (weight if kind == "weighted" else len(episodes))


def with_log_b(traj, rng):
    """Other ratios in each row."""
    traj.log_b = traj.log_b + rng.uniform(-0.3, 0.3, traj.log_b.shape) * traj.valid
    return traj


def episodes_with_log_b(traj, v):
    """Lists of (row, log b, v(row))."""
    found = []
    for n in range(traj.valid.shape[1]):
        for t in range(len(traj.valid)):
            row = row_of(traj, n, t)
            if row:
                found += [[]] if row.t == 0 else []
                found[-1].append((row, traj.log_b[t, n], v(row)))
    return found


@pytest.mark.equation("6.14", "6.16", "6.17", "6.20", "6.21", "12.23")
@pytest.mark.parametrize("kind", ["one-hot", "dense", "tiles"])
@pytest.mark.parametrize("how", ESTIMATES)
@given(seeds, st.integers(1, 3), st.integers(1, 3), st.booleans(), st.sampled_from(["linear", "none"]))
@examples(8)
def test_updates_are_the_box_over_the_batches_that_are_kept(kind, how, seed, K, n, outer_discount, baseline):
    case, rng, kept = CASES[kind], np.random.default_rng(seed), []
    setting = {"gamma": 0.8, "alpha": 0.01, "estimate": how, "outer_discount": outer_discount, "baseline": baseline}
    agent = make(OffPolicyReinforce, case, seed, batches=K, updates=n, optimizer="ascent", **setting)
    theta, w = agent.theta.copy(), agent.w.copy()
    for k in range(4):
        traj = with_log_b(batch(case, seed + k), rng)
        new = episodes_with_log_b(traj, lambda row, w=w: w @ vector(case.value_features, row.obs))
        kept = [*kept, new][-K:]
        if baseline == "linear":
            X = np.array([vector(case.value_features, row.obs) for episode in new for row, *_ in episode])
            G = [sum(0.8 ** (j - t) * e[j][0].r for j in range(t, len(e))) for e in new for t in range(len(e))]
            w = np.linalg.solve(X.T @ X + np.eye(len(w)), X.T @ G)
        assert sum(map(len, kept)) == len(kept) * len(episodes_of(traj))
        episodes = [episode for found in kept for episode in found]
        for _ in range(n):
            theta = theta + 0.01 * estimate(case, theta, episodes, how, 0.8, outer_discount)
        agent.update(traj, np.random.default_rng(0))
        near(agent.theta, theta)
        near(agent.w, w)


# Means for a fixed θ


def two_batches(p, other):
    """Every episode of two behaviours, as often as they occur, with their log b."""
    for theta_b in (p.theta, other):
        traj = every_episode(p._replace(theta=theta_b))
        b = p.mdp.policy_matrix(p.policy, theta_b)
        traj.log_b = np.where(traj.valid, np.log(b[traj.obs, traj.actions]), 0.0)
        yield traj


@pytest.mark.equation("12.23", defining=True)
@pytest.mark.parametrize("how", ESTIMATES)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_for_a_fixed_theta_the_mean_over_batches_of_two_policies_is_the_gradient(how, shared, gamma):
    p = in_quarters(gamma, shared)
    theta = np.random.default_rng(0).normal(size=p.policy.n_params)
    agent = OffPolicyReinforce(
        p.policy, OneHot(p.mdp.n_states), gamma=gamma, batches=2, updates=1, estimate=how, optimizer="ascent", alpha=1.0
    )
    agent.init(np.random.default_rng(0))
    batches = list(two_batches(p, np.zeros(p.policy.n_params)))
    agent.remember(batches[0])
    assert np.abs(agent.w).max() > 0  # the second batch has a baseline
    agent.theta = theta.copy()
    agent.update(batches[1], np.random.default_rng(0))
    exact = p.mdp.gradient(p.policy, theta)
    if how != "first_order":  # the mean of the ratios is one, as all episodes are there
        near(agent.theta - theta, exact)
        return
    mean = 0.0
    for theta_b in (p.theta, np.zeros(p.policy.n_params)):  # ∇L: states and values of the behaviour
        d, q = p.mdp.visitation(p.policy, theta_b), p.mdp.action_value(p.policy, theta_b)
        mean = mean + np.einsum("s,sa,san->n", d, q, d_pi(p._replace(theta=theta))) / 2
    near(agent.theta - theta, mean)
    assert np.abs(mean - exact).max() > 1e-3


@pytest.mark.equation("12.23")
def test_the_batch_that_made_theta_gives_a_biased_gradient_there():
    """The example of the chapter: one decision with rewards 1 and 0, drawn once at p = 1/2, and the step x = 2X."""
    p_1, estimates = [], []
    for a in (0, 1):
        agent = OffPolicyReinforce(
            ONE_STATE.policy,
            ONE_STATE.policy.features,
            baseline="none",
            updates=1,
            estimate="whole",
            optimizer="ascent",
            alpha=1.0,
        )
        agent.init(np.random.default_rng(0))
        traj = bandit((1.0, 0.0), [1 - a, a])
        traj.log_b = np.log([[0.5]])
        agent.update(traj, np.random.default_rng(0))
        p_1.append(probabilities(ONE_STATE.policy, agent.theta, 0)[0])
        before = agent.theta
        agent.update(traj, np.random.default_rng(0))  # the same batch, which alone is kept
        estimates.append((agent.theta - before)[0])
    assert p_1 == pytest.approx([1 / (1 + np.exp(-1)), 0.5])
    assert np.mean([p * (1 - p) for p in p_1]) == pytest.approx(0.2233, abs=5e-5)
    assert np.mean(estimates) == pytest.approx(p_1[0] * (1 - p_1[0]), abs=1e-12)
    assert np.mean(estimates) == pytest.approx(0.1966, abs=5e-5)


def test_whatever_is_logged_is_that_of_the_policy_that_acts():
    env = npg.make_vec("npg/RandomWalk-v0", 3)
    agent = npg.make_agent("off_policy_reinforce", env, episodes=6)
    rng = np.random.default_rng(0)
    agent.init(rng, 3)
    agent.theta = rng.normal(size=agent.theta.shape)
    traj = Collector(env, 0).collect(agent, agent.collect, rng)
    x, a, log_b = traj.rows(traj.log_b)
    near(log_b, agent.policy.log_prob(agent.theta, x, a))
    assert (traj.log_b[~traj.valid] == 0).all()


@pytest.mark.equation("12.24")
@pytest.mark.parametrize("wrong", [None, np.nan, -np.inf, LEAST_LOG_B - 1.0])
def test_data_without_a_probability_are_refused_and_not_kept(wrong):
    case = CASES["one-hot"]
    agent, traj = make(OffPolicyReinforce, case), batch(case, 0)
    if wrong is None:
        traj.log_b = None
    else:
        traj.log_b[np.argwhere(traj.valid)[5][0], np.argwhere(traj.valid)[5][1]] = wrong
    before = agent.state()
    with pytest.raises(ValueError, match="log_b must "):
        agent.update(traj, np.random.default_rng(0))
    assert agent.state().keys() == before.keys()
    assert np.array_equal(agent.theta, before["theta"])


def test_gaussian_policies_learn_too():
    case = CASES["gaussian on shared tiles"]
    agent = make(OffPolicyReinforce, case, batches=2)
    for seed in range(3):
        before = agent.theta
        agent.update(batch(case, seed), np.random.default_rng(0))
        assert np.isfinite(agent.theta).all()
        assert not np.array_equal(agent.theta, before)


@pytest.mark.parametrize("rho", [0.2, 5.0])
def test_normalised_products_of_long_episodes_neither_vanish_nor_overflow(rho):
    agent = make(OffPolicyReinforce, CASES["one-hot"], estimate="weighted", outer_discount=False)
    R, zeros = np.ones((1000, 3)), np.zeros((1000, 3))
    equal = agent.weights(R, np.full((1000, 3), rho), zeros)
    near(equal, agent.weights(R, np.ones((1000, 3)), zeros))
