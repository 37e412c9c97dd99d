"""A2C against its box, and its gradients against those of its objective."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import (
    CASES,
    Case,
    Row,
    close,
    probabilities,
    score,
    segments,
    step_of,
    target_of,
    vector,
    windows,
)
from strategies import examples, seeds

from npg import features as F
from npg.algorithms import A2C
from npg.distributions import Categorical
from npg.gradcheck import check_gradient
from npg.optimizers import OPTIMIZERS
from npg.policies import SoftmaxLinear
from npg.returns import gae, n_step_returns

SETTINGS = {"gamma": 0.8, "n_steps": 5, "advantage": "gae", "lam": 0.7, "n": 2, "beta": 0.3, "clip": 0.5}
SETTINGS |= {"normalize": None, "optimizer": "ascent", "alpha": 0.01, "alpha_w": 0.1}
UNCLIPPED = {"clip": 1e9, "alpha": 1.0, "alpha_w": 1.0}


def make(case: Case, seed: int = 0, **changed) -> A2C:
    """An agent at random θ and w."""
    rng = np.random.default_rng(seed)
    agent = A2C(case.policy, case.value_features, **SETTINGS | changed)
    agent.init(rng)
    agent.theta, agent.w = 0.2 * rng.normal(size=agent.theta.shape), rng.normal(size=agent.w.shape)
    return agent


def grad_entropy(policy, theta, obs):
    """∇H of the policy in one state."""
    if isinstance(policy.distribution, Categorical):
        p, x = probabilities(policy, theta, obs), vector(policy.features, obs)
        H = -sum(p * np.log(p))
        return np.concatenate([-p_a * (np.log(p_a) + H) * x for p_a in p])
    m = policy.distribution.n_actions
    x_mu, x_sigma = vector(policy.features.mean, obs), vector(policy.features.scale, obs)
    return np.concatenate([np.zeros(m * len(x_mu)), np.tile(x_sigma, m)])


def box(case, theta, w, ascents, traj, *, gamma, advantage, lam, n, beta, clip, normalize):
    """The box of chapter 8: new θ and w."""
    policy, features = case.policy, case.value_features

    def value(obs):
        return w @ vector(features, obs)

    how = {"target": {"gae": "lambda", "n_step": "n_step"}[advantage], "gamma": gamma, "lam": lam, "n": n}
    rows, G = [], []
    for part in windows(traj):
        rows += part
        G += [target_of(part, t, value, **how) for t in range(len(part))]
    A = np.array([G_t - value(s.obs) for G_t, s in zip(G, rows, strict=True)])
    g_w = sum((G_t - value(s.obs)) * vector(features, s.obs) for G_t, s in zip(G, rows, strict=True)) / len(rows)
    if normalize:
        A = (A - sum(A) / len(A)) / np.sqrt(sum((A - sum(A) / len(A)) ** 2) / len(A))
    g = 0.0
    for A_t, s in zip(A, rows, strict=True):
        g = g + (A_t * score(policy, theta, s.obs, s.a) + beta * grad_entropy(policy, theta, s.obs)) / len(rows)
    g, g_w = (h * min(1, clip / np.sqrt(h @ h)) for h in (g, g_w))
    return ascents[0].step(theta, g), ascents[1].step(w, g_w)


def check_box(kind, seed, **changed):
    """Four updates, so that what is kept from one to the next counts."""
    case, setting = CASES[kind], SETTINGS | changed
    agent = make(case, seed, **changed)
    theta, w = agent.theta.copy(), agent.w.copy()
    optimizer = OPTIMIZERS[setting.pop("optimizer")]
    ascents = optimizer(len(theta), setting.pop("alpha")), optimizer(len(w), setting.pop("alpha_w"))
    del setting["n_steps"]
    for traj in segments(case, seed):
        assert not traj.valid.all()
        theta, w = box(case, theta, w, ascents, traj, **setting)
        agent.update(traj, np.random.default_rng(0))
        close(agent.theta, theta)
        close(agent.w, w)


@pytest.mark.equation("8.12", defining=True)
@pytest.mark.equation("7.6", "7.19", "7.20", "8.10", "8.13")
@pytest.mark.parametrize("advantage", ["gae", "n_step"])
@pytest.mark.parametrize("kind", CASES)
@given(
    seeds,
    st.sampled_from([0.0, 0.7, 1.0]),
    st.sampled_from([1, 2, 9]),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from([0.1, 2.0, 1e9]),
    st.sampled_from([None, "standardize"]),
)
@examples(5)
def test_update_is_its_box_line_by_line(kind, advantage, seed, lam, n, beta, clip, normalize):
    check_box(kind, seed, advantage=advantage, lam=lam, n=n, beta=beta, clip=clip, normalize=normalize)


@pytest.mark.equation("8.12", "8.13", "8.14")
@pytest.mark.parametrize("clip", [0.1, 1e9])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["dense", "gaussian on shared tiles"])
def test_update_is_its_box_with_every_optimizer(kind, optimizer, clip):
    check_box(kind, 0, optimizer=optimizer, clip=clip)


@pytest.mark.equation("8.12")
@pytest.mark.parametrize("advantage", ["gae", "n_step"])
@pytest.mark.parametrize("kind", CASES)
@given(seeds)
@examples(3)
def test_the_two_steps_are_the_gradients_of_the_objective(kind, advantage, seed):
    case = CASES[kind]
    agent, traj = make(case, seed, advantage=advantage, **UNCLIPPED), segments(case, seed)[1]
    theta, w, valid = agent.theta.copy(), agent.w.copy(), traj.valid
    v, v_next = (agent.v.value(w, obs.reshape(-1, *obs.shape[2:])).reshape(5, 3) for obs in (traj.obs, traj.next_obs))
    ends = traj.terminated, traj.truncated
    if advantage == "gae":
        A = gae(traj.rewards, v, v_next, *ends, 0.8, 0.7)
    else:
        A = n_step_returns(traj.rewards, v_next, *ends, 0.8, 2) - v
    x, a, A, G = F.rows(traj.x, valid), traj.actions[valid], A[valid], (A + v)[valid]

    def objective(theta):
        return (A * case.policy.log_prob(theta, x, a) + 0.3 * case.policy.entropy(theta, x)).sum() / valid.sum()

    def loss(w):
        return -((G - agent.v.value(w, traj.obs[valid])) ** 2).sum() / (2 * valid.sum())

    agent.update(traj, np.random.default_rng(0))
    for method in ("central", "complex"):
        for f, after, before in ((objective, agent.theta, theta), (loss, agent.w, w)):
            check = check_gradient(f, after - before, before, method=method)
            assert check.passed, (f.__name__, method, check)


ONE_STATE = Case(SoftmaxLinear(F.Constant(), 3), F.Constant(), None)


@pytest.mark.equation("8.12")
@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_with_the_entropy_it_is_at_rest_where_probabilities_are_exponentials_of_the_values(beta):
    # One row for each sixth of the probability, so that the mean over rows is that over actions.
    p = np.array([1 / 6, 2 / 6, 3 / 6])
    for q, rests in ((beta * np.log(p) + 3, True), (1.1 * beta * np.log(p), False)):
        agent = make(ONE_STATE, beta=beta, **UNCLIPPED)
        agent.theta = np.log(p)
        rows = [Row(0, a, q[a], 0, True, False, 0) for a in (0, 1, 1, 2, 2, 2)]
        agent.update(step_of(ONE_STATE.policy, rows, rows[0]), np.random.default_rng(0))
        assert np.allclose(agent.theta, np.log(p), rtol=0, atol=1e-13) == rests


@pytest.mark.equation("8.12")
@pytest.mark.parametrize("normalize", [None, "standardize"])
def test_the_critic_learns_the_same_whether_advantages_are_normalised(normalize):
    agent, plain = make(CASES["dense"], normalize=normalize), make(CASES["dense"])
    for traj in segments(CASES["dense"], 0):
        theta = agent.theta.copy()
        agent.update(traj, np.random.default_rng(0))
        plain.update(traj, np.random.default_rng(0))
        assert np.array_equal(agent.w, plain.w)
    assert np.array_equal(agent.theta, plain.theta) == (not normalize)
    assert not np.array_equal(theta, agent.theta)


def test_advantages_that_differ_by_rounding_alone_are_not_blown_up():
    traj = segments(CASES["one-hot"], 0)[0]
    traj.truncated |= traj.terminated
    traj.rewards[:], traj.terminated[:] = 0.7, False
    agents = [make(CASES["one-hot"], gamma=0.8, normalize=normalize) for normalize in (None, "standardize")]
    for agent in agents:
        agent.w[:] = 0.7 / (1 - 0.8)  # the value, up to rounding
        diagnostics = agent.update(traj, np.random.default_rng(0))
    assert 0 < diagnostics["advantage_std"] < 1e-15
    np.testing.assert_allclose(agents[0].theta, agents[1].theta, rtol=0, atol=1e-14)


@pytest.mark.equation("8.13")
@pytest.mark.parametrize("kind", ["one-hot", "gaussian"])
def test_neither_step_is_longer_than_alpha_times_the_clip(kind):
    agent = make(CASES[kind], clip=0.01, alpha=2.0, alpha_w=3.0)
    theta, w = agent.theta.copy(), agent.w.copy()
    diagnostics = agent.update(segments(CASES[kind], 0)[0], np.random.default_rng(0))
    assert np.linalg.norm(agent.theta - theta) == pytest.approx(0.02, rel=1e-10)
    assert np.linalg.norm(agent.w - w) == pytest.approx(0.03, rel=1e-10)
    assert diagnostics["gradient_norm"] > 0.01
