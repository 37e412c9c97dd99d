"""Finite problems solved exactly: chapter 4, the theorems of chapter 6 that compare two policies, of chapters 7 and 8
the fixed points of TD, compatible features and the average reward, and of chapter 9 what holds of exact natural
gradients and of the regressions that estimate them.

What is expected comes from long sums, from every trajectory, from the complex step or by hand, not from the linear
systems of the module.
"""

import tracemalloc
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
import strategies as S
from hypothesis import assume, given
from hypothesis import strategies as st
from oracles import centred, d_pi, dense_policy, derivative, direction, invertible, reparametrised
from scipy import optimize

from npg.distributions import Categorical
from npg.envs.tabular import TabularVectorEnv
from npg.exact import TabularMDP, enumerate_trajectories, total_variation
from npg.features import Constant, OneHot
from npg.gradcheck import check_gradient
from npg.policies import GaussianLinear, SoftmaxLinear
from npg.problems import garnet, random_walk, short_corridor, two_state
from npg.solvers import conjugate_gradient

theorem = S.examples(200)
Z_BOUND = 6.0  # two-sided tail probability 2e-9 per comparison
MANY = 2**10  # steps after which γ ≤ 0.95, or a termination of at least 0.1 a step, leaves less than 1e-22


@st.composite
def problems(draw, **kwargs):
    """Those of ``strategies`` with unequal chances of first states, and half of them with R(s, a, s')."""
    p = draw(S.problems(**kwargs))
    live = ~p.mdp.terminal
    rho0 = live * (0.2 + p.rng.random(len(live)))
    R = p.rng.normal(size=p.mdp.P.shape) * live[:, None, None] if draw(st.booleans()) else p.mdp.R
    return p._replace(mdp=replace(p.mdp, R=R, rho0=rho0 / rho0.sum()))


def close(actual, expected, scale=1.0):
    """Equal to 1e-10 relative. Values here are at most some 60 and systems have condition numbers up to 40, so that
    errors are below 60 · 40 · 1e-15 in units of ``scale``."""
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-11 * scale)


def long_sum(matrix, b):
    """Σ_k M^k b over k < MANY, by doubling."""
    for _ in range(int(np.log2(MANY))):
        b, matrix = b + matrix @ b, matrix @ matrix
    return b


def rewards_of_transitions(mdp):
    """R(s, a, s'): (S, A, S)."""
    return np.broadcast_to(mdp.R if mdp.R.ndim == 3 else mdp.R[:, :, None], mdp.P.shape)


def reward(mdp):
    """E[R_{t+1} | s, a]: (S, A)."""
    return sum(mdp.P[:, :, s] * rewards_of_transitions(mdp)[:, :, s] for s in range(mdp.n_states))


def chain(mdp, pi):
    """P_π and r_π."""
    actions, R = range(mdp.n_actions), reward(mdp)
    return sum(pi[:, [a]] * mdp.P[:, a] for a in actions), sum(pi[:, a] * R[:, a] for a in actions)


def marginals(mdp, pi, steps=MANY):
    """Pr(S_t = s) for t < steps, twice as many steps of the chain at a time."""
    P, _ = chain(mdp, pi)
    p = mdp.rho0[None]
    while len(p) < steps:
        p, P = np.concatenate([p, p @ P]), P @ P
    return p[:steps]


def matrix(p):
    return p.mdp.policy_matrix(p.policy, p.theta)


def tabular(p):
    """The same problem with a tabular policy."""
    policy = SoftmaxLinear(OneHot(p.mdp.n_states), p.mdp.n_actions)
    return p._replace(policy=policy, theta=p.rng.normal(size=policy.n_params))


def pair(p):
    """(new, old): from almost equal to far apart, the new one with zeros at times; equal in terminal states."""
    old = matrix(p)
    other = p.rng.dirichlet(np.full(p.mdp.n_actions, 0.3), size=p.mdp.n_states)
    other[other < 0.1] = 0
    kappa = p.rng.choice([0.001, 0.1, 0.5, 1.0])
    new = (1 - kappa) * old + kappa * other / other.sum(axis=1, keepdims=True)
    new[p.mdp.terminal] = old[p.mdp.terminal]
    return new, old


def alpha_epsilon(mdp, new, old):
    return total_variation(new, old)[~mdp.terminal].max(), np.abs(mdp.advantage(old)).max()


def layered(rng, gamma, n=3, A=2):
    """A problem whose episodes end within n steps, as each leads to a higher state, with a tabular policy and θ."""
    P, R = np.zeros((n + 1, A, n + 1)), rng.normal(size=(n + 1, A, n + 1))
    for s in range(n):
        P[s, :, s + 1 :] = rng.dirichlet(np.ones(n - s), size=A)
    P[n, :, n], R[n] = 1, 0
    mdp = TabularMDP(P, R, gamma, np.append(rng.dirichlet(np.ones(n)), 0))
    policy = SoftmaxLinear(OneHot(n + 1), A)
    return S.Problem(mdp, policy, rng.normal(size=policy.n_params), rng)


layers = st.builds(layered, S.generators, st.sampled_from([0.5, 0.9, 1.0]))


def with_unvisited_state(mdp):
    """The problem with one more state, in which no episode begins and to which none comes."""
    n, R = mdp.n_states, reward(mdp)
    P = np.zeros((n + 1, mdp.n_actions, n + 1))
    P[:n, :, :n], P[n, :, :n] = mdp.P, mdp.P[0]
    return TabularMDP(P, np.append(R, R[:1] + np.arange(mdp.n_actions), axis=0), mdp.gamma, np.append(mdp.rho0, 0))


def random_graph(rng, n, A):
    """P (n, A, n) of uniform choices among random successors: zeros, and no small probabilities."""
    edges = rng.random((n, A, n)) < 0.25
    edges[np.arange(n), :, rng.integers(n, size=n)] = True
    return edges / edges.sum(axis=2, keepdims=True)


# Values


@pytest.mark.equation("4.1", defining=True)
@theorem
@given(problems())
def test_values_satisfy_the_bellman_equations(p):
    mdp, pi = p.mdp, matrix(p)
    v, q, a = (f(p.policy, p.theta) for f in (mdp.value, mdp.action_value, mdp.advantage))
    for s, b in product(range(mdp.n_states), range(mdp.n_actions)):
        close(q[s, b], reward(mdp)[s, b] + mdp.gamma * sum(mdp.P[s, b, t] * v[t] for t in range(mdp.n_states)))
        close(a[s, b], q[s, b] - v[s])
    close(v, (pi * q).sum(axis=1))
    close((pi * a).sum(axis=1), 0)
    assert not v[mdp.terminal].any()
    assert not a[mdp.terminal].any()


@pytest.mark.equation("4.2", defining=True)
@theorem
@given(problems())
def test_values_are_the_sum_of_all_discounted_rewards(p):
    P, r = chain(p.mdp, matrix(p))
    close(p.mdp.value(p.policy, p.theta), long_sum(p.mdp.gamma * P, r))


@pytest.mark.equation("4.1")
@theorem
@given(problems())
def test_a_policy_and_its_matrix_give_the_same_numbers(p):
    pi = matrix(p)
    for f in (p.mdp.value, p.mdp.action_value, p.mdp.advantage, p.mdp.J, p.mdp.visitation):
        assert np.array_equal(f(p.policy, p.theta), f(pi))


@pytest.mark.equation("4.2")
@theorem
@given(S.generators)
def test_at_gamma_one_there_are_values_exactly_if_every_state_terminates(rng):
    n, A = 4, 2
    P = np.zeros((n + 1, A, n + 1))
    P[:n, :, :n] = random_graph(rng, n, A)
    P[range(n), 0], P[n] = np.eye(n + 1)[1:], np.eye(n + 1)[n]  # action 0 steps towards the end
    mdp = TabularMDP(P, np.append(rng.normal(size=(n, A)), np.zeros((1, A)), axis=0), 1.0, np.eye(n + 1)[0])
    pi = rng.random((n + 1, A)) < 0.5
    pi[~pi.any(axis=1), 1] = True
    pi = pi / pi.sum(axis=1, keepdims=True)
    chain_, _ = chain(mdp, pi)
    ends = (np.linalg.matrix_power(chain_, n)[:, n] > 0).all()
    # Steps have probabilities of at least 1/8: where all end, T has a mean of at most 4 · 8⁴, which bounds the inverse.
    assert ends == (np.linalg.svd(np.eye(n) - chain_[:n, :n], compute_uv=False)[-1] > 1e-6)
    if ends:
        close(mdp.value(pi)[:n], chain_[:n, :n] @ mdp.value(pi)[:n] + (pi * mdp.R).sum(axis=1)[:n], 100)
    else:
        with pytest.raises(ValueError, match="reach a terminal state from every state"):
            mdp.value(pi)


@pytest.mark.equation("4.2")
@pytest.mark.parametrize("name", ["value", "action_value", "advantage", "J", "visitation"])
@pytest.mark.parametrize("right", [0.0, 1.0])
def test_a_policy_that_never_ends_has_no_values_at_gamma_one(name, right):
    pi = np.tile([1 - right, right], (4, 1))
    with pytest.raises(ValueError, match="with gamma = 1 the policy must reach a terminal state from every state"):
        getattr(short_corridor(), name)(pi)
    assert np.isfinite(getattr(short_corridor(0.9), name)(pi)).all()


@pytest.mark.equation("4.2")
@pytest.mark.parametrize(
    "name", ["value", "J", "visitation", "gradient", "value_jacobian", "fisher", "natural_gradient"]
)
def test_a_softmax_that_has_underflowed_to_a_policy_that_never_ends_is_an_error(name):
    theta = np.repeat([1e4, -1e4], 4)  # left, whose probability is 1 to the last bit
    with pytest.raises(ValueError, match="with gamma = 1 the policy must reach a terminal state from every state"):
        getattr(short_corridor(), name)(SoftmaxLinear(OneHot(4), 2), theta)


def test_termination_is_needed_even_from_states_that_no_episode_visits():
    walk = replace(random_walk(3), rho0=np.array([1.0, 0, 0, 0]))
    pi = np.array([[1.0, 0], [0, 1], [1, 0], [1, 0]])  # ends at once from state 0; 1 and 2 go to and fro
    with pytest.raises(ValueError, match="from every state"):
        walk.J(pi)
    assert replace(walk, gamma=0.999).J(pi) == -1


def test_a_discount_of_one_in_the_visitation_asks_for_termination_too():
    with pytest.raises(ValueError, match="with gamma = 1 the policy must reach a terminal state"):
        two_state(0.9).visitation(np.full((2, 2), 0.5), gamma=1)


@pytest.mark.equation("4.3", defining=True)
@theorem
@given(problems())
def test_objective_is_the_first_value_and_the_visited_reward(p):
    pi = matrix(p)
    J, (P, r) = p.mdp.J(p.policy, p.theta), chain(p.mdp, pi)
    close(J, sum(p.mdp.rho0 * p.mdp.value(pi)))
    close(J, sum(p.mdp.visitation(pi) * r))
    close(J, p.mdp.rho0 @ long_sum(p.mdp.gamma * P, r))


def test_short_corridor_at_one_half_has_the_numbers_worked_out_by_hand():
    mdp, policy, pi = short_corridor(), SoftmaxLinear(Constant(), 2), np.full((4, 2), 0.5)
    close(mdp.value(pi), [-12, -10, -6, 0])
    close(mdp.visitation(pi), [6, 4, 2, 0])
    close(mdp.advantage(pi), [[-1, 1], [3, -3], [-5, 5], [0, 0]])
    close(mdp.gradient(policy, np.zeros(2)), [-2, 2])
    close(mdp.fisher(policy, np.zeros(2)), [[3, -3], [-3, 3]])
    close(mdp.natural_gradient(policy, np.zeros(2)), [-1 / 3, 1 / 3])
    close(mdp.natural_gradient(policy, np.zeros(2), normalized=True), [-4, 4])
    close(mdp.J(pi, horizon=10), -7.65625)
    columns, _ = enumerate_trajectories(mdp, policy, np.zeros(2), 10)
    assert columns.obs.shape == (10, 548)


# Visitation


@pytest.mark.equation("4.4", defining=True)
@theorem
@given(problems())
def test_visitation_is_the_discounted_sum_of_state_probabilities(p):
    mdp, pi = p.mdp, matrix(p)
    live = ~mdp.terminal
    weight = mdp.gamma ** np.arange(MANY)
    d = mdp.visitation(p.policy, p.theta)
    close(d, weight @ marginals(mdp, pi) * live)
    P, _ = chain(mdp, pi)
    for s in np.flatnonzero(live):
        close(d[s], mdp.rho0[s] + mdp.gamma * sum(d[t] * P[t, s] for t in np.flatnonzero(live)))


@pytest.mark.equation("4.4")
@theorem
@given(problems(episodic=True), st.sampled_from([0.0, 0.5, 1.0]))
def test_visitation_takes_another_discount(p, gamma):
    weight = gamma ** np.arange(MANY)
    pi = matrix(p)
    close(p.mdp.visitation(pi, gamma=gamma), weight @ marginals(p.mdp, pi) * ~p.mdp.terminal)
    assert np.array_equal(p.mdp.visitation(pi, gamma=gamma), replace(p.mdp, gamma=gamma).visitation(pi))


@pytest.mark.equation("4.4")
@theorem
@given(S.generators)
def test_visitation_is_positive_where_episodes_come_and_exactly_zero_elsewhere(rng):
    n, A, visited = 5, 2, int(rng.integers(1, 5))
    P = rng.dirichlet(np.ones(n), size=(n, A))
    P[:visited, :, visited:] = 0
    mdp = TabularMDP(P / P.sum(axis=2, keepdims=True), rng.normal(size=(n, A)), 0.95, np.eye(n)[0])
    d = mdp.visitation(rng.dirichlet(np.ones(A), size=n))
    assert (d[:visited] > 0).all()
    assert not d[visited:].any()


@pytest.mark.equation("4.5", defining=True)
@theorem
@given(problems())
def test_total_visitation_is_the_mean_discounted_length_of_an_episode(p):
    mdp, pi = p.mdp, matrix(p)
    running = marginals(mdp, pi) @ ~mdp.terminal  # Pr(T > t)
    ends_at = -np.diff(running, prepend=1.0)
    t, mass = np.arange(MANY), mdp.visitation(pi).sum()
    if mdp.gamma == 1:
        close(mass, ends_at @ t)
    else:
        close(mass, (1 - ends_at @ mdp.gamma**t) / (1 - mdp.gamma))
    if not mdp.terminal.any():
        close(mass, 1 / (1 - mdp.gamma))
    d = mdp.visitation(pi, normalized=True)
    close(d.sum(), 1)
    close(d * mass, mdp.visitation(pi))


@pytest.mark.equation("4.5")
@theorem
@given(problems(episodic=True))
def test_normalised_undiscounted_visitation_is_the_episodic_on_policy_distribution(p):
    pi = matrix(p)
    P, _ = chain(p.mdp, pi)
    live = ~p.mdp.terminal
    visits = long_sum((P * live).T, p.mdp.rho0)  # η(s) = h(s) + Σ η(s̄) Σ π(a|s̄) p(s|s̄, a), Sutton & Barto (9.2)
    close(visits[live], p.mdp.rho0[live] + (visits[live] @ P[np.ix_(live, live)]))
    close(p.mdp.visitation(pi, gamma=1, normalized=True)[live], visits[live] / visits[live].sum())


@pytest.mark.equation("4.6", defining=True)
@theorem
@given(problems(most=2), st.integers(1, 3))
def test_state_marginals_are_the_probabilities_of_the_enumerated_states(p, horizon):
    mdp = p.mdp
    pr = mdp.state_marginals(p.policy, p.theta, horizon=horizon)
    traj, probability = enumerate_trajectories(mdp, p.policy, p.theta, horizon)
    visited = np.concatenate([traj.obs, traj.next_obs[-1:]])
    there = np.concatenate([traj.valid, traj.valid[-1:]])
    there[-1] &= ~traj.terminated[-1]
    for t, s in product(range(horizon + 1), np.flatnonzero(~mdp.terminal)):
        close(pr[t, s], probability @ (there[t] & (visited[t] == s)))
    for t in range(horizon):
        close(pr[t + 1, mdp.terminal].sum(), probability @ traj.terminated[: t + 1].any(axis=0))
    close(pr.sum(axis=1), 1)
    close(pr, marginals(mdp, matrix(p), horizon + 1))


@pytest.mark.equation("4.4", "4.6")
@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_sampled_episodes_visit_states_as_often_as_computed(gamma):
    mdp = garnet(4, 2, 3, gamma=gamma, termination=0.3, seed=1)
    n, steps, rng = 20_000, 100, np.random.default_rng(0)  # 0.7^100 = 3e-16: all end
    pi = rng.dirichlet(np.ones(2), size=mdp.n_states)
    env = TabularVectorEnv(mdp, n)
    obs, _ = env.reset(seed=0)
    visits, running = np.zeros((n, mdp.n_states)), np.ones(n, dtype=bool)
    exact = mdp.state_marginals(pi, horizon=5)
    for t in range(steps):
        at = (obs[:, None] == np.arange(mdp.n_states)) * running[:, None]
        visits += gamma**t * at
        if t <= 5:
            spread = np.sqrt(exact[t] * (1 - exact[t]) / n)[:-1]
            assert (np.abs(at.mean(axis=0) - exact[t])[:-1] < Z_BOUND * spread).all()
        obs, _, terminated, _, _ = env.step((rng.random(n) < pi[obs, 1]).astype(int))
        running &= ~terminated
    assert not running.any()
    error = np.abs(visits.mean(axis=0) - mdp.visitation(pi))[:-1]
    assert (error < Z_BOUND * visits.std(axis=0)[:-1] / np.sqrt(n)).all()


@pytest.mark.equation("4.7", defining=True)
@theorem
@given(S.generators)
def test_stationary_distribution_is_the_only_one_and_there_is_one_exactly_if_the_chain_is_unichain(rng):
    n = int(rng.integers(1, 6))
    P = random_graph(rng, n, 1)[:, 0]
    mdp = TabularMDP(P[:, None], np.ones((n, 1)), 0.5, np.eye(n)[0])
    _, sizes, null = np.linalg.svd(P.T - np.eye(n))
    # One zero for each recurrent class. The product of the r others is the root of a sum of squares of r × r minors,
    # multiples of 5^−r: none is below 1e-5.
    classes = int((sizes < 1e-9).sum())
    if classes > 1:
        with pytest.raises(ValueError, match=f"one recurrent class of states, got {classes}"):
            mdp.stationary_distribution(np.ones((n, 1)))
    else:
        mu = mdp.stationary_distribution(np.ones((n, 1)))
        close(mu, null[-1] / null[-1].sum())
        close(mu @ P, mu)
        reached = np.linalg.matrix_power(np.eye(n) + P, n) > 0
        transient = (reached & ~reached.T).any(axis=1)
        assert not mu[transient].any()


@pytest.mark.equation("4.5", "4.7")
@theorem
@given(problems())
def test_normalised_visitation_is_the_stationary_distribution_of_the_chain_that_starts_again(p):
    mdp = p.mdp
    live = ~mdp.terminal
    stay = mdp.gamma * mdp.P[np.ix_(live, range(mdp.n_actions), live)]
    restart = stay + (1 - stay.sum(axis=2, keepdims=True)) * mdp.rho0[live]
    again = TabularMDP(restart, np.ones(restart.shape[:2]), 0.5, mdp.rho0[live])
    pi = matrix(p)
    close(mdp.visitation(pi, normalized=True)[live], again.stationary_distribution(pi[live]))


# The gradient


@pytest.mark.equation("4.8", defining=True)
@theorem
@given(problems())
def test_value_jacobian_is_the_derivative_of_the_values(p):
    numerical = derivative(lambda theta: p.mdp.value(p.policy, theta), p.theta)
    close(p.mdp.value_jacobian(p.policy, p.theta), numerical, 100)
    P, _ = chain(p.mdp, matrix(p))
    B = np.einsum("san,sa->sn", d_pi(p), p.mdp.action_value(p.policy, p.theta))
    close(numerical, long_sum(p.mdp.gamma * P, B), 100)


@pytest.mark.equation("1.9", "4.9", defining=True)
@theorem
@given(problems())
def test_policy_gradient_theorem_is_the_finite_difference_and_implicit_differentiation(p):
    grad = p.mdp.gradient(p.policy, p.theta)
    for method in ("central", "complex"):
        check = check_gradient(lambda theta: p.mdp.J(p.policy, theta), grad, p.theta, method=method)
        assert check.passed, (method, check)
    close(grad, p.mdp.rho0 @ p.mdp.value_jacobian(p.policy, p.theta), 100)
    d, q = p.mdp.visitation(p.policy, p.theta), p.mdp.action_value(p.policy, p.theta)
    close(grad, np.einsum("s,sa,san->n", d, q, d_pi(p)), 100)


@pytest.mark.equation("4.10")
@theorem
@given(problems())
def test_all_actions_is_the_sum_of_values_times_the_derivative_of_the_policy(p):
    q, w = p.rng.normal(size=p.mdp.P.shape[:2]), p.rng.normal(size=p.mdp.n_states)
    x = p.mdp.features(p.policy)
    expected = np.einsum("sa,san->sn", q, d_pi(p))
    close(p.policy.all_actions(p.theta, x, q), expected)
    close(p.policy.all_actions_gradient(p.theta, x, q, w), w @ expected)
    close(p.policy.all_actions(p.theta, x, q + w[:, None]), expected)


@pytest.mark.equation("4.10", defining=True)
@theorem
@given(problems())
def test_tabular_gradient_is_visitation_times_probability_times_advantage(p):
    p = tabular(p)
    pi, q, x = matrix(p), p.rng.normal(size=p.mdp.P.shape[:2]), np.arange(p.mdp.n_states)[:, None]
    in_eta = [pi[s] * (q[s] - pi[s] @ q[s]) for s in range(p.mdp.n_states)]
    close(p.policy.all_actions_gradient(p.theta, x, q, np.ones(len(q))), np.transpose(in_eta).ravel())
    d, a = p.mdp.visitation(pi), p.mdp.advantage(pi)
    close(p.mdp.gradient(p.policy, p.theta), (d[:, None] * pi * a).T.ravel(), 100)


def field(p, outer_gamma):
    """Σ_s d(s) Σ_a ∇π(a|s) q_γ(s, a) as a function of θ, d with a discount of its own."""
    mdp, x = p.mdp, p.mdp.features(p.policy)

    def g(theta):
        d = mdp.visitation(p.policy, theta, gamma=outer_gamma)
        return p.policy.all_actions_gradient(theta, x, mdp.action_value(p.policy, theta), d)

    return g


def asymmetry(p, outer_gamma):
    jacobian = derivative(field(p, outer_gamma), p.theta)
    return np.abs(jacobian - jacobian.T).max()


@pytest.mark.equation("1.10")
@theorem
@given(S.generators)
def test_field_without_the_outer_discount_has_an_asymmetric_jacobian_hence_is_no_gradient(rng):
    mdp = garnet(3, 2, 3, gamma=rng.uniform(0.1, 0.9), termination=0.2, seed=rng)
    p = tabular(S.Problem(mdp, None, None, rng))
    assert asymmetry(p, 1) > 1e-6  # rounding is some 1e-14


@pytest.mark.equation("1.10")
@theorem
@given(problems(episodic=True))
def test_field_is_the_gradient_and_its_jacobian_symmetric_with_the_outer_discount(p):
    assert asymmetry(p, p.mdp.gamma) < 1e-10
    close(field(p, p.mdp.gamma)(p.theta), p.mdp.gradient(p.policy, p.theta), 100)


@pytest.mark.equation("1.10")
@theorem
@given(problems(episodic=True, discounted=False))
def test_field_without_the_outer_discount_is_the_gradient_at_gamma_one(p):
    assert asymmetry(p, 1) < 1e-10
    close(field(p, 1)(p.theta), p.mdp.gradient(p.policy, p.theta), 100)


@pytest.mark.equation("1.10")
def test_asymmetry_has_the_numbers_of_the_example_with_two_parameters():
    gamma, r, x, y = 0.6, 0.3, 0.4, -0.7
    P, R = np.zeros((3, 2, 3)), np.array([[0, r], [1, 0], [0, 0]])
    P[0, 0, 1] = P[0, 1, 2] = P[1, :, 2] = P[2, :, 2] = 1
    policy = SoftmaxLinear(OneHot(3), 2)
    p = S.Problem(TabularMDP(P, R, gamma, np.eye(3)[0]), policy, np.array([x, y, 0, 0, 0, 0]), None)
    jacobian = derivative(field(p, 1), p.theta)
    c, u = 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(-y))
    close(field(p, 1)(p.theta)[:2], [c * (1 - c) * (gamma * u - r), c * u * (1 - u)])
    close(jacobian[0, 1], gamma * c * (1 - c) * u * (1 - u))
    close(jacobian[1, 0], c * (1 - c) * u * (1 - u))


# Fisher matrix and natural gradient


@pytest.mark.equation("4.11", defining=True)
@theorem
@given(problems())
def test_fisher_is_the_mean_outer_product_of_scores_under_the_visitation(p):
    pi, d, x = matrix(p), p.mdp.visitation(p.policy, p.theta), p.mdp.features(p.policy)
    F = 0
    for a in range(p.mdp.n_actions):
        psi = p.policy.score(p.theta, x, np.full(len(x), a))
        F = F + sum(d[s] * pi[s, a] * np.outer(psi[s], psi[s]) for s in range(len(x)))
    close(p.mdp.fisher(p.policy, p.theta), F, 10)
    close(p.mdp.fisher(p.policy, p.theta, normalized=True), F / d.sum(), 10)


@pytest.mark.equation("4.11")
@theorem
@given(S.generators)
def test_undiscounted_fisher_is_that_of_the_whole_trajectory(rng):
    p = layered(rng, 1.0)
    traj, probability = enumerate_trajectories(p.mdp, p.policy, p.theta, p.mdp.n_states)
    scores = np.zeros((len(probability), p.policy.n_params))
    for t in range(len(traj.obs)):
        scores += traj.valid[t][:, None] * p.policy.score(p.theta, traj.x[t], traj.actions[t])
    close(p.mdp.fisher(p.policy, p.theta), (probability * scores.T) @ scores)


@pytest.mark.equation("4.12", defining=True)
@theorem
@given(problems())
def test_natural_gradient_is_the_shortest_solution_of_its_equation(p):
    F, grad = p.mdp.fisher(p.policy, p.theta), p.mdp.gradient(p.policy, p.theta)
    u = p.mdp.natural_gradient(p.policy, p.theta)
    close(F @ u, grad, 100)
    # What F does not see is a common shift of the logits, and a tabular policy in terminal states: u has neither.
    W, size = u.reshape(p.mdp.n_actions, -1), 1e-9 * np.abs(u).max()
    assert np.abs(W.sum(axis=0)).max() <= size
    if W.shape[1] == p.mdp.n_states:
        assert not np.abs(W[:, p.mdp.terminal]).max(initial=0) > size
    F_bar, u_bar = (f(p.policy, p.theta, normalized=True) for f in (p.mdp.fisher, p.mdp.natural_gradient))
    close(F_bar @ u_bar, grad, 100)
    np.testing.assert_allclose(u_bar, p.mdp.visitation(p.policy, p.theta).sum() * u, rtol=1e-12)


@pytest.mark.equation("4.12")
@theorem
@given(problems(), st.booleans())
def test_natural_gradient_is_the_pseudo_inverse_times_the_gradient(p, normalized):
    p = tabular(p)  # whose Fisher matrix is well conditioned on its range
    F = p.mdp.fisher(p.policy, p.theta, normalized=normalized)
    expected = np.linalg.pinv(F, rcond=1e-9, hermitian=True) @ p.mdp.gradient(p.policy, p.theta)
    actual = p.mdp.natural_gradient(p.policy, p.theta, normalized=normalized)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-8 * np.abs(expected).max())


@pytest.mark.equation("4.13", defining=True)
@theorem
@given(problems(), st.booleans())
def test_tabular_natural_gradient_is_the_advantage_with_zero_mean_over_actions(p, unvisited):
    p = tabular(p._replace(mdp=with_unvisited_state(p.mdp)) if unvisited else p)
    a = p.mdp.advantage(p.policy, p.theta)
    expected = a - a.mean(axis=1, keepdims=True)
    if unvisited:
        expected[-1] = 0
    close(p.mdp.natural_gradient(p.policy, p.theta), expected.T.ravel(), 100)


@pytest.mark.equation("4.4", "4.12")
@theorem
@given(S.generators)
def test_states_visited_less_often_than_rounding_get_no_negative_weight(rng):
    n, A = 5, 2
    P = rng.dirichlet(np.ones(n), size=(n, A))
    P[:3, :, 3:] = 0
    P[0, 1] = np.eye(n)[3]  # the only way to states 3 and 4, taken with probability e^−45 ≈ 3e-20
    mdp = TabularMDP(P / P.sum(axis=2, keepdims=True), rng.normal(size=(n, A)), 0.95, np.eye(n)[0])
    p = tabular(S.Problem(mdp, None, None, rng))
    p.theta[[0, n]] = 0, -45
    assert (mdp.visitation(p.policy, p.theta) >= 0).all()
    u = mdp.natural_gradient(p.policy, p.theta)
    close(mdp.fisher(p.policy, p.theta) @ u, mdp.gradient(p.policy, p.theta), 100)


# A finite horizon, and every trajectory


def returns(mdp, traj):
    return (traj.rewards * mdp.gamma ** np.arange(len(traj.rewards))[:, None]).sum(axis=0)


@pytest.mark.equation("4.14")
@theorem
@given(problems(most=2), st.integers(1, 3))
def test_values_of_a_horizon_are_means_over_its_trajectories(p, horizon):
    traj, probability = enumerate_trajectories(p.mdp, p.policy, p.theta, horizon)
    G = returns(p.mdp, traj)
    close(p.mdp.J(p.policy, p.theta, horizon=horizon), probability @ G)
    v, q = (f(p.policy, p.theta, horizon) for f in (p.mdp.value, p.mdp.action_value))
    close(p.mdp.advantage(p.policy, p.theta, horizon), q - v[:, None])
    for s in np.flatnonzero(~p.mdp.terminal):
        from_s = traj.obs[0] == s
        close(v[s], probability[from_s] @ G[from_s] / probability[from_s].sum())
        for a in range(p.mdp.n_actions):
            first = from_s & (traj.actions[0] == a)
            close(q[s, a], probability[first] @ G[first] / probability[first].sum())
    assert not v[p.mdp.terminal].any()


@pytest.mark.equation("4.14", defining=True)
@theorem
@given(problems(), st.integers(1, 60))
def test_values_of_a_horizon_follow_the_recursion_and_approach_the_infinite_sum(p, horizon):
    mdp, pi, v = p.mdp, matrix(p), np.zeros(p.mdp.n_states)
    for _ in range(horizon):
        q = reward(mdp) + mdp.gamma * np.array([[P @ v for P in row] for row in mdp.P])
        v = (pi * q).sum(axis=1)
    close(mdp.value(pi, horizon=horizon), v)
    close(mdp.action_value(pi, horizon=horizon), q)
    J, J_H, r_max = mdp.J(pi), mdp.J(pi, horizon=horizon), np.abs(reward(mdp)).max()
    if mdp.gamma < 1:
        assert abs(J - J_H) <= mdp.gamma**horizon * r_max / (1 - mdp.gamma) + 1e-11
    else:
        late = (marginals(mdp, pi) @ ~mdp.terminal)[horizon:].sum()  # E max(T − H, 0)
        assert abs(J - J_H) <= r_max * late + 1e-11


@pytest.mark.equation("4.14")
def test_a_finite_horizon_needs_no_termination():
    pi = np.tile([1.0, 0], (4, 1))
    assert short_corridor().J(pi, horizon=7) == -7


@pytest.mark.equation("4.15")
@theorem
@given(problems(), st.integers(1, 5))
def test_gradient_of_a_horizon_is_the_finite_difference(p, horizon):
    grad = p.mdp.gradient(p.policy, p.theta, horizon)
    for method in ("central", "complex"):
        check = check_gradient(lambda theta: p.mdp.J(p.policy, theta, horizon), grad, p.theta, method=method)
        assert check.passed, (method, check)


@pytest.mark.equation("4.15", defining=True)
@theorem
@given(problems())
def test_gradient_of_a_horizon_is_the_sum_over_time_and_approaches_the_gradient(p):
    pr, dpi, horizon = marginals(p.mdp, matrix(p), 4), d_pi(p), 4
    expected = 0
    for t in range(horizon):
        q = p.mdp.action_value(p.policy, p.theta, horizon - t)
        expected = expected + p.mdp.gamma**t * np.einsum("s,sa,san->n", pr[t], q, dpi)
    close(p.mdp.gradient(p.policy, p.theta, horizon), expected, 100)
    close(p.mdp.gradient(p.policy, p.theta, MANY), p.mdp.gradient(p.policy, p.theta), 100)


@pytest.mark.equation("4.15", "4.16")
@theorem
@given(layers)
def test_the_mean_of_scores_times_returns_over_all_trajectories_is_the_gradient(p):
    horizon = p.mdp.n_states
    traj, probability = enumerate_trajectories(p.mdp, p.policy, p.theta, horizon)
    G, grad = returns(p.mdp, traj), 0
    for t in range(horizon):
        psi = p.policy.score(p.theta, traj.x[t], traj.actions[t])
        grad = grad + (probability * G * traj.valid[t]) @ psi
    close(grad, p.mdp.gradient(p.policy, p.theta))
    close(grad, p.mdp.gradient(p.policy, p.theta, horizon))


def paths(mdp, pi, horizon):
    """{((s, a, s'), …): probability} by recursion over the first definition."""

    def grow(path, s, pr):
        if len(path) == horizon or (path and mdp.terminal[s]):
            yield path, pr
            return
        for a, s2 in product(range(mdp.n_actions), range(mdp.n_states)):
            if pi[s, a] * mdp.P[s, a, s2] > 0:
                yield from grow((*path, (s, a, s2)), s2, pr * pi[s, a] * mdp.P[s, a, s2])

    return dict(x for s in range(mdp.n_states) if mdp.rho0[s] > 0 for x in grow((), s, mdp.rho0[s]))


@pytest.mark.equation("1.2", "4.16", defining=True)
@theorem
@given(problems(most=2), st.integers(1, 3))
def test_enumeration_has_every_trajectory_once_with_its_probability(p, horizon):
    expected = paths(p.mdp, matrix(p), horizon)
    traj, probability = enumerate_trajectories(p.mdp, p.policy, p.theta, horizon)
    lengths = traj.valid.sum(axis=0)
    steps = np.stack([traj.obs, traj.actions, traj.next_obs], axis=2)
    found = {tuple(map(tuple, steps[: lengths[i], i].tolist())): pr for i, pr in enumerate(probability)}
    assert len(found) == len(probability)
    assert found.keys() == expected.keys()
    close([found[path] for path in expected], list(expected.values()))
    close(probability.sum(), 1)


@pytest.mark.equation("4.16")
@theorem
@given(problems(most=4), st.integers(1, 3))
def test_number_of_trajectories_follows_the_recursion(p, horizon):
    mdp, pi = p.mdp, matrix(p)
    count = np.ones(mdp.n_states)
    for _ in range(horizon):
        more = [
            sum(count[t] for a in range(mdp.n_actions) for t in range(mdp.n_states) if pi[s, a] * mdp.P[s, a, t] > 0)
            for s in range(mdp.n_states)
        ]
        count = np.where(mdp.terminal, 1, more)
    n = int(count[mdp.rho0 > 0].sum())
    traj, probability = enumerate_trajectories(mdp, p.policy, p.theta, horizon, max_rows=n * horizon)
    assert traj.obs.shape == (horizon, n) == (horizon, len(probability))
    close(probability.sum(), 1)
    assert (probability > 0).all()
    with pytest.raises(ValueError, match=f"more than max_rows = {n * horizon - 1}"):
        enumerate_trajectories(mdp, p.policy, p.theta, horizon, max_rows=n * horizon - 1)


@pytest.mark.equation("4.16")
@theorem
@given(problems(most=3), st.integers(1, 3))
def test_columns_of_an_enumeration_are_consistent_episodes_padded_with_zeros(p, horizon):
    mdp = p.mdp
    traj, _ = enumerate_trajectories(mdp, p.policy, p.theta, horizon)
    v = traj.valid
    assert v[0].all()
    assert np.array_equal(v[1:], v[:-1] & ~traj.terminated[:-1])
    assert np.array_equal(traj.obs[1:][v[1:]], traj.next_obs[:-1][v[1:]])
    assert np.array_equal(traj.terminated, v & mdp.terminal[traj.next_obs])
    assert not traj.truncated[:-1].any()
    assert np.array_equal(traj.truncated[-1], v[-1] & ~traj.terminated[-1])
    assert (mdp.P[traj.obs[v], traj.actions[v], traj.next_obs[v]] > 0).all()
    assert np.array_equal(traj.rewards[v], rewards_of_transitions(mdp)[traj.obs[v], traj.actions[v], traj.next_obs[v]])
    assert np.array_equal(traj.x[v], p.policy.features(traj.obs[v]))
    assert np.array_equal(traj.t, np.arange(horizon)[:, None] * v)
    for name in ("obs", "x", "actions", "rewards", "next_obs", "terminated", "truncated", "t"):
        assert not getattr(traj, name)[~v].any(), name
    assert np.array_equal(traj.episode_returns(), traj.rewards.sum(axis=0))


@pytest.mark.equation("4.16")
def test_actions_of_probability_zero_are_not_enumerated():
    policy, theta = SoftmaxLinear(OneHot(4), 2), np.repeat([0.0, 1e4], 4)  # left has underflowed to 0
    traj, probability = enumerate_trajectories(short_corridor(), policy, theta, 5)
    assert traj.actions.tolist() == [[1]] * 5
    assert traj.obs.ravel().tolist() == [0, 1, 0, 1, 0]
    assert probability == [1]


@pytest.mark.equation("4.16")
@pytest.mark.parametrize("horizon", [12, 1000])
def test_an_enumeration_that_is_too_large_is_refused_before_anything_is_made(horizon):
    mdp, policy = garnet(5, 3, 5), SoftmaxLinear(OneHot(5), 3)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"horizon {horizon} gives .* trajectories .* more than max_rows"):
            enumerate_trajectories(mdp, policy, np.zeros(15), horizon)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


# From one policy to another


@pytest.mark.equation("6.1", defining=True)
@theorem
@given(problems())
def test_performance_difference_is_the_old_advantage_where_the_new_policy_goes(p):
    new, old = pair(p)
    difference = p.mdp.visitation(new) @ (new * p.mdp.advantage(old)).sum(axis=1)
    close(p.mdp.J(new) - p.mdp.J(old), difference, 10)


@pytest.mark.equation("6.2", defining=True)
@pytest.mark.equation("6.1")
@theorem
@given(problems())
def test_surrogate_has_the_old_visitation_and_its_error_is_the_shift_of_states(p):
    new, old = pair(p)
    weight = p.mdp.gamma ** np.arange(MANY)
    gain = np.array([new[s] @ p.mdp.advantage(old)[s] for s in range(p.mdp.n_states)])
    p_old, p_new = marginals(p.mdp, old), marginals(p.mdp, new)
    close(p.mdp.surrogate(new, old), p.mdp.J(old) + weight @ p_old @ gain, 10)
    close(p.mdp.J(new) - p.mdp.surrogate(new, old), weight @ (p_new - p_old) @ gain, 10)


@pytest.mark.equation("6.2")
@theorem
@given(layers)
def test_surrogate_is_the_mean_of_ratios_times_advantages_along_old_trajectories(p):
    new, old = pair(p)
    traj, probability = enumerate_trajectories(p.mdp, p.policy, p.theta, p.mdp.n_states)
    s, a = traj.obs, traj.actions
    terms = p.mdp.gamma**traj.t * traj.valid * (new / old * p.mdp.advantage(old))[s, a]
    close(p.mdp.surrogate(new, old), p.mdp.J(old) + probability @ terms.sum(axis=0))


@pytest.mark.equation("6.3", defining=True)
@theorem
@given(problems())
def test_surrogate_has_the_value_and_the_gradient_of_the_objective_at_the_old_policy(p):
    old, x = matrix(p), p.mdp.features(p.policy)
    close(p.mdp.surrogate(old, old), p.mdp.J(old), 10)

    def surrogate(theta):
        return p.mdp.surrogate(p.mdp.policy_matrix(p.policy, theta), old)

    def gradient(theta):
        return p.policy.all_actions_gradient(theta, x, p.mdp.action_value(old), p.mdp.visitation(old))

    close(gradient(p.theta), p.mdp.gradient(p.policy, p.theta), 10)
    elsewhere = p.theta + p.rng.normal(size=p.theta.shape)
    assert check_gradient(surrogate, gradient(elsewhere), elsewhere).passed


@st.composite
def distribution_pairs(draw):
    """Two distributions on 1 to 5 outcomes, some of probability zero."""
    rng, k = draw(S.generators), draw(st.integers(1, 5))
    p, q = rng.dirichlet(np.ones(k), size=2) * (rng.random((2, k)) < 0.7) + 1e-3 * np.eye(k)[rng.integers(k, size=2)]
    return p / p.sum(), q / q.sum()


@pytest.mark.equation("6.4", defining=True)
@theorem
@given(distribution_pairs())
def test_total_variation_is_the_largest_difference_of_an_event(pq):
    p, q = pq
    events = np.array(list(product([0, 1], repeat=len(p))))
    close(total_variation(p, q), (events @ (p - q)).max())
    close(total_variation(p, q), sum(abs(x - y) for x, y in zip(p, q, strict=True)) / 2)
    assert np.array_equal(total_variation([p, q], [q, q]), [total_variation(p, q), 0])


@pytest.mark.equation("6.5", defining=True)
@theorem
@given(distribution_pairs())
def test_no_coupling_disagrees_less_often_than_the_total_variation_and_the_maximal_one_as_often(pq):
    p, q = pq
    k, tv = len(p), total_variation(p, q)
    least = optimize.linprog(
        1 - np.eye(k).ravel(),
        A_eq=np.concatenate([np.kron(np.eye(k), np.ones(k)), np.kron(np.ones(k), np.eye(k))]),
        b_eq=np.concatenate([p, q]),
    )
    assert abs(least.fun - tv) < 1e-6  # the solver's feasibility tolerance is 1e-7
    m = np.minimum(p, q)
    joint = np.diag(m) + (np.outer(p - m, q - m) / tv if tv > 0 else 0)
    assert (joint >= 0).all()
    close(joint.sum(axis=1), p)
    close(joint.sum(axis=0), q)
    close(np.trace(joint), 1 - tv)


@pytest.mark.equation("6.6", defining=True)
@theorem
@given(problems())
def test_states_of_two_policies_drift_apart_at_most_as_fast_as_actions_disagree(p):
    new, old = pair(p)
    alpha, _ = alpha_epsilon(p.mdp, new, old)
    t = np.arange(11)
    shift = np.abs(np.subtract(*(p.mdp.state_marginals(pi, horizon=10) for pi in (new, old)))).sum(axis=1)
    assert (shift <= 2 * (1 - (1 - alpha) ** t) + 1e-14).all()
    assert (2 * (1 - (1 - alpha) ** t) <= 2 * alpha * t + 1e-14).all()


@pytest.mark.equation("6.6")
@pytest.mark.parametrize("alpha", [0.01, 0.3])
def test_the_bound_on_the_drift_of_states_is_attained(alpha):
    P = np.zeros((2, 2, 2))
    P[0, [0, 1], [0, 1]] = P[1, :, 1] = 1
    mdp = TabularMDP(P, np.ones((2, 2)), 0.9, np.array([1.0, 0]))
    old, new = np.array([[1.0, 0], [1, 0]]), np.array([[1 - alpha, alpha], [1, 0]])
    shift = np.abs(mdp.state_marginals(new, horizon=9) - mdp.state_marginals(old, horizon=9)).sum(axis=1)
    close(shift, 2 * (1 - (1 - alpha) ** np.arange(10)))


@pytest.mark.equation("6.7", defining=True)
@theorem
@given(distribution_pairs(), S.generators)
def test_means_differ_by_at_most_total_variation_times_the_range(pq, rng):
    p, q = pq
    f, tv = rng.normal(size=len(p)) + rng.normal(), total_variation(p, q)
    assert abs(p @ f - q @ f) <= tv * np.ptp(f) + 1e-14
    assert tv * np.ptp(f) <= np.abs(p - q).sum() * np.abs(f).max() + 1e-14
    sign = np.sign(p - q)
    close(p @ sign - q @ sign, 2 * tv)  # attained, where f is 1 and −1


@pytest.mark.equation("6.7")
def test_bound_on_means_is_false_with_the_maximum_of_f_in_place_of_its_absolute_value():
    p, q, f = np.array([0.5, 0.5]), np.array([0.9, 0.1]), -np.ones(2)
    assert abs(p @ f - q @ f) > 2 * total_variation(p, q) * f.max()


@pytest.mark.equation("6.8", "6.9", defining=True)
@theorem
@given(problems(discounted=True))
def test_improvement_is_at_least_the_surrogate_minus_the_shift_of_states(p):
    new, old = pair(p)
    gamma, t = p.mdp.gamma, np.arange(MANY)
    alpha, epsilon = alpha_epsilon(p.mdp, new, old)
    gain = (new * p.mdp.advantage(old)).sum(axis=1)
    surrogate_gain = gamma**t @ marginals(p.mdp, old) @ gain
    penalty = (gamma**t * 2 * alpha * t).sum() * np.abs(gain).max()
    close(surrogate_gain, p.mdp.surrogate(new, old) - p.mdp.J(old), 10)
    close(penalty, 2 * alpha * gamma / (1 - gamma) ** 2 * np.abs(gain).max())
    slack = 1e-11 * (1 + penalty)
    assert p.mdp.J(new) - p.mdp.J(old) >= surrogate_gain - penalty - slack
    largest = np.abs(p.mdp.advantage(old)).max(axis=1)
    assert (np.abs(gain) <= 2 * total_variation(new, old) * largest + 1e-12).all()
    assert surrogate_gain - penalty >= p.mdp.lower_bound(new, old) - p.mdp.J(old) - slack
    assert np.abs(gain).max() <= 2 * alpha * epsilon + 1e-12


@pytest.mark.equation("6.10", defining=True)
@theorem
@given(problems(discounted=True))
def test_objective_is_at_least_the_lower_bound_with_the_constant_of_the_theorem(p):
    new, old = pair(p)
    alpha, epsilon = alpha_epsilon(p.mdp, new, old)
    penalty = 4 * epsilon * p.mdp.gamma * alpha**2 / (1 - p.mdp.gamma) ** 2
    bound = p.mdp.lower_bound(new, old)
    close(bound, p.mdp.surrogate(new, old) - penalty, 10)
    assert p.mdp.J(new) >= bound - 1e-11 * (1 + penalty)
    close(p.mdp.lower_bound(old, old), p.mdp.J(old), 10)


@pytest.mark.equation("6.10")
def test_what_a_policy_does_in_a_terminal_state_changes_nothing():
    mdp = garnet(3, 2, 2, gamma=0.9, termination=0.2, seed=0)
    old, new = np.full((4, 2), 0.5), np.array([[0.6, 0.4]] * 4)
    other = new.copy()
    other[-1] = [0, 1]
    assert mdp.J(new) == mdp.J(other)
    assert mdp.surrogate(new, old) == mdp.surrogate(other, old)
    assert mdp.lower_bound(new, old) == mdp.lower_bound(other, old)


def stay(alpha):
    """The uniform policy on two states, shifted by α towards staying."""
    return np.array([[0.5 + alpha, 0.5 - alpha]] * 2)


TWO_STATES = replace(two_state(0.9), rho0=np.array([1.0, 0.0]))


@pytest.mark.equation("6.2", "6.9", "6.10", "6.11")
@pytest.mark.parametrize(
    ("alpha", "improvement", "gain", "certified", "left"),
    [
        (0.001, 0.014048, 0.014050, 0.013609, -0.206450),
        (0.01, 0.140326, 0.140500, 0.096400, -2.064500),
        (0.03, 0.419873, 0.421500, 0.024600, -6.193500),
        (0.04, 0.559052, 0.562000, -0.143600, -8.258000),
        (0.1, 1.384146, 1.405000, -3.005000, -20.645000),
    ],
)
def test_two_states_of_the_chapter_have_the_numbers_of_its_table(alpha, improvement, gain, certified, left):
    mdp, new, old = TWO_STATES, stay(alpha), stay(0)
    close(mdp.value(old), [7.25, 7.75])
    close(mdp.advantage(old), [[0.275, -0.275], [1.225, -1.225]])
    close(mdp.visitation(old), [5.5, 4.5])
    A_bar = (new * mdp.advantage(old)).sum(axis=1)
    close(A_bar, [0.55 * alpha, 2.45 * alpha])
    close(A_bar[1], 2 * alpha * 1.225)  # (6.9) is attained
    J = mdp.J(old)
    assert abs(mdp.J(new) - J - improvement) < 1e-6
    close(mdp.surrogate(new, old) - J, gain)
    close(mdp.lower_bound(new, old) - J, certified)
    penalty = sum(mdp.gamma**t * 2 * alpha * t * 1.225 for t in range(MANY))
    close(gain - penalty, left)


@pytest.mark.equation("6.11", defining=True)
@theorem
@given(problems(discounted=True))
def test_a_penalty_of_first_order_certifies_nothing(p):
    new, old = pair(p)
    gamma = p.mdp.gamma
    alpha, epsilon = alpha_epsilon(p.mdp, new, old)
    C = max(epsilon, (1 - gamma) * epsilon / gamma)  # any C ≥ ε will do for γ ≥ ½
    gain = p.mdp.surrogate(new, old) - p.mdp.J(old)
    t = np.arange(MANY)
    penalty = (gamma**t * 2 * alpha * t).sum() * C
    most = 2 * alpha * epsilon / (1 - gamma) - 2 * alpha * gamma * C / (1 - gamma) ** 2
    assert gain - penalty <= most + 1e-11 * (1 + penalty)
    assert most <= 1e-11 * (1 + penalty)


def toward_greedy(mdp, old, kappa):
    greedy = np.eye(mdp.n_actions)[mdp.advantage(old).argmax(axis=1)]
    greedy[mdp.terminal] = old[mdp.terminal]
    return (1 - kappa) * old + kappa * greedy


@pytest.mark.equation("6.10", "6.11")
@theorem
@given(problems(discounted=True))
def test_the_penalty_of_second_order_certifies_the_improvement_of_a_small_mixture(p):
    mdp, old = p.mdp, matrix(p)
    greedy = toward_greedy(mdp, old, 1)
    gain = mdp.surrogate(greedy, old) - mdp.J(old)
    tau, epsilon = alpha_epsilon(mdp, greedy, old)
    kappa = gain * (1 - mdp.gamma) ** 2 / (8 * epsilon * mdp.gamma * tau**2)
    best = gain * kappa / 2
    if kappa <= 1:
        certified = mdp.lower_bound(toward_greedy(mdp, old, kappa), old) - mdp.J(old)
        close(certified, best)
        assert 0 < certified <= mdp.J(toward_greedy(mdp, old, kappa)) - mdp.J(old) + 1e-11


def kl_bound(mdp, new, old):
    """The bound with 2 max KL(old ‖ new) in place of 4 α²."""
    kl = Categorical(mdp.n_actions).kl(np.log(old), np.log(new)).max()
    epsilon = np.abs(mdp.advantage(old)).max()
    return mdp.surrogate(new, old) - 2 * epsilon * mdp.gamma / (1 - mdp.gamma) ** 2 * kl


@pytest.mark.equation("6.12", defining=True)
@theorem
@given(problems(discounted=True))
def test_pinsker_bounds_total_variation_and_so_the_improvement_by_either_divergence(p):
    theta = p.theta + p.rng.choice([0.01, 0.3, 3.0]) * p.rng.normal(size=p.theta.shape)
    x, old, new = p.mdp.features(p.policy), matrix(p), p.mdp.policy_matrix(p.policy, theta)
    forward, backward = p.policy.kl(p.theta, theta, x), p.policy.kl(theta, p.theta, x)
    for kl in (forward, backward):
        assert (total_variation(new, old) <= np.sqrt(kl / 2) + 1e-12).all()
    epsilon = np.abs(p.mdp.advantage(old)).max()
    for kl in (forward, backward):
        penalty = 2 * epsilon * p.mdp.gamma / (1 - p.mdp.gamma) ** 2 * kl.max()
        bound = p.mdp.surrogate(new, old) - penalty
        assert bound <= p.mdp.lower_bound(new, old) + 1e-11 * (1 + penalty)
        assert p.mdp.J(new) >= bound - 1e-11 * (1 + penalty)


@pytest.mark.equation("6.12")
@pytest.mark.parametrize(
    ("alpha", "certified"), [(0.001, 0.013609), (0.01, 0.096391), (0.03, 0.023884), (0.04, -0.145868), (0.1, -3.095625)]
)
def test_divergence_certifies_the_numbers_of_the_table(alpha, certified):
    # The divergence in the table is KL(π ‖ π').
    assert abs(kl_bound(TWO_STATES, stay(alpha), stay(0)) - TWO_STATES.J(stay(0)) - certified) < 1e-6


@pytest.mark.equation("6.12")
def test_pinsker_is_sharp_for_total_variation_and_false_for_the_distance_in_l1():
    p, q = np.array([[0.5, 0.5]]), np.array([[0.51, 0.49]])
    bound = np.sqrt(Categorical(2).kl(np.log(p), np.log(q)) / 2)
    assert total_variation(p, q) < bound < 1.0002 * total_variation(p, q)
    assert np.abs(p - q).sum() > 1.99 * bound


@pytest.mark.equation("6.13", defining=True)
@theorem
@given(problems(discounted=True), st.sampled_from([TabularMDP.lower_bound, kl_bound]))
def test_maximising_the_bound_never_lowers_the_objective(p, bound):
    mdp, old = p.mdp, matrix(p)
    for _ in range(3):
        greedy = toward_greedy(mdp, old, 1)
        candidates = [old, *((1 - kappa) * old + kappa * greedy for kappa in np.logspace(-6, -0.5, 12))]
        bounds = [bound(mdp, new, old) for new in candidates]
        close(bounds[0], mdp.J(old), 10)
        new = candidates[int(np.argmax(bounds))]
        assert mdp.J(new) >= max(bounds) - 1e-11
        assert mdp.J(new) >= mdp.J(old) - 1e-11
        old = new


# Bad input

GOOD = {"P": np.full((2, 3, 2), 0.5), "R": np.zeros((2, 3)), "gamma": 0.9, "rho0": np.array([0.5, 0.5])}
NEGATIVE, OFF, NAN = (np.full((2, 3, 2), 0.5) for _ in range(3))
NEGATIVE[0, 1], OFF[1, 2], NAN[0, 0, 0] = [-0.5, 1.5], [0.5, 0.4], np.nan
CHAIN = np.array([[[0.0, 1]], [[0, 1]]])  # state 1 is terminal if it pays nothing


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"P": np.eye(2)}, r"P must have shape \(S, A, S\), got \(2, 2\)"),
        ({"P": np.full((2, 3, 3), 1 / 3)}, r"P must have shape \(S, A, S\), got \(2, 3, 3\)"),
        ({"P": np.zeros((2, 0, 2))}, r"P must have shape \(S, A, S\), got \(2, 0, 2\)"),
        ({"P": NEGATIVE}, r"P must hold probabilities of at least 0, got -0.5"),
        ({"P": NAN}, r"P must hold probabilities of at least 0, got nan"),
        ({"P": OFF}, r"P\[1, 2\] must sum to 1, got 0.9"),
        ({"R": np.zeros(2)}, r"R must have shape \(2, 3\) or \(2, 3, 2\) to go with P, got \(2,\)"),
        ({"R": np.full((2, 3), np.inf)}, "R must be finite, got inf"),
        ({"gamma": -0.1}, r"gamma must lie in \[0, 1\], got -0.1"),
        ({"gamma": 1.1}, r"gamma must lie in \[0, 1\], got 1.1"),
        ({"gamma": np.nan}, r"gamma must lie in \[0, 1\], got nan"),
        ({"gamma": "0.9"}, r"gamma must lie in \[0, 1\], got '0.9'"),
        ({"gamma": True}, r"gamma must lie in \[0, 1\], got True"),
        ({"gamma": 1}, "gamma must be below 1 unless a terminal state can be reached from every state"),
        ({"rho0": np.ones(3) / 3}, r"rho0 must have shape \(2,\), got \(3,\)"),
        ({"rho0": [1.5, -0.5]}, "rho0 must hold probabilities of at least 0, got -0.5"),
        ({"rho0": [0.5, 0.6]}, "^rho0 must sum to 1, got 1.1"),
        ({"P": CHAIN, "R": np.zeros((2, 1))}, "rho0 must be 0 on terminal states"),
    ],
)
def test_a_problem_that_is_none_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        TabularMDP(**GOOD | changed)


def test_at_gamma_one_every_state_must_be_able_to_reach_a_terminal_one():
    P = np.array([[[0.0, 0, 1]], [[0, 1, 0]], [[0, 0, 1]]])  # state 1 stays for ever, at reward 1
    R, rho0 = np.array([[1.0], [1.0], [0.0]]), np.array([1.0, 0, 0])
    with pytest.raises(ValueError, match="gamma must be below 1 unless a terminal state"):
        TabularMDP(P, R, 1, rho0)
    assert TabularMDP(P, R, 0.5, rho0).J(np.ones((3, 1))) == 1
    assert TabularMDP(P, R * [[1], [0], [1]], 1, rho0).terminal.tolist() == [False, True, True]


def test_a_state_is_terminal_only_if_every_action_stays_and_pays_nothing():
    P = np.tile(np.eye(4)[:, None], (1, 2, 1))
    P[1, 1], R = [1, 0, 0, 0], np.zeros((4, 2))
    R[2, 0] = 1e-9
    assert TabularMDP(P, R, 0.9, np.eye(4)[1]).terminal.tolist() == [True, False, False, True]


def test_a_problem_keeps_copies_that_cannot_be_written():
    given_P, given_R = GOOD["P"].copy(), GOOD["R"].copy()
    mdp = TabularMDP(given_P, given_R, 0.9, [1, 0])
    given_P[:], given_R[:] = 7, 7
    assert (mdp.P == 0.5).all()
    assert (mdp.R == 0).all()
    for array in (mdp.P, mdp.R, mdp.rho0):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


SOFTMAX, THETA = SoftmaxLinear(OneHot(2), 2), np.zeros(4)
HALF = np.full((2, 2), 0.5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.value(np.full((2, 3), 1 / 3)), ValueError, r"policy must have shape \(2, 2\), got \(2, 3\)"),
        (lambda m: m.J([[0.5, 0.5], [0.5, 0.6]]), ValueError, r"policy\[1\] must sum to 1, got 1.1"),
        (lambda m: m.J([[1.5, -0.5], [0.5, 0.5]]), ValueError, "policy must hold probabilities of at least 0"),
        (lambda m: m.J(HALF, THETA), TypeError, "theta goes with an npg.Policy"),
        (lambda m: m.J(SOFTMAX), TypeError, "theta is missing"),
        (lambda m: m.J(SOFTMAX, np.zeros(3)), ValueError, r"theta must have shape \(4,\), got \(3,\)"),
        (lambda m: m.J(SoftmaxLinear(OneHot(2), 3), np.zeros(6)), ValueError, "policy must choose among 2 actions"),
        (
            lambda m: m.gradient(GaussianLinear(OneHot(2), Constant(), 1), np.zeros(3)),
            ValueError,
            "policy must choose among 2 actions, got DiagonalGaussian",
        ),
        (lambda m: m.value(HALF, horizon=0), ValueError, "horizon must be an integer of at least 1, got 0"),
        (lambda m: m.J(HALF, horizon=1.5), ValueError, "horizon must be an integer of at least 1, got 1.5"),
        (lambda m: m.gradient(SOFTMAX, THETA, 0), ValueError, "horizon must be an integer of at least 1, got 0"),
        (lambda m: m.state_marginals(HALF, horizon=-1), ValueError, "horizon must be an integer of at least 0"),
        (lambda m: enumerate_trajectories(m, SOFTMAX, THETA, 0), ValueError, "horizon must be an integer of at least"),
        (lambda m: m.visitation(HALF, gamma=1.5), ValueError, r"gamma must lie in \[0, 1\], got 1.5"),
        (lambda m: m.visitation(HALF, gamma=np.nan), ValueError, r"gamma must lie in \[0, 1\], got nan"),
        (lambda m: m.stationary_distribution([[1, 0], [1, 0]]), ValueError, "one recurrent class of states, got 2"),
        (lambda m: m.surrogate(np.eye(2) * 0.5, HALF), ValueError, r"policy\[0\] must sum to 1, got 0.5"),
        (lambda m: m.surrogate(HALF, np.eye(2) * 0.5), ValueError, r"policy\[0\] must sum to 1, got 0.5"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call(two_state())


def test_the_bound_needs_a_discount():
    with pytest.raises(ValueError, match="the bound needs gamma below 1, got 1"):
        short_corridor().lower_bound(np.full((4, 2), 0.5), np.full((4, 2), 0.5))


@pytest.mark.parametrize("name", ["all_actions", "all_actions_gradient"])
def test_sums_over_all_actions_refuse_what_does_not_fit(name):
    x, w = np.arange(2)[:, None], (np.ones(2),) if name == "all_actions_gradient" else ()
    with pytest.raises(ValueError, match=r"q must have shape \(2, 2\) to go with x, got \(2, 3\)"):
        getattr(SOFTMAX, name)(THETA, x, np.zeros((2, 3)), *w)
    with pytest.raises(ValueError, match=r"theta must have shape \(4,\), got \(5,\)"):
        getattr(SOFTMAX, name)(np.zeros(5), x, np.zeros((2, 2)), *w)
    if w:
        with pytest.raises(ValueError, match=r"w must have shape \(2,\) to go with x, got \(3,\)"):
            SOFTMAX.all_actions_gradient(THETA, x, np.zeros((2, 2)), np.ones(3))
    gaussian = GaussianLinear(OneHot(2), Constant(), 1)
    with pytest.raises(TypeError, match="a sum over all actions needs discrete actions, got DiagonalGaussian"):
        getattr(gaussian, name)(np.zeros(3), gaussian.features(np.arange(2)), np.zeros((2, 2)), *w)


@pytest.mark.equation("4.2", "4.17")
def test_values_are_right_or_refused_however_close_a_policy_comes_to_one_that_never_ends():
    mdp, policy = short_corridor(), SoftmaxLinear(Constant(), 2)
    for logit in (5.0, 15.0, 25.0, -25.0):
        p = 1 / (1 + np.exp(logit))
        assert pytest.approx((2 * p - 4) / (p * (1 - p)), rel=0.01) == mdp.J(policy, np.array([logit, 0.0]))
    for logit in (32.0, 36.0, 37.0, 40.0, -40.0):
        with pytest.raises(ValueError, match="singular to working precision"):
            mdp.J(policy, np.array([logit, 0.0]))


def test_a_stationary_distribution_that_rounding_decides_is_refused():
    for e in (1e-16, 1e-17):
        with pytest.raises(ValueError, match="singular to working precision"):
            two_state(0.9).stationary_distribution(np.array([[1 - e, e]] * 2))
    close(two_state(0.9).stationary_distribution(np.array([[1 - 1e-6, 1e-6]] * 2)), [0.5, 0.5], 1e6)


def test_a_matrix_where_a_policy_is_needed_a_complex_matrix_and_a_theta_that_is_not_finite_are_named():
    mdp = garnet(3, 2, 2)
    pi, policy, theta = np.full((3, 2), 0.5), SoftmaxLinear(OneHot(3), 2), np.zeros(6)
    for method in (mdp.gradient, mdp.value_jacobian, mdp.fisher, mdp.natural_gradient):
        with pytest.raises(TypeError, match=r"needs an npg\.Policy and its theta, got ndarray"):
            method(pi, theta)
    with pytest.raises(TypeError, match=r"needs an npg\.Policy and its theta, got ndarray"):
        enumerate_trajectories(mdp, pi, theta, 2)
    with pytest.raises(TypeError, match="policy must be real"):
        mdp.J(pi.astype(complex))
    with pytest.raises(TypeError, match="theta must be real"):
        mdp.natural_gradient(policy, theta + 0j)
    for method in (mdp.J, mdp.gradient):
        for horizon in (None, 3):
            with pytest.raises(ValueError, match="theta must be finite"):
                method(policy, theta * np.nan, horizon)
    with pytest.raises(ValueError, match="max_rows must be an integer of at least 1"):
        enumerate_trajectories(mdp, policy, theta, 2, max_rows=np.nan)
    with pytest.raises(ValueError, match="horizon 1000000000 gives at least"):
        enumerate_trajectories(mdp, policy, theta, 10**9)


# Where TD converges


class Features(NamedTuple):
    """A problem with one recurrent class, features of its states, the on-policy weights and the chain, by long sums."""

    mdp: TabularMDP
    pi: np.ndarray
    x: np.ndarray
    d: np.ndarray
    P: np.ndarray
    r: np.ndarray
    rng: np.random.Generator


@st.composite
def featured(draw, **kwargs):
    p = draw(problems(**kwargs))
    mdp, live = unichain(p.mdp), ~p.mdp.terminal
    pi = mdp.policy_matrix(p.policy, p.theta)
    P, r = chain(mdp, pi)
    P = P * live * live[:, None]  # 𝒮 only
    d = live * (long_sum(P.T, mdp.rho0) if mdp.terminal.any() else np.linalg.matrix_power(P, MANY)[0])
    x = p.rng.normal(size=(mdp.n_states, draw(st.integers(1, int(live.sum())))))
    return Features(mdp, pi, x, d, P, r, p.rng)


def unichain(mdp):
    """The problem, where it has no terminal state with a chance of 0.1 in each step to go to state 0."""
    if mdp.terminal.any():
        return mdp
    R = mdp.R if mdp.R.ndim == 2 else reward(mdp)
    return replace(mdp, P=0.9 * mdp.P + 0.1 * np.eye(mdp.n_states)[0], R=R)


def fixed_point_equations(f, lam):
    """A_λ and b_λ, the inverse of I − γλP as the sum of its powers."""
    X = f.x * ~f.mdp.terminal[:, None]
    weighted = X.T * f.d
    A = weighted @ long_sum(f.mdp.gamma * lam * f.P, X - f.mdp.gamma * f.P @ X)
    return A, weighted @ long_sum(f.mdp.gamma * lam * f.P, f.r)


def values_of(f, lam):
    """v̂ at the fixed point, and what rounding may make of it: the condition number of A and of X enter."""
    X = f.x * ~f.mdp.terminal[:, None]
    A, _ = fixed_point_equations(f, lam)
    condition = np.linalg.cond(A)
    assume(condition < 1e7)
    w = f.mdp.td_fixed_point(f.pi, x=f.x, lam=lam)
    return X @ w, 1e-13 * condition * (1 + np.abs(w).max()) * (1 + np.abs(X).max())


def projection(f, u):
    """Π u, as a least-squares fit."""
    root = np.sqrt(f.d)[:, None]
    X = f.x * ~f.mdp.terminal[:, None]
    return X @ np.linalg.lstsq(root * X, root[:, 0] * u)[0]


def norm(f, u):
    return np.sqrt(f.d @ u**2)


lams = st.sampled_from([0.0, 0.3, 0.9, 1.0])


@pytest.mark.equation("7.16", defining=True)
@pytest.mark.equation("7.4")
@theorem
@given(featured(), lams)
def test_td_fixed_point_solves_its_equations(f, lam):
    A, b = fixed_point_equations(f, lam)
    w = f.mdp.td_fixed_point(f.pi, x=f.x, lam=lam)
    assert w.shape == (f.x.shape[1],)
    close(A @ w, b, (1 + np.abs(w).max()) * (1 + np.abs(A).max()))


@pytest.mark.equation("7.4", defining=True)
@theorem
@given(featured())
def test_td_fixed_point_is_that_of_the_projected_bellman_operator(f):
    v_hat, slack = values_of(f, 0.0)
    applied = f.r + f.mdp.gamma * f.P @ v_hat
    visited = f.d > 1e-9
    assert np.abs(projection(f, applied) - v_hat)[visited].max() <= 10 * slack
    X = f.x * ~f.mdp.terminal[:, None]
    for i in range(X.shape[1]):  # the Bellman error is orthogonal to every feature, state by state
        total = sum(f.d[s] * X[s, i] * (applied - v_hat)[s] for s in range(len(X)))
        assert abs(total) <= slack * f.d.sum()


@pytest.mark.equation("7.4", "7.16")
@theorem
@given(featured(), lams)
def test_the_mean_update_is_stable_under_on_policy_weights(f, lam):
    A, _ = fixed_point_equations(f, lam)
    X = f.x * ~f.mdp.terminal[:, None]
    gamma = f.mdp.gamma
    c = gamma * (1 - lam) / (1 - gamma * lam) if gamma * lam < 1 else 0
    gram = X.T @ (f.d[:, None] * X)
    slack = 1e-10 * (1 + np.abs(gram).max())
    assert np.linalg.eigvalsh((A + A.T) / 2 - (1 - c) * gram).min() >= -slack
    u = X @ f.rng.normal(size=X.shape[1])
    if lam == 0:  # the identity of the proof
        rho, p = f.d - f.P.T @ f.d, f.P.sum(axis=1)
        assert rho.min() >= -1e-9
        moves = (f.d[:, None] * f.P * (u[:, None] - u) ** 2).sum()
        inner = moves + rho @ u**2 + (f.d * (1 - p)) @ u**2
        close(u @ (f.d * (u - gamma * f.P @ u)), (1 - gamma) * norm(f, u) ** 2 + gamma / 2 * inner, 1e3)
        if norm(f, u) > 1e-3:
            assert u @ (f.d * (u - gamma * f.P @ u)) > 0


@pytest.mark.equation("7.5", defining=True)
@pytest.mark.equation("7.16")
@theorem
@given(featured(discounted=True), lams)
def test_error_of_td_is_within_its_bound_of_the_best_error(f, lam):
    v_hat, slack = values_of(f, lam)
    gamma, v = f.mdp.gamma, long_sum(f.mdp.gamma * f.P, f.r)
    c = gamma * (1 - lam) / (1 - gamma * lam)
    best, error = norm(f, projection(f, v) - v), norm(f, v_hat - v)
    assert error <= best / np.sqrt(1 - c**2) + 10 * slack * f.d.sum()
    assert error >= best - 10 * slack * f.d.sum()
    assert 1 / np.sqrt(1 - c**2) <= 1 / np.sqrt(1 - gamma**2) + 1e-12 <= 1 / (1 - gamma) + 2e-12


@pytest.mark.equation("7.2", "7.16")
@theorem
@given(featured())
def test_with_lambda_one_the_fixed_point_is_the_projection_of_the_values(f):
    v_hat, slack = values_of(f, 1.0)
    v = long_sum(f.mdp.gamma * f.P, f.r)
    assert np.abs(projection(f, v) - v_hat)[f.d > 1e-9].max() <= 100 * slack


@pytest.mark.equation("7.16")
@theorem
@given(featured(), lams)
def test_fixed_point_of_a_table_is_the_value_of_the_states_visited_and_zero_elsewhere(f, lam):
    w = f.mdp.td_fixed_point(f.pi, x=np.eye(f.mdp.n_states), lam=lam)
    v = f.mdp.value(f.pi)
    common = f.d > 1e-3 * f.d.max()
    np.testing.assert_allclose(w[common], v[common], rtol=0, atol=1e-8)
    unvisited = f.d < 1e-12
    assert np.abs(w[unvisited]).max(initial=0) <= 1e-12 * (1 + np.abs(w).max())


def aliased(rng, p):
    """Fewer features than states, and random ones in the terminal state."""
    return rng.normal(size=(p.mdp.n_states, 2))


@pytest.mark.equation("7.4", "7.16")
@theorem
@given(layers, st.sampled_from([0.0, 0.5, 1.0]))
def test_at_the_fixed_point_the_mean_td_update_of_an_episode_is_zero(p, lam):
    x = aliased(p.rng, p) * ~p.mdp.terminal[:, None]
    w = p.mdp.td_fixed_point(p.policy, p.theta, x=x, lam=lam)
    traj, probability = enumerate_trajectories(p.mdp, p.policy, p.theta, p.mdp.n_states)
    z, total = 0, 0
    for t in range(len(traj.obs)):
        now, then = (x[states[t]] * traj.valid[t][:, None] for states in (traj.obs, traj.next_obs))
        delta = traj.rewards[t] + p.mdp.gamma * then @ w - now @ w
        z = p.mdp.gamma * lam * z + now
        total = total + (probability * delta) @ z
    close(total, 0, 10 * (1 + np.abs(w).max()))


def two_state_chain(gamma):
    """s_0 → s_1 → end with rewards 0 and 1, one action; x is 1 and 2."""
    P = np.zeros((3, 1, 3))
    P[[0, 1, 2], 0, [1, 2, 2]] = 1
    return TabularMDP(P, np.array([[0.0], [1.0], [0.0]]), gamma, np.eye(3)[0]), np.array([[1.0], [2.0], [7.0]])


@pytest.mark.equation("7.2", "7.4", "7.5", "7.16")
@pytest.mark.parametrize(
    ("gamma", "lam", "w", "error"),
    [
        (0.9, 1.0, 0.58, 0.128),
        (0.9, 0.0, 0.625, 0.138125),
        (1.0, 0.0, 2 / 3, 2 / 9),
        (1.0, 0.5, 5 / 8, 13 / 64),
        (1.0, 1.0, 3 / 5, 1 / 5),
    ],
)
def test_two_state_chain_has_the_numbers_of_the_chapter(gamma, lam, w, error):
    mdp, x = two_state_chain(gamma)
    close(mdp.td_fixed_point(np.ones((3, 1)), x=x, lam=lam), [w])
    v = mdp.value(np.ones((3, 1)))
    close(v, [gamma, 1, 0])
    close(((x[:2, 0] * w - v[:2]) ** 2).sum(), error)
    if gamma < 1:
        assert error <= 0.128 / (1 - gamma**2) == pytest.approx(0.674, abs=5e-4)


def test_the_fixed_point_of_an_episodic_problem_has_undiscounted_weights():
    mdp, x = two_state_chain(0.9)
    weights = {gamma: mdp.visitation(np.ones((3, 1)), gamma=gamma)[:2] for gamma in (0.9, 1)}
    A = {gamma: d @ [1 - 0.9 * 2, 4] for gamma, d in weights.items()}
    b = {gamma: 2 * d[1] for gamma, d in weights.items()}
    assert abs(b[1] / A[1] - b[0.9] / A[0.9]) > 1e-3
    close(mdp.td_fixed_point(np.ones((3, 1)), x=x), [b[1] / A[1]])


@pytest.mark.equation("7.16")
@theorem
@given(featured(), lams)
def test_values_at_the_fixed_point_do_not_depend_on_how_the_features_are_written(f, lam):
    v_hat, slack = values_of(f, lam)
    more = np.column_stack([f.x, f.x.sum(axis=1)])
    w = f.mdp.td_fixed_point(f.pi, x=more, lam=lam)
    visited = f.d > 1e-9
    assert np.abs(more @ w - v_hat)[visited].max() <= 100 * slack


def test_fixed_point_takes_a_policy_with_its_parameters_or_the_matrix():
    mdp, policy, theta = garnet(3, 2, 3, seed=0), SoftmaxLinear(OneHot(3), 2), np.arange(6.0)
    x = np.array([[1, 0], [1, 1], [0, 2]])
    close(mdp.td_fixed_point(policy, theta, x=x), mdp.td_fixed_point(mdp.policy_matrix(policy, theta), x=x))


@pytest.mark.parametrize(
    ("x", "lam", "message"),
    [
        (np.ones(4), 0, r"x must have shape \(4, d\), a row for each state, got \(4,\)"),
        (np.ones((3, 2)), 0, r"x must have shape \(4, d\), a row for each state, got \(3, 2\)"),
        (np.full((4, 2), np.nan), 0, "x must be finite, got nan"),
        (np.ones((4, 2)), -0.1, r"lam must lie in \[0, 1\], got -0.1"),
        (np.ones((4, 2)), 1.1, r"lam must lie in \[0, 1\], got 1.1"),
        (np.ones((4, 2)), np.nan, r"lam must lie in \[0, 1\], got nan"),
    ],
)
def test_bad_arguments_of_the_fixed_point_are_named(x, lam, message):
    with pytest.raises(ValueError, match=message):
        short_corridor().td_fixed_point(np.full((4, 2), 0.5), x=x, lam=lam)


def test_fixed_point_needs_episodes_that_end_or_a_unique_stationary_distribution():
    with pytest.raises(ValueError, match="must reach a terminal state from every state"):
        short_corridor(0.9).td_fixed_point(np.tile([1.0, 0], (4, 1)), x=np.ones((4, 1)))
    with pytest.raises(ValueError, match="one recurrent class of states, got 2"):
        two_state().td_fixed_point(np.array([[1.0, 0], [1, 0]]), x=np.ones((2, 1)))


# Compatible features


def compatible_fit(p, target, d):
    """w that minimises Σ d(s) π(a|s) (wᵀψ(s, a) − target(s, a))², and f_w(s, a)."""
    pi, x = matrix(p), p.mdp.features(p.policy)
    psi = np.stack([p.policy.score(p.theta, x, np.full(len(x), a)) for a in range(p.mdp.n_actions)], axis=1)
    root = np.sqrt(d[:, None] * pi)
    n = p.policy.n_params
    w = np.linalg.lstsq((root[..., None] * psi).reshape(-1, n), (root * target).ravel(), rcond=1e-12)[0]
    return w, psi @ w


@pytest.mark.equation("8.4", defining=True)
@pytest.mark.equation("8.3")
@theorem
@given(problems())
def test_a_compatible_critic_fitted_to_the_action_values_gives_the_exact_gradient(p):
    d, q = p.mdp.visitation(p.policy, p.theta), p.mdp.action_value(p.policy, p.theta)
    w, f = compatible_fit(p, q, d)
    gradient = np.einsum("s,sa,san->n", d, f, d_pi(p))
    np.testing.assert_allclose(gradient, p.mdp.gradient(p.policy, p.theta), rtol=0, atol=1e-8)
    close((matrix(p) * f).sum(axis=1), 0, 1e3 * (1 + np.abs(f).max()))
    # Any other minimiser too: what F does not see leaves f as it is where an episode comes.
    scale, vectors = np.linalg.eigh(p.mdp.fisher(p.policy, p.theta))
    null = vectors[:, scale < 1e-9 * scale.max()] @ p.rng.normal(size=(scale < 1e-9 * scale.max()).sum())
    x = p.mdp.features(p.policy)
    psi = np.stack([p.policy.score(p.theta, x, np.full(len(x), a)) for a in range(p.mdp.n_actions)], axis=1)
    again = np.einsum("s,sa,san->n", d, psi @ (w + null), d_pi(p))
    np.testing.assert_allclose(again, p.mdp.gradient(p.policy, p.theta), rtol=0, atol=1e-8)


@pytest.mark.equation("8.3", defining=True)
@pytest.mark.equation("8.4")
@theorem
@given(problems())
def test_compatible_fits_to_values_and_to_advantages_are_the_same_and_the_natural_gradient(p):
    d, q = p.mdp.visitation(p.policy, p.theta), p.mdp.action_value(p.policy, p.theta)
    w, f = compatible_fit(p, q, d)
    from_advantages, g = compatible_fit(p, p.mdp.advantage(p.policy, p.theta), d)
    size = 1e-8 * (1 + np.abs(w).max())
    np.testing.assert_allclose(w, from_advantages, rtol=0, atol=size)
    np.testing.assert_allclose(f, g, rtol=0, atol=size)
    np.testing.assert_allclose(w, p.mdp.natural_gradient(p.policy, p.theta), rtol=0, atol=size)


@pytest.mark.equation("8.3", "8.4")
def test_compatible_critic_of_the_corridor_has_the_numbers_of_the_chapter():
    policy = SoftmaxLinear(Constant(), 2)
    p = S.Problem(short_corridor(), policy, np.zeros(2), None)
    d, q = p.mdp.visitation(policy, p.theta), p.mdp.action_value(policy, p.theta)
    w, f = compatible_fit(p, q, d)
    close(w, [-1 / 3, 1 / 3])
    close(f[:, 1], 1 / 3)
    close(d[:3] @ p.mdp.advantage(policy, p.theta)[:3, 1] / d.sum(), 1 / 3)  # 1, −3 and 5 under (6, 4, 2)
    close(np.einsum("s,sa,san->n", d, f, d_pi(p)), [-2, 2])
    _, other = compatible_fit(p, q, (d > 0) * 1.0)  # other weights do not do
    close(np.einsum("s,sa,san->n", d, other, d_pi(p)), [-6, 6])


# Average reward


@st.composite
def continuing(draw, **kwargs):
    p = draw(problems(episodic=False, **kwargs))
    return p._replace(mdp=unichain(p.mdp))


@pytest.mark.equation("8.15")
@theorem
@given(continuing())
def test_average_reward_is_the_mean_over_a_long_time_from_every_state(p):
    P, r = chain(p.mdp, matrix(p))
    average = p.mdp.average_reward(p.policy, p.theta)
    late = np.linalg.matrix_power(P, MANY)
    close(late @ r, average)
    v = p.mdp.differential_value(p.policy, p.theta)
    T = 2**20  # Σ_{t<T} P^t r − T r(π) = v − P^T v, so that the mean is max|v| / T off
    total, power = r, P
    for _ in range(20):
        total, power = total + power @ total, power @ power
    assert np.abs(total / T - average).max() <= 2 * np.abs(v).max() / T + 1e-9


@pytest.mark.equation("8.15", defining=True)
@theorem
@given(continuing())
def test_differential_values_are_the_sums_of_what_rewards_are_above_average(p):
    P, r = chain(p.mdp, matrix(p))
    v, average = p.mdp.differential_value(p.policy, p.theta), p.mdp.average_reward(p.policy, p.theta)
    mu = np.linalg.matrix_power(P, MANY)[0]
    close(v, r - average + P @ v)
    close(mu @ v, 0)
    close(v, long_sum(P - mu, r - average))  # P^t − 1μᵀ = (P − 1μᵀ)^t for t ≥ 1, and μᵀ(r − r̄) = 0


@pytest.mark.equation("8.15")
def test_a_periodic_chain_has_an_average_reward_and_differential_values():
    P = np.zeros((3, 1, 3))
    P[[0, 1, 2], 0, [1, 2, 0]] = 1
    cycle = TabularMDP(P, np.array([[0.0], [3.0], [6.0]]), 0.9, np.eye(3)[0])
    close(cycle.average_reward(np.ones((3, 1))), 3)
    close(cycle.differential_value(np.ones((3, 1))), [-2, 1, 1])


@pytest.mark.equation("8.15")
@theorem
@given(problems(episodic=True))
def test_average_reward_of_the_chain_that_starts_again_is_the_return_by_the_length_of_an_episode(p):
    mdp, live = p.mdp, ~p.mdp.terminal
    step = mdp.P[np.ix_(live, range(mdp.n_actions), live)]
    again = step + (1 - step.sum(axis=2, keepdims=True)) * mdp.rho0[live]
    restart = TabularMDP(again, reward(mdp)[live], 0.5, mdp.rho0[live])
    pi, length = matrix(p), (marginals(mdp, matrix(p)) @ live).sum()
    close(restart.average_reward(pi[live]), replace(mdp, gamma=1.0).J(pi) / length)


@pytest.mark.equation("8.16")
@theorem
@given(continuing())
def test_average_reward_gradient_is_the_finite_difference(p):
    gradient = p.mdp.average_reward_gradient(p.policy, p.theta)
    for method in ("central", "complex"):
        check = check_gradient(lambda theta: p.mdp.average_reward(p.policy, theta), gradient, p.theta, method=method)
        assert check.passed, (method, check)


@pytest.mark.equation("8.16", defining=True)
@theorem
@given(continuing())
def test_average_reward_gradient_is_the_stationary_sum_over_actions_with_differential_values(p):
    P, _ = chain(p.mdp, matrix(p))
    mu, v = np.linalg.matrix_power(P, MANY)[0], p.mdp.differential_value(p.policy, p.theta)
    q = reward(p.mdp) - p.mdp.average_reward(p.policy, p.theta) + np.array([[t @ v for t in row] for row in p.mdp.P])
    close((matrix(p) * q).sum(axis=1), v)
    expected = np.einsum("s,sa,san->n", mu, q, d_pi(p))
    close(p.mdp.average_reward_gradient(p.policy, p.theta), expected, 10)
    new, old = pair(p)
    mu_new = np.linalg.matrix_power(chain(p.mdp, new)[0], MANY)[0]
    difference = p.mdp.average_reward(new) - p.mdp.average_reward(old)
    close(difference, mu_new @ ((new - old) * q).sum(axis=1), 10)


@pytest.mark.equation("8.15", "8.16")
def test_two_states_have_the_average_reward_of_the_chapter():
    policy, theta = SoftmaxLinear(OneHot(2), 2), np.zeros(4)
    mdp = two_state(0.9)
    close(mdp.average_reward(policy, theta), 3 / 4)
    close(mdp.differential_value(policy, theta), [-1 / 4, 1 / 4])
    close(mdp.average_reward_gradient(policy, theta), np.array([1, 5, -1, -5]) / 16)
    assert mdp.average_reward(np.full((2, 2), 0.5)) == mdp.average_reward(policy, theta)
    assert np.array_equal(two_state(0.1).differential_value(policy, theta), mdp.differential_value(policy, theta))


@pytest.mark.equation("8.15", "8.16")
@pytest.mark.parametrize("name", ["average_reward", "differential_value", "average_reward_gradient"])
def test_average_reward_needs_one_recurrent_class(name):
    stays = np.array([1e4, 1e4, -1e4, -1e4])  # a softmax that has underflowed
    with pytest.raises(ValueError, match="one recurrent class of states, got 2"):
        getattr(two_state(), name)(SoftmaxLinear(OneHot(2), 2), stays)


# The natural gradient and other parameters


@st.composite
def policies_of_any_rank(draw, source=None):
    """Problems with tabular or aliased policies, or on linearly dependent features; some states may be unvisited."""
    p = draw(problems() if source is None else source)
    if source is None and draw(st.booleans()):
        p = tabular(p._replace(mdp=with_unvisited_state(p.mdp)))
    if draw(st.booleans()):
        rank = draw(st.integers(1, 2))
        p = dense_policy(p, p.rng.normal(size=(p.mdp.n_states, rank)) @ p.rng.normal(size=(rank, rank + 1)))
    return p


def weighted_scores(p, d):
    """The matrix Ψ with rows √(d(s)π(a|s)) ψ(s, a), so that ΨᵀΨ = F: (S A, n)."""
    x, pi = p.mdp.features(p.policy), matrix(p)
    psi = [p.policy.score(p.theta, x, np.full(len(x), a)) for a in range(p.mdp.n_actions)]
    return np.concatenate([np.sqrt(d * pi[:, a])[:, None] * psi[a] for a in range(p.mdp.n_actions)])


def split(Psi):
    """Orthonormal bases of the range and the null space of ΨᵀΨ, and the condition number of Ψ on the former."""
    _, s, Vt = np.linalg.svd(Psi)
    rank = (s > 1e-11 * s[0]).sum()
    return Vt[:rank].T, Vt[rank:].T, s[0] / s[rank - 1]


def visited_policy(p, theta):
    return p.mdp.policy_matrix(p.policy, theta)[p.mdp.visitation(p.policy, p.theta) > 0]


def conditioned(p, most):
    """p, unless its scores are worse conditioned than that."""
    *_, condition = split(weighted_scores(p, p.mdp.visitation(p.policy, p.theta)))
    assume(condition < most)
    return p


def invariant(p, q, u_p, u_q, bound=1e-8):
    """A step is the same change of the policy in the parameters of both, whatever its size."""
    change = centred(p, u_p)
    assert np.abs(centred(q, u_q) - change).max() <= bound * max(np.abs(change).max(), 1)
    for alpha in (0.01, 1.0):
        actual, expected = visited_policy(q, q.theta + alpha * u_q), visited_policy(p, p.theta + alpha * u_p)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=bound * max(np.abs(change).max(), 1))


@pytest.mark.equation("9.8", defining=True)
@theorem
@given(policies_of_any_rank())
def test_other_parameters_have_the_gradient_and_the_fisher_matrix_of_the_chain_rule(p):
    M = invertible(p.rng, p.policy.n_params, 100)
    q = reparametrised(p, M)
    close(matrix(q), matrix(p))
    g, F = (f(p.policy, p.theta) for f in (p.mdp.gradient, p.mdp.fisher))
    size = np.abs(M).max() ** 2 * p.policy.n_params**2
    np.testing.assert_allclose(q.mdp.gradient(q.policy, q.theta), M.T @ g, rtol=0, atol=1e-11 * size)
    np.testing.assert_allclose(q.mdp.fisher(q.policy, q.theta), M.T @ F @ M, rtol=0, atol=1e-11 * size)
    np.testing.assert_allclose(  # the former is the derivative by ϑ, without a model's products
        derivative(lambda theta: p.mdp.J(p.policy, M @ theta), q.theta), M.T @ g, rtol=0, atol=1e-10 * size
    )


@pytest.mark.equation("9.9", defining=True)
@theorem
@given(policies_of_any_rank())
def test_natural_step_is_the_same_in_all_linear_parameters_though_the_fisher_matrix_is_singular(p):
    # With condition numbers up to 1e2 of the scores and 1e3 of M, and least weights √(dπ) of some 1e-2, fits are off by
    # some 1e5 · 100 roundings in units of the advantages, 1e-9 at most.
    p = conditioned(p, 1e2)
    q = reparametrised(p, invertible(p.rng, p.policy.n_params, 1e3))
    u_p, u_q = (r.mdp.natural_gradient(r.policy, r.theta) for r in (p, q))
    invariant(p, q, u_p, u_q)
    Psi = weighted_scores(p, p.mdp.visitation(p.policy, p.theta))
    assert np.abs(Psi @ (q.policy.model.M @ u_q - u_p)).max() <= 1e-8 * max(np.abs(u_p).max(), 1)  # null(F)
    assert split(Psi)[1].shape[1] > 0


@pytest.mark.equation("9.9")
@theorem
@given(policies_of_any_rank())
def test_so_is_what_conjugate_gradient_finds_without_damping(p):
    # F in ϑ has a condition number of up to 10² · 10² on its range, so that a residual of 1e-12 leaves 1e-8 of u. That
    # is above the rounding errors that ∇J has outside the range, if it is no difference of almost equal numbers.
    p = conditioned(p, 10)
    q = reparametrised(p, invertible(p.rng, p.policy.n_params, 10))
    d, u = p.mdp.visitation(p.policy, p.theta), []
    assume(np.abs(p.mdp.gradient(p.policy, p.theta)).max() > 0.01 * np.abs(p.mdp.value(p.policy, p.theta)).max())
    for r in (p, q):
        x, g = r.mdp.features(r.policy), r.mdp.gradient(r.policy, r.theta)

        def F(v, r=r, x=x):
            return r.policy.fisher_vector_product(r.theta, x, v, w=d)

        found = conjugate_gradient(F, g, max_iter=50 * len(g), tol=1e-12)
        assert found.converged
        u.append(found.x)
    invariant(p, q, *u)
    invariant(p, p, p.mdp.natural_gradient(p.policy, p.theta), u[0])


@pytest.mark.equation("9.9")
@theorem
@given(policies_of_any_rank())
def test_plain_step_in_other_parameters_is_the_gradient_times_H_transposed_H(p):
    M = invertible(p.rng, p.policy.n_params, 100)
    q, g = reparametrised(p, M), p.mdp.gradient(p.policy, p.theta)
    plain = q.mdp.gradient(q.policy, q.theta)
    close(centred(q, plain), centred(p, M @ M.T @ g), np.abs(M).max() ** 2 * p.policy.n_params**2)


EXAMPLE = np.array([[2.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.5]])


@pytest.mark.equation("9.9")
@pytest.mark.parametrize(("kappa", "same"), [(0.0, True), (0.1, False), (np.inf, False)])
def test_neither_the_plain_gradient_nor_a_damped_one_is_the_same_in_other_parameters(kappa, same):
    p = S.Problem(two_state(0.5), SoftmaxLinear(OneHot(2), 2), np.array([0.3, -0.2, 0.1, 0.5]), None)
    changes = []
    for r in (p, reparametrised(p, EXAMPLE)):
        F, g = (f(r.policy, r.theta) for f in (r.mdp.fisher, r.mdp.gradient))
        u = g if kappa == np.inf else np.linalg.lstsq(F + kappa * np.eye(4), g, rcond=1e-12)[0]
        changes.append(centred(r, u) / np.abs(centred(r, u)).max())
    difference = np.abs(changes[1] - changes[0]).max()
    assert (difference < 1e-12) if same else (difference > 0.01)


@pytest.mark.equation("9.9")
def test_in_parameters_that_are_no_linear_function_steps_are_the_same_to_first_order():
    # θ = ϑ + ϑ³/3, component by component, with H = diag(1 + ϑ²)
    p = S.Problem(two_state(0.5), SoftmaxLinear(OneHot(2), 2), None, None)
    vartheta = np.array([0.3, -0.2, 0.1, 0.5])
    p = p._replace(theta=vartheta + vartheta**3 / 3)
    H = np.diag(1 + vartheta**2)
    F, g = (f(p.policy, p.theta) for f in (p.mdp.fisher, p.mdp.gradient))
    u = np.linalg.pinv(H @ F @ H, rcond=1e-10) @ H @ g
    invariant(p, p, p.mdp.natural_gradient(p.policy, p.theta), H @ u)
    off = []
    for alpha in (0.1, 0.05, 0.025):
        there = vartheta + alpha * u
        off.append(np.abs(centred(p, there + there**3 / 3 - p.theta - alpha * H @ u)).max())
    assert off[0] > 1e-4
    assert off[0] / off[1] == pytest.approx(4, rel=0.15)
    assert off[1] / off[2] == pytest.approx(4, rel=0.08)


@pytest.mark.equation("9.10", defining=True)
@theorem
@given(policies_of_any_rank())
def test_what_the_fisher_matrix_does_not_see_leaves_the_policy_where_an_episode_comes(p):
    d = p.mdp.visitation(p.policy, p.theta)
    Psi = weighted_scores(p, d)
    _, null, condition = split(Psi)
    assume(condition < 1e3)
    v = null @ p.rng.normal(size=null.shape[1])
    assert np.abs(p.mdp.fisher(p.policy, p.theta) @ v).max() <= 1e-10 * (1 + d.sum())
    close(centred(p, v), 0, 10)
    close(visited_policy(p, p.theta + 5 * v), visited_policy(p, p.theta), 10)
    # And the converse: the other way to find directions that move all logits of every visited state alike.
    n = p.policy.n_params
    shifts = np.stack([centred(p, e).ravel() for e in np.eye(n)], axis=1)
    alike = split(shifts)[1]
    assert alike.shape == null.shape
    close(Psi @ alike, 0, 10)
    # Every solution of F u = ∇J is then a step to the same policies.
    u = p.mdp.natural_gradient(p.policy, p.theta)
    invariant(p, p, u, u + v)
    close(p.mdp.J(p.policy, p.theta + u + v), p.mdp.J(p.policy, p.theta + u), 100 * (1 + np.abs(u).max()))


@pytest.mark.equation("9.10")
def test_what_the_fisher_matrix_does_not_see_includes_all_logits_of_a_state_that_is_not_visited():
    p = tabular(S.Problem(with_unvisited_state(two_state(0.9)), None, None, np.random.default_rng(0)))
    F = p.mdp.fisher(p.policy, p.theta)
    assert np.linalg.matrix_rank(F, tol=1e-10) == 2  # of 6: one for each state visited
    v = np.array([1.0, -2.0, 3.0, 1.0, -2.0, -7.0])
    close(F @ v, 0)
    new, old = (p.mdp.policy_matrix(p.policy, theta) for theta in (p.theta + v, p.theta))
    close(new[:2], old[:2])
    assert np.abs(new[2] - old[2]).max() > 0.1


@pytest.mark.equation("9.11", defining=True)
@theorem
@given(policies_of_any_rank(), st.sampled_from(["a", "q", "q less a baseline"]))
def test_compatible_weights_are_the_natural_gradient_up_to_what_changes_no_policy(p, target):
    d, q = p.mdp.visitation(p.policy, p.theta), p.mdp.action_value(p.policy, p.theta)
    of = {"a": p.mdp.advantage(p.policy, p.theta), "q": q, "q less a baseline": q + 3 * p.rng.normal(size=(len(q), 1))}
    Psi = weighted_scores(p, d)
    _, null, condition = split(Psi)
    assume(condition < 1e3)
    # The normal equations of the fit, and so every minimiser, whichever null(F) adds.
    b = Psi.T @ (np.sqrt(d[:, None] * matrix(p)) * of[target]).T.ravel()
    close(b, p.mdp.gradient(p.policy, p.theta), 100)
    w, _ = compatible_fit(p, of[target], d)
    w = w + null @ p.rng.normal(size=null.shape[1])
    np.testing.assert_allclose(p.mdp.fisher(p.policy, p.theta) @ w, b, rtol=0, atol=1e-9 * (1 + np.abs(w).max()))
    invariant(p, p, p.mdp.natural_gradient(p.policy, p.theta), w)


@pytest.mark.equation("9.12", defining=True)
@theorem
@given(problems(episodic=False))
def test_under_the_normalised_visitation_the_natural_gradient_is_longer_by_the_horizon(p):
    p = tabular(p)
    F_bar, F, g = (
        p.mdp.fisher(p.policy, p.theta, normalized=True),
        p.mdp.fisher(p.policy, p.theta),
        p.mdp.gradient(p.policy, p.theta),
    )
    gamma, u = p.mdp.gamma, p.mdp.natural_gradient(p.policy, p.theta)
    close(F_bar, (1 - gamma) * F, 10)
    inverse = np.linalg.pinv(F_bar, rcond=1e-9, hermitian=True)
    size = 1e-8 * np.abs(u).max()
    np.testing.assert_allclose(inverse @ g, u / (1 - gamma), rtol=0, atol=size / (1 - gamma))
    longer = p.mdp.natural_gradient(p.policy, p.theta, normalized=True)
    np.testing.assert_allclose(longer, u / (1 - gamma), rtol=1e-10, atol=size)
    np.testing.assert_allclose(inverse @ ((1 - gamma) * g), u, rtol=0, atol=size)


@pytest.mark.equation("9.12")
@theorem
@given(problems())
def test_means_over_rows_normalise_both_gradient_and_fisher_matrix(p):
    # Rows in proportion to integer visits: the mean weights are d̄, that of F̄, and so are those of the gradient.
    p = tabular(p)
    visits = p.rng.integers(1, 5, size=p.mdp.n_states) * ~p.mdp.terminal
    states, pi, a = np.repeat(np.arange(p.mdp.n_states), visits), matrix(p), p.mdp.advantage(p.policy, p.theta)
    x = p.policy.features(states)
    F_bar = p.policy.fisher(p.theta, x)
    g_bar = p.policy.all_actions_gradient(p.theta, x, a[states], np.full(len(states), 1 / len(states)))
    u = np.linalg.pinv(F_bar, rcond=1e-9, hermitian=True) @ g_bar
    close((u.reshape(p.mdp.n_actions, -1).T - a).std(axis=1), 0, 1e3)  # a, up to a number for each state
    assert np.abs((pi * a).sum(axis=1)).max() < 1e-9


@pytest.mark.equation("9.12")
def test_corridor_has_the_three_vectors_of_the_chapter():
    mdp, policy, theta = short_corridor(), SoftmaxLinear(Constant(), 2), np.zeros(2)
    F_bar, g = mdp.fisher(policy, theta, normalized=True), mdp.gradient(policy, theta)
    inverse = np.linalg.pinv(F_bar, rcond=1e-9)
    close(mdp.natural_gradient(policy, theta), [-1 / 3, 1 / 3])  # left, right
    close(mdp.natural_gradient(policy, theta, normalized=True), [-4, 4])
    close(inverse @ g, [-4, 4])
    close(inverse @ g / mdp.visitation(policy, theta).sum(), [-1 / 3, 1 / 3])


# Multiplicative weights


STEPS = [0.01, 0.1, 1.0, 3.0, 10.0, 100.0]


@pytest.mark.equation("9.13", defining=True)
@theorem
@given(problems(), st.sampled_from(STEPS))
def test_tabular_natural_step_multiplies_probabilities_by_exponentials_of_advantages_and_never_lowers_J(p, alpha):
    p = tabular(p)
    pi, a = matrix(p), p.mdp.advantage(p.policy, p.theta)
    alpha = alpha / max(np.abs(a).max(), 1)  # so that no probability underflows
    new = p.mdp.policy_matrix(p.policy, p.theta + alpha * p.mdp.natural_gradient(p.policy, p.theta))
    weights = pi * np.exp(alpha * a)
    Z = weights.sum(axis=1, keepdims=True)
    live = ~p.mdp.terminal
    np.testing.assert_allclose(new[live], (weights / Z)[live], rtol=1e-7)  # advantages to 1e-9, times α
    new = weights / Z
    # What the proof says of each state: Jensen's inequality, and the performance difference.
    gain, kl = (new * a).sum(axis=1), (new * np.log(new / pi)).sum(axis=1)
    np.testing.assert_allclose(alpha * gain, kl + np.log(Z[:, 0]), rtol=0, atol=1e-10 * (1 + alpha))
    assert (np.log(Z) >= -1e-13).all()
    assert (gain >= -1e-11).all()
    assert p.mdp.J(new) >= p.mdp.J(pi) - 1e-10
    close(p.mdp.J(new) - p.mdp.J(pi), p.mdp.visitation(new) @ gain, 10)


@pytest.mark.equation("9.13")
@theorem
@given(problems())
def test_tabular_natural_gradient_does_not_depend_on_where_episodes_begin(p):
    p = tabular(p)
    live = ~p.mdp.terminal
    rho0 = live * p.rng.uniform(0.1, 1, size=len(live))
    other = replace(p.mdp, rho0=rho0 / rho0.sum())
    u, v = (mdp.natural_gradient(p.policy, p.theta) for mdp in (p.mdp, other))
    close(u, v, 100)
    assert np.abs(p.mdp.gradient(p.policy, p.theta) - other.gradient(p.policy, p.theta)).max() > 1e-9 or (
        live.sum() == 1 or np.abs(u).max() < 1e-6
    )


@pytest.mark.equation("9.13")
@theorem
@given(problems())
def test_a_long_tabular_natural_step_is_a_step_of_policy_iteration(p):
    p = tabular(p)
    a, live = p.mdp.advantage(p.policy, p.theta), ~p.mdp.terminal
    best = np.sort(a[live], axis=1)
    gap = (best[:, -1] - best[:, -2]).min()
    assume(gap > 1e-3)
    new = p.mdp.policy_matrix(p.policy, p.theta + 60 / gap * p.mdp.natural_gradient(p.policy, p.theta))
    close(new[live], np.eye(p.mdp.n_actions)[a[live].argmax(axis=1)])


@pytest.mark.equation("9.13")
def test_a_longer_step_may_gain_less():
    # The two states after (6.11), from both actions alike.
    mdp = replace(two_state(0.9), rho0=np.array([1.0, 0.0]))
    policy, theta = SoftmaxLinear(OneHot(2), 2), np.zeros(4)
    u = mdp.natural_gradient(policy, theta)
    J = [mdp.J(policy, theta + alpha * u) for alpha in (0, 0.5, 1, 2, 4, 1000)]
    np.testing.assert_allclose(J, [7.25, 11.165, 14.278, 15.878, 14.203, 10], atol=5e-4)


# Plateaus of the plain gradient


@pytest.mark.equation("9.14", defining=True)
@theorem
@given(problems())
def test_plain_gradient_is_as_small_as_the_visits_to_a_state_and_the_probability_of_an_action(p):
    p = tabular(p)
    pi, a = matrix(p), p.mdp.advantage(p.policy, p.theta)
    d = marginals(p.mdp, pi).T @ p.mdp.gamma ** np.arange(MANY)  # not the linear system
    g = p.mdp.gradient(p.policy, p.theta).reshape(p.mdp.n_actions, -1).T
    for s, b in product(np.flatnonzero(~p.mdp.terminal), range(p.mdp.n_actions)):
        close(g[s, b], d[s] * pi[s, b] * a[s, b], 10)
    u = p.mdp.natural_gradient(p.policy, p.theta).reshape(p.mdp.n_actions, -1).T
    close((u - u @ np.ones((p.mdp.n_actions, 1)) / p.mdp.n_actions), (a - a.mean(axis=1, keepdims=True)), 100)


@pytest.mark.equation("9.13", "9.14")
def test_natural_gradient_sees_what_is_rarely_done_where_the_plain_one_does_not():
    # To leave state 0, with probability 1e-8, would be worth 2.8 more than to stay.
    mdp, policy = two_state(0.9), SoftmaxLinear(OneHot(2), 2)
    theta = np.log([1e8, 9.0, 1.0, 1.0])
    a = mdp.advantage(policy, theta)
    assert a[0, 1] == pytest.approx(2.8, abs=0.05)
    assert np.abs(mdp.gradient(policy, theta).reshape(2, 2)[:, 0]).max() < 1e-6
    # Its weight √(dπ) is some 1e-4 of the largest, so that the fit is off by some 1e4 · 1e4 roundings.
    u = mdp.natural_gradient(policy, theta)
    np.testing.assert_allclose(u.reshape(2, 2).T, a - a.mean(axis=1, keepdims=True), rtol=0, atol=1e-7)


def ascent(stay, steps, *, natural):
    """r(π) and π(stay|·) along steps of α = 1 in Kakade's two states; the average reward has no discount."""
    mdp, policy, theta = two_state(), SoftmaxLinear(OneHot(2), 2), np.log([*stay, *(1 - np.array(stay))])
    for _ in range(steps + 1):
        yield mdp.average_reward(policy, theta), mdp.policy_matrix(policy, theta)[:, 0]
        if natural:
            v, r = mdp.differential_value(policy, theta), mdp.average_reward(policy, theta)
            q = mdp.expected_reward - r + mdp.P @ v
            theta = theta + (q - v[:, None]).T.ravel()
        else:
            theta = theta + mdp.average_reward_gradient(policy, theta)


@pytest.mark.equation("9.13", "9.14")
def test_kakades_two_states_have_the_plateau_of_the_chapter_and_the_natural_gradient_has_none():
    at = [1, 2, 3, 10, 50, 100, 151, 152, 200]
    plain = list(ascent((0.8, 0.2), 200, natural=False))
    assert plain[0][0] == pytest.approx(0.72, abs=1e-12)
    expected = [0.7846, 0.8317, 0.8650, 0.9500, 0.9915, 0.9986, 1.3497, 1.5680, 1.9921]
    np.testing.assert_allclose([plain[k][0] for k in at], expected, rtol=0, atol=6e-5)
    natural = list(ascent((0.8, 0.2), 10, natural=True))
    np.testing.assert_allclose([natural[k][0] for k in (1, 2, 3, 10)], [0.9609, 1.2295, 2, 2], rtol=0, atol=6e-5)
    policy = SoftmaxLinear(OneHot(2), 2)
    mu = two_state().stationary_distribution(np.stack([plain[100][1], 1 - plain[100][1]], axis=1))
    assert mu[1] == pytest.approx(0.013, abs=5e-4)
    # Both begin with the advantage, which the plain gradient weighs by μ(s)π(a|s).
    theta, pi = np.log([0.8, 0.2, 0.2, 0.8]), np.array([[0.8, 0.2], [0.2, 0.8]])
    v, r = two_state().differential_value(pi), two_state().average_reward(pi)
    a = two_state().expected_reward - r + two_state().P @ v - v[:, None]
    by_hand = np.array([[0.8], [0.2]]) * pi * a
    close(two_state().average_reward_gradient(policy, theta), by_hand.T.ravel())


@pytest.mark.equation("9.14")
def test_from_further_away_the_plateau_has_no_end_in_sight():
    plain = list(ascent((0.9, 0.1), 1000, natural=False))
    assert plain[1000][0] == pytest.approx(0.9995, abs=5e-5)
    assert 0.9 < min(r for r, _ in plain[10:]) <= max(r for r, _ in plain) < 1
    assert plain[1000][1][1] == pytest.approx(0.15338819, abs=1e-7)
    natural = list(ascent((0.9, 0.1), 4, natural=True))
    assert abs(natural[4][0] - 2) < 1e-12


# Natural actor–critic


class Pairs(NamedTuple):
    """The process of pairs (s, a) in states that are not terminal, with the on-policy weights of its data."""

    states: np.ndarray
    actions: np.ndarray
    weights: np.ndarray  # d_1(s) π(a|s), or μ(s) π(a|s)
    P: np.ndarray  # of the next pair
    d: np.ndarray


def pairs(p):
    mdp, pi, live = p.mdp, matrix(p), ~p.mdp.terminal
    states, actions = np.nonzero(live[:, None] & np.ones_like(pi, dtype=bool))
    d = mdp.visitation(p.policy, p.theta, gamma=1) if mdp.terminal.any() else mdp.stationary_distribution(pi)
    P = mdp.P[states, actions][:, states] * pi[states, actions]
    return Pairs(states, actions, d[states] * pi[states, actions], P, d)


def natural_equations(p, phi, lam):
    """The mean equations A (ν, w) = b of LSTD(λ) on x = (φ(s), ψ(s, a)), x' = (φ(s'), 0), by long sums."""
    k, mdp = pairs(p), p.mdp
    phi = phi * ~mdp.terminal[:, None]
    psi = p.policy.score(p.theta, p.policy.features(k.states), k.actions)
    x = np.hstack([phi[k.states], psi])
    x_next = np.hstack([mdp.P[k.states, k.actions] @ phi, 0 * psi])
    discounted, weighted = mdp.gamma * lam * k.P, (k.weights[:, None] * x).T
    return (
        weighted @ long_sum(discounted, x - mdp.gamma * x_next),
        weighted @ long_sum(discounted, reward(mdp)[k.states, k.actions]),
    )


def unichain_of(p):
    return p._replace(mdp=unichain(p.mdp))


on_policy = policies_of_any_rank(problems().map(unichain_of))


@pytest.mark.equation("9.16")
@theorem
@given(on_policy, lams, st.booleans())
def test_weights_of_the_scores_in_lstd_are_the_natural_gradient_under_the_weights_of_the_data(p, lam, spanned):
    # φ with v_π in its span, or any with λ = 1
    lam = lam if spanned else 1.0
    v, live, d = p.mdp.value(p.policy, p.theta), ~p.mdp.terminal, pairs(p).d
    phi = p.rng.normal(size=(len(v), int(p.rng.integers(1, live.sum() + 1))))
    nu = np.zeros(phi.shape[1])
    if spanned:
        phi[:, 0], nu[0] = v / max(np.abs(v).max(), 1e-3), max(np.abs(v).max(), 1e-3)
    else:
        root = np.sqrt(d * live)[:, None]
        nu = np.linalg.lstsq(root * phi, root[:, 0] * v)[0]  # the projection of v_π
    assume(np.linalg.cond(np.sqrt(d)[live, None] * phi[live]) < 1e3)
    A, b = natural_equations(p, phi, lam)
    F_1, g_1 = direction(p, d)
    Psi = weighted_scores(p, d)
    assume(split(Psi)[2] < 1e2)
    target = np.sqrt(d[:, None] * matrix(p)) * p.mdp.advantage(p.policy, p.theta)
    w = np.linalg.lstsq(Psi, target.T.ravel(), rcond=1e-11)[0]
    scale = (1 + np.abs(w).max() + np.abs(nu).max()) * (1 + np.abs(A).max())
    np.testing.assert_allclose(F_1 @ w, g_1, rtol=0, atol=1e-10 * scale)
    np.testing.assert_allclose(A @ np.append(nu, w), b, rtol=0, atol=1e-10 * scale)  # it is a solution
    n = phi.shape[1]
    np.testing.assert_allclose(A[:n, n:], 0, atol=1e-11 * scale)  # and all have the same F_1 w: A is block triangular,
    np.testing.assert_allclose(A[n:, n:], F_1, atol=1e-11 * scale)  # its diagonal that of LSTD(λ) on φ, and F_1
    found = np.linalg.lstsq(A, b, rcond=1e-11)[0]
    assume(split(A[:n, :n])[2] < 1e4)
    np.testing.assert_allclose(F_1 @ found[n:], g_1, rtol=0, atol=1e-8 * scale)


@pytest.mark.equation("9.16")
@theorem
@given(on_policy, st.sampled_from([0.0, 0.5, 0.9]))
def test_with_values_that_are_wrong_the_weights_have_the_bias_of_the_advantages(p, lam):
    # w solves F_1 w = E[Σ ψ Â], with the residuals δ of ν; the part that v_π has no say in is what (9.16) leaves.
    k, phi = pairs(p), p.rng.normal(size=(p.mdp.n_states, 1)) * ~p.mdp.terminal[:, None]
    _, g_1 = direction(p, k.d)
    A, b = natural_equations(p, phi, lam)
    assume(abs(A[0, 0]) > 1e-2)
    nu = p.mdp.td_fixed_point(p.policy, p.theta, x=phi, lam=lam)
    close(A[0, 0] * nu, b[:1], 100)
    psi = p.policy.score(p.theta, p.policy.features(k.states), k.actions)
    delta = reward(p.mdp)[k.states, k.actions] - (phi @ nu)[k.states]
    delta = delta + p.mdp.gamma * p.mdp.P[k.states, k.actions] @ phi @ nu
    right = (k.weights[:, None] * psi).T @ long_sum(p.mdp.gamma * lam * k.P, delta)
    scale = 100 * (1 + np.abs(nu).max())
    close(b[1:] - A[1:, :1] @ nu, right, scale)
    # Along a trajectory the errors e of ν enter as γ(1 − λ) Σ (γλ)^k e(S_{t+k+1}): chapter 8, longer advantages.
    P, _ = chain(p.mdp, matrix(p))
    live = ~p.mdp.terminal
    e = (phi @ nu - p.mdp.value(p.policy, p.theta)) * live
    to_come = p.mdp.P @ long_sum(p.mdp.gamma * lam * P * live[:, None], e)
    bias = p.mdp.gamma * (1 - lam) * np.einsum("s,sa,san->n", k.d, to_come, d_pi(p))
    close(right, g_1 + bias, scale)


@pytest.mark.equation("9.16")
def test_neither_condition_can_be_dropped_and_the_discount_of_the_data_is_one():
    rng = np.random.default_rng(0)
    p = dense_policy(layered(rng, 0.5), rng.normal(size=(4, 2)))
    phi, v = rng.normal(size=(4, 1)), p.mdp.value(p.policy, p.theta)[:, None]
    F_1, g_1 = direction(p, pairs(p).d)
    for features, lam, right in ((phi, 0.0, False), (phi, 0.3, False), (phi, 1.0, True), (v, 0.0, True)):
        w = np.linalg.lstsq(*natural_equations(p, features, lam), rcond=1e-11)[0][1:]
        error = np.abs(F_1 @ w - g_1).max()
        assert (error < 1e-11) if right else (error > 1e-3)
        assert np.abs(centred(p, w - p.mdp.natural_gradient(p.policy, p.theta))).max() > 1e-2  # d_1 is not d_γ


# Episodic natural actor–critic


def summed(p, gamma):
    """Σ γ^t ψ_t and the return of every trajectory, and their probabilities."""
    traj, probability = enumerate_trajectories(p.mdp, p.policy, p.theta, p.mdp.n_states - 1)
    assert not traj.truncated.any()
    psi_bar = 0.0
    for t in range(len(traj.obs)):
        psi_bar = psi_bar + gamma**t * traj.valid[t][:, None] * p.policy.score(p.theta, traj.x[t], traj.actions[t])
    return psi_bar, returns(p.mdp, traj), probability


def regression(psi_bar, R, probability):
    """(w, c) of the fit to infinitely many episodes."""
    root = np.sqrt(probability)[:, None]
    fit = np.linalg.lstsq(root * np.column_stack([psi_bar, np.ones(len(R))]), root[:, 0] * R, rcond=1e-11)[0]
    return fit[:-1], fit[-1]


ending = policies_of_any_rank(
    layers.flatmap(lambda p: st.sampled_from([p, dense_policy(p, p.rng.normal(size=(p.mdp.n_states, 2)))]))
)


@pytest.mark.equation("9.17")
@theorem
@given(ending)
def test_regression_of_returns_on_summed_scores_is_the_compatible_fit_under_the_squared_discount(p):
    psi_bar, R, probability = summed(p, p.mdp.gamma)
    occurs = marginals(p.mdp, matrix(p), p.mdp.n_states)
    d = p.mdp.gamma ** (2 * np.arange(len(occurs))) @ occurs * ~p.mdp.terminal  # Σ_t γ^{2t} Pr(S_t = s)
    F, g = direction(p, d)
    close(probability @ psi_bar, 0, 10)
    close((probability * psi_bar.T) @ psi_bar, F, 10)
    close(psi_bar.T @ (probability * R), g, 10)
    w, c = regression(psi_bar, R, probability)
    assume(split(weighted_scores(p, d))[2] < 1e3)
    close(c, p.mdp.J(p.policy, p.theta), 1e3)
    np.testing.assert_allclose(F @ w, g, rtol=0, atol=1e-9 * (1 + np.abs(w).max()))
    is_table = p.policy.n_params == p.mdp.n_states * p.mdp.n_actions
    if p.mdp.gamma == 1:
        close(g, p.mdp.gradient(p.policy, p.theta), 10)
        close(F, p.mdp.fisher(p.policy, p.theta), 10)
    if p.mdp.gamma == 1 or is_table:
        invariant(p, p, p.mdp.natural_gradient(p.policy, p.theta), w, 1e-7)
    # With sums of scores that are not discounted, the equation is F_1 w = ∇J.
    plain, *_ = summed(p, 1)
    close(plain.T @ (probability * R), p.mdp.gradient(p.policy, p.theta), 10)
    close((probability * plain.T) @ plain, direction(p, occurs.sum(axis=0) * ~p.mdp.terminal)[0], 10)


@pytest.mark.equation("9.9", "9.17")
@theorem
@given(ending)
def test_the_episodic_direction_is_the_same_in_all_linear_parameters(p):
    p = conditioned(p, 1e3)
    q = reparametrised(p, invertible(p.rng, p.policy.n_params, 100))
    invariant(p, q, *(regression(*summed(r, r.mdp.gamma))[0] for r in (p, q)), 1e-7)


@pytest.mark.equation("9.17")
def test_where_parameters_are_shared_and_rewards_discounted_it_is_another_direction():
    rng = np.random.default_rng(0)
    p = dense_policy(layered(rng, 0.5), rng.normal(size=(4, 2)))
    psi_bar, R, probability = summed(p, 0.5)
    w, _ = regression(psi_bar, R, probability)
    g, u = p.mdp.gradient(p.policy, p.theta), p.mdp.natural_gradient(p.policy, p.theta)
    assert np.abs(psi_bar.T @ (probability * R) - g).max() > 0.01
    assert np.abs(centred(p, w) - centred(p, u)).max() > 0.01
    # Nor is the one from undiscounted sums, even for a table.
    p = layered(rng, 0.5)
    plain, R, probability = summed(p, 1)
    w, _ = regression(plain, R, probability)
    assert np.abs(centred(p, w) - centred(p, p.mdp.natural_gradient(p.policy, p.theta))).max() > 0.01
