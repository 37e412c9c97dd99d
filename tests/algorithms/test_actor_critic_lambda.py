"""Actor–critic with traces against its box; what its sums over episodes are, and what time limits do to it."""

from itertools import pairwise

import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit
from hypothesis import given
from hypothesis import strategies as st
from oracles import (
    BOX,
    CASES,
    DECAYS,
    KINDS_AND_TRACES,
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
from strategies import examples, lams, layers, problems, seeds

from npg import features as F
from npg.algorithms import ActorCriticLambda, OneStepActorCritic
from npg.envs.tabular import TabularEnv
from npg.exact import enumerate_trajectories
from npg.policies import SoftmaxLinear
from npg.problems import random_walk
from npg.returns import gae
from npg.traces import TRACES


def box(case, theta, w, rows, *, gamma, alpha, alpha_w, lam_theta, lam_w, trace, outer_discount):
    """The box of Sutton & Barto (2018), section 13.5, with the critic's trace of chapter 7; θ and w after each step."""
    features = case.value_features
    z_w, z_theta, I, v_old = 0 * w, 0 * theta, 1.0, 0.0
    for s in rows:
        x = vector(features, s.obs)
        v = w @ x
        v_next = 0.0 if s.terminated else w @ vector(features, s.next_obs)
        delta = s.r + gamma * v_next - v
        grad_log_pi = score(case.policy, theta, s.obs, s.a)
        if trace == "accumulating":
            z_w = gamma * lam_w * z_w + x
            w = w + alpha_w * delta * z_w
        elif trace == "replacing":
            z_w = np.array([1.0 if x[i] == 1 else gamma * lam_w * z_w[i] for i in range(len(x))])
            w = w + alpha_w * delta * z_w
        else:
            z_w = gamma * lam_w * z_w + (1 - alpha_w * gamma * lam_w * (z_w @ x)) * x
            w = w + alpha_w * (delta + v - v_old) * z_w - alpha_w * (v - v_old) * x
            v_old = v_next
        z_theta = gamma * lam_theta * z_theta + I * grad_log_pi
        theta = theta + alpha * delta * z_theta
        if outer_discount:
            I = gamma * I
        if s.terminated or s.truncated:
            z_w, z_theta, I, v_old = 0 * w, 0 * theta, 1.0, 0.0
        yield theta, w


@pytest.mark.equation("8.7", "8.10", defining=True)
@pytest.mark.equation("7.1", "7.11", "7.13", "7.14")
@pytest.mark.parametrize(("kind", "trace"), KINDS_AND_TRACES)
@given(seeds, st.booleans(), st.sampled_from([0.0, 0.7, 1.0]), st.sampled_from([0.0, 0.9, 1.0]))
@examples(15)
def test_one_column_is_the_box_of_the_book_line_by_line(kind, trace, seed, outer_discount, lam_theta, lam_w):
    case = CASES[kind]
    setting = ONLINE | {"outer_discount": outer_discount, "trace": trace, "lam_theta": lam_theta, "lam_w": lam_w}
    agent, steps = make(ActorCriticLambda, case, seed, **setting), stream(case, seed)
    expected = box(case, agent.theta.copy(), agent.critic.w.copy(), map(row_of, steps), **setting)
    for traj, (theta, w) in zip(steps, expected, strict=True):
        agent.update(traj, np.random.default_rng(0))
        close(agent.theta, theta)
        close(agent.critic.w, w)


@pytest.mark.equation("8.7")
@pytest.mark.parametrize("trace", TRACES)
@pytest.mark.parametrize("outer_discount", [False, True])
def test_a_collected_run_is_the_box_of_the_book_line_by_line(trace, outer_discount):
    setting = ONLINE | DECAYS | {"outer_discount": outer_discount, "trace": trace}
    agent = make(ActorCriticLambda, WALK, **setting)
    theta, w, steps = agent.theta.copy(), agent.critic.w.copy(), []
    for traj in collected(agent, TimeLimit(TabularEnv(random_walk(5)), 6), 100):
        agent.update(traj, np.random.default_rng(0))
        steps.append(traj)
    assert any(traj.truncated.any() for traj in steps)
    assert any(traj.terminated.any() for traj in steps)
    *_, (theta, w) = box(WALK, theta, w, map(row_of, steps), **setting)
    close(agent.theta, theta)
    close(agent.critic.w, w)


@pytest.mark.equation("8.7")
@given(seeds, st.booleans())
def test_without_decay_it_is_the_one_step_method(seed, outer_discount):
    setting = ONLINE | {"outer_discount": outer_discount}
    agent = make(ActorCriticLambda, CASES["dense"], seed, lam_theta=0.0, lam_w=0.0, **setting)
    one_step = make(OneStepActorCritic, CASES["dense"], seed, **setting)
    for traj in stream(CASES["dense"], seed):
        agent.update(traj, np.random.default_rng(0))
        one_step.update(traj, np.random.default_rng(0))
        close(agent.theta, one_step.theta)
        close(agent.critic.w, one_step.critic.w)


# Columns


@pytest.mark.equation("8.9")
@given(problems(most=3))
@examples(20)
def test_two_columns_have_the_mean_of_one_and_half_its_covariance(p):
    start = p.mdp.rho0
    possible = [
        (start[s] * probability, row_of(traj))
        for s, *_, probability, traj in transitions(p.mdp, p.policy, p.mdp.policy_matrix(p.policy, p.theta))
        if start[s] > 0
    ]
    case, setting = Case(p.policy, table(p.mdp), None), {"alpha": 1.0, "alpha_w": 1.0, "gamma": 0.9}

    def moments(columns):
        agent = ActorCriticLambda(case.policy, case.value_features, **setting)
        agent.init(p.rng, columns)
        begin = agent.state() | {"theta": p.theta, "critic.w": np.arange(1.0, p.mdp.n_states + 1)}
        mean, second, total = 0.0, 0.0, 0.0
        for index in np.ndindex(*[len(possible)] * columns):
            probability = np.prod([possible[i][0] for i in index])
            agent.load_state(begin)
            agent.update(step_of(p.policy, [possible[i][1] for i in index], possible[0][1]), p.rng)
            step = np.concatenate([agent.theta - p.theta, agent.critic.w - begin["critic.w"]])
            total += probability
            mean = mean + probability * step
            second = second + probability * np.outer(step, step)
        assert total == pytest.approx(1, abs=1e-12)
        return mean, second - np.outer(mean, mean)

    (mean, covariance), (mean_of_two, covariance_of_two) = moments(1), moments(2)
    size = 1e-11 * (1 + np.abs(covariance).max() + np.abs(mean).max() ** 2)
    np.testing.assert_allclose(mean_of_two, mean, rtol=0, atol=size)
    np.testing.assert_allclose(covariance_of_two, covariance / 2, rtol=0, atol=size)


# Sums over episodes, with parameters that are put back after each step


def frozen_sums(agent, steps):
    """Σ_t δ_t z_t^θ and Σ_t δ_t z_t^w, where α = α_w = 1."""
    frozen = {name: agent.state()[name] for name in ("theta", "critic.w")}
    sums = {name: 0.0 for name in frozen}
    for traj in steps:
        agent.update(traj, np.random.default_rng(0))
        after = agent.state()
        sums = {name: sums[name] + after[name] - frozen[name] for name in frozen}
        agent.load_state(after | frozen)
    return sums["theta"], sums["critic.w"]


@pytest.mark.equation("8.8", defining=True)
@pytest.mark.equation("7.20", "8.10")
@pytest.mark.parametrize("kind", CASES)
@given(seeds, st.booleans(), lams)
@examples(10)
def test_the_actors_trace_is_generalised_advantage_estimation(kind, seed, outer_discount, lam):
    case = CASES[kind]
    setting = {"gamma": 0.8, "alpha": 1.0, "alpha_w": 1.0, "lam_theta": lam, "outer_discount": outer_discount}
    agent, steps = make(ActorCriticLambda, case, seed, **setting), stream(case, seed, steps=13)
    found = [row_of(traj) for traj in steps]
    v, v_next = (
        np.array([[agent.critic.w @ vector(case.value_features, s)] for s in states])
        for states in ([s.obs for s in found], [s.next_obs for s in found])
    )
    rewards, *ends = (np.array([[getattr(s, name)] for s in found]) for name in ("r", "terminated", "truncated"))
    A = gae(rewards, v, v_next, *ends, 0.8, lam)[:, 0]
    expected = sum(
        (0.8**s.t if outer_discount else 1) * A_t * score(case.policy, agent.theta, s.obs, s.a)
        for s, A_t in zip(found, A, strict=True)
    )
    close(frozen_sums(agent, steps)[0], expected)


def mean_over_episodes(p, v, lam, **setting):
    """E[Σ_t δ_t z_t^θ], a sum over all episodes."""
    setting = {"gamma": p.mdp.gamma, "alpha": 1.0, "alpha_w": 1.0, "lam_theta": lam, "outer_discount": True} | setting
    agent = ActorCriticLambda(p.policy, table(p.mdp), **setting)
    agent.init(p.rng)
    agent.theta, agent.critic.w = p.theta.copy(), v.copy()
    episodes, probability = enumerate_trajectories(p.mdp, p.policy, p.theta, 3)
    return sum(q * frozen_sums(agent, episodes[i].by_step())[0] for i, q in enumerate(probability))


@pytest.mark.equation("8.1", defining=True)
@pytest.mark.equation("8.8")
@given(layers, lams)
@examples(200)
def test_with_the_exact_critic_the_mean_is_the_gradient_for_every_decay(p, lam):
    mean = mean_over_episodes(p, p.mdp.value(p.policy, p.theta), lam)
    np.testing.assert_allclose(mean, p.mdp.gradient(p.policy, p.theta), rtol=0, atol=1e-11)


@pytest.mark.equation("7.21", "8.2", "8.8")
@given(layers, lams)
@examples(200)
def test_with_a_wrong_critic_the_bias_is_that_of_the_longer_advantage(p, lam):
    mdp, gamma, pi = p.mdp, p.mdp.gamma, p.mdp.policy_matrix(p.policy, p.theta)
    error = p.rng.normal(size=mdp.n_states) * ~mdp.terminal
    mean = mean_over_episodes(p, mdp.value(p.policy, p.theta) + error, lam)
    chain = np.einsum("sa,sat->st", pi, mdp.P)
    later = np.linalg.solve(np.eye(mdp.n_states) - gamma * lam * chain * ~mdp.terminal[:, None], error)
    what_actions_change = gamma * (1 - lam) * mdp.P @ later
    weights = mdp.visitation(p.policy, p.theta)
    bias = sum(
        weights[s] * pi[s, a] * what_actions_change[s, a] * score(p.policy, p.theta, s, a)
        for s, a in np.ndindex(pi.shape)
    )
    np.testing.assert_allclose(mean, mdp.gradient(p.policy, p.theta) + bias, rtol=0, atol=1e-11)
    if lam == 1:
        assert np.abs(bias).max() == 0


@pytest.mark.equation("8.10")
@given(layers, lams)
@examples(200)
def test_a_time_limit_takes_away_the_later_times_and_nothing_else(p, lam):
    mdp, limit = p.mdp, 2
    episodes, probability = enumerate_trajectories(mdp, p.policy, p.theta, limit)
    setting = {"gamma": mdp.gamma, "alpha": 1.0, "alpha_w": 1.0, "lam_theta": lam, "outer_discount": True}
    agent = ActorCriticLambda(p.policy, table(mdp), **setting)
    agent.init(p.rng)
    agent.theta, agent.critic.w = p.theta.copy(), mdp.value(p.policy, p.theta)
    mean = sum(q * frozen_sums(agent, episodes[i].by_step())[0] for i, q in enumerate(probability))
    assert episodes.truncated.any()
    marginals = mdp.state_marginals(p.policy, p.theta, horizon=limit)[:limit] * ~mdp.terminal
    weights = mdp.gamma ** np.arange(limit) @ marginals
    q = mdp.action_value(p.policy, p.theta)
    x = p.policy.features(np.arange(mdp.n_states))
    expected = p.policy.all_actions_gradient(p.theta, x, q, weights)
    np.testing.assert_allclose(mean, expected, rtol=0, atol=1e-11)


# Time limits

ONE_STATE = Case(SoftmaxLinear(F.Constant(), 2), F.Constant(), BOX)


def one_state_episode(terminated, truncated, length=100):
    rows = [Row(np.zeros(2), 0, 1.0, np.zeros(2), False, False, t) for t in range(length)]
    rows[-1] = rows[-1]._replace(terminated=terminated, truncated=truncated)
    return [step_of(ONE_STATE.policy, [row], row) for row in rows]


@pytest.mark.equation("8.10")
@pytest.mark.parametrize("trace", ["accumulating", "dutch"])
@pytest.mark.parametrize("lam", [0.0, 0.9, 1.0])
def test_a_time_limit_leaves_the_value_of_a_reward_that_goes_on_for_ever(lam, trace):
    agent = make(ActorCriticLambda, ONE_STATE, gamma=0.99, lam_w=lam, alpha_w=0.01, trace=trace)
    agent.critic.w = np.array([100.0])
    for traj in one_state_episode(False, True):
        agent.update(traj, np.random.default_rng(0))
        assert agent.critic.w == pytest.approx([100], abs=1e-10)


@pytest.mark.equation("8.10")
@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize(("lam", "value"), [(0.0, 50.25), (0.9, 48.12), (1.0, 37.24)])
def test_a_termination_in_its_place_has_the_wrong_value_of_the_chapter(lam, value, truncated):
    def total(w):
        agent = make(ActorCriticLambda, ONE_STATE, gamma=0.99, lam_w=lam, alpha=1.0, alpha_w=1.0)
        agent.critic.w = np.array([w])
        return frozen_sums(agent, one_state_episode(True, truncated))[1][0]

    at_zero, at_one = total(0.0), total(1.0)  # a straight line
    assert at_zero / (at_zero - at_one) == pytest.approx(value, abs=0.005)


@pytest.mark.equation("8.10")
@pytest.mark.parametrize("trace", TRACES)
@pytest.mark.parametrize("end", [(False, True), (True, False), (True, True)], ids=str)
def test_traces_are_cut_at_both_ends_after_the_step_and_nowhere_else(end, trace):
    case = CASES["one-hot"]
    agent = make(ActorCriticLambda, case, gamma=0.5, lam_theta=0.5, lam_w=0.5, outer_discount=True, trace=trace)
    inside, last = (Row(s, 1, 1.0, s + 1, *flags, s) for s, flags in [(0, (False, False)), (1, end)])
    agent.update(step_of(case.policy, [inside], inside), np.random.default_rng(0))
    assert agent.critic.z[0].tolist() == [1, 0, 0, 0, 0]
    assert (agent.z != 0).any()
    assert agent.I.tolist() == [0.5]
    before = agent.critic.w.copy()
    agent.update(step_of(case.policy, [last], last), np.random.default_rng(0))
    moved = agent.critic.w - before
    assert moved[0] == pytest.approx(0.25 * moved[1], rel=1e-12)  # still on the trace
    assert moved[0] != 0
    rest = {"z": 0.0, "I": 1.0, "critic.z": 0.0, "critic.v_old": 0.0}
    assert all((value == rest[name]).all() for name, value in carried(agent).items())


@pytest.mark.equation("8.10")
@given(seeds, st.sampled_from(TRACES))
@examples(20)
def test_what_comes_after_the_end_of_an_episode_does_not_depend_on_how_it_ended_or_began(seed, trace):
    setting = ONLINE | DECAYS | {"outer_discount": True, "trace": trace}
    steps = stream(CASES["one-hot"], seed)
    begins = [t for t, (a, b) in enumerate(pairwise(steps), 1) if (a.terminated | a.truncated)[0, 0] and b.t[0, 0] == 0]
    for first in begins:
        agent, fresh = (make(ActorCriticLambda, CASES["one-hot"], **setting) for _ in range(2))
        for traj in steps[:first]:
            agent.update(traj, np.random.default_rng(0))
        fresh.load_state(fresh.state() | {name: agent.state()[name] for name in ("theta", "critic.w")})
        for traj in steps[first:]:
            agent.update(traj, np.random.default_rng(0))
            fresh.update(traj, np.random.default_rng(0))
        assert all(np.array_equal(fresh.state()[name], value) for name, value in agent.state().items())
