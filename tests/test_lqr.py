"""The closed forms of the discounted LQR against sums over time, SciPy's solvers, differences and samples."""

from dataclasses import replace
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
import strategies as S
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import TimeLimit
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, linalg, stats
from strategies import examples

from npg.envs.lqr import LQREnv
from npg.gradcheck import check_gradient
from npg.lab.collect import Collector
from npg.lqr import LQR
from npg.optimizers import kl_step
from npg.trajectories import Episodes

BOTH = pytest.mark.parametrize("log_sigma", [True, False], ids=["log σ", "σ"])
RTOL = 1e-9  # relative to the largest entry; with γρ² ≤ 0.8 the systems here have condition numbers up to some 1e5


class Problem(NamedTuple):
    """An LQR with a stable policy, and a generator for whatever else a test draws."""

    lqr: LQR
    K: np.ndarray
    sigma: np.ndarray
    rng: np.random.Generator

    @property
    def M(self):
        return self.lqr.A + self.lqr.B @ self.K

    @property
    def noise(self):
        """Covariance of s' given s."""
        return self.lqr.B @ np.diag(self.sigma**2) @ self.lqr.B.T + self.lqr.W

    @property
    def cost(self):
        """What of the mean cost is quadratic in s."""
        return self.lqr.Q + self.K.T @ self.lqr.R @ self.K

    @property
    def theta(self):
        return np.append(self.K, np.log(self.sigma))


def covariance(rng, n, rank):
    root = rng.normal(size=(n, rank))
    return root @ root.T


@st.composite
def problems(draw, most=0.8, least=0.0, size=3):
    """Random problems of 1 to ``size`` states and actions, with γρ(A + BK)² up to ``most`` and γ from ``least`` up.

    Noise and first states may be degenerate, down to none at all.
    """
    rng = draw(S.generators)
    d, m = draw(st.integers(1, size)), draw(st.integers(1, size))
    gamma = draw(st.sampled_from([least, 0.3, 0.5, 0.7, 0.9, 0.95]))
    B, K, M = rng.normal(size=(d, m)), rng.normal(size=(m, d)), rng.normal(size=(d, d))
    M *= np.sqrt(rng.uniform(0, most) / max(gamma, 0.1)) / np.abs(np.linalg.eigvals(M)).max()
    W, S0 = (covariance(rng, d, draw(st.integers(0, d))) for _ in range(2))
    Q, R = covariance(rng, d, d), covariance(rng, m, m) + 0.1 * np.eye(m)
    return Problem(LQR(M - B @ K, B, Q, R, W, S0, gamma), K, np.exp(rng.normal(scale=0.7, size=m)), rng)


@st.composite
def rotations(draw, growth):
    """A problem whose M is a normal matrix, so that ρ(M) is exact to rounding, with γρ² = ``growth``."""
    p = draw(problems(least=0.1))
    d = len(p.lqr.A)
    U, _ = np.linalg.qr(p.rng.normal(size=(d, d)))
    M = np.diag(p.rng.uniform(-1, 1, d))
    M[0, 0] = p.rng.choice([-1, 1])
    if d > 1 and draw(st.booleans()):  # a pair of complex eigenvalues of absolute value one
        angle = p.rng.uniform(0, np.pi)
        M[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    M = np.sqrt(draw(growth) / p.lqr.gamma) * U @ M @ U.T
    full = [covariance(p.rng, d, d) + 0.1 * np.eye(d) for _ in range(2)]
    return p._replace(lqr=LQR(M - p.lqr.B @ p.K, p.lqr.B, full[0], p.lqr.R, p.lqr.W, full[1], p.lqr.gamma))


def close(actual, expected, rtol=RTOL):
    expected = np.asarray(expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * max(np.abs(expected).max(), 1e-300))


def moments(p):
    """γ^t and γ^t E[s_t s_tᵀ], t = 0, 1, …, until nothing is left of them."""
    weight, X, largest, gamma, M, noise = 1.0, p.lqr.S0, 0.0, p.lqr.gamma, p.M, p.noise
    while weight > 1e-14 or np.abs(X).max() > 1e-14 * largest:
        yield weight, X
        largest = max(largest, np.abs(X).max())
        weight = gamma * weight
        X = gamma * M @ X @ M.T + weight * noise


def tangents(p, log_sigma):
    """Derivatives of M, the noise, the quadratic cost and tr(RΣ) along each parameter, in the order of θ."""
    (m, d), lqr = p.K.shape, p.lqr
    for i, j in product(range(m), range(d)):
        dK = np.zeros((m, d))
        dK[i, j] = 1
        yield lqr.B @ dK, np.zeros((d, d)), dK.T @ lqr.R @ p.K + p.K.T @ lqr.R @ dK, 0.0
    for i in range(m):
        d_variance = 2 * p.sigma[i] * (p.sigma[i] if log_sigma else 1)
        yield (
            np.zeros((d, d)),
            d_variance * np.outer(lqr.B[:, i], lqr.B[:, i]),
            np.zeros((d, d)),
            d_variance * lqr.R[i, i],
        )


# Values


@pytest.mark.equation("4.18", "4.19")
@examples(200)
@given(problems())
def test_the_value_satisfies_the_bellman_equation(p):
    lqr = p.lqr
    V, c = lqr.value_matrix(p.K, p.sigma)

    def v(mean, noise):
        return -mean @ V @ mean - np.trace(V @ noise) - c

    for s in p.rng.normal(size=(3, len(V))):
        a = p.K @ s
        reward = -(s @ lqr.Q @ s + a @ lqr.R @ a + np.diag(lqr.R) @ p.sigma**2)
        close(v(s, 0 * V), reward + lqr.gamma * v(lqr.A @ s + lqr.B @ a, p.noise))


@pytest.mark.equation("4.19", defining=True)
@pytest.mark.equation("4.21")
@examples(200)
@given(problems())
def test_value_and_second_moment_solve_scipys_lyapunov_equations(p):
    root = np.sqrt(p.lqr.gamma) * p.M
    V, c = p.lqr.value_matrix(p.K, p.sigma)
    close(V, linalg.solve_discrete_lyapunov(root.T, p.cost))
    close(c, (np.trace(p.lqr.R @ np.diag(p.sigma**2)) + p.lqr.gamma * np.trace(V @ p.noise)) / (1 - p.lqr.gamma))
    start = p.lqr.S0 + p.lqr.gamma / (1 - p.lqr.gamma) * p.noise
    close(p.lqr.second_moment(p.K, p.sigma), linalg.solve_discrete_lyapunov(root, start))


@pytest.mark.equation("4.21", defining=True)
@pytest.mark.equation("4.18")
@examples(200)
@given(problems())
def test_J_and_the_second_moment_are_their_sums_over_time(p):
    X, total = p.lqr.second_moment(p.K, p.sigma), np.zeros_like(p.lqr.S0)
    J = 0.0
    for weight, X_t in moments(p):
        total += X_t
        J -= np.trace(p.cost @ X_t) + weight * np.diag(p.lqr.R) @ p.sigma**2
    close(X, total)
    close(p.lqr.J(p.K, p.sigma), J)


@pytest.mark.equation("4.21")
@examples(200)
@given(problems())
def test_both_forms_of_J_agree(p):
    X = p.lqr.second_moment(p.K, p.sigma)
    by_moments = -np.trace(p.cost @ X) - np.diag(p.lqr.R) @ p.sigma**2 / (1 - p.lqr.gamma)
    close(p.lqr.J(p.K, p.sigma), by_moments)


# Gradients


def differences(p, log_sigma, method):
    def J(theta):
        last = theta[p.K.size :]
        return p.lqr.J(theta[: p.K.size].reshape(p.K.shape), np.exp(last) if log_sigma else last)

    theta = p.theta if log_sigma else np.append(p.K, p.sigma)
    return check_gradient(J, p.lqr.gradient(p.K, p.sigma, log_sigma=log_sigma), theta, method=method)


@pytest.mark.equation("4.22", "4.23", defining=True)
@BOTH
@examples(200)
@given(p=problems())
def test_the_gradient_is_that_of_J_by_the_complex_step(p, log_sigma):
    assert differences(p, log_sigma, "complex").passed


@pytest.mark.equation("4.22", "4.23")
@BOTH
@examples(200)
@given(p=rotations(st.floats(0, 0.5)))
def test_the_gradient_is_that_of_J_by_central_differences(p, log_sigma):
    """Where M is normal; where it is far from it, J bends too sharply for their step."""
    assert differences(p, log_sigma, "central").passed


@pytest.mark.equation("4.22", "4.23")
@BOTH
@examples(200)
@given(p=problems())
def test_the_gradient_is_the_sum_over_time_of_the_derivatives_of_the_moments(p, log_sigma):
    dM, d_noise, d_cost, d_constant = map(np.array, zip(*tangents(p, log_sigma), strict=True))
    dX, expected = np.zeros_like(d_noise), np.zeros(len(dM))
    size, M, cost = 0.0, p.M, p.cost
    for weight, X_t in moments(p):
        terms = np.einsum("nij,ij->n", d_cost, X_t) + np.einsum("ij,nij->n", cost, dX) + weight * d_constant
        expected -= terms
        size += np.abs(terms).max()
        cross = dM @ X_t @ M.T
        dX = p.lqr.gamma * (cross + cross.swapaxes(1, 2) + M @ dX @ M.T + weight * d_noise)
    gradient = p.lqr.gradient(p.K, p.sigma, log_sigma=log_sigma)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=RTOL * size)


def quadratic(C, x):
    """xᵀC x of each row."""
    return np.einsum("bi,ij,bj->b", x, C, x)


def gauss(L, m):
    """Nodes and weights of quadratures over s, exact for quadratics under the second moment L Lᵀ, and over z ~ N(0, I).

    Three Hermite nodes are exact up to degree five.
    """
    node, weight = np.polynomial.hermite_e.hermegauss(3)
    z = np.array(list(product(node, repeat=m)))
    w = np.prod(list(product(weight / weight.sum(), repeat=m)), axis=1)
    return np.vstack([L.T, -L.T]), np.full(2 * len(L), 0.5), z, w


def root(C):
    eigenvalues, U = np.linalg.eigh(C)
    return U * np.sqrt(np.maximum(eigenvalues, 0))


@pytest.mark.equation("4.22", "4.23")
@examples(200)
@given(problems())
def test_the_gradient_is_that_of_the_policy_gradient_theorem_with_the_scores_of_the_policy(p):
    """Σ_t γ^t E[∇log π(a|s) q(s, a)], exactly: the mean over actions is a quadratic function of s."""
    lqr, policy = p.lqr, p.lqr.policy()
    V, c = lqr.value_matrix(p.K, p.sigma)
    s, w_s, z, w_z = gauss(root(lqr.second_moment(p.K, p.sigma)), len(p.sigma))
    s, w_s = np.vstack([s, 0 * s[:1]]), np.append(w_s, 1 / (1 - lqr.gamma) - len(V))
    s_, z_ = np.repeat(s, len(z), axis=0), np.tile(z, (len(s), 1))
    a = s_ @ p.K.T + p.sigma * z_
    mean = s_ @ lqr.A.T + a @ lqr.B.T
    q = -quadratic(lqr.Q, s_) - quadratic(lqr.R, a) - lqr.gamma * (quadratic(V, mean) + np.trace(V @ lqr.W) + c)
    weight = np.outer(w_s, w_z).ravel()
    psi = policy.score(p.theta, policy.features(s_), a)
    expected = (weight * q) @ psi
    np.testing.assert_allclose(
        lqr.gradient(p.K, p.sigma), expected, rtol=0, atol=RTOL * np.abs(weight * q) @ np.abs(psi).max(axis=1)
    )


# The Fisher matrix


@pytest.mark.equation("4.24", defining=True)
@BOTH
@examples(200)
@given(p=problems())
def test_the_fisher_matrix_is_the_policys_averaged_over_all_states_to_come(p, log_sigma):
    """F(s) is quadratic in s: its mean is that over ±√X e_j, and F(0) makes up the total mass 1/(1 − γ)."""
    policy = p.lqr.policy()
    mass, total = map(sum, zip(*moments(p), strict=True))
    s = np.vstack([root(total).T, np.zeros((1, len(total)))])
    w = np.append(np.ones(len(total)), mass - len(total))
    expected = policy.fisher(p.theta, policy.features(s), w)
    to_theta = np.append(np.ones(p.K.size), np.ones_like(p.sigma) if log_sigma else 1 / p.sigma)  # ∂ log σ/∂σ
    close(p.lqr.fisher(p.K, p.sigma, log_sigma=log_sigma), to_theta[:, None] * expected * to_theta)


@pytest.mark.equation("4.22", "4.23", "4.24")
@examples(200)
@given(problems(least=0.1))
def test_the_natural_gradient_does_not_see_where_the_states_are_nor_how_sigma_is_written(p):
    lqr = p.lqr
    lqr = LQR(lqr.A, lqr.B, lqr.Q, lqr.R, lqr.W, lqr.S0 + np.eye(len(lqr.S0)), lqr.gamma)
    V, _ = lqr.value_matrix(p.K, p.sigma)
    E = lqr.R @ p.K + lqr.gamma * lqr.B.T @ V @ p.M
    by_log = -(p.sigma**2) * np.diag(lqr.R + lqr.gamma * lqr.B.T @ V @ lqr.B)
    for log_sigma, by_sigma in ((True, by_log), (False, p.sigma * by_log)):
        F, g = (f(p.K, p.sigma, log_sigma=log_sigma) for f in (lqr.fisher, lqr.gradient))
        close(np.linalg.solve(F, g), np.append(-2 * p.sigma[:, None] ** 2 * E, by_sigma), rtol=1e-7)


SAMPLED = LQR(
    A=np.array([[0.9, 0.3], [-0.2, 0.7]]),
    B=np.array([[1.0, 0.2], [0.0, 0.5]]),
    Q=np.array([[1.0, 0.3], [0.3, 0.5]]),
    R=np.array([[0.4, 0.1], [0.1, 0.8]]),
    W=np.array([[0.3, 0.1], [0.1, 0.2]]),
    S0=np.array([[1.0, -0.4], [-0.4, 0.5]]),
    gamma=0.6,
)
GAIN, SIGMA = np.array([[-0.5, 0.2], [0.1, -0.3]]), np.array([0.7, 0.4])
HORIZON = 25  # 0.6²⁵ is 3e-6, far below a standard error


class Fixed:
    """An actor with a policy and its θ."""

    def __init__(self, policy, theta):
        self.policy, self.theta = policy, theta

    def act(self, obs, rng, explore=True):
        x = self.policy.features(obs)
        return self.policy.sample(self.theta, x, rng), x


def z_score(samples, expected):
    """Of the mean of each column."""
    samples = samples.reshape(len(samples), -1)
    deviation = samples.mean(axis=0) - np.ravel(expected)
    # Exact columns have no spread; what is left of them is rounding.
    return np.abs(deviation / np.maximum(samples.std(axis=0, ddof=1) / np.sqrt(len(samples)), 1e-9)).max()


@pytest.mark.equation("4.18", "4.21", "4.22", "4.23", "4.24")
def test_sampled_episodes_have_the_return_the_gradient_and_the_fisher_matrix_of_the_closed_forms():
    """Some thirty statistics over 3000 episodes, each within 6 standard errors: 2e-9 each."""
    policy, theta = SAMPLED.policy(), np.append(GAIN, np.log(SIGMA))
    episodes = 3000
    collector = Collector(TimeLimit(LQREnv(SAMPLED), HORIZON), 0)
    traj = collector.collect(Fixed(policy, theta), Episodes(episodes), np.random.default_rng(1))
    assert traj.valid.all()
    s, a, r = (
        column.reshape(episodes, HORIZON, *column.shape[2:]) for column in (traj.obs, traj.actions, traj.rewards)
    )
    discount = SAMPLED.gamma ** np.arange(HORIZON)
    psi = policy.score(theta, policy.features(s.reshape(-1, 2)), a.reshape(-1, 2)).reshape(episodes, HORIZON, -1)
    to_go = np.flip(np.cumsum(np.flip(discount * r, 1), 1), 1)

    assert z_score((discount * r).sum(axis=1), SAMPLED.J(GAIN, SIGMA)) < 6
    assert z_score(np.einsum("t,nti,ntj->nij", discount, s, s), SAMPLED.second_moment(GAIN, SIGMA)) < 6
    assert z_score(np.einsum("nt,nti->ni", to_go, psi), SAMPLED.gradient(GAIN, SIGMA)) < 6
    assert z_score(np.einsum("t,nti,ntj->nij", discount, psi, psi), SAMPLED.fisher(GAIN, SIGMA)) < 6


@pytest.mark.equation("4.18")
@examples(200)
@given(problems())
def test_the_policy_is_normal_around_K_s_with_deviation_sigma(p):
    policy, d, m = p.lqr.policy(), len(p.lqr.A), len(p.sigma)
    assert policy.n_params == m * d + m
    s, z = p.rng.normal(size=(4, d)), p.rng.normal(size=(4, m))
    x, mean = policy.features(s), s @ p.K.T
    np.testing.assert_allclose(policy.mode(p.theta, x), mean, rtol=0, atol=1e-13)
    np.testing.assert_allclose(
        policy.log_prob(p.theta, x, mean + p.sigma * z), stats.norm.logpdf(z).sum(axis=1) - np.log(p.sigma).sum()
    )


# Stability

INSIDE = st.floats(0.5, 1 - 1e-9)
OUTSIDE = st.floats(1 + 1e-9, 3.0)


METHODS = ("value_matrix", "second_moment", "J", "gradient", "fisher")


@pytest.mark.equation("4.20", defining=True)
@examples(200)
@given(rotations(INSIDE))
def test_where_gamma_rho_squared_is_below_one_everything_is_finite_and_costs_are_costs(p):
    V, c = p.lqr.value_matrix(p.K, p.sigma)
    assert c > 0
    assert -np.inf < p.lqr.J(p.K, p.sigma) < 0
    for matrix in (V, p.lqr.second_moment(p.K, p.sigma)):
        eigenvalues = np.linalg.eigvalsh(matrix + matrix.T)
        # The linear system has a condition number of up to 1e9, so that much of ε is lost on the small ones.
        assert eigenvalues[0] > -1e-5 * eigenvalues[-1]
        assert eigenvalues[-1] > 0
    for name in METHODS[3:]:
        assert np.isfinite(getattr(p.lqr, name)(p.K, p.sigma)).all()


@pytest.mark.equation("4.20")
@examples(200)
@given(rotations(OUTSIDE))
def test_where_it_is_above_one_the_costs_of_the_steps_do_not_even_tend_to_zero_and_it_is_refused(p):
    """With positive definite Q and S0 every step costs at least κ w'S0 w (γ|λ|²)^t, w a left eigenvector of λ."""
    for name in METHODS:
        with pytest.raises(ValueError, match=r"unstable: γ ρ\(A \+ BK\)² must be below 1 for J to be finite, got"):
            getattr(p.lqr, name)(p.K, p.sigma)
    eigenvalues, left = np.linalg.eig(p.M.T)
    lam, w = max(zip(np.abs(eigenvalues), left.T, strict=True), key=lambda pair: pair[0])
    least = np.linalg.eigvalsh(p.cost)[0] * np.real(w.conj() @ p.lqr.S0 @ w)
    growth, moment = p.lqr.gamma * lam**2, p.lqr.S0
    assert least > 0
    for t in range(60):
        assert np.trace(p.cost @ moment) >= least * growth**t * (1 - 1e-9)
        moment = p.lqr.gamma * p.M @ moment @ p.M.T


@pytest.mark.equation("4.20")
def test_the_boundary_itself_is_refused():
    lqr = LQR(gamma=0.25)  # γ(1 + k)² is exactly one at k = 1
    with pytest.raises(ValueError, match=r"got 1$"):
        lqr.J([[1.0]], [1.0])
    assert lqr.J([[1 - 1e-9]], [1.0]) < -1e8
    assert lqr.J([[-3 + 1e-9]], [1.0]) < -1e8
    with pytest.raises(ValueError, match="unstable"):
        lqr.J([[-3.0]], [1.0])


@pytest.mark.equation("4.20")
def test_the_spectral_radius_decides_and_not_the_norm():
    lqr = LQR(np.array([[0.5, 10.0], [0.0, 0.5]]), np.eye(2), np.eye(2), np.eye(2), gamma=0.9)
    K, sigma = np.zeros((2, 2)), np.ones(2)
    assert 0.9 * np.linalg.norm(lqr.A, 2) ** 2 > 90
    p = Problem(lqr, K, sigma, np.random.default_rng(0))
    close(lqr.second_moment(K, sigma), sum(X for _, X in moments(p)))


@pytest.mark.equation("4.20", "4.25")
def test_the_linear_equation_has_a_solution_where_the_value_is_infinite():
    """A negative cost, which a solver that does not look at ρ returns."""
    assert (1 + 0.2**2) / (1 - 0.9 * 1.2**2) == pytest.approx(-3.51, abs=0.01)
    with pytest.raises(ValueError, match=r"K = \[\[0.2\]\] is unstable.*got 1.296"):
        LQR().J([[0.2]], [0.5])


# The best gain


@examples(200)
@given(problems(least=0.1))
def test_the_optimal_gain_is_stationary_and_beats_every_other_for_any_noise_and_start(p):
    lqr, K = p.lqr, p.lqr.optimal_gain()
    best = lqr.J(K, p.sigma)
    V, _ = lqr.value_matrix(K, p.sigma)
    size = np.abs(lqr.gamma * lqr.B.T @ V @ lqr.A).max() * np.abs(lqr.second_moment(K, p.sigma)).max()
    np.testing.assert_allclose(lqr.gradient(K, p.sigma)[: K.size], 0, atol=1e-7 * size)
    others = [p.K, *(K + scale * p.rng.normal(size=K.shape) for scale in (1e-3, 0.1, 1.0) for _ in range(3))]
    compared = 0
    for other in others:
        if lqr.gamma * np.abs(np.linalg.eigvals(lqr.A + lqr.B @ other)).max() ** 2 < 1:
            compared += 1
            assert lqr.J(other, p.sigma) <= best + 1e-9 * abs(best)
    assert compared >= 1
    assert lqr.J(K, p.sigma / 2) > best  # exploration only costs


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.9, 0.99])
def test_the_optimal_gain_without_dynamics_to_use_is_zero(gamma):
    np.testing.assert_array_equal(LQR(B=np.zeros((1, 1)), A=np.full((1, 1), 0.5), gamma=gamma).optimal_gain(), 0)
    assert LQR(gamma=0.0).optimal_gain() == 0


# The problem of the lecture


@pytest.mark.equation("4.25", defining=True)
@examples(300)
@given(st.floats(0.05, 0.99), st.floats(-0.95, 0.95), st.floats(0.05, 5), st.floats(0, 10))
def test_the_lectures_problem_has_its_closed_forms_in_both_parametrisations(gamma, fraction, sigma, start):
    k = fraction / np.sqrt(gamma) - 1
    lqr, K = LQR(S0=[[start]], gamma=gamma), [[k]]
    V = (1 + k**2) / (1 - gamma * (1 + k) ** 2)
    X = (start + gamma * sigma**2 / (1 - gamma)) / (1 - gamma * (1 + k) ** 2)
    by_k = -2 * (k + gamma - gamma * k**2) * X / (1 - gamma * (1 + k) ** 2)
    by_sigma = -2 * sigma * (1 + gamma * V) / (1 - gamma)
    rounding = 1e-11 * (1 + V) * (1 + X)  # of the bracket of (4.22) near its zero
    assert lqr.value_matrix(K, [sigma])[0] == pytest.approx(V, rel=1e-12)
    assert lqr.second_moment(K, [sigma]) == pytest.approx(X, rel=1e-12)
    assert lqr.J(K, [sigma]) == pytest.approx(-V * start - sigma**2 * (1 + gamma * V) / (1 - gamma), rel=1e-12)
    np.testing.assert_allclose(lqr.gradient(K, [sigma], log_sigma=False), [by_k, by_sigma], rtol=1e-11, atol=rounding)
    np.testing.assert_allclose(lqr.gradient(K, [sigma]), [by_k, sigma * by_sigma], rtol=1e-11, atol=rounding)


@pytest.mark.equation("4.25")
@examples(200)
@given(st.floats(0.01, 0.99), st.floats(0.1, 5))
def test_the_lectures_optimum_depends_on_gamma_alone(gamma, sigma):
    best = (1 - np.sqrt(1 + 4 * gamma**2)) / (2 * gamma)
    lqr = LQR(gamma=gamma)
    assert lqr.optimal_gain() == pytest.approx(best, rel=1e-9)
    V, _ = lqr.value_matrix([[best]], [sigma])
    assert V == pytest.approx(1 - best, rel=1e-12)
    J = lqr.J([[best]], [sigma])
    stable = 1 / np.sqrt(gamma) * np.linspace(-0.99, 0.99, 40) - 1
    assert all(lqr.J([[k]], [sigma]) <= J * (1 - 1e-12) for k in stable)


@pytest.mark.equation("4.24", "4.25")
def test_the_lectures_problem_in_numbers():
    lqr, K, sigma = LQR(), [[-0.5]], [0.5]
    assert lqr.optimal_gain() == pytest.approx(-0.588, abs=5e-4)
    assert lqr.value_matrix(K, sigma)[0] == pytest.approx(1.613, abs=5e-4)
    assert lqr.second_moment(K, sigma) == pytest.approx(4.194, abs=5e-4)
    assert lqr.J(K, sigma) == pytest.approx(-7.742, abs=5e-4)
    for log_sigma, gradient, fisher, natural in (
        (False, [-1.894, -24.516], [16.774, 80], [-0.113, -0.306]),
        (True, [-1.894, -12.258], [16.774, 20], [-0.113, -0.613]),
    ):
        F, g = (f(K, sigma, log_sigma=log_sigma) for f in (lqr.fisher, lqr.gradient))
        np.testing.assert_allclose(g, gradient, atol=5e-4)
        np.testing.assert_allclose(F, np.diag(fisher), atol=5e-4)
        np.testing.assert_allclose(np.linalg.solve(F, g), natural, atol=7e-4)


# The fields of the lecture, after Peters & Schaal (2008)


@pytest.mark.equation("9.15", defining=True)
@pytest.mark.equation("9.8", "9.9")
@examples(200)
@given(problems(size=1))
def test_natural_field_is_the_same_in_sigma_and_its_logarithm_and_the_plain_one_is_not(p):
    lqr, K, sigma = replace(p.lqr, S0=p.lqr.S0 + 1), p.K, p.sigma[0]
    X, V = lqr.second_moment(K, p.sigma)[0, 0], lqr.value_matrix(K, p.sigma)[0][0, 0]
    g_k, g_log = lqr.gradient(K, p.sigma)
    natural = {}
    for log_sigma in (True, False):
        g, F = (f(K, p.sigma, log_sigma=log_sigma) for f in (lqr.gradient, lqr.fisher))
        H = np.diag([1, sigma if log_sigma else 1])  # ∂(k, σ) / ∂ of the parameters
        close(g, H @ lqr.gradient(K, p.sigma, log_sigma=False))
        close(F, H @ lqr.fisher(K, p.sigma, log_sigma=False) @ H)
        natural[log_sigma] = np.linalg.solve(F, g)
    close(natural[True], [sigma**2 * g_k / X, (1 - lqr.gamma) / 2 * g_log])
    close(natural[False], [sigma**2 * g_k / X, (1 - lqr.gamma) / 2 * sigma * g_log])
    close(natural[False], [1, sigma] * natural[True])  # dσ = σ d log σ
    plain = g_log / sigma, sigma * g_log  # what the plain fields in σ and in log σ do to σ
    assert plain[0] / plain[1] == pytest.approx(sigma**-2, rel=1e-9)
    # The curve: towards the gain that is greedy for the value function, wherever the states are.
    b, q = lqr.B[0, 0], lqr.R[0, 0] + lqr.gamma * V * lqr.B[0, 0] ** 2
    greedy = -lqr.gamma * b * V * lqr.A[0, 0] / q
    close(natural[True][0], 2 * (K[0, 0] - greedy) * natural[True][1], rtol=1e-7)


START, BEST = (-1.3, 0.5), (1 - np.sqrt(1 + 4 * 0.81)) / 1.8


LECTURE = LQR()


def move(k, sigma, kind, log_sigma):
    """The field on policies, as (dk, dσ), the one in its own parameters and F there."""
    g, F = (f([[k]], [sigma], log_sigma=log_sigma) for f in (LECTURE.gradient, LECTURE.fisher))
    u = np.linalg.solve(F, g) if kind == "natural" else g
    return u * [1, sigma if log_sigma else 1], u, F


FIELDS = [("plain", False), ("plain", True), ("natural", False), ("natural", True)]


@pytest.mark.equation("9.15")
@pytest.mark.parametrize(
    ("field", "at"),
    zip(
        FIELDS,
        [
            [-1.2112, -1.1528, -1.1189, -1.0503, -0.9667],
            [-0.8312, -0.5893, -0.5884, -0.5884, -0.5884],
            [-0.8017, -0.6251, -0.5977, -0.5888, -0.5884],
            [-0.8017, -0.6251, -0.5977, -0.5888, -0.5884],
        ],
        strict=True,
    ),
    ids=str,
)
def test_curves_of_the_fields_go_where_the_chapter_says(field, at):
    def slope(log_sigma, k):
        dk, d_sigma = move(k[0], np.exp(log_sigma), *field)[0]
        return [dk / d_sigma * np.exp(log_sigma)]

    stops = np.log([0.25, 0.1, 0.05, 0.01, 0.001])
    curve = integrate.solve_ivp(
        slope, (np.log(START[1]), stops[-1]), START[:1], t_eval=stops, method="Radau", rtol=1e-8, atol=1e-10
    )
    np.testing.assert_allclose(curve.y[0], at, rtol=0, atol=6e-5)


@pytest.mark.equation("9.7", "9.15")
@pytest.mark.parametrize(
    ("field", "arrives"), [(FIELDS[0], None), (FIELDS[1], 50), (FIELDS[2], 76), (FIELDS[3], 76)], ids=str
)
def test_of_steps_of_one_radius_those_of_the_plain_field_in_sigma_stall(field, arrives):
    k, sigma = START
    gains = [k]
    for _ in range(1000 if arrives is None else arrives):
        _, u, F = move(k, sigma, *field)
        step = kl_step(u, F @ u, 0.01)
        assert step @ F @ step / 2 == pytest.approx(0.01, rel=1e-12)
        k, sigma = k + step[0], sigma * np.exp(step[1]) if field[1] else sigma + step[1]
        gains.append(k)
    assert BEST == pytest.approx(-0.5884, abs=5e-5)
    if arrives is None:
        assert (gains[200], gains[1000]) == pytest.approx((-1.0065, -0.9255), abs=6e-5)
        assert 0 < sigma < 1e-3
    else:
        assert abs(gains[arrives] - BEST) < 0.01 < abs(gains[arrives - 1] - BEST)


@pytest.mark.equation("9.15")
def test_steps_of_one_euclidean_length_would_make_sigma_negative():
    k, sigma = START
    for i in range(1, 13):
        before, u = k, move(k, sigma, "plain", False)[1]
        k, sigma = np.array([k, sigma]) + 0.05 * u / np.linalg.norm(u)
        assert (sigma < 0) == (i == 12)
    assert before == pytest.approx(-1.078, abs=5e-4)


@pytest.mark.equation("9.7", "9.9")
def test_only_to_first_order_is_a_step_the_same_in_both_parametrisations_and_the_lectures_length_is_not_even_that():
    after, lengths = [], []
    for log_sigma in (False, True):
        _, u, F = move(-0.5, 0.5, "natural", log_sigma)
        g = LQR().gradient([[-0.5]], [0.5], log_sigma=log_sigma)
        assert g @ u == pytest.approx(7.7268, abs=5e-5)
        after.append(0.5 * np.exp(u[1]) if log_sigma else 0.5 + u[1])
        step = np.sqrt(2 / (g @ F @ g)) * u
        lengths.append(step @ F @ step / 2)
        close(kl_step(u, F @ u, 0.3), np.sqrt(0.6 / (g @ u)) * u)
    np.testing.assert_allclose(after, [0.1935, 0.2709], atol=5e-5)
    np.testing.assert_allclose(lengths, [1.605e-4, 2.521e-3], rtol=5e-4)


# The environment

RANK_ONE = np.array([[0.5, 1.0], [1.0, 2.0]])


@pytest.mark.equation("4.18", defining=True)
@pytest.mark.parametrize("C", [SAMPLED.W, RANK_ONE, np.diag([0.0, 3.0]), np.zeros((2, 2))], ids=str)
def test_the_environment_follows_its_dynamics_with_the_covariances_of_its_noise_and_its_start(C):
    lqr = LQR(SAMPLED.A, SAMPLED.B, SAMPLED.Q, SAMPLED.R, C, 2 * C, 0.9)
    env, rng, n = LQREnv(lqr), np.random.default_rng(0), 4000
    starts, noise = [], []
    for i in range(n):
        s, _ = env.reset(seed=7 if i == 0 else None)
        a = rng.normal(size=2)
        s2, reward, terminated, truncated, _ = env.step(a)
        assert reward == pytest.approx(-(s @ lqr.Q @ s + a @ lqr.R @ a), rel=1e-12)
        assert terminated is truncated is False
        starts.append(s)
        noise.append(s2 - lqr.A @ s - lqr.B @ a)
    for samples, covariance_ in ((np.array(starts), 2 * C), (np.array(noise), C)):
        assert z_score(samples, np.zeros(2)) < 6
        assert z_score(np.einsum("ni,nj->nij", samples, samples), covariance_) < 6
    assert z_score(np.einsum("ni,nj->nij", starts, noise), np.zeros(4)) < 6


def test_without_noise_the_environment_is_exact():
    env = LQREnv(LQR(SAMPLED.A, SAMPLED.B, SAMPLED.Q, SAMPLED.R))
    s, _ = env.reset(seed=0)
    for a in np.random.default_rng(0).normal(size=(5, 2)):
        s2 = env.step(a)[0]
        np.testing.assert_allclose(s2, SAMPLED.A @ s + SAMPLED.B @ a, rtol=0, atol=1e-15)
        s = s2


@pytest.mark.filterwarnings("ignore:.*(Box|not having a spec)")
@pytest.mark.parametrize("lqr", [LQR(), SAMPLED, LQR(np.eye(3), np.ones((3, 1)), np.eye(3), np.eye(1))])
def test_gymnasiums_checker_passes_it(lqr):
    check_env(LQREnv(lqr))


def test_the_environments_state_belongs_to_it():
    env = LQREnv(LQR())
    s, _ = env.reset(seed=0)
    expected = s + 1
    s[:] = 99
    s2 = env.step(np.ones(1))[0]
    np.testing.assert_array_equal(s2, expected)
    s2[:] = 99
    np.testing.assert_array_equal(env.step(np.ones(1))[0], expected + 1)


def test_an_action_of_another_shape_is_an_error():
    env = LQREnv(SAMPLED)
    env.reset(seed=0)
    for action in (np.zeros(1), np.zeros((1, 2)), 0.0):
        with pytest.raises(ValueError, match=r"^action must have shape \(2,\), got"):
            env.step(action)


def test_a_step_before_the_first_reset_is_an_error():
    with pytest.raises(RuntimeError, match="call reset before the first step"):
        LQREnv(LQR()).step(np.zeros(1))


# Input


def test_the_problem_of_the_lecture_is_the_default_and_nothing_is_shared():
    lqr, A = LQR(), np.eye(1)
    for name in ("A", "B", "Q", "R", "S0"):
        np.testing.assert_array_equal(getattr(lqr, name), [[1]])
    assert lqr.W == 0
    assert lqr.gamma == 0.9
    other = LQR(A=A)
    A[:] = 5
    assert other.A == lqr.A == 1


def test_lists_are_taken_for_arrays():
    lqr = LQR([[0.5]], [[1.0]], [[1.0]], [[2.0]], [[0.1]], [[3.0]], 0.5)
    K, sigma = [[-0.2]], [0.3]
    for name in METHODS:
        of_lists, of_arrays = (getattr(lqr, name)(*policy) for policy in ((K, sigma), (np.array(K), np.array(sigma))))
        np.testing.assert_equal(of_lists, of_arrays)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"B": 1.0}, r"B must have shape \(d, m\), got \(\)"),
        ({"B": [1.0]}, r"B must have shape \(d, m\), got \(1,\)"),
        ({"A": np.eye(2)}, r"A must have shape \(1, 1\) to go with B, got \(2, 2\)"),
        ({"B": np.ones((1, 2))}, r"R must have shape \(2, 2\) to go with B, got \(1, 1\)"),
        ({"B": np.ones((2, 1))}, r"A must have shape \(2, 2\) to go with B"),
        ({"Q": 1.0}, r"Q must have shape \(1, 1\)"),
        ({"W": [1.0]}, r"W must have shape \(1, 1\)"),
        ({"S0": np.eye(3)}, r"S0 must have shape \(1, 1\)"),
        ({"A": [[np.nan]]}, "A must be finite"),
        ({"R": [[np.inf]]}, "R must be finite"),
        ({"W": [[-0.1]]}, "W must have no negative eigenvalues"),
        ({"S0": [[-0.1]]}, "S0 must have no negative eigenvalues"),
        ({"gamma": 1.0}, r"gamma must be a number in \[0, 1\), got 1.0"),
        ({"gamma": -0.1}, r"gamma must be a number in \[0, 1\)"),
        ({"gamma": np.nan}, r"gamma must be a number in \[0, 1\)"),
        ({"gamma": None}, r"gamma must be a number in \[0, 1\), got None"),
    ],
)
def test_a_bad_setting_is_an_error_that_names_it(settings_, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        LQR(**settings_)


@pytest.mark.parametrize("name", ["Q", "R", "W", "S0"])
def test_a_cost_or_a_covariance_that_is_not_symmetric_is_an_error_that_names_it(name):
    matrices = dict.fromkeys(("A", "B", "Q", "R"), np.eye(2)) | {name: np.array([[1.0, 0.2], [0.1, 1.0]])}
    with pytest.raises(ValueError, match=f"^{name} must be symmetric"):
        LQR(**matrices)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("K", "sigma", "message"),
    [
        ([-0.5], [1.0], r"K and sigma must have shapes \(1, 1\) and \(1,\), got \(1,\) and \(1,\)"),
        ([[-0.5, 0.0]], [1.0], r"K and sigma must have shapes \(1, 1\)"),
        ([[-0.5]], 1.0, r"K and sigma must have shapes .* got \(1, 1\) and \(\)"),
        ([[-0.5]], [1.0, 1.0], r"K and sigma must have shapes"),
        ([[-0.5]], [0.0], "sigma must be positive"),
        ([[-0.5]], [-1.0], "sigma must be positive"),
        ([[-0.5]], [np.nan], "sigma must be positive"),
        ([[0.5]], [1.0], "K = .* is unstable"),
        ([[-2.5]], [1.0], "K = .* is unstable"),
        ([[np.nan]], [1.0], "K must be finite"),
        ([[np.inf]], [1.0], "K must be finite"),
    ],
)
def test_a_bad_policy_is_an_error_that_names_what_is_wrong(method, K, sigma, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        getattr(LQR(), method)(K, sigma)


@pytest.mark.parametrize("name", ["Q", "R"])
def test_costs_that_reward_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must have no negative eigenvalues"):
        LQR(**{name: [[-1.0]]})


def test_a_problem_that_no_gain_makes_finite_has_no_best_one():
    with pytest.raises(ValueError, match="no gain is the best one"):
        LQR(A=[[2.0]], B=[[0.0]]).optimal_gain()
