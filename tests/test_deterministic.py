"""The deterministic gradient, its limit, compatible critics and what targets evaluate, against exact problems."""

from typing import NamedTuple

import numpy as np
import pytest
from continuous import Waves, deterministic, quadrature, transitions_of
from hypothesis import given
from hypothesis import strategies as st
from oracles import derivative
from scipy.special import expit
from scipy.stats import norm
from strategies import examples, generators

from npg import features as F
from npg.algorithms import COPDACQ
from npg.lqr import LQR
from npg.policies import GaussianLinear

NO_NOISE = LQR(A=np.array([[1, 0.3], [-0.2, 0.9]]), B=np.array([[0.0], [1]]), Q=np.eye(2), R=np.eye(1))
"""The noise-free system of the chapter: γ = 0.9, S_0 = I."""
K = np.array([[-0.3, -0.6]])


def equal(actual, expected, size=None, relative=1e-9):
    """To 1e-9 of the largest number that occurs: systems here have condition numbers of some 1e3."""
    expected = np.asarray(expected)
    size = np.abs(expected).max() if size is None else size
    np.testing.assert_allclose(actual, expected, rtol=0, atol=relative * max(size, 1e-3))


# The theorem


@pytest.mark.equation("13.1", "13.2", "13.3", defining=True)
@given(deterministic())
@examples(200)
def test_the_gradient_is_the_slope_of_action_values_where_the_policy_goes(p):
    mdp, mu = p.mdp, p.mu()
    v = mdp.v(mu)
    equal(mdp.target(mu, v), v)
    equal(mdp.J(mu), mdp.visitation(mu) @ mdp.R(mu), size=np.abs(v).max())
    equal(p.gradient(), derivative(lambda theta: mdp.J(p.mu(theta)), p.theta), size=np.abs(p.g()).max())
    other = p.mu(p.theta + p.rng.normal(size=p.theta.shape))
    gain = mdp.visitation(other) @ (mdp.target(other, v) - v)
    equal(gain, mdp.J(other) - mdp.J(mu), size=np.abs(v).max())


@st.composite
def regulators(draw):
    """Random problems with a stable gain: γρ(A + BK)² ≤ 0.8."""
    rng = draw(generators)
    d, m, gamma = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.sampled_from([0.3, 0.9]))
    B, gain, M = rng.normal(size=(d, m)), rng.normal(size=(m, d)), rng.normal(size=(d, d))
    M *= np.sqrt(rng.uniform(0, 0.8) / gamma) / np.abs(np.linalg.eigvals(M)).max()
    roots = [rng.normal(size=(k, k)) for k in (d, m, d, d)]
    Q, R, W, S0 = (root @ root.T for root in roots)
    return LQR(M - B @ gain, B, Q, R + np.eye(m), W, S0, gamma), gain, rng


def without_exploration(lqr):
    """σ whose square is 0 in floating point."""
    return np.full(len(lqr.R), 1e-200)


@pytest.mark.equation("13.4", defining=True)
@pytest.mark.equation("13.3")
@given(regulators())
@examples(50)
def test_of_a_regulator_action_values_and_the_gradient_are_closed_forms(drawn):
    lqr, gain, rng = drawn
    E, curvature = lqr.action_value_matrices(gain)
    V, c = lqr.value_matrix(gain, without_exploration(lqr))
    s, offset = rng.normal(size=len(V)), rng.normal(size=len(E))
    a = gain @ s + offset
    after = lqr.A @ s + lqr.B @ a
    q = -s @ lqr.Q @ s - a @ lqr.R @ a - lqr.gamma * (after @ V @ after + np.trace(V @ lqr.W) + c)
    parts = [-s @ V @ s - c, -2 * offset @ E @ s, -offset @ curvature @ offset]
    equal(sum(parts), q, size=np.abs(parts).max())
    J = derivative(lambda k: lqr.J(k.reshape(gain.shape), without_exploration(lqr)), gain.ravel())
    equal(lqr.deterministic_gradient(gain).ravel(), J)


@pytest.mark.equation("13.4", "13.5", "13.8")
def test_the_noise_free_system_has_the_numbers_of_the_chapter():
    E, curvature = NO_NOISE.action_value_matrices(K)
    assert E == pytest.approx(np.array([[-0.1161, 0.2995]]), abs=5e-5)
    assert curvature == pytest.approx(2.8763, abs=5e-5)
    gradient = NO_NOISE.deterministic_gradient(K)
    assert gradient == pytest.approx(np.array([[1.743, -1.800]]), abs=5e-4)
    gap = NO_NOISE.gradient(K, np.array([1.0]))[:2] - gradient[0]
    assert gap == pytest.approx([1.449, -6.810], abs=5e-4)
    assert np.linalg.norm(gap) == pytest.approx(6.963, abs=5e-4)
    assert 0.25 * np.linalg.norm(gap) / np.linalg.norm(gradient) == pytest.approx(0.69, abs=5e-3)


@pytest.mark.equation("13.5", defining=True)
def test_the_derivative_of_values_under_the_visitation_is_another_vector():
    """E[∇_θ Q_f(s, f(s; θ))] as some lectures have it, read literally."""
    M = NO_NOISE.A + NO_NOISE.B @ K
    X, steps = np.zeros((2, 2)), np.eye(2)
    for t in range(1000):  # γ^t ρ(M)^{2t} < 1e-60 from there on
        X, steps = X + NO_NOISE.gamma**t * steps @ steps.T, M @ steps

    def values(k):  # of the states that are visited, weighted as they are, the weights held
        return -np.trace(NO_NOISE.value_matrix(k.reshape(1, 2), np.array([1e-200]))[0] @ X)

    wrong = derivative(values, K.ravel())
    assert wrong == pytest.approx([5.463, -5.183], abs=5e-4)
    assert NO_NOISE.deterministic_gradient(K)[0] == pytest.approx([1.743, -1.800], abs=5e-4)


@pytest.mark.equation("13.5")
@given(deterministic())
@examples(100)
def test_each_step_counts_there_as_often_as_there_are_steps_up_to_it(p):
    d = p.mdp.visitation(p.mu())
    wrong = derivative(lambda theta: d @ p.mdp.v(p.mu(theta)), p.theta)
    counted = p.mdp.visitation(p.mu(), start=d)  # Σ_t (t + 1) γ^t Pr(S_t = s)
    equal(wrong, counted @ p.g(), size=np.abs(p.g()).max() * counted.sum())


@pytest.mark.equation("13.5")
def test_in_two_steps_it_has_the_wrong_sign():
    zero, one = np.zeros((2, 1)), np.ones((2, 1))
    moves = np.array([[0.0, 1], [0, 0]])  # and then the end
    mdp = Waves(
        1.0, np.array([1.0, 0]), zero[:, 0], np.array([[-1.5], [1]]), zero[:, 0], one, zero[:, 0], moves, moves,
        zero[:, 0], one, zero[:, 0],
    )  # fmt: skip

    def J(theta):
        return mdp.J(one * theta)

    def values(theta):
        return mdp.v(one * theta).sum()

    assert derivative(J, np.array([0.3])) == pytest.approx([-0.5], abs=1e-12)
    assert derivative(values, np.array([0.3])) == pytest.approx([0.5], abs=1e-12)


# The limit of stochastic policies


def stochastic_gradient(p, sigma):
    """The mean component of the policy gradient of the library's Gaussian policy, exactly."""
    smooth, (nodes, weights) = p.mdp.smoothed(sigma), quadrature(p.m)
    d, v, n = smooth.visitation(p.mu()), smooth.v(p.mu()), len(p.theta)
    policy = GaussianLinear(F.Affine(p.X.shape[1], scale=1.0, bias=False), F.Constant(), p.m)
    theta = np.append(p.theta, np.full(p.m, np.log(sigma)))
    total = 0.0
    for node, weight in zip(nodes, weights, strict=True):
        a = p.mu() + sigma * node
        psi = policy.score(theta, policy.features(p.X), a)[:, :n]
        total = total + weight * d @ (psi * p.mdp.target(a, v)[:, None])
    return total


@pytest.mark.equation("13.6", defining=True)
@given(deterministic(most=3), st.sampled_from([0.3, 0.8]))
@examples(30)
def test_the_stochastic_gradient_is_the_deterministic_one_of_the_smoothed_process(p, sigma):
    smooth = p.mdp.smoothed(sigma)
    size = np.abs(p.g()).max() + np.abs(p.mdp.v(p.mu())).max() / sigma
    equal(p.gradient(smooth), derivative(lambda theta: smooth.J(p.mu(theta)), p.theta), size=size)
    equal(stochastic_gradient(p, sigma), p.gradient(smooth), size=size * smooth.visitation(p.mu()).sum())


@pytest.mark.equation("13.6")
def test_noise_shows_a_slope_behind_an_edge():
    sigma, mu = 2.0, 3.0
    grid, step = np.linspace(mu - 30, mu + 30, 600_001, retstep=True)
    slope = step * np.sum((grid - mu) / sigma**2 * grid.clip(-1, 1) * norm.pdf(grid, mu, sigma))
    assert slope == pytest.approx(norm.cdf(-1) - norm.cdf(-2), abs=1e-6)
    assert slope == pytest.approx(0.136, abs=5e-4)


@pytest.mark.equation("13.7", defining=True)
@given(deterministic())
@examples(200)
def test_the_gap_to_the_deterministic_gradient_vanishes_like_the_variance(p):
    def gap(sigma):
        return (p.gradient(p.mdp.smoothed(sigma)) - p.gradient()) / sigma**2

    size = 1e-9 + np.abs(p.g()).max() * p.mdp.visitation(p.mu()).sum() ** 2
    large, small = gap(2e-3), gap(1e-3)  # rounding is some 1e-10 of it
    assert np.abs(large - small).max() < 1e-3 * size


@pytest.mark.equation("13.7")
def test_the_derivative_by_log_sigma_vanishes_by_itself():
    by_log_sigma = [NO_NOISE.gradient(K, np.array([sigma]))[2] for sigma in (0.1, 0.2)]
    assert by_log_sigma[1] / by_log_sigma[0] == pytest.approx(4, rel=1e-12)


@pytest.mark.equation("13.8", defining=True)
@given(regulators())
@examples(100)
def test_on_a_regulator_the_gap_is_exactly_proportional_to_the_variance(drawn):
    lqr, gain, rng = drawn
    sigma, (E, _) = rng.uniform(0.2, 2, size=len(lqr.R)), lqr.action_value_matrices(gain)
    gap = [lqr.gradient(gain, s)[: gain.size] - lqr.deterministic_gradient(gain).ravel() for s in (sigma, 3 * sigma)]
    M = lqr.A + lqr.B @ gain
    d, noise = len(M), lqr.B @ np.diag(sigma**2) @ lqr.B.T
    Y = np.linalg.solve(np.eye(d * d) - lqr.gamma * np.kron(M, M), noise.ravel()).reshape(d, d)
    size = np.abs(lqr.gradient(gain, 3 * sigma)).max()
    equal(gap[0], (-2 * lqr.gamma / (1 - lqr.gamma) * E @ Y).ravel(), size=size)
    equal(gap[1], 9 * gap[0], size=size)


# Compatible critics


@pytest.mark.equation("13.9", defining=True)
@given(deterministic(tabular=False))
@examples(50)
def test_compatible_features_are_those_of_the_gaussian_times_its_variance(p):
    sigma, d = p.rng.uniform(0.1, 3), p.X.shape[1]
    policy = GaussianLinear(F.Affine(d, scale=1.0, bias=False), F.Constant(), p.m)
    agent = COPDACQ(policy, F.Polynomial(d, degree=2, scale=1.0), sigma=sigma)
    agent.init(p.rng)
    agent.theta[: len(p.theta)] = p.theta
    assert np.array_equal(policy.mode(agent.theta, policy.features(p.X)), p.mu())
    w, v, a = p.rng.normal(size=len(p.theta)), p.rng.normal(size=agent.v.shape), p.rng.normal(size=p.mu().shape)
    phi_s = agent.value_features(p.X)

    def q(a):
        return agent.dot((p.X, agent.off_mean(p.X, a), phi_s), w, v)

    phi = np.einsum("smn,sm->sn", p.J, a - p.mu())
    equal(q(a), phi @ w + phi_s @ v, size=10)
    equal(phi, sigma**2 * policy.score(agent.theta, policy.features(p.X), a)[:, : len(w)], size=10)
    equal(q(p.mu()), phi_s @ v, size=10)
    by_action = np.stack([np.imag(q(p.mu() + 1e-30j * e)) / 1e-30 for e in np.eye(p.m)], axis=1)
    equal(by_action, p.J @ w, size=10)


def minimiser(p, d, y):
    """argmin_w E_d‖J_s w − y_s‖², of the smallest norm."""
    root = np.sqrt(d)[:, None]
    return np.linalg.lstsq((root[:, :, None] * p.J).reshape(-1, len(p.theta)), (root * y).ravel(), rcond=None)[0]


@pytest.mark.equation("13.10", "13.12", defining=True)
@given(deterministic())
@examples(200)
def test_the_error_of_the_minimiser_is_orthogonal_to_the_jacobian_and_it_is_the_natural_gradient(p):
    slopes = p.mdp.slopes(p.mu(), p.mdp.v(p.mu()))
    for d in (p.rng.dirichlet(np.ones(len(p.X))), p.mdp.visitation(p.mu())):
        w = minimiser(p, d, slopes)
        error, size = p.J @ w - slopes, 1e-3 + d.sum() * np.abs(p.X).max() * np.abs(slopes).max()
        assert np.abs(np.einsum("s,smn,sm->n", d, p.J, error)).max() < 1e-9 * size
        equal(p.F(d) @ w, d @ p.g(), size=size)
    equal(p.F(d) @ w, p.gradient(), size=size)
    smooth = p.mdp.smoothed(1e-5)
    policy = GaussianLinear(F.Affine(p.X.shape[1], scale=1.0, bias=False), F.Constant(), p.m)
    theta = np.append(p.theta, np.full(p.m, np.log(1e-5)))
    fisher = policy.fisher(theta, policy.features(p.X), smooth.visitation(p.mu()))[: len(w), : len(w)]
    equal(1e-10 * fisher, p.F(d), size=1 + d.sum() ** 2 * np.abs(p.X).max() ** 2, relative=1e-7)  # 1e-10 of σ²


@pytest.mark.equation("13.10")
def test_one_parameter_for_two_has_the_numbers_of_the_chapter():
    tied, X = np.array([1.0, 2]), np.zeros((2, 2))
    M, steps = NO_NOISE.A + NO_NOISE.B @ K, np.eye(2)
    for t in range(1000):
        X, steps = X + NO_NOISE.gamma**t * steps @ steps.T, M @ steps
    slope = -2 * NO_NOISE.action_value_matrices(K)[0][0]
    square, w = tied @ X @ tied, (slope @ X @ tied) / (tied @ X @ tied)
    assert square == pytest.approx(6.746, abs=5e-4)
    assert w == pytest.approx(-0.2752, abs=5e-5)
    assert square * w == pytest.approx(NO_NOISE.deterministic_gradient(K)[0] @ tied, abs=1e-12)
    assert square * w == pytest.approx(-1.856, abs=5e-4)
    error = slope - w * tied
    assert error @ X @ error / (slope @ X @ slope) == pytest.approx(0.655, abs=5e-4)


@pytest.mark.equation("13.11", defining=True)
@given(deterministic(most=3), st.sampled_from([0.3, 1.0]))
@examples(30)
def test_a_regression_on_values_is_one_on_gradients_of_the_smoothed_function(p, sigma):
    d, v = p.rng.dirichlet(np.ones(len(p.X))), p.rng.normal(size=len(p.X))
    phi_s = p.rng.normal(size=(len(p.X), p.rng.integers(1, 3)))
    nodes, weights = quadrature(p.m)
    a = p.mu() + sigma * nodes[:, None, :]
    phi = np.einsum("smn,qsm->qsn", p.J, a - p.mu())
    f = np.concatenate([phi, np.broadcast_to(phi_s, (*phi.shape[:2], phi_s.shape[1]))], axis=2)
    C = np.einsum("q,s,qsi,qsj->ij", weights, d, f, f)
    y = np.linalg.lstsq(C, np.einsum("q,s,qsi,qs->i", weights, d, f, p.mdp.target(a, v)), rcond=1e-10)[0]
    smooth = p.mdp.smoothed(sigma)
    expected = np.einsum("s,smn,sm->n", d, p.J, smooth.slopes(p.mu(), v))
    equal(p.F(d) @ y[: len(p.theta)], expected, size=1 + np.abs(p.X).max() * 10, relative=1e-8)


@pytest.mark.equation("13.11")
@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_the_slope_of_a_quartic_is_off_by_the_variance(sigma):
    (nodes, weights) = quadrature(1)
    noise = sigma * nodes[:, 0]
    slope = weights @ (noise * -((noise - 1) ** 4)) / (weights @ noise**2)
    assert slope == pytest.approx(4 + 12 * sigma**2, rel=1e-12)


@pytest.mark.equation("13.12")
@given(regulators())
@examples(50)
def test_on_a_regulator_the_natural_gradient_is_the_same_for_every_exploration(drawn):
    lqr, gain, rng = drawn
    sigma, n = rng.uniform(0.2, 2), gain.size
    sigmas = np.full(len(lqr.R), sigma)
    natural = np.linalg.solve(sigma**2 * lqr.fisher(gain, sigmas)[:n, :n], lqr.gradient(gain, sigmas)[:n])
    equal(natural, -2 * lqr.action_value_matrices(gain)[0].ravel(), relative=1e-8)


# Off-policy


@pytest.mark.equation("13.15", defining=True)
@given(deterministic())
@examples(200)
def test_the_gradient_of_the_excursion_objective_weights_states_by_their_emphasis(p):
    d_b, i = p.rng.dirichlet(np.ones(len(p.X))), p.rng.uniform(size=len(p.X))
    gradient = derivative(lambda theta: (d_b * i) @ p.mdp.v(p.mu(theta)), p.theta)
    m = p.mdp.visitation(p.mu(), start=d_b * i)
    size = m.sum() * np.abs(p.g()).max()
    equal(m @ p.g(), gradient, size=size)
    v, P = p.mdp.v(p.mu()), p.mdp.P(p.mu())
    of_values = np.linalg.solve(np.eye(len(v)) - p.mdp.gamma * P, p.g())  # ∇_θ v_μ
    equal((d_b * i) @ (p.g() + p.mdp.gamma * P @ of_values), gradient, size=size)


@pytest.mark.equation("13.16", defining=True)
@given(deterministic(tabular=True))
@examples(200)
def test_with_parameters_for_each_state_what_is_kept_points_uphill(p):
    d_b = p.rng.dirichlet(np.ones(len(p.X)))
    m, d, g = p.mdp.visitation(p.mu(), start=d_b), p.mdp.visitation(p.mu()), p.g()
    kept, of_b, of_start = d_b @ g, m @ g, p.gradient()
    ratio = np.tile(d_b / m, p.m)  # θ_j belongs to state j mod S
    equal(kept, ratio * of_b)
    equal(kept @ of_b, (d_b * m) @ (g**2).sum(axis=1), size=kept @ kept * m.sum())
    equal(kept @ of_start, (d_b * d) @ (g**2).sum(axis=1), size=kept @ kept * d.sum() + 1e-9)
    assert kept @ of_b > 0
    assert kept @ of_start > 0


class Twin(NamedTuple):
    """The continuous twin of the counterexample: θ is an action in s_0, and one in s_1 and s_2."""

    theta: np.ndarray

    @staticmethod
    def values(theta):
        v_1, v_2 = 2 * expit(-theta[1]), expit(theta[1])
        return np.array([expit(-theta[0]) * v_1 + expit(theta[0]) * v_2, v_1, v_2])

    @property
    def g(self):
        """(3, 2)."""
        p, q = expit(self.theta)
        _, v_1, v_2 = self.values(self.theta)
        return np.array([[p * (1 - p) * (v_2 - v_1), 0], [0, -2 * q * (1 - q)], [0, q * (1 - q)]])

    @property
    def emphasis(self):
        p = expit(self.theta[0])
        return D_B + np.array([0, 1 - p, p])


D_B = np.array([1, 1 / 4, 3 / 4])


def difference(f, theta, h=1e-6):
    return np.array([(f(theta + h * e) - f(theta - h * e)) / (2 * h) for e in np.eye(len(theta))])


@pytest.mark.equation("13.15", "13.16")
def test_with_shared_parameters_it_can_point_downhill():
    twin = Twin(np.zeros(2))
    assert twin.g.sum(axis=1) == pytest.approx([-1 / 8, -1 / 2, 1 / 4], abs=1e-15)
    assert twin.emphasis == pytest.approx([1, 3 / 4, 5 / 4], abs=1e-15)
    assert D_B @ twin.g == pytest.approx([-1 / 8, 1 / 16], abs=1e-15)
    assert twin.emphasis @ twin.g == pytest.approx([-1 / 8, -1 / 16], abs=1e-15)
    assert difference(lambda t: D_B @ Twin.values(t), np.zeros(2)) == pytest.approx([-1 / 8, -1 / 16], abs=1e-9)
    assert difference(lambda t: Twin.values(t)[0], np.zeros(2)) == pytest.approx([-1 / 8, -1 / 8], abs=1e-9)
    for eta in (0, 0.25, 0.5, 0.75, 1):
        direction = ((1 - eta) * D_B + eta * twin.emphasis) @ twin.g
        assert direction[1] == pytest.approx(1 / 16 - eta / 8, abs=1e-15)


@pytest.mark.equation("13.15")
@pytest.mark.parametrize(("eta", "reached"), [(0, 1.0), (1, 2.0)])
def test_followed_to_the_end_it_arrives_at_half_of_what_the_gradient_does(eta, reached):
    theta = np.zeros(2)
    for _ in range(20_000):
        twin = Twin(theta)
        theta = theta + 0.2 * ((1 - eta) * D_B + eta * twin.emphasis) @ twin.g
    assert Twin.values(theta)[0] == pytest.approx(reached, abs=0.01)


# Targets without a ratio


@pytest.mark.equation("13.17", defining=True)
@given(deterministic())
@examples(100)
def test_what_can_represent_the_action_values_has_them_as_a_fixed_point_for_every_behaviour(p):
    """Features of which one is q_μ; actions and states from anywhere, all successors by their probabilities."""
    v, S = p.mdp.v(p.mu()), len(p.X)
    d, a = p.rng.dirichlet(np.ones(S)), p.mu() + p.rng.normal(size=(8, S, p.m))
    others = p.rng.normal(size=(8, S, 2))
    q = p.mdp.target(a, v)
    f = np.concatenate([q[..., None], others], axis=2)
    at_mu = np.concatenate([v[:, None], p.rng.normal(size=(S, 2))], axis=1)  # of S' and μ(S')
    y = np.array([1.0, 0, 0])
    delta = p.mdp.R(a) + p.mdp.gamma * p.mdp.P(a) @ (at_mu @ y) - f @ y
    assert np.abs(delta).max() < 1e-12 * (1 + np.abs(q).max())
    A = np.einsum("s,qsi,qsj->ij", d, f, f - p.mdp.gamma * p.mdp.P(a) @ at_mu) / 8
    h = np.einsum("s,qsi,qs->i", d, f, p.mdp.R(a)) / 8
    equal(A @ y, h, size=np.abs(A).max())


@pytest.mark.equation("13.17", "13.20")
@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_the_value_of_one_state_depends_on_what_the_critic_can_represent(sigma):
    nodes, weights = quadrature(1)
    a, gamma = sigma * nodes[:, 0], 0.9
    found = []
    for powers in ([1, 0], [1, 2, 0]):
        f, f_next = a[:, None] ** powers, 0.0 ** np.array(powers)
        A = np.einsum("q,qi,qj->ij", weights, f, f - gamma * f_next)
        found.append(np.linalg.solve(A, np.einsum("q,qi,q->i", weights, f, -((a - 1) ** 2))))
    assert found[0] == pytest.approx([2, -(1 + sigma**2) / 0.1], rel=1e-9)
    assert found[1] == pytest.approx([2, -1, -10], rel=1e-9)


@pytest.mark.equation("13.20", defining=True)
@given(deterministic())
@examples(200)
def test_exploration_lowers_the_values_by_the_curvature_times_half_the_variance(p):
    sigma, v = 1e-3, p.mdp.v(p.mu())
    change = (p.mdp.smoothed(sigma).v(p.mu()) - v) / sigma**2
    L = np.eye(len(v)) - p.mdp.gamma * p.mdp.P(p.mu())
    expected = np.linalg.solve(L, p.mdp.laplacian(p.mu(), v)) / 2
    size = 1 + np.abs(v).max() * np.abs(np.linalg.inv(L)).max() * (1 + (p.mdp.f**2).sum(1).max()) ** 2
    equal(change, expected, size=size, relative=1e-4)  # σ² = 1e-6, and rounding of 1e-10


@pytest.mark.equation("13.21", defining=True)
@given(regulators(), st.sampled_from([0.3, 2.0]))
@examples(50)
def test_on_a_regulator_the_critic_of_copdac_q_has_the_exact_slope_whatever_the_noise(drawn, sigma):
    """Its update has the mean zero there: all signs of symmetric noise, states and weights from anywhere."""
    lqr, gain, rng = drawn
    lqr = LQR(lqr.A, lqr.B, lqr.Q, lqr.R, None, lqr.S0, lqr.gamma)
    m, d = gain.shape
    offsets = sigma * np.sqrt(m) * np.concatenate([np.eye(m), -np.eye(m)])
    s = np.repeat(rng.normal(size=(5, d)), 2 * m, axis=0)
    a = s @ gain.T + np.tile(offsets, (5, 1))
    r = -np.einsum("bi,ij,bj->b", s, lqr.Q, s) - np.einsum("bi,ij,bj->b", a, lqr.R, a)
    agent = COPDACQ(lqr.policy(), F.Polynomial(d, degree=2, scale=1.0), gamma=lqr.gamma, alpha=0.0)
    agent.init(rng, columns=len(s))
    agent.theta[: m * d] = gain.ravel()
    agent.w = -2 * lqr.action_value_matrices(gain)[0].ravel()
    V, c = lqr.value_matrix(gain, np.full(m, sigma))
    points = np.concatenate([s, rng.normal(size=(50, d))])
    monomials, values = agent.value_features(points), -np.einsum("bi,ij,bj->b", points, V, points) - c
    agent.v = np.linalg.lstsq(monomials, values, rcond=None)[0]
    w, v = agent.w, agent.v
    agent.update(transitions_of(agent.policy, s, a, r, s @ lqr.A.T + a @ lqr.B.T), rng)
    size = (1 + np.abs(s).max() + np.abs(a).max()) ** 3 * (1 + np.abs(V).max() + c)
    assert np.abs(agent.w - w).max() < 1e-9 * size
    assert np.abs(agent.v - v).max() < 1e-9 * size


# What the variance is


def bandit(m, g=None, kappa=0.0, tau=0.0, sigma=0.5):
    """tr Cov of one score with a fixed baseline, and N tr Cov of the regression for large N, by Eq. (13.24)."""
    C = np.diag(np.where(np.arange(m) % 2, 1.0, 0.1))
    g = 2 * C @ np.full(m, 4.0) if g is None else g
    common = 2 * (m + 4) * sigma**2 * np.trace(C @ C)
    score = (m + 1) * g @ g + common + m * (kappa**2 + tau**2) / sigma**2 - 4 * kappa * np.trace(C)
    return score, common + m * tau**2 / sigma**2


@pytest.mark.equation("13.24", defining=True)
@given(generators, st.integers(1, 3))
@examples(50)
def test_the_variance_of_a_score_and_of_a_regression_on_quadratic_rewards(rng, m):
    root, g, (sigma, tau, kappa) = rng.normal(size=(m, m)), rng.normal(size=m), rng.uniform(0.2, 2, size=3)
    C, (nodes, weights) = root @ root.T, quadrature(m)
    noise = sigma * nodes
    curved = np.einsum("qi,ij,qj->q", noise, C, noise) - sigma**2 * np.trace(C)
    r = kappa + noise @ g - curved  # less the baseline; the noise of rewards, of variance τ², is independent of it
    score = noise / sigma**2 * r[:, None]
    mean = weights @ score
    variance = weights @ (score**2).sum(axis=1) + weights @ (noise**2).sum(axis=1) * tau**2 / sigma**4 - mean @ mean
    equal(mean, g, size=10 * (kappa + np.abs(C).max() + 1))
    squares = np.trace(C @ C)
    expected = (m + 1) * g @ g + 2 * (m + 4) * sigma**2 * squares + m * (kappa**2 + tau**2) / sigma**2
    equal(variance, expected - 4 * kappa * np.trace(C), size=expected)
    sandwich = weights @ ((curved**2 + tau**2) * (noise**2).sum(axis=1)) / sigma**4  # residuals −ζ and the noise
    equal(sandwich, 2 * (m + 4) * sigma**2 * squares + m * tau**2 / sigma**2)


@pytest.mark.equation("13.24")
@pytest.mark.parametrize(("m", "score", "regression"), [(10, 3590.55, 35.35), (50, 83097.75, 681.75)])
def test_the_bandit_has_the_numbers_of_the_chapter(m, score, regression):
    assert bandit(m) == pytest.approx((score, regression), abs=5e-3)
    assert np.subtract(*bandit(m, g=np.zeros(m))) == 0
