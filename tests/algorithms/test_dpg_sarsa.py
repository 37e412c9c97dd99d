"""DPG with Sarsa against its box, and why the noise in its actions is part of it."""

from itertools import pairwise

import numpy as np
import pytest
from continuous import LINEAR, seen
from gymnasium.wrappers import TimeLimit
from hypothesis import given
from oracles import carried, close, collected, make, row_of, stream
from strategies import examples, seeds

from npg import features as F
from npg.algorithms import DPGSarsa
from npg.envs.lqr import LQREnv
from npg.lqr import LQR

STEPS = {"gamma": 0.8, "alpha": 0.02, "alpha_w": 0.1, "alpha_v": 0.2}


def box(W, w, v, rows, *, gamma, alpha, alpha_w, alpha_v):
    """The box of chapter 13; θ, w and v after each step that the next action is known of."""
    for s, after in pairwise(rows):
        phi = s.J.T @ (s.a - s.J @ W)
        q, q_next = w @ phi + v @ s.phi, v @ s.phi_next
        if not s.ends:
            q_next = q_next + w @ after.J.T @ (after.a - after.J @ W)
        delta = s.r + gamma * q_next - q
        theta = W + alpha * s.J.T @ s.J @ w
        W, w, v = theta, w + alpha_w * delta * phi, v + alpha_v * delta * s.phi
        yield W, w, v


def check(agent, case, steps, setting):
    n = agent.mu.n_params
    expected = box(
        agent.theta[:n].copy(), agent.w.copy(), agent.v.copy(), [seen(case, row_of(s)) for s in steps], **setting
    )
    begin = agent.theta.copy()
    agent.update(steps[0], np.random.default_rng(0))
    assert np.array_equal(agent.theta, begin)  # nothing is known yet
    for traj, (W, w, v) in zip(steps[1:], expected, strict=True):
        agent.update(traj, np.random.default_rng(0))
        close(agent.theta[:n], W)
        close(agent.w, w)
        close(agent.v, v)


@pytest.mark.equation("13.13", defining=True)
@pytest.mark.equation("13.9", "8.10")
@pytest.mark.parametrize("kind", LINEAR)
@given(seeds)
@examples(20)
def test_one_column_is_the_box_line_by_line_one_step_later(kind, seed):
    case = LINEAR[kind]
    check(make(DPGSarsa, case, seed, **STEPS), case, stream(case, seed), STEPS)


@pytest.mark.equation("13.13")
def test_a_collected_run_is_the_box_line_by_line():
    """The action that completes a step is the one that is taken next."""
    lqr, setting = LQR(), STEPS | {"alpha": 0.001, "alpha_w": 0.01, "alpha_v": 0.01}
    features = F.Polynomial(1, degree=2, scale=1.0)
    agent, fresh = (DPGSarsa(lqr.policy(), features, sigma=0.5, **setting) for _ in range(2))
    for each in (agent, fresh):
        each.init(np.random.default_rng(0))
    steps = []
    for traj in collected(agent, TimeLimit(LQREnv(lqr), 10), 50):
        agent.update(traj, np.random.default_rng(0))
        steps.append(traj)
    assert any(traj.truncated.any() for traj in steps)
    check(fresh, LINEAR["dense"]._replace(policy=lqr.policy(), value_features=features), steps, setting)
    assert np.array_equal(fresh.theta, agent.theta)


@pytest.mark.equation("13.13")
def test_without_noise_in_the_action_w_never_moves():
    case = LINEAR["tiles"]
    agent = make(DPGSarsa, case, 0, **STEPS)
    w, v = agent.w.copy(), agent.v.copy()
    agent.alpha = 0.0
    for traj in stream(case, 0):
        traj.actions[0] = agent.policy.mode(agent.theta, case.policy.features(traj.obs[0]))
        agent.update(traj, np.random.default_rng(0))
    np.testing.assert_allclose(agent.w, w, rtol=0, atol=1e-15)
    assert np.abs(agent.v - v).max() > 0.01


@pytest.mark.equation("8.10")
def test_what_is_kept_of_a_step_is_in_its_state():
    case = LINEAR["tiles"]
    agent = make(DPGSarsa, case, 0, **STEPS)
    assert not any(value.any() for value in carried(agent).values())
    agent.update(stream(case, 0)[0], np.random.default_rng(0))
    assert {name for name, value in carried(agent).items() if value.any()} == {*carried(agent)}
