"""Natural actor–critic against its box, and its direction where the data are exact."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import (
    BUILT,
    CASES,
    Case,
    Row,
    centred,
    direction,
    equal,
    every_episode,
    mean_fisher,
    other_parameters,
    score,
    segments,
    step,
    step_of,
    updated,
    vector,
    windows,
)
from strategies import Problem, examples, seeds

import npg
from npg import features as F
from npg.algorithms import NaturalActorCritic
from npg.policies import SoftmaxLinear

SETTINGS = {"gamma": 0.8, "n_steps": 5, "lam": 0.7, "ridge": 0.5, "delta": 0.03, "alpha": 0.2}
EXACT = {"ridge": 0.0, "delta": None, "alpha": 1.0}
LAMBDAS = [0.0, 0.5, 1.0]


def make(case: Case, seed: int = 0, **changed) -> NaturalActorCritic:
    """An agent at random θ."""
    rng = np.random.default_rng(seed)
    agent = NaturalActorCritic(case.policy, case.value_features, **SETTINGS | changed)
    agent.init(rng)
    agent.theta = 0.2 * rng.normal(size=agent.theta.shape)
    return agent


def box(case, theta, traj, *, gamma, lam, ridge, delta, alpha):
    """The box of the module: new θ."""
    policy, phi = case.policy, case.value_features
    n = phi.n_features + policy.n_params
    A, b, rows = ridge * np.eye(n), np.zeros(n), []
    for part in windows(traj):
        z = np.zeros(n)
        for s in part:
            x = np.concatenate([vector(phi, s.obs), score(policy, theta, s.obs, s.a)])
            x_next = np.zeros(n)
            if not s.terminated:
                x_next[: phi.n_features] = vector(phi, s.next_obs)
            z = gamma * lam * z + x
            A = A + np.outer(z, x - gamma * x_next)
            b = b + z * s.r
            rows.append(s)
    u = np.linalg.solve(A, b)[phi.n_features :]
    return theta + step(u, mean_fisher(policy, theta, rows), delta, alpha)


def of_box(setting):
    return {name: value for name, value in setting.items() if name != "n_steps"}


@pytest.mark.equation("9.16", defining=True)
@pytest.mark.equation("7.17", "8.10", "9.7")
@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("kind", CASES)
@given(seeds, st.sampled_from([None, 0.03]), st.sampled_from([0.5, 3.0]))
@examples(4)
def test_update_is_its_box_line_by_line(kind, lam, seed, delta, ridge):
    changed = {"lam": lam, "delta": delta, "ridge": ridge}
    case, agent = CASES[kind], make(CASES[kind], seed, **changed)
    theta = agent.theta.copy()
    for traj in segments(case, seed, 2):
        assert not traj.valid.all()
        theta = box(case, theta, traj, **of_box(SETTINGS | changed))
        agent.update(traj, np.random.default_rng(0))
        equal(agent.theta, theta)


@pytest.mark.equation("9.7")
@pytest.mark.parametrize("kind", CASES)
@given(seeds, st.sampled_from([1e-5, 1e-4, 1e-3]))
@examples(5)
def test_a_normalised_step_has_the_radius_in_the_matrix_of_the_states_visited(kind, seed, delta):
    agent, traj = make(CASES[kind], seed, delta=delta), segments(CASES[kind], seed)[1]
    theta = agent.theta.copy()
    change, diagnostics = updated(agent, traj)
    rows = [row for part in windows(traj) for row in part]
    fisher = mean_fisher(CASES[kind].policy, theta, rows)
    assert change @ fisher @ change / 2 == pytest.approx(delta, rel=1e-9)
    plain, _ = updated(make(CASES[kind], seed, delta=None, alpha=1.0), traj)
    assert diagnostics["natural_gradient_norm"] == pytest.approx(np.linalg.norm(plain), rel=1e-9)
    equal(change / np.linalg.norm(change), plain / np.linalg.norm(plain))


def features_of_values(table):
    """φ(s) as a feature object, zero in the terminal state."""

    class Table:
        n_features = table.shape[1]

        def __call__(self, obs):
            return table[obs]

    return Table()


def found(p, phi, **changed):
    """The direction from every episode of the problem, as often as it occurs."""
    agent = NaturalActorCritic(p.policy, phi, gamma=p.mdp.gamma, **EXACT | changed)
    agent.init(p.rng)
    agent.theta = p.theta
    return updated(agent, every_episode(p))[0]


@pytest.mark.equation("9.11", "9.16")
@pytest.mark.parametrize(("phi", "lam"), [("states", 0.0), ("states", 0.5), ("v", 0.0), ("v", 0.5), ("any", 1.0)])
@pytest.mark.parametrize("gamma", [0.5, 1.0])
@pytest.mark.parametrize("kind", BUILT)
def test_with_every_episode_the_direction_is_the_exact_natural_gradient_of_the_data(kind, gamma, phi, lam):
    p = BUILT[kind](gamma)
    any_features = np.array([[1.0], [-0.5], [2.0], [0.0]])
    tables = {"states": np.eye(4), "v": p.mdp.value(p.policy, p.theta)[:, None], "any": any_features}
    u = found(p, features_of_values(tables[phi]), lam=lam)
    fisher, g = direction(p, p.mdp.visitation(p.policy, p.theta, gamma=1))
    equal(fisher @ u, g)
    if gamma == 1 or kind == "table":
        change = centred(p, p.mdp.natural_gradient(p.policy, p.theta))
        np.testing.assert_allclose(centred(p, u), change, rtol=0, atol=1e-9)


@pytest.mark.equation("9.16")
@pytest.mark.parametrize("kind", BUILT)
def test_with_values_that_are_wrong_and_lambda_below_one_it_is_not(kind):
    p = BUILT[kind](1.0)
    u = found(p, features_of_values(np.array([[1.0], [-0.5], [2.0], [0.0]])), lam=0.5)
    assert np.abs(centred(p, u) - centred(p, p.mdp.natural_gradient(p.policy, p.theta))).max() > 0.01


@pytest.mark.equation("9.9", "9.16")
@pytest.mark.parametrize(("ridge", "same"), [(0.0, True), (100.0, False)])
@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("kind", BUILT)
def test_the_direction_is_the_same_in_all_linear_parameters_unless_a_ridge_damps_it(kind, lam, ridge, same):
    p = BUILT[kind](0.5)
    q = other_parameters(p)
    phi = features_of_values(np.array([[1.0], [-0.5], [2.0], [0.0]]))
    first, second = (centred(r, found(r, phi, lam=lam, ridge=ridge)) for r in (p, q))
    difference = np.abs(second - first).max()
    assert (difference <= 1e-8 * np.abs(first).max()) if same else (difference > 1e-2 * np.abs(first).max())


@pytest.mark.equation("9.16")
def test_traces_go_on_within_a_column_and_end_with_an_episode():
    # 0 → 1 → end, and the reward is paid at the end: with λ = 1 the first action is paid for too.
    p = Problem(None, SoftmaxLinear(F.OneHot(2), 2), np.zeros(4), np.random.default_rng(0))
    columns = [[Row(0, a, 0.0, 1, False, False, 0), Row(1, 0, float(a), 1, True, False, 1)] for a in (0, 1)]
    traj = npg.Trajectories(
        **{
            name: np.concatenate(
                [getattr(step_of(p.policy, rows, rows[0]), name) for rows in zip(*columns, strict=True)]
            )
            for name in npg.Trajectories.__slots__
        }
    )
    for lam, expected in ((1.0, 0.25), (0.0, 0.0)):
        agent = NaturalActorCritic(p.policy, F.OneHot(2), gamma=0.5, lam=lam, **EXACT)
        agent.init(p.rng)
        W = updated(agent, traj)[0].reshape(2, 2)
        np.testing.assert_allclose(W[:, 0], [-expected, expected], rtol=0, atol=1e-12)
