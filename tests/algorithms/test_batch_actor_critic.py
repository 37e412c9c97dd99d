"""Batch actor–critic against its box, with targets, fits and ratios written out."""

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from oracles import (
    CASES,
    Case,
    Row,
    batch,
    close,
    episodes_of,
    probabilities,
    score,
    step_of,
    target_of,
    vector,
)
from strategies import examples, layers, seeds

from npg import features as F
from npg.algorithms import BatchActorCritic
from npg.distributions import Categorical
from npg.exact import enumerate_trajectories
from npg.optimizers import OPTIMIZERS
from npg.policies import SoftmaxLinear

TARGETS = ["lambda", "td", "n_step", "mc"]
SETTINGS = {"gamma": 0.8, "lam": 0.7, "n": 2, "K_v": 1, "K_pi": 1, "ridge": 0.5, "optimizer": "ascent", "alpha": 0.003}
SETTINGS |= {"outer_discount": False, "normalize": None}


def density(policy, theta, obs, a):
    """π(a|s)."""
    if isinstance(policy.distribution, Categorical):
        return probabilities(policy, theta, obs)[a]
    m, x_mu, x_sigma = (
        policy.distribution.n_actions,
        *(vector(part, obs) for part in (policy.features.mean, policy.features.scale)),
    )
    W_mu, W_sigma = np.split(theta, [m * len(x_mu)])
    mu, sigma = W_mu.reshape(m, -1) @ x_mu, np.exp(W_sigma.reshape(m, -1) @ x_sigma)
    return np.prod(np.exp(-((a - mu) ** 2) / (2 * sigma**2)) / (sigma * np.sqrt(2 * np.pi)))


def box(case, theta, w, optimizer, traj, *, gamma, lam, n, target, K_v, K_pi, ridge, outer_discount, normalize):
    """The box of chapter 8: new θ and w."""
    policy, features, episodes = case.policy, case.value_features, episodes_of(traj)
    rows = [row for episode in episodes for row in episode]
    X = np.array([vector(features, s.obs) for s in rows])

    def targets():
        def value(obs):
            return w @ vector(features, obs)

        how = {"target": target, "gamma": gamma, "lam": lam, "n": n}
        return np.array([target_of(e, t, value, **how) for e in episodes for t in range(len(e))])

    p = [density(policy, theta, s.obs, s.a) for s in rows]
    for _ in range(K_v):
        w = np.linalg.solve(X.T @ X + ridge * np.eye(X.shape[1]), X.T @ targets())
    A = targets() - X @ w
    if normalize:
        A = A / np.sqrt(np.mean((A - np.mean(A)) ** 2))
    for _ in range(K_pi):
        g = 0.0
        for s, p_t, A_t in zip(rows, p, A, strict=True):
            rho = density(policy, theta, s.obs, s.a) / p_t
            discount = gamma**s.t if outer_discount else 1.0
            g = g + discount * rho * A_t * score(policy, theta, s.obs, s.a) / len(episodes)
        theta = optimizer.step(theta, g)
    return theta, w


def make(case: Case, seed: int = 0, **changed) -> BatchActorCritic:
    """An agent at random θ and w."""
    rng = np.random.default_rng(seed)
    agent = BatchActorCritic(case.policy, case.value_features, **SETTINGS | changed)
    agent.init(rng)
    agent.theta, agent.w = 0.2 * rng.normal(size=agent.theta.shape), rng.normal(size=agent.w.shape)
    return agent


def check_box(kind, seed, **changed):
    """Two updates, so that what is kept from one to the next counts."""
    case, setting = CASES[kind], SETTINGS | changed
    agent = make(case, seed, **changed)
    theta, w = agent.theta.copy(), agent.w.copy()
    optimizer = OPTIMIZERS[setting.pop("optimizer")](len(theta), setting.pop("alpha"))
    for k in range(2):
        traj = batch(case, seed + k)
        assert not traj.valid.all()
        theta, w = box(case, theta, w, optimizer, traj, **setting)
        agent.update(traj, np.random.default_rng(0))
        np.testing.assert_allclose(agent.w, w, rtol=0, atol=1e-10 * np.abs(w).max())  # normal equations
        np.testing.assert_allclose(agent.theta, theta, rtol=0, atol=1e-10 * np.abs(theta).max())


@pytest.mark.equation("8.11", defining=True)
@pytest.mark.equation("1.8", "7.6", "7.8", "7.9", "7.19", "7.20", "8.10")
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", CASES)
@given(seeds, st.integers(1, 3), st.integers(1, 3), st.booleans())
@examples(4)
def test_update_is_its_box_line_by_line(kind, target, seed, K_v, K_pi, outer_discount):
    check_box(kind, seed, target=target, K_v=K_v, K_pi=K_pi, outer_discount=outer_discount)


@pytest.mark.equation("8.11")
@pytest.mark.parametrize("normalize", [None, "scale"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["dense", "gaussian"])
def test_update_is_its_box_with_every_optimizer(kind, optimizer, normalize):
    check_box(kind, 0, target="lambda", K_v=2, K_pi=3, optimizer=optimizer, normalize=normalize)


@pytest.mark.equation("8.11")
@given(seeds, st.sampled_from(TARGETS))
@examples(20)
def test_the_ratio_is_one_the_first_time_and_not_later(seed, target):
    agents = {K_pi: make(CASES["one-hot"], seed, target=target, K_pi=K_pi, alpha=0.5) for K_pi in (1, 2)}
    traj = batch(CASES["one-hot"], seed)
    begin = agents[1].theta.copy()
    for agent in agents.values():
        agent.update(traj, np.random.default_rng(0))
    g = {"first": (agents[1].theta - begin) / 0.5, "second": (agents[2].theta - agents[1].theta) / 0.5}
    rows = [row for episode in episodes_of(traj) for row in episode]
    x, a = agents[1].policy.features(np.array([s.obs for s in rows])), np.array([s.a for s in rows])
    A = np.array(
        [
            target_of(e, t, lambda s: agents[1].w[s], target=target, gamma=0.8, lam=0.7, n=2) - agents[1].w[e[t].obs]
            for e in episodes_of(traj)
            for t in range(len(e))
        ]
    )
    close(g["first"], agents[1].policy.weighted_score(begin, x, a, A / 15))
    without_ratio = agents[1].policy.weighted_score(agents[1].theta, x, a, A / 15)
    assert np.abs(g["second"] - without_ratio).max() > 1e-3 * np.abs(without_ratio).max()


ONE_STATE = Case(SoftmaxLinear(F.Constant(), 2), F.Constant(), spaces.Discrete(1))


@pytest.mark.equation("8.11")
@pytest.mark.parametrize("ridge", [0.0, 2.0, 1e6])
def test_a_second_step_in_the_bandit_has_the_number_of_the_chapter_whatever_the_baseline(ridge):
    alpha = 2 * np.log(4)  # so that the first step goes to p = 0.8
    rows = [Row(0, a, float(a == 0), 0, True, False, 0) for a in (0, 1)]
    traj = step_of(ONE_STATE.policy, rows, rows[0])
    steps = []
    for K_pi in (1, 2):
        agent = BatchActorCritic(
            *ONE_STATE[:2], episodes=2, target="mc", K_pi=K_pi, ridge=ridge, optimizer="ascent", alpha=alpha
        )
        agent.init(np.random.default_rng(0))
        agent.update(traj, np.random.default_rng(0))
        steps.append(agent.theta)
    assert agent.w == pytest.approx([1 / (2 + ridge)], rel=1e-12)
    assert probabilities(ONE_STATE.policy, steps[0], 0)[0] == pytest.approx(0.8, abs=1e-14)
    assert (steps[1] - steps[0]) / alpha == pytest.approx([0.16, -0.16], abs=1e-13)


@pytest.mark.equation("8.11")
@given(layers)
@examples(50)
def test_with_a_critic_held_at_zero_the_mean_of_the_first_step_is_the_gradient(p):
    agent = BatchActorCritic(
        p.policy, F.OneHot(4), gamma=p.mdp.gamma, target="mc", ridge=1e14, optimizer="ascent", alpha=1.0,
        outer_discount=True,
    )  # fmt: skip
    agent.init(p.rng)
    episodes, probability = enumerate_trajectories(p.mdp, p.policy, p.theta, 3)
    mean = 0.0
    for i, q in enumerate(probability):
        agent.theta = p.theta
        agent.update(episodes[i], p.rng)
        mean = mean + q * (agent.theta - p.theta)
    np.testing.assert_allclose(mean, p.mdp.gradient(p.policy, p.theta), rtol=0, atol=1e-10)


@pytest.mark.equation("7.18", "8.11")
def test_sweeps_with_one_step_targets_come_to_the_values_of_the_batch():
    case, traj = CASES["one-hot"], batch(CASES["one-hot"], 0)
    agent = make(case, target="td", K_v=400, ridge=0.0)
    agent.update(traj, np.random.default_rng(0))
    rows = [row for episode in episodes_of(traj) for row in episode]
    x = np.array([vector(case.value_features, s.obs) for s in rows])
    x_next = np.array([(not s.terminated) * vector(case.value_features, s.next_obs) for s in rows])
    expected = np.linalg.solve(x.T @ (x - 0.8 * x_next), x.T @ np.array([s.r for s in rows]))
    np.testing.assert_allclose(agent.w, expected, rtol=0, atol=1e-10)


@given(st.floats(0.1, 10), st.sampled_from(TARGETS))
def test_normalised_steps_do_not_depend_on_the_scale_of_rewards(scale, target):
    case, traj = CASES["dense"], batch(CASES["dense"], 0)
    agents = [make(case, target=target, normalize="scale", alpha=0.1) for _ in range(2)]
    agents[1].w = scale * agents[0].w
    agents[0].update(traj, np.random.default_rng(0))
    traj.rewards = scale * traj.rewards
    agents[1].update(traj, np.random.default_rng(0))
    np.testing.assert_allclose(agents[1].theta, agents[0].theta, rtol=0, atol=1e-11)


def test_advantages_that_differ_by_rounding_alone_are_not_normalised():
    traj = batch(CASES["one-hot"], 0)
    traj.rewards[:] = 0.1
    agents = [make(CASES["one-hot"], target="td", gamma=0.0, ridge=0.0, normalize=how) for how in (None, "scale")]
    for agent in agents:
        agent.update(traj, np.random.default_rng(0))
    assert np.array_equal(agents[0].theta, agents[1].theta)
