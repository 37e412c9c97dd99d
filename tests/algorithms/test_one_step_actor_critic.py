"""One-step actor–critic against its box and its exact mean; and what the tests of all online methods are made of."""

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from hypothesis import given
from hypothesis import strategies as st
from oracles import (
    CASES,
    ONLINE,
    WALK,
    Case,
    Row,
    carried,
    close,
    collected,
    make,
    row_of,
    score,
    step_of,
    stream,
    table,
    transitions,
    vector,
)
from strategies import Problem, examples, problems, seeds

from npg import features as F
from npg.algorithms import OneStepActorCritic
from npg.distributions import Categorical
from npg.envs.tabular import TabularEnv
from npg.models import Linear
from npg.policies import Policy, SoftmaxLinear
from npg.problems import random_walk, short_corridor

# What holds for all online methods


# The one-step method


def box(case, theta, w, rows, *, gamma, alpha, alpha_w, outer_discount):
    """The box of Sutton & Barto (2018), section 13.5, one step at a time; θ and w after each."""
    policy, features = case.policy, case.value_features
    I = 1.0
    for s in rows:
        v = w @ vector(features, s.obs)
        v_next = 0.0 if s.terminated else w @ vector(features, s.next_obs)
        delta = s.r + gamma * v_next - v
        grad_log_pi = score(policy, theta, s.obs, s.a)
        w = w + alpha_w * delta * vector(features, s.obs)
        theta = theta + alpha * I * delta * grad_log_pi
        if outer_discount:
            I = gamma * I
        if s.terminated or s.truncated:
            I = 1.0
        yield theta, w


@pytest.mark.equation("8.6", defining=True)
@pytest.mark.equation("7.1", "7.3", "8.10")
@pytest.mark.parametrize("kind", CASES)
@given(seeds, st.booleans())
@examples(20)
def test_one_column_is_the_box_of_the_book_line_by_line(kind, seed, outer_discount):
    case, setting = CASES[kind], ONLINE | {"outer_discount": outer_discount}
    agent, steps = make(OneStepActorCritic, case, seed, **setting), stream(case, seed)
    expected = box(case, agent.theta.copy(), agent.critic.w.copy(), map(row_of, steps), **setting)
    for traj, (theta, w) in zip(steps, expected, strict=True):
        agent.update(traj, np.random.default_rng(0))
        close(agent.theta, theta)
        close(agent.critic.w, w)


@pytest.mark.equation("8.6")
@pytest.mark.parametrize("outer_discount", [False, True])
def test_a_collected_run_is_the_box_of_the_book_line_by_line(outer_discount):
    setting = ONLINE | {"outer_discount": outer_discount}
    agent = make(OneStepActorCritic, WALK, **setting)
    theta, w = agent.theta.copy(), agent.critic.w.copy()
    steps = []
    for traj in collected(agent, TimeLimit(TabularEnv(random_walk(5)), 6), 100):
        agent.update(traj, np.random.default_rng(0))
        steps.append(traj)
    assert any(traj.truncated.any() for traj in steps)
    assert any(traj.terminated.any() for traj in steps)
    *_, (theta, w) = box(WALK, theta, w, map(row_of, steps), **setting)
    close(agent.theta, theta)
    close(agent.critic.w, w)


def mean_step(p: Problem, v: np.ndarray) -> np.ndarray:
    """Σ_s d_γ(s) times the mean of what one update from s adds to θ, which is E[Σ_t γ^t ψ_t δ_t]."""
    agent = OneStepActorCritic(p.policy, table(p.mdp), gamma=p.mdp.gamma, alpha=1.0, alpha_w=0.0)
    agent.init(p.rng)
    d, mean = p.mdp.visitation(p.policy, p.theta), np.zeros(p.policy.n_params)
    for s, _, _, probability, traj in transitions(p.mdp, p.policy, p.mdp.policy_matrix(p.policy, p.theta)):
        agent.theta, agent.critic.w = p.theta.copy(), v.copy()
        agent.update(traj, p.rng)
        mean += d[s] * probability * (agent.theta - p.theta)
        agent.I[:] = 1
    return mean


@pytest.mark.equation("8.1")
@given(problems())
@examples(200)
def test_with_the_exact_critic_the_mean_over_an_episode_is_the_gradient(p):
    gradient = p.mdp.gradient(p.policy, p.theta)
    size = 1e-10 * (1 + np.abs(gradient).max() + np.abs(p.mdp.value(p.policy, p.theta)).max())
    np.testing.assert_allclose(mean_step(p, p.mdp.value(p.policy, p.theta)), gradient, rtol=0, atol=size)


@pytest.mark.equation("8.2", defining=True)
@given(problems())
@examples(200)
def test_with_a_wrong_critic_the_mean_has_the_bias_of_the_successors_value(p):
    error = 5 * p.rng.normal(size=p.mdp.n_states) * ~p.mdp.terminal
    v = p.mdp.value(p.policy, p.theta)
    d, bias = p.mdp.visitation(p.policy, p.theta), np.zeros(len(p.theta))
    for s, a in np.argwhere(~p.mdp.terminal[:, None] & np.ones(p.mdp.n_actions, dtype=bool)):
        pi = p.mdp.policy_matrix(p.policy, p.theta)[s, a]
        x = p.policy.features(np.array([s]))
        gradient_of_pi = pi * p.policy.score(p.theta, x, np.array([a]))[0]
        bias += p.mdp.gamma * d[s] * gradient_of_pi * (p.mdp.P[s, a] @ error)
    expected = p.mdp.gradient(p.policy, p.theta) + bias
    size = 1e-10 * (1 + np.abs(expected).max() + np.abs(v).max())
    np.testing.assert_allclose(mean_step(p, v + error), expected, rtol=0, atol=size)


@pytest.mark.equation("8.1", "8.2")
@pytest.mark.parametrize(("c", "mean"), [(0, 2), (4, 0), (10, -3), (None, 0)])
def test_in_the_short_corridor_an_optimistic_critic_turns_the_gradient_round(c, mean):
    mdp, policy = short_corridor(), SoftmaxLinear(F.Constant(), 2)
    v = mdp.value(policy, np.zeros(2))
    v = np.zeros(4) if c is None else v + c * ~mdp.terminal
    left, right = mean_step(Problem(mdp, policy, np.zeros(2), np.random.default_rng(0)), v)
    assert (right, left) == pytest.approx((mean, -mean), abs=1e-11)


@pytest.mark.equation("8.10")
def test_only_a_termination_has_no_value_to_come():
    case = Case(Policy(F.OneHot(2), Linear(2, 2), Categorical(2)), F.OneHot(2), spaces.Discrete(2))
    for terminated, truncated, to_come in [(0, 0, 4), (0, 1, 4), (1, 0, 0), (1, 1, 0)]:
        agent = make(OneStepActorCritic, case, gamma=0.5, alpha=1.0, alpha_w=0.1, outer_discount=True)
        agent.load_state({"theta": np.zeros(4), "critic.w": np.array([1.0, 8.0])} | carried(agent))
        row = Row(0, 1, 3.0, 1, bool(terminated), bool(truncated), 0)
        agent.update(step_of(case.policy, [row], row), np.random.default_rng(0))
        delta = 3 + to_come - 1
        assert agent.critic.w == pytest.approx([1 + 0.1 * delta, 8], abs=1e-14)
        assert agent.theta == pytest.approx([-delta / 2, 0, delta / 2, 0], abs=1e-14)
        assert agent.I == (1.0 if terminated or truncated else 0.5)
