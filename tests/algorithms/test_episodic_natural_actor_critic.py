"""Episodic natural actor–critic against its box, and its direction where the episodes are exact."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import (
    BUILT,
    CASES,
    Case,
    Row,
    batch,
    centred,
    direction,
    episodes_of,
    equal,
    every_episode,
    mean_fisher,
    other_parameters,
    score,
    segments,
    step,
    step_of,
    updated,
)
from strategies import examples, seeds

from npg import features as F
from npg.algorithms import EpisodicNaturalActorCritic
from npg.policies import SoftmaxLinear

SETTINGS = {"gamma": 0.8, "episodes": 4, "ridge": 0.5, "delta": 0.03, "alpha": 0.2}
EXACT = {"ridge": 0.0, "delta": None, "alpha": 1.0}


def make(case: Case, seed: int = 0, **changed) -> EpisodicNaturalActorCritic:
    """An agent at random θ."""
    rng = np.random.default_rng(seed)
    agent = EpisodicNaturalActorCritic(case.policy, **SETTINGS | changed)
    agent.init(rng)
    agent.theta = 0.2 * rng.normal(size=agent.theta.shape)
    return agent


def box(case, theta, traj, *, gamma, ridge, delta, alpha):
    """The box of the module: new θ."""
    X, R, rows = [], [], []
    for episode in episodes_of(traj):
        psi_bar, R_i = np.zeros(len(theta)), 0.0
        for t, s in enumerate(episode):
            psi_bar = psi_bar + gamma**t * score(case.policy, theta, s.obs, s.a)
            R_i += gamma**t * s.r
        X.append(psi_bar)
        R.append(R_i)
        rows += episode
    X, R = np.array(X), np.array(R) - R[0]
    if ridge > 0:
        with_J = np.column_stack([X, np.ones(len(X))])
        u = np.linalg.solve(with_J.T @ with_J + np.diag([ridge] * X.shape[1] + [0]), with_J.T @ R)[:-1]
    else:
        u = np.linalg.pinv(X - X.mean(axis=0), rcond=1e-12) @ R  # the shortest, whatever J is
    return theta + step(u, mean_fisher(case.policy, theta, rows), delta, alpha)


def of_box(setting):
    return {name: value for name, value in setting.items() if name != "episodes"}


@pytest.mark.equation("9.17", defining=True)
@pytest.mark.equation("9.7")
@pytest.mark.parametrize("ridge", [0.0, 0.5])
@pytest.mark.parametrize("kind", CASES)
@given(seeds, st.sampled_from([None, 0.03]), st.sampled_from([0.0, 0.8, 1.0]))
@examples(4)
def test_update_is_its_box_line_by_line(kind, ridge, seed, delta, gamma):
    changed = {"delta": delta, "ridge": ridge, "gamma": gamma}
    case, agent = CASES[kind], make(CASES[kind], seed, **changed)
    theta = agent.theta.copy()
    for k in range(2):
        traj = batch(case, seed + k)  # with reset steps between episodes of different lengths, and padding
        assert not traj.valid.all()
        theta = box(case, theta, traj, **of_box(SETTINGS | changed))
        agent.update(traj, np.random.default_rng(0))
        equal(agent.theta, theta, 1e-8)


@pytest.mark.equation("9.7")
@pytest.mark.parametrize("kind", CASES)
@given(seeds, st.sampled_from([1e-5, 1e-4, 1e-3]))
@examples(5)
def test_a_normalised_step_has_the_radius_in_the_matrix_of_the_states_visited(kind, seed, delta):
    agent, traj = make(CASES[kind], seed, delta=delta), batch(CASES[kind], seed)
    theta = agent.theta.copy()
    change, diagnostics = updated(agent, traj)
    rows = [row for episode in episodes_of(traj) for row in episode]
    fisher = mean_fisher(CASES[kind].policy, theta, rows)
    assert change @ fisher @ change / 2 == pytest.approx(delta, rel=1e-9)
    plain, _ = updated(make(CASES[kind], seed, delta=None, alpha=1.0), traj)
    assert diagnostics["natural_gradient_norm"] == pytest.approx(np.linalg.norm(plain), rel=1e-9)
    equal(change / np.linalg.norm(change), plain / np.linalg.norm(plain))


def found(p, **changed):
    """The direction from every episode of the problem, as often as it occurs."""
    agent = EpisodicNaturalActorCritic(p.policy, gamma=p.mdp.gamma, **EXACT | changed)
    agent.init(p.rng)
    agent.theta = p.theta
    return updated(agent, every_episode(p))[0]


@pytest.mark.equation("9.11", "9.17")
@pytest.mark.parametrize("gamma", [0.5, 1.0])
@pytest.mark.parametrize("kind", BUILT)
def test_with_every_episode_the_direction_is_the_natural_gradient_where_it_should_be(kind, gamma):
    p = BUILT[kind](gamma)
    u = found(p)
    weights = p.mdp.visitation(p.policy, p.theta, gamma=gamma**2)
    fisher, g = direction(p, weights)
    equal(fisher @ u, g)
    change = centred(p, p.mdp.natural_gradient(p.policy, p.theta))
    if gamma == 1 or kind == "table":
        np.testing.assert_allclose(centred(p, u), change, rtol=0, atol=1e-9)
    else:
        assert np.abs(centred(p, u) - change).max() > 0.01


@pytest.mark.equation("9.9", "9.17")
@pytest.mark.parametrize(("ridge", "same"), [(0.0, True), (100.0, False)])
@pytest.mark.parametrize("kind", BUILT)
def test_the_direction_is_the_same_in_all_linear_parameters_unless_a_ridge_damps_it(kind, ridge, same):
    p = BUILT[kind](0.5)
    first, second = (centred(r, found(r, ridge=ridge)) for r in (p, other_parameters(p)))
    difference = np.abs(second - first).max()
    assert (difference <= 1e-8 * np.abs(first).max()) if same else (difference > 1e-2 * np.abs(first).max())


@pytest.mark.equation("9.17")
@given(seeds, st.floats(-5, 5))
@examples(20)
def test_a_constant_added_to_every_return_changes_nothing(seed, c):
    case, traj = CASES["dense"], batch(CASES["dense"], seed)
    first, _ = updated(make(case, ridge=0.0, delta=None), traj)
    traj.rewards = traj.rewards + c * (traj.valid & (traj.t == 0))
    # More episodes than parameters, and scores that are far from constant.
    equal(updated(make(case, ridge=0.0, delta=None), traj)[0], first, 1e-8)


def test_equal_returns_are_no_step_however_long_steps_are():
    agent, traj = make(CASES["one-hot"], ridge=0.0, delta=0.5), batch(CASES["one-hot"], 0)
    traj.rewards = np.where(traj.valid & (traj.t == 0), -0.1, 0.0)
    change, _ = updated(agent, traj)
    assert not change.any()


@pytest.mark.equation("9.17")
@pytest.mark.parametrize(("terminated", "truncated"), [(1, 0), (0, 1), (1, 1)])
def test_the_return_of_an_episode_ends_at_a_time_limit_as_at_a_termination(terminated, truncated):
    policy = SoftmaxLinear(F.Constant(), 2)
    rows = [Row(0, a, r, 0, bool(terminated), bool(truncated), 0) for a, r in ((0, 3.0), (1, 1.0))]
    agent = EpisodicNaturalActorCritic(policy, **EXACT)
    agent.init(np.random.default_rng(0))
    change, _ = updated(agent, step_of(policy, rows, rows[0]))
    np.testing.assert_allclose(change, [1, -1], rtol=0, atol=1e-13)  # the advantages 3 − 2 and 1 − 2


def test_parts_of_episodes_are_refused():
    with pytest.raises(ValueError, match="must be whole episodes"):
        updated(make(CASES["dense"]), segments(CASES["dense"], 0)[1])
