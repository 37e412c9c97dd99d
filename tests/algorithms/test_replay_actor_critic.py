"""Replay actor–critic against its box; what its means are, whatever filled the buffer; sums against samples."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import (
    CASES,
    ONE_STATE,
    Case,
    Row,
    close,
    d_pi,
    in_quarters,
    make,
    near,
    probabilities,
    row_of,
    score,
    step_of,
    stream,
    table,
    vector,
)
from strategies import examples, generators, seeds

from npg import features as F
from npg.algorithms import ReplayActorCritic
from npg.policies import Policy

SOFTMAX = ["one-hot", "dense", "tiles"]
SETTING = {"gamma": 0.8, "alpha_u": 0.1, "alpha_v": 0.2}


def box(case, theta, v, batches, *, capacity, minibatch, actor, baseline, gamma, alpha_u, alpha_v):
    """The box of the chapter; each batch of rows comes with the generator of its update. θ and v after each."""
    policy, features, m = case.policy, case.value_features, case.policy.distribution.n_actions
    buffer, inserted = [], 0

    def q(s):
        return v.reshape(m, -1) @ vector(features, s)

    def draw(states, rng):
        logits = np.log([probabilities(policy, theta, s) for s in states])
        return (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)

    for rows, rng in batches:
        for row in rows:
            if inserted < capacity:
                buffer.append(row)
            else:
                buffer[inserted % capacity] = row
            inserted += 1
        drawn = [buffer[k] for k in rng.integers(len(buffer), size=minibatch)]
        step = np.zeros_like(v).reshape(m, -1)
        for row, a_next in zip(drawn, draw([row.next_obs for row in drawn], rng), strict=True):
            target = row.r + (0.0 if row.terminated else gamma * q(row.next_obs)[a_next])
            step[row.a] += (target - q(row.obs)[row.a]) * vector(features, row.obs)
        v = v + alpha_v * step.ravel() / minibatch
        g = 0.0
        fresh = draw([row.obs for row in drawn], rng) if actor == "sample" else [None] * minibatch
        for row, a in zip(drawn, fresh, strict=True):
            pi, values = probabilities(policy, theta, row.obs), q(row.obs)
            if actor == "sum":
                g = g + sum(pi[b] * score(policy, theta, row.obs, b) * values[b] for b in range(m))
            else:
                g = g + score(policy, theta, row.obs, a) * (values[a] - baseline * (pi @ values))
        theta = theta + alpha_u * g / minibatch
        yield theta, v


@pytest.mark.equation("12.22")
@pytest.mark.parametrize("kind", SOFTMAX)
@given(seeds, st.sampled_from(["sum", "sample"]), st.booleans(), st.integers(1, 3), st.integers(3, 40))
@examples(15)
def test_an_update_is_its_box_line_by_line(kind, seed, actor, baseline, columns, capacity):
    case, setting = CASES[kind], SETTING | {"minibatch": 5, "actor": actor, "baseline": baseline, "capacity": capacity}
    agent = make(ReplayActorCritic, case, seed, columns, **setting)
    steps = [step for step in stream(case, seed, columns=columns, resets=True) if step.valid.any()]
    rows = [[row for n in range(columns) if (row := row_of(step, n))] for step in steps]
    batches = [(found, np.random.default_rng([seed, k])) for k, found in enumerate(rows)]
    expected = box(case, agent.theta.copy(), agent.v.copy(), batches, **setting)
    for k, (step, (theta, v)) in enumerate(zip(steps, expected, strict=True)):
        agent.update(step, np.random.default_rng([seed, k]))
        near(agent.theta, theta)
        near(agent.v, v)


# Means at fixed parameters


def mean_step(p, v, counts):
    """What an update adds to v and θ where the buffer has each pair as often as ``counts`` (S, A) say, and then as the
    problem has its successor and the policy its next action, all of which are drawn."""
    mdp, pi = p.mdp, p.mdp.policy_matrix(p.policy, p.theta)
    rows, a_next = [], []
    for s, a in np.argwhere(counts > 0):
        for s_next in np.flatnonzero(mdp.P[s, a]):
            for b in range(mdp.n_actions):
                times = round(counts[s, a] * 4 * mdp.P[s, a, s_next] * 4 * pi[s_next, b])
                rows += [Row(s, a, mdp.R[s, a, s_next], s_next, mdp.terminal[s_next], False, 0)] * times
                a_next += [b] * times
    assert len(rows) == 16 * counts.sum()
    how = {"gamma": mdp.gamma, "alpha_u": 1.0, "alpha_v": 1.0, "minibatch": len(rows), "capacity": len(rows)}
    agent = ReplayActorCritic(p.policy, table(mdp), **how)
    agent.init(p.rng, len(rows))
    agent.theta, agent.v = p.theta.copy(), v.copy()
    with (
        mock.patch.object(Policy, "sample", return_value=np.array(a_next)),
        mock.patch.object(np.random, "Generator", spec=True) as everything,
    ):
        everything.integers.return_value = np.arange(len(rows))
        agent.update(step_of(p.policy, rows, rows[0]), everything)
    return agent.v - v, agent.theta - p.theta, agent.v


@pytest.mark.equation("12.22", defining=True)
@pytest.mark.parametrize("shared", [False, True])
@given(generators, st.sampled_from([0.5, 0.9, 1.0]))
@examples(30)
def test_the_means_are_those_of_the_current_policy_whatever_filled_the_buffer(shared, rng, gamma):
    p = in_quarters(gamma, shared)
    mdp, pi = p.mdp, p.mdp.policy_matrix(p.policy, p.theta)
    counts = rng.integers(0, 4, (4, 2)) * ~mdp.terminal[:, None]
    counts[0, 0] += 1
    d = counts / counts.sum()
    q = rng.normal(size=(4, 2)) * ~mdp.terminal[:, None]
    step, ascent, v = mean_step(p, q.T.ravel(), counts)
    target = mdp.expected_reward + gamma * np.einsum("sat,tb,tb->sa", mdp.P * ~mdp.terminal, pi, q)
    near(step, (d * (target - q)).T.ravel())
    near(ascent, np.einsum("s,sa,san->n", d.sum(axis=1), v.reshape(2, 4).T, d_pi(p)))
    exact = mdp.action_value(p.policy, p.theta)
    step, _, v = mean_step(p, exact.T.ravel(), counts)
    np.testing.assert_allclose(step, 0, atol=1e-14)  # the fixed point is q_π, for every d


@pytest.mark.equation("12.22")
def test_state_values_of_a_buffer_are_those_of_the_policies_that_filled_it_and_action_values_are_not():
    """The example of the chapter: rewards 1 and 0, γ = 0.9, half of the rows for each action, π = (0.8, 0.2)."""
    gamma, pi = 0.9, np.array([0.8, 0.2])
    rows = [Row(np.zeros(2), a, r, np.zeros(2), False, False, 0) for a, r in ((0, 1.0), (1, 0.0))]
    agent = ReplayActorCritic(ONE_STATE.policy, F.Constant(), gamma=gamma, alpha_u=0.0, alpha_v=0.2, capacity=2)
    agent.init(np.random.default_rng(0), 2)
    agent.theta = np.log(pi)
    rng, tail = np.random.default_rng(1), []
    steps = step_of(ONE_STATE.policy, rows, rows[0])
    for k in range(3000):
        agent.update(steps, rng)
        tail.append(pi @ agent.v) if k >= 1000 else None
    assert np.mean(tail) == pytest.approx(8.0, abs=0.15)
    v = 0.0
    for _ in range(2000):  # the mean of a target that averages over the actions of the buffer
        v += 0.1 * np.mean([row.r + gamma * v - v for row in rows])
    assert v == pytest.approx(5.0, abs=1e-6)


@pytest.mark.equation("12.22", "1.6")
def test_the_sample_has_the_mean_of_the_sum_and_without_a_baseline_the_variance_of_the_chapter():
    def directions(actor, baseline, c):
        agent = make(ReplayActorCritic, ONE_STATE, actor=actor, baseline=baseline)
        agent.theta = np.zeros(2)
        x, q, found = np.ones((1, 1)), np.array([[c + 1.0, c]]), []
        for a in range(2):
            with mock.patch.object(Policy, "sample", return_value=np.array([a])):
                g = agent.ascent_direction(x, q, np.random.default_rng(0))
            found.append((g[0] - g[1]) / 2)  # for the difference of the logits
        return np.mean(found), np.var(found)

    assert directions("sum", True, 100.0) == pytest.approx((0.25, 0.0), abs=1e-12)
    assert directions("sample", True, 100.0) == pytest.approx((0.25, 0.0), abs=1e-12)
    mean, variance = directions("sample", False, 100.0)
    assert mean == pytest.approx(0.25, abs=1e-12)
    assert variance == pytest.approx(0.25 * 100.5**2, rel=1e-12)
    assert round(variance) == 2525


def test_the_old_action_never_reaches_the_actor():
    """With the critic at rest, the same states and other actions and rewards give the same step of θ."""
    case = CASES["one-hot"]
    one, other = (make(ReplayActorCritic, case, 0, alpha_v=0.0) for _ in range(2))
    for step in stream(case, 0):
        one.update(step, np.random.default_rng(0))
        step.actions = (step.actions + 1) % 3
        step.rewards = -step.rewards
        other.update(step, np.random.default_rng(0))
        close(one.theta, other.theta)


def test_continuous_actions_are_refused():
    with pytest.raises(TypeError, match="replay_actor_critic needs discrete actions"):
        make(ReplayActorCritic, Case(CASES["gaussian"].policy, CASES["gaussian"].value_features, None))


def test_observations_may_be_negative_in_a_state_that_is_taken_back():
    agents = [make(ReplayActorCritic, CASES["one-hot"]) for _ in range(2)]
    agents[0].replay.insert(obs=np.array([-3, 1]), actions=np.array([0, 1]))
    agents[1].load_state(agents[0].state())
    np.testing.assert_array_equal(agents[1].replay.rows["obs"][:2], [-3, 1])


def test_an_action_that_is_none_is_refused_before_it_is_kept():
    agent, traj = make(ReplayActorCritic, CASES["one-hot"]), stream(CASES["one-hot"], 0)[0]
    traj.actions[:] = 9
    with pytest.raises(ValueError, match="a must hold integers from 0 to 2"):
        agent.update(traj, np.random.default_rng(0))
    assert len(agent.replay) == 0
