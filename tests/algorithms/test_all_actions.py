"""All-actions actor–critic against its box and the means of its two updates."""

import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit
from hypothesis import given
from hypothesis import strategies as st
from oracles import (
    CASES,
    ONLINE,
    close,
    collected,
    make,
    probabilities,
    row_of,
    score,
    stream,
    table,
    transitions,
    vector,
)
from strategies import examples, problems, seeds

import npg
from npg.algorithms import AllActions
from npg.distributions import Categorical
from npg.envs.tabular import TabularEnv
from npg.features import OneHot
from npg.problems import random_walk

DISCRETE = [kind for kind, case in CASES.items() if isinstance(case.policy.distribution, Categorical)]


def box(case, theta, w, rows, *, gamma, alpha, alpha_w, outer_discount):
    """The box of chapter 8, one step at a time; θ and w after each."""
    policy, k = case.policy, case.policy.distribution.n_actions
    w, I = w.reshape(k, -1), 1.0
    for s in rows:
        x, pi = vector(case.value_features, s.obs), probabilities(policy, theta, s.obs)
        q = [w[a] @ x for a in range(k)]
        g = sum(pi[a] * score(policy, theta, s.obs, a) * q[a] for a in range(k))
        v_next = 0.0
        if not s.terminated:
            pi_next, x_next = probabilities(policy, theta, s.next_obs), vector(case.value_features, s.next_obs)
            v_next = sum(pi_next[a] * (w[a] @ x_next) for a in range(k))
        delta = s.r + gamma * v_next - q[s.a]
        w = w.copy()
        w[s.a] = w[s.a] + alpha_w * delta * x
        theta = theta + alpha * I * g
        if outer_discount:
            I = gamma * I
        if s.terminated or s.truncated:
            I = 1.0
        yield theta, w.ravel()


@pytest.mark.equation("8.5", defining=True)
@pytest.mark.equation("5.14", "8.10")
@pytest.mark.parametrize("kind", DISCRETE)
@given(seeds, st.booleans())
@examples(20)
def test_one_column_is_its_box_line_by_line(kind, seed, outer_discount):
    case, setting = CASES[kind], ONLINE | {"outer_discount": outer_discount}
    agent, steps = make(AllActions, case, seed, **setting), stream(case, seed)
    expected = box(case, agent.theta.copy(), agent.critic.w.copy(), map(row_of, steps), **setting)
    for traj, (theta, w) in zip(steps, expected, strict=True):
        agent.update(traj, np.random.default_rng(0))
        close(agent.theta, theta)
        close(agent.critic.w, w)


def steps_from_all_states(p, q):
    """s, a, Pr(a, s'|s) and what one update at q̂ adds to θ and to w, where α = α_w = 1."""
    agent = AllActions(p.policy, table(p.mdp), gamma=p.mdp.gamma, alpha=1.0, alpha_w=1.0)
    agent.init(p.rng)
    for s, a, _, probability, traj in transitions(p.mdp, p.policy, p.mdp.policy_matrix(p.policy, p.theta)):
        agent.theta, agent.critic.w = p.theta.copy(), q.T.ravel()
        agent.update(traj, p.rng)
        yield s, a, probability, agent.theta - p.theta, agent.critic.w.reshape(q.T.shape).T - q


@pytest.mark.equation("5.14", "8.5")
@given(problems())
@examples(200)
def test_the_mean_of_the_actor_is_the_gradient_for_the_exact_values_and_else_that_of_its_critic(p):
    q = p.mdp.action_value(p.policy, p.theta)
    wrong = q + p.rng.normal(size=q.shape) * ~p.mdp.terminal[:, None]
    d, x = p.mdp.visitation(p.policy, p.theta), p.policy.features(np.arange(p.mdp.n_states))
    for values, expected in (
        (q, p.mdp.gradient(p.policy, p.theta)),
        (wrong, p.policy.all_actions_gradient(p.theta, x, wrong, d)),
    ):
        mean = sum(d[s] * probability * g for s, _, probability, g, _ in steps_from_all_states(p, values))
        size = 1e-11 * (1 + d.sum()) * (1 + np.abs(values).max())
        np.testing.assert_allclose(mean, expected, rtol=0, atol=size)


@pytest.mark.equation("8.5")
@given(problems(), st.booleans())
@examples(200)
def test_the_mean_of_the_critic_vanishes_only_at_the_action_values(p, exact):
    mdp, pi = p.mdp, p.mdp.policy_matrix(p.policy, p.theta)
    q = mdp.action_value(p.policy, p.theta)
    if not exact:
        q = q + p.rng.normal(size=q.shape) * ~mdp.terminal[:, None]
    mean = np.zeros(q.shape)
    for s, a, probability, _, moved in steps_from_all_states(p, q):
        assert not np.delete(moved.ravel(), s * q.shape[1] + a).any()
        mean[s, a] += probability / pi[s, a] * moved[s, a]
    v = (pi * q).sum(axis=1)
    expected = (mdp.expected_reward + mdp.gamma * mdp.P @ v - q) * ~mdp.terminal[:, None]
    np.testing.assert_allclose(mean, expected, rtol=0, atol=1e-11 * (1 + np.abs(q).max()))
    assert np.allclose(mean, 0, rtol=0, atol=1e-9 * (1 + np.abs(q).max())) == exact


@pytest.mark.equation("5.14", "8.5")
@given(problems())
def test_the_step_of_the_actor_depends_neither_on_the_action_taken_nor_on_a_baseline(p):
    q, b = p.rng.normal(size=(2, p.mdp.n_states, p.mdp.n_actions))
    of_state = {}
    for values in (q, q + b[:, :1]):
        for s, _, _, g, _ in steps_from_all_states(p, values):
            np.testing.assert_allclose(g, of_state.setdefault(s, g), rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", [kind for kind in CASES if kind not in DISCRETE])
def test_actions_that_cannot_be_summed_over_are_refused(kind):
    with pytest.raises(TypeError, match=r"^all_actions needs discrete actions, got DiagonalGaussian"):
        make(AllActions, CASES[kind])
    with pytest.raises(TypeError, match="needs discrete actions"):
        npg.make_agent("all_actions", npg.make_env("MountainCarContinuous-v0"))


@pytest.mark.equation("8.5")
def test_with_one_action_only_the_critic_learns():
    states = OneHot(4)
    agent = AllActions(npg.SoftmaxLinear(states, 1), states, gamma=0.5, alpha_w=0.1)
    agent.init(np.random.default_rng(0))
    for traj in collected(agent, TimeLimit(TabularEnv(random_walk(3)), 4), 40):
        agent.update(traj, np.random.default_rng(0))
    assert not agent.theta.any()
    assert agent.critic.w.any()
