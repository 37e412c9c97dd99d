"""Actor–critic for the average reward against its box and its stationary means."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import (
    CASES,
    DECAYS,
    KINDS_AND_TRACES,
    ONLINE,
    Row,
    close,
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

import npg
from npg import features as F
from npg.algorithms import AverageRewardActorCritic
from npg.envs.tabular import TabularEnv
from npg.exact import TabularMDP, enumerate_trajectories
from npg.policies import SoftmaxLinear
from npg.problems import random_walk, two_state
from npg.traces import TRACES

STEPS = {"alpha": ONLINE["alpha"], "alpha_w": ONLINE["alpha_w"], "alpha_r": 0.05} | DECAYS


def continuing(*args, **kwargs):
    """Steps of episodes that are only ever cut by a time limit."""
    return [
        replace(traj, terminated=np.zeros_like(traj.terminated), truncated=traj.terminated | traj.truncated)
        for traj in stream(*args, **kwargs)
    ]


def box(case, theta, w, rows, *, alpha, alpha_w, alpha_r, lam_theta, lam_w, trace="accumulating"):
    """The box of Sutton & Barto (2018), section 13.6, with the critic's trace of chapter 7; θ, w, R̄ after each step."""
    features = case.value_features
    z_w, z_theta, average, v_old = 0 * w, 0 * theta, 0.0, 0.0
    for s in rows:
        x = vector(features, s.obs)
        v, v_next = w @ x, w @ vector(features, s.next_obs)
        delta = s.r - average + v_next - v
        average = average + alpha_r * delta
        if trace == "accumulating":
            z_w = lam_w * z_w + x
            w = w + alpha_w * delta * z_w
        elif trace == "replacing":
            z_w = np.array([1.0 if x[i] == 1 else lam_w * z_w[i] for i in range(len(x))])
            w = w + alpha_w * delta * z_w
        else:
            z_w = lam_w * z_w + (1 - alpha_w * lam_w * (z_w @ x)) * x
            w = w + alpha_w * (delta + v - v_old) * z_w - alpha_w * (v - v_old) * x
            v_old = v_next
        z_theta = lam_theta * z_theta + score(case.policy, theta, s.obs, s.a)
        theta = theta + alpha * delta * z_theta
        if s.truncated:
            z_w, z_theta, v_old = 0 * w, 0 * theta, 0.0
        yield theta, w, average


@pytest.mark.equation("8.17", defining=True)
@pytest.mark.equation("8.10")
@pytest.mark.parametrize(("kind", "trace"), KINDS_AND_TRACES)
@given(seeds, st.sampled_from([0.0, 0.7]), st.sampled_from([0.0, 0.9]))
@examples(15)
def test_one_column_is_the_box_of_the_book_line_by_line(kind, trace, seed, lam_theta, lam_w):
    case, setting = CASES[kind], STEPS | {"trace": trace, "lam_theta": lam_theta, "lam_w": lam_w}
    agent, steps = make(AverageRewardActorCritic, case, seed, **setting), continuing(case, seed)
    agent.average_reward = np.zeros(())
    expected = box(case, agent.theta.copy(), agent.critic.w.copy(), map(row_of, steps), **setting)
    for traj, (theta, w, average) in zip(steps, expected, strict=True):
        diagnostics = agent.update(traj, np.random.default_rng(0))
        close(agent.theta, theta)
        close(agent.critic.w, w)
        close(agent.average_reward, average)
        assert diagnostics["average_reward"] == float(agent.average_reward)


# Stationary means


def _mixed(p):
    """Any state may follow any other, so that there is one stationary distribution."""
    return p._replace(mdp=replace(p.mdp, P=0.9 * p.mdp.P + 0.1 / p.mdp.n_states))


tasks = problems(episodic=False, most=3).map(_mixed)


def agent_at(p, v, average, **setting):
    """An agent whose critic is the table v, with the average reward that it believes in."""
    setting = {"alpha": 1.0, "alpha_w": 0.0, "alpha_r": 0.0, "lam_w": 0.0} | setting
    agent = AverageRewardActorCritic(p.policy, table(p.mdp), **setting)
    agent.init(p.rng)
    agent.theta, agent.critic.w, agent.average_reward = p.theta.copy(), np.array(v), np.array(average)
    return agent


@pytest.mark.equation("8.15", "8.17")
@given(tasks)
@examples(200)
def test_the_mean_step_of_the_average_reward_is_its_error_whatever_the_values_are(p):
    mu, v, average = p.mdp.stationary_distribution(p.policy, p.theta), 5 * p.rng.normal(size=p.mdp.n_states), 0.3
    mean = 0.0
    for s, _, _, probability, traj in transitions(p.mdp, p.policy, p.mdp.policy_matrix(p.policy, p.theta)):
        agent = agent_at(p, v, average, alpha_r=0.5)
        agent.update(traj, p.rng)
        mean += mu[s] * probability * (float(agent.average_reward) - average)
    assert mean == pytest.approx(0.5 * (p.mdp.average_reward(p.policy, p.theta) - average), abs=1e-12)


def mean_last_step(p, v, average, lam, length):
    """E[δ_t z_t] of the last of ``length`` steps from a stationary start."""
    mu = p.mdp.stationary_distribution(p.policy, p.theta)
    mdp = TabularMDP(p.mdp.P, p.mdp.R, p.mdp.gamma, mu)
    paths, probability = enumerate_trajectories(mdp, p.policy, p.theta, length)
    paths.truncated[:] = False
    agent, mean = agent_at(p, v, average, lam_theta=lam), 0.0
    begin = agent.state()
    for i, q in enumerate(probability):
        agent.load_state(begin)
        for traj in paths[i].by_step():
            agent.theta = p.theta.copy()
            agent.update(traj, p.rng)
        mean = mean + q * (agent.theta - p.theta)
    return mean


@pytest.mark.equation("8.16", "8.17")
@given(tasks, st.sampled_from([0.0, 0.7]), st.integers(1, 2))
@examples(40)
def test_with_exact_values_the_mean_of_the_actor_is_the_gradient_of_the_average_reward(p, lam, length):
    v = p.mdp.differential_value(p.policy, p.theta) + 7.0  # up to a constant
    gradient = p.mdp.average_reward_gradient(p.policy, p.theta)
    size = 1e-11 * (1 + np.abs(v).max())
    for average in (p.mdp.average_reward(p.policy, p.theta), -2.0):  # whatever is believed of it
        np.testing.assert_allclose(mean_last_step(p, v, average, lam, length), gradient, rtol=0, atol=size)


@pytest.mark.equation("8.16", "8.17")
@given(tasks, st.sampled_from([0.0, 0.7, 0.95]), st.integers(1, 2))
@examples(40)
def test_with_wrong_values_the_bias_is_what_actions_do_to_the_error_of_later_states(p, lam, length):
    pi, error = p.mdp.policy_matrix(p.policy, p.theta), p.rng.normal(size=p.mdp.n_states)
    chain, mu = np.einsum("sa,sat->st", pi, p.mdp.P), p.mdp.stationary_distribution(p.policy, p.theta)
    # Σ_{k<K} λ^k (e(S_{k+1}) − e(S_k)) less e(S_0), for a past of K steps.
    later = sum(
        (1 - lam if k < length - 1 else 1) * lam**k * np.linalg.matrix_power(chain, k) @ error for k in range(length)
    )
    q, x = p.mdp.P @ later, p.policy.features(np.arange(p.mdp.n_states))
    bias = p.policy.all_actions_gradient(p.theta, x, q, mu)
    v = p.mdp.differential_value(p.policy, p.theta)
    expected = p.mdp.average_reward_gradient(p.policy, p.theta) + bias
    mean = mean_last_step(p, v + error, 0.1, lam, length)
    np.testing.assert_allclose(mean, expected, rtol=0, atol=1e-11 * (1 + np.abs(v).max()))


@pytest.mark.equation("8.15", "8.16", "8.17")
def test_the_two_states_have_the_numbers_of_the_chapter():
    p = Problem(two_state(), SoftmaxLinear(F.OneHot(2), 2), np.zeros(4), np.random.default_rng(0))
    for length in (1, 2, 3):
        mean = mean_last_step(p, [-1 / 4, 1 / 4], 3 / 4, 0.9, length)
        assert mean == pytest.approx([1 / 16, 5 / 16, -1 / 16, -5 / 16], abs=1e-14)


@pytest.mark.equation("8.17")
@pytest.mark.parametrize("columns", [1, 3])
def test_of_a_table_the_sum_of_values_and_the_average_reward_move_together(columns):
    setting = STEPS | {"lam_w": 0.0}
    agent = make(AverageRewardActorCritic, CASES["one-hot"], columns=columns, **setting)

    def conserved():
        return agent.critic.w.sum() - agent.alpha_w / agent.alpha_r * agent.average_reward

    before = conserved()
    for traj in continuing(CASES["one-hot"], 0, columns=columns, resets=True):
        if traj.valid.any():
            agent.update(traj, np.random.default_rng(0))
    assert agent.average_reward != 0
    assert conserved() == pytest.approx(before, abs=1e-13)


# Ends


@pytest.mark.equation("8.10", "8.17")
@pytest.mark.parametrize("trace", TRACES)
def test_a_time_limit_cuts_the_traces_and_not_the_value(trace):
    case = CASES["one-hot"]
    agent = make(AverageRewardActorCritic, case, alpha_w=0.1, alpha_r=0.5, lam_w=0.5, trace=trace)
    agent.critic.w, agent.average_reward = np.array([1.0, 4, 0, 0, 0]), np.array(0.25)
    row = Row(0, 1, 3.0, 1, False, True, 0)
    agent.update(step_of(case.policy, [row], row), np.random.default_rng(0))
    delta = 3 - 0.25 + 4 - 1
    assert agent.critic.w == pytest.approx([1 + 0.1 * delta, 4, 0, 0, 0], abs=1e-14)
    assert agent.average_reward == pytest.approx(0.25 + 0.5 * delta, abs=1e-14)
    assert not any(agent.state()[name].any() for name in agent.state() if name in ("z", "critic.z", "critic.v_old"))


@pytest.mark.parametrize("truncated", [False, True])
def test_a_termination_is_an_error_that_changes_nothing(truncated):
    agent = make(AverageRewardActorCritic, CASES["one-hot"], columns=2)
    inside, end = Row(0, 1, 3.0, 1, False, False, 0), Row(0, 1, 3.0, 1, True, truncated, 0)
    before = agent.state()
    with pytest.raises(ValueError, match="an episode terminated: try actor_critic_lambda"):
        agent.update(step_of(CASES["one-hot"].policy, [inside, end], inside), np.random.default_rng(0))
    assert all(np.array_equal(agent.state()[name], value) for name, value in before.items())


def test_training_in_an_episodic_environment_is_an_error():
    env = TabularEnv(random_walk(5))
    with pytest.raises(ValueError, match="the average reward is of tasks that go on"):
        npg.train(npg.make_agent("average_reward_actor_critic", env), env, steps=1000, seed=0)


@pytest.mark.parametrize("name", ["lam_theta", "lam_w"])
def test_a_trace_that_never_decays_is_refused(name):
    with pytest.raises(ValueError, match=f"^{name} must be below 1, or its trace grows without bound, got 1"):
        make(AverageRewardActorCritic, CASES["dense"], **{name: 1})
