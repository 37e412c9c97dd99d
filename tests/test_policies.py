"""Policies, which are the chain rule of chapter 3, against expectations, derivatives and textbook forms."""

import tracemalloc
from itertools import product

import numpy as np
import pytest
import strategies as S
from gymnasium import spaces
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import special, stats
from strategies import examples, layers

from npg import features as F
from npg.distributions import Categorical, DiagonalGaussian
from npg.exact import enumerate_trajectories
from npg.gradcheck import check_gradient, numerical_gradient
from npg.models import Linear
from npg.policies import GaussianLinear, Policy, SoftmaxLinear, make_policy
from npg.problems import short_corridor

BOX = spaces.Box(-1.0, 1.0, (2,), dtype=np.float64)
SOFTMAX, TABULAR, GAUSSIAN = S.softmax_policies(), S.tabular_policies(), S.gaussian_policies()
Z_BOUND = 6.0  # two-sided tail probability 2e-9 per comparison


def is_softmax(policy):
    return isinstance(policy.distribution, Categorical)


def outcomes(policy, theta, x):
    """(action of every row, its probability (B,)) pairs whose sums are expectations: over the actions of a softmax,
    over Gauss–Hermite nodes of a Gaussian, exact for polynomials of degree ≤ 5 in each component."""
    eta, m = policy.eta(theta, x), policy.distribution.n_actions
    if is_softmax(policy):
        for a in range(m):
            yield np.full(len(eta), a), special.softmax(eta, axis=1)[:, a]
        return
    nodes, masses = np.polynomial.hermite_e.hermegauss(3)
    for index in product(range(3), repeat=m):
        mass = np.prod(masses[list(index)]) / (2 * np.pi) ** (m / 2)
        yield eta[:, :m] + np.exp(eta[:, m:]) * nodes[list(index)], np.full(len(eta), mass)


def size(i, *thetas):
    """How large 1/σ² gets for a Gaussian: what the derivatives, and so their rounding errors, scale with."""
    m = i.policy.distribution.n_actions
    etas = [i.policy.eta(theta, i.x) for theta in (i.theta, *thetas)]
    return 10 if is_softmax(i.policy) else 10 * (1 + max(np.exp(-2 * eta[:, m:].min()) for eta in etas))


def agree(actual, expected, size):
    """Equal to 1e-13 of ``size``, the magnitude of the terms added up: some hundred roundings of them."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-13 * size)


def assert_gradient(f, grad, theta, floor=None):
    """``grad`` is the derivative of f at θ, by central differences and by the complex step."""
    for method in ("central", "complex"):
        check = check_gradient(f, grad, theta, method=method, floor=floor)
        assert check.passed, (method, check)


def hessian(grad, theta):
    """Derivative (n, n) of the vector grad(θ), by the complex step."""
    n = len(theta)
    return np.array([numerical_gradient(lambda th, j=j: grad(th)[j], theta, "complex")[0] for j in range(n)])


def dense(x, features):
    return F.dense(x, features.n_features)


# The score and what is made of it


@pytest.mark.equation("3.3")
@given(S.instances())
def test_score_is_the_derivative_of_log_prob(i):
    score = i.policy.score(i.theta, i.x, i.a)
    for b in range(len(i.a)):
        assert_gradient(lambda th, b=b: i.policy.log_prob(th, i.x, i.a)[b], score[b], i.theta)


@pytest.mark.equation("3.3", defining=True)
@given(S.instances())
def test_score_is_the_jacobian_transposed_times_the_score_in_eta(i):
    J, s = i.policy.model.jacobian(i.theta, i.x), i.policy.distribution.score(i.policy.eta(i.theta, i.x), i.a)
    agree(i.policy.score(i.theta, i.x, i.a), [J[b].T @ s[b] for b in range(len(s))], size(i))


@pytest.mark.equation("1.6", defining=True)
@pytest.mark.equation("3.3")
@given(S.instances())
def test_score_has_zero_mean_under_the_policy(i):
    mean = sum(mass[:, None] * i.policy.score(i.theta, i.x, a) for a, mass in outcomes(i.policy, i.theta, i.x))
    agree(mean, 0, size(i))


@pytest.mark.equation("3.4")
@given(S.instances())
def test_weighted_score_is_the_weights_times_the_matrix_of_scores(i):
    score = i.policy.score(i.theta, i.x, i.a)
    agree(i.policy.weighted_score(i.theta, i.x, i.a, i.w), i.w @ score, 10 * size(i))


@pytest.mark.equation("3.4", defining=True)
@given(S.instances(SOFTMAX))
def test_weighted_score_is_the_flattened_product_of_weighted_scores_and_features(i):
    eta = i.policy.eta(i.theta, i.x)
    U = i.w[:, None] * (np.eye(eta.shape[1])[i.a] - special.softmax(eta, axis=1))
    agree(i.policy.weighted_score(i.theta, i.x, i.a, i.w), (U.T @ i.x).ravel(), 10)


@pytest.mark.equation("3.4", "8.7")
@given(S.instances(), st.booleans())
def test_accumulate_score_adds_to_each_trace_its_weight_times_its_own_score(i, one):
    p, rows = i.policy, slice(0, 1 if one else None)
    x, a, w = F.rows(i.x, rows), i.a[rows], i.w[rows]
    before = np.outer(1 + np.arange(len(a)), np.cos(i.theta))
    z = before.copy()
    assert p.accumulate_score(z, i.theta, x, a, w) is None
    agree(z - before, w[:, None] * p.score(i.theta, x, a), 10 * size(i))
    J, s = p.model.jacobian(i.theta, x), p.distribution.score(p.eta(i.theta, x), a)
    agree(z - before, [w[b] * J[b].T @ s[b] for b in range(len(s))], 10 * size(i))
    agree((z - before).sum(axis=0), p.weighted_score(i.theta, x, a, w), 10 * size(i))


@pytest.mark.equation("3.13", "8.7")
@given(S.instances(S.tile_policies()))
def test_accumulate_score_on_tiles_equals_that_on_their_dense_form(i):
    z, full = np.ones((2, len(i.a), i.policy.n_params))
    i.policy.accumulate_score(z, i.theta, i.x, i.a, i.w)
    i.policy.accumulate_score(full, i.theta, dense(i.x, i.policy.features), i.a, i.w)
    agree(z, full, 10)


# Textbook forms


@pytest.mark.equation("3.5", defining=True)
@given(S.instances(SOFTMAX))
def test_softmax_score_is_the_features_of_the_action_minus_their_mean(i):
    k, d = i.policy.distribution.n_actions, i.x.shape[1]
    score = i.policy.score(i.theta, i.x, i.a)
    for s, x, a in zip(score, i.x, i.a, strict=True):
        x_s = np.array([[x[j] if c == b else 0.0 for c in range(k) for j in range(d)] for b in range(k)])  # x(s, b)
        pi = np.exp(x_s @ i.theta) / np.exp(x_s @ i.theta).sum()
        agree(s, x_s[a] - sum(pi[b] * x_s[b] for b in range(k)), 10)


@pytest.mark.equation("3.6", "3.7", defining=True)
@given(S.instances(GAUSSIAN))
def test_gaussian_score_is_the_textbook_form(i):
    m, (d_mu, d_sigma) = i.policy.distribution.n_actions, (i.policy.model.first, i.policy.model.second)
    W_mu, W_sigma = np.split(i.theta, [d_mu.n_params])
    W_mu, W_sigma = W_mu.reshape(m, d_mu.n_features), W_sigma.reshape(m, d_sigma.n_features)
    x_mu, x_sigma = (dense(x, part) for x, part in zip(i.x, (d_mu, d_sigma), strict=True))
    score = i.policy.score(i.theta, i.x, i.a)
    for b, (s, a) in enumerate(zip(score, i.a, strict=True)):
        mu, sigma = [W_mu[j] @ x_mu[b] for j in range(m)], [np.exp(W_sigma[j] @ x_sigma[b]) for j in range(m)]
        in_mu = [(a[j] - mu[j]) / sigma[j] ** 2 * x_mu[b] for j in range(m)]
        in_sigma = [((a[j] - mu[j]) ** 2 / sigma[j] ** 2 - 1) * x_sigma[b] for j in range(m)]
        agree(s, np.concatenate(in_mu + in_sigma), 10 * size(i))


@pytest.mark.equation("3.8", defining=True)
@given(S.instances(TABULAR))
def test_tabular_score_is_one_for_the_action_minus_its_probability_in_the_state_visited_alone(i):
    n_states, n_actions = int(i.space.n), i.policy.distribution.n_actions
    logits = i.theta.reshape(n_actions, n_states)
    pi = np.exp(logits) / np.exp(logits).sum(axis=0)
    for score, a, s in zip(i.policy.score(i.theta, i.x, i.a), i.a, i.obs - i.space.start, strict=True):
        expected = [(s == s_) * ((a == a_) - pi[a_, s]) for a_, s_ in product(range(n_actions), range(n_states))]
        agree(score, expected, 10)


@pytest.mark.equation("3.1")
@given(S.instances(SOFTMAX))
def test_softmax_theta_is_w_row_by_row_with_one_row_per_action(i):
    k, d = i.policy.distribution.n_actions, i.x.shape[1]
    assert i.policy.n_params == k * d
    agree(i.policy.eta(i.theta, i.x), [[i.theta[a * d : a * d + d] @ x for a in range(k)] for x in i.x], 10)


@pytest.mark.equation("3.1")
@given(S.instances(GAUSSIAN))
def test_gaussian_theta_is_the_rows_of_w_mu_and_then_those_of_w_sigma(i):
    m = i.policy.distribution.n_actions
    x_mu, x_sigma = dense(i.x[0], i.policy.features.mean), dense(i.x[1], i.policy.features.scale)
    d_mu, d_sigma = x_mu.shape[1], x_sigma.shape[1]
    assert i.policy.n_params == m * (d_mu + d_sigma)
    W_mu, W_sigma = i.theta[: m * d_mu].reshape(m, d_mu), i.theta[m * d_mu :].reshape(m, d_sigma)
    agree(i.policy.eta(i.theta, i.x), np.hstack([x_mu @ W_mu.T, x_sigma @ W_sigma.T]), 10)


@pytest.mark.equation("3.13")
@given(S.instances(TABULAR))
def test_a_policy_on_active_indices_equals_the_policy_on_their_dense_form(i):
    p, th, x, w = i.policy, i.theta, i.x, i.w
    full = dense(x, p.features)
    other, v = th[::-1] + 0.5, np.cos(th)
    for f in [
        lambda x: p.log_prob(th, x, i.a),
        lambda x: p.score(th, x, i.a),
        lambda x: p.weighted_score(th, x, i.a, w),
        lambda x: p.entropy(th, x),
        lambda x: p.entropy_grad(th, x, w),
        lambda x: p.kl(th, other, x),
        lambda x: p.kl_grad(th, other, x, w),
        lambda x: p.fisher(th, x),
        lambda x: p.fisher_vector_product(th, x, v),
        lambda x: p.mode(th, x),
        lambda x: p.sample(th, x, np.random.default_rng(0)),
    ]:
        agree(f(x), f(full), 10)


# Entropy and divergence


@given(S.instances())
def test_entropy_is_minus_the_mean_log_prob(i):
    mean = sum(-mass * i.policy.log_prob(i.theta, i.x, a) for a, mass in outcomes(i.policy, i.theta, i.x))
    agree(i.policy.entropy(i.theta, i.x), mean, 10)


@pytest.mark.equation("3.9")
@given(S.instances())
def test_entropy_grad_is_the_derivative_of_the_weighted_entropies(i):
    grad = i.policy.entropy_grad(i.theta, i.x, i.w)
    # At a uniform softmax the gradient vanishes, but the truncation error does not: compare absolutely.
    assert_gradient(lambda th: i.policy.entropy(th, i.x) @ i.w, grad, i.theta, floor=1.0)


@pytest.mark.equation("3.9", defining=True)
@given(S.instances(), st.data())
def test_kl_grad_is_the_derivative_of_the_weighted_divergences_in_theta_q(i, data):
    theta_p = data.draw(S.thetas(i.policy))
    grad = i.policy.kl_grad(theta_p, i.theta, i.x, i.w)
    assert_gradient(lambda th: i.policy.kl(theta_p, th, i.x) @ i.w, grad, i.theta, floor=1.0)


@given(S.instances(), st.data())
def test_kl_is_the_mean_log_ratio(i, data):
    theta_q = data.draw(S.thetas(i.policy))

    def log_ratio(a):
        return i.policy.log_prob(i.theta, i.x, a) - i.policy.log_prob(theta_q, i.x, a)

    mean = sum(mass * log_ratio(a) for a, mass in outcomes(i.policy, i.theta, i.x))
    agree(i.policy.kl(i.theta, theta_q, i.x), mean, 100 * size(i, theta_q))


@given(S.instances(), st.data())
def test_kl_is_not_negative_and_zero_with_zero_gradient_at_equality(i, data):
    assert i.policy.kl(i.theta, data.draw(S.thetas(i.policy)), i.x).min() >= -1e-14
    np.testing.assert_array_equal(i.policy.kl(i.theta, i.theta, i.x), 0)
    np.testing.assert_array_equal(i.policy.kl_grad(i.theta, i.theta, i.x, i.w), 0)


# The Fisher matrix


@pytest.mark.equation("3.10", defining=True)
@pytest.mark.equation("2.1", "9.4")
@given(S.instances(), st.data())
def test_fisher_is_the_weighted_mean_of_the_second_moment_of_the_score(i, data):
    w = data.draw(S.positive_weights(len(i.w)))
    moment = 0
    for a, mass in outcomes(i.policy, i.theta, i.x):
        score = i.policy.score(i.theta, i.x, a)
        moment = moment + np.einsum("b,bi,bj->ij", w * mass, score, score)
    agree(i.policy.fisher(i.theta, i.x, w), moment, 10 * size(i))


@pytest.mark.equation("2.1", "3.10", "9.4")
@given(S.instances())
def test_fisher_is_minus_the_mean_hessian_of_log_prob(i):
    mean = 0
    for a, mass in outcomes(i.policy, i.theta, i.x):
        mean = mean + hessian(lambda th, a=a, mass=mass: i.policy.weighted_score(th, i.x, a, mass), i.theta)
    agree(i.policy.fisher(i.theta, i.x), -mean / len(i.a), 10 * size(i))


@pytest.mark.equation("2.1", "3.10", "9.4")
@given(S.instances())
def test_fisher_is_the_hessian_of_the_mean_divergence_at_equality(i):
    mean = np.full(len(i.a), 1 / len(i.a))
    H = hessian(lambda th: i.policy.kl_grad(i.theta, th, i.x, mean), i.theta)
    agree(i.policy.fisher(i.theta, i.x), H, 10 * size(i))


@pytest.mark.equation("3.10")
@given(S.instances(SOFTMAX | TABULAR), st.data())
def test_softmax_fisher_is_a_sum_of_kronecker_products(i, data):
    w = data.draw(S.positive_weights(len(i.w)))
    x, P = dense(i.x, i.policy.features), special.softmax(i.policy.eta(i.theta, i.x), axis=1)
    blocks = [
        w_b * np.kron(np.diag(p) - np.outer(p, p), np.outer(x_b, x_b)) for w_b, p, x_b in zip(w, P, x, strict=True)
    ]
    agree(i.policy.fisher(i.theta, i.x, w), sum(blocks), 100)


@pytest.mark.equation("3.10")
@given(S.instances(GAUSSIAN), st.data())
def test_gaussian_fisher_is_block_diagonal(i, data):
    w, m = data.draw(S.positive_weights(len(i.w))), i.policy.distribution.n_actions
    x_mu, x_sigma = dense(i.x[0], i.policy.features.mean), dense(i.x[1], i.policy.features.scale)
    variance = np.exp(2 * i.policy.eta(i.theta, i.x)[:, m:])
    in_mu = sum(w[b] * np.kron(np.diag(1 / variance[b]), np.outer(x_mu[b], x_mu[b])) for b in range(len(w)))
    in_sigma = sum(w[b] * np.kron(2 * np.eye(m), np.outer(x_sigma[b], x_sigma[b])) for b in range(len(w)))
    n = len(in_mu)
    fisher = i.policy.fisher(i.theta, i.x, w)
    agree(fisher[:n, :n], in_mu, 10 * size(i))
    agree(fisher[n:, n:], in_sigma, 100)
    np.testing.assert_array_equal(fisher[:n, n:], 0)
    np.testing.assert_array_equal(fisher[n:, :n], 0)


@pytest.mark.equation("3.11", defining=True)
@given(S.instances(), st.data())
def test_fisher_vector_product_is_the_fisher_matrix_times_the_vector(i, data):
    v, w = data.draw(S.reals(i.policy.n_params)), data.draw(S.positive_weights(len(i.w)))
    expected = i.policy.fisher(i.theta, i.x, w) @ v
    agree(i.policy.fisher_vector_product(i.theta, i.x, v, w), expected, 100 * size(i))


@pytest.mark.equation("3.11", "10.15")
@given(S.instances(), st.booleans())
def test_products_of_one_operator_are_those_computed_one_by_one(i, weighted):
    w, vs = np.abs(i.w) if weighted else None, np.cos(np.arange(3 * i.policy.n_params)).reshape(3, -1)
    product = i.policy.fisher_operator(i.theta, i.x, w)
    for v in vs:
        np.testing.assert_array_equal(product(v), i.policy.fisher_vector_product(i.theta, i.x, v, w))
    with pytest.raises(ValueError, match="v must have shape"):
        product(vs)


@pytest.mark.equation("10.15")
def test_an_operator_computes_eta_once_for_all_its_products(monkeypatch):
    policy, calls, eta = SoftmaxLinear(F.Constant(), 3), [], Policy.eta
    monkeypatch.setattr(Policy, "eta", lambda *args: calls.append(args) or eta(*args))
    product = policy.fisher_operator(np.zeros(3), np.ones((2, 1)))
    for v in np.eye(3):
        product(v)
    assert len(calls) == 1


@pytest.mark.equation("3.10", "3.11")
@given(S.instances())
def test_fisher_weights_are_one_over_the_batch_by_default(i):
    w, v = np.full(len(i.w), 1 / len(i.w)), np.cos(np.arange(i.policy.n_params))
    np.testing.assert_array_equal(i.policy.fisher(i.theta, i.x), i.policy.fisher(i.theta, i.x, w))
    product = i.policy.fisher_vector_product(i.theta, i.x, v, w)
    np.testing.assert_array_equal(i.policy.fisher_vector_product(i.theta, i.x, v), product)


@pytest.mark.equation("3.12", defining=True)
@given(S.instances(SOFTMAX | TABULAR), st.data())
def test_adding_a_vector_to_every_row_of_w_is_in_the_null_space_of_the_softmax_fisher(i, data):
    k, d = i.policy.distribution.n_actions, i.policy.features.n_features
    v = np.kron(np.ones(k), data.draw(S.reals(d)))
    agree(i.policy.fisher(i.theta, i.x) @ v, 0, 100)
    agree(i.policy.fisher_vector_product(i.theta, i.x, v), 0, 100)
    agree(i.policy.kl(i.theta, i.theta + v, i.x), 0, 100)


@pytest.mark.equation("3.12")
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), S.generators)
def test_softmax_fisher_has_rank_actions_less_one_times_the_rank_of_the_visited_features(k, d, B, rng):
    x = rng.normal(size=(B, d))
    w = np.where(np.arange(B) % 2, 0.0, 1.0)  # rows of weight zero do not count
    fisher = Policy(None, Linear(d, k), Categorical(k)).fisher(rng.normal(size=k * d), x, w)
    expected = (k - 1) * np.linalg.matrix_rank(x[w > 0])
    assert np.linalg.matrix_rank(fisher, tol=1e-12, hermitian=True) == expected


@pytest.mark.equation("3.12")
@given(S.generators)
def test_vectors_that_make_the_logits_of_every_visited_row_equal_are_the_whole_null_space(rng):
    k, d, B = 3, 5, 2
    x, theta = rng.normal(size=(B, d)), rng.normal(size=k * d)
    policy = Policy(None, Linear(d, k), Categorical(k))
    inside = rng.normal(size=(k, d))
    inside -= (inside - inside.mean(axis=0)) @ np.linalg.pinv(x) @ x  # now V x_b is a multiple of 1
    agree(policy.fisher_vector_product(theta, x, inside.ravel()), 0, 1e3)
    outside = inside + np.outer([1.0, 0.0, 0.0], x[0])  # V x_0 no longer is
    assert outside.ravel() @ policy.fisher_vector_product(theta, x, outside.ravel()) > 1e-6


# The divergence to second order, and what is left of it


def expansion(i, step):
    """½ΔᵀF_sΔ of each row; the terms of third order of KL(θ‖θ + Δ) and KL(θ + Δ‖θ), and bounds on what then is left.

    For a softmax these are cumulants of the change u of the logits: with ψ(t) = log Σ_a p exp(tu) the first divergence
    is ψ(1) − ψ(0) − ψ'(0), the second ψ(0) − ψ(1) + ψ'(1), and the fourth derivative of ψ is at most the fourth power
    of the range of u. For a Gaussian, with v the change of log σ and w that of μ over σ, they are
    Σ ½(e^{−2v} − 1 + 2v) + ½w²e^{−2v} and Σ ½(e^{2v} − 1 − 2v) + ½w².
    """
    eta, moved = i.policy.eta(i.theta, i.x), i.policy.eta(i.theta + step, i.x)
    quadratic = [0.5 * step @ i.policy.fisher(i.theta, i.x, row) @ step for row in np.eye(len(eta))]
    if is_softmax(i.policy):
        p, u = special.softmax(eta, axis=1), moved - eta
        third = (p * (u - (p * u).sum(axis=1, keepdims=True)) ** 3).sum(axis=1)
        fourth = np.ptp(u, axis=1) ** 4
        return np.array(quadratic), (third / 6, third / 3), (fourth / 24, fourth / 8)
    m = i.policy.distribution.n_actions
    w, v = (moved - eta)[:, :m] / np.exp(eta[:, m:]), (moved - eta)[:, m:]
    third = -(2 / 3 * v**3 + w**2 * v).sum(axis=1), (2 / 3 * v**3).sum(axis=1)
    largest = np.exp(2 * np.abs(v))
    fourth = ((v**4 / 3 + w**2 * v**2) * largest).sum(axis=1), (v**4 / 3 * largest).sum(axis=1)
    return np.array(quadratic), third, fourth


@st.composite
def steps(draw):
    """An instance, and a step that changes no policy by more than a nat or so."""
    i = draw(S.instances())
    v = draw(S.reals(i.policy.n_params))
    length = np.sqrt(max(v @ i.policy.fisher(i.theta, i.x, np.ones(len(i.a))) @ v, 0.0))
    return i, draw(st.floats(0.01, 1.0)) * v / max(length, 1.0)


@pytest.mark.equation("9.3", defining=True)
@given(steps())
@examples(200)
def test_both_divergences_are_half_the_fisher_form_and_terms_of_third_order_that_differ(case):
    i, step = case
    quadratic, third, fourth = expansion(i, step)
    found = i.policy.kl(i.theta, i.theta + step, i.x), i.policy.kl(i.theta + step, i.theta, i.x)
    for kl, cubic, bound in zip(found, third, fourth, strict=True):
        assert (np.abs(kl - quadratic - cubic) <= bound + 1e-12).all()


@pytest.mark.equation("9.3")
def test_the_divergences_of_two_actions_have_the_coefficients_of_their_third_order():
    policy, x, theta = SoftmaxLinear(F.Constant(), 2), np.ones((1, 1)), np.log([0.2, 0.8])
    steps, left = np.array([0.1, 0.05, 0.025]), []
    for t in steps:
        other, step = theta + np.array([t, 0.0]), np.array([t, 0.0])
        half = 0.5 * step @ policy.fisher(theta, x) @ step
        assert half == pytest.approx(0.08 * t**2, rel=1e-13)
        left.append([policy.kl(theta, other, x)[0] - half, policy.kl(other, theta, x)[0] - half])
    assert np.array(left[0]) + 0.08 * 0.1**2 == pytest.approx([8.160e-4, 8.320e-4], abs=5e-8)
    # F(1 − 2p) = 0.096, a sixth and a third of it; then F(1 − 6F) = 0.0064 times t⁴/24 and t⁴/8
    left = np.array(left)
    assert left[-1] / steps[-1] ** 3 == pytest.approx([0.016, 0.032], abs=1e-4)
    np.testing.assert_allclose(left[:-1] / left[1:], 8, rtol=0.01)  # half a step, an eighth of the remainder


@pytest.mark.equation("9.3")
def test_the_divergences_of_a_normal_distribution_have_the_numbers_of_the_closed_forms():
    policy, x = GaussianLinear(F.Constant(), F.Constant(), 1), (np.ones((1, 1)),) * 2
    p, wider, shifted = np.array([0.0, 0.0]), np.array([0.0, 0.1]), np.array([0.3, 0.0])
    np.testing.assert_array_equal(policy.fisher(p, x), [[1, 0], [0, 2]])  # so that the form is 0.01 and 0.045
    assert policy.kl(p, wider, x)[0] == pytest.approx(0.009365, abs=5e-7)
    assert policy.kl(wider, p, x)[0] == pytest.approx(0.010701, abs=5e-7)
    assert policy.kl(p, shifted, x)[0] == pytest.approx(0.045, rel=1e-14)
    assert policy.kl(shifted, p, x)[0] == pytest.approx(0.045, rel=1e-14)


@pytest.mark.equation("9.4", defining=True)
@given(S.instances(), st.data())
def test_fisher_is_the_hessian_of_both_divergences_at_equality(i, data):
    n, w = i.policy.n_params, np.eye(len(i.a))[data.draw(st.integers(0, len(i.a) - 1))]
    fisher = i.policy.fisher(i.theta, i.x, w)
    u, v = data.draw(S.reals(n)), data.draw(S.reals(n))
    u, v = (z / max(1.0, np.sqrt(max(z @ fisher @ z, 0.0)), np.abs(z).max()) for z in (u, v))

    def reversed_kl(t, s):
        return i.policy.kl(i.theta + t[0] * v + s[0] * u, i.theta, i.x) @ w

    def slope_of_reversed(t):
        return numerical_gradient(lambda s: reversed_kl(t, s), np.zeros(1), "complex")[0][0]

    for slope in (lambda t: i.policy.kl_grad(i.theta, i.theta + t[0] * v, i.x, w) @ u, slope_of_reversed):
        # h⁴/30 = 1e-14 times a sixth derivative, along directions that change log π by about one
        assert numerical_gradient(slope, np.zeros(1))[0][0] == pytest.approx(u @ fisher @ v, abs=1e-9)


@pytest.mark.equation("9.4")
@given(S.instances())
def test_fisher_of_each_state_is_the_covariance_of_the_score(i):
    for row, w in enumerate(np.eye(len(i.a))):
        mean, second = 0, 0
        for a, mass in outcomes(i.policy, i.theta, i.x):
            psi = i.policy.score(i.theta, i.x, a)[row]
            mean, second = mean + mass[row] * psi, second + mass[row] * np.outer(psi, psi)
        agree(i.policy.fisher(i.theta, i.x, w), second - np.outer(mean, mean), 10 * size(i))


@pytest.mark.equation("9.5")
@given(steps(), st.data())
@examples(200)
def test_the_mean_divergence_over_states_is_half_the_form_of_the_mean_fisher_matrix(case, data):
    i, step = case
    d = data.draw(S.positive_weights(len(i.a)))
    d = d / d.sum()
    half = 0.5 * step @ i.policy.fisher_vector_product(i.theta, i.x, step, d)
    _, third, fourth = expansion(i, step)
    found = i.policy.kl(i.theta, i.theta + step, i.x), i.policy.kl(i.theta + step, i.theta, i.x)
    for kl, cubic, bound in zip(found, third, fourth, strict=True):
        assert abs(d @ kl - half - d @ cubic) <= d @ bound + 1e-12


@pytest.mark.equation("9.5")
@given(layers)
@examples(200)
def test_the_divergence_of_whole_episodes_is_that_of_their_states_as_often_as_they_are_met(p):
    new = p.theta + p.rng.normal(size=len(p.theta))
    (traj, mass), (same, new_mass) = (enumerate_trajectories(p.mdp, p.policy, theta, 3) for theta in (p.theta, new))
    np.testing.assert_array_equal(traj.actions, same.actions)
    np.testing.assert_array_equal(traj.next_obs, same.next_obs)
    d_1, x, v = p.mdp.visitation(p.policy, p.theta, gamma=1), p.mdp.features(p.policy), traj.valid
    agree(mass @ np.log(mass / new_mass), d_1 @ p.policy.kl(p.theta, new, x), 100)
    moment = 0
    for n in range(len(mass)):
        psi = p.policy.score(p.theta, traj.x[v[:, n], n], traj.actions[v[:, n], n]).sum(axis=0)
        moment = moment + mass[n] * np.outer(psi, psi)
    agree(p.policy.fisher(p.theta, x, d_1), moment, 100)  # and so is its Fisher matrix


@pytest.mark.equation("9.5")
def test_the_divergence_of_episodes_in_the_short_corridor_has_the_numbers_of_its_twelve_visits():
    mdp, policy, x = short_corridor(), SoftmaxLinear(F.Constant(), 2), np.ones((4, 1))
    old, step = np.zeros(2), np.array([-0.1, 0.1])
    d_1 = mdp.visitation(policy, old, gamma=1)
    assert d_1.sum() == pytest.approx(12, rel=1e-12)
    kl = policy.kl(old, old + step, x)
    assert kl == pytest.approx(0.0049917, abs=5e-8)
    assert d_1 @ kl == pytest.approx(0.0599003, abs=5e-8)
    assert 0.5 * step @ policy.fisher(old, x, d_1) @ step == pytest.approx(0.06, rel=1e-12)


# The empirical Fisher matrix


@pytest.mark.equation("9.18", defining=True)
@given(S.instances(), st.data())
def test_empirical_fisher_is_the_weighted_sum_of_outer_products_of_scores(i, data):
    w, psi = data.draw(S.positive_weights(len(i.a))), i.policy.score(i.theta, i.x, i.a)
    terms = [np.outer(row, row) for row in psi]
    scale = 10 * (1 + np.abs(psi).max() ** 2)
    agree(i.policy.empirical_fisher(i.theta, i.x, i.a), sum(terms) / len(terms), scale)
    weighted = sum(w_b * term for w_b, term in zip(w, terms, strict=True))
    agree(i.policy.empirical_fisher(i.theta, i.x, i.a, w), weighted, 10 * scale)


@pytest.mark.equation("9.18")
@given(S.instances())
def test_the_mean_of_the_empirical_fisher_matrix_over_actions_is_the_fisher_matrix(i):
    B, mean = len(i.a), 0
    for a, mass in outcomes(i.policy, i.theta, i.x):
        mean = mean + i.policy.empirical_fisher(i.theta, i.x, a, mass / B)
    agree(mean, i.policy.fisher(i.theta, i.x), 10 * size(i))


@pytest.mark.equation("9.18")
@given(S.generators, st.integers(1, 3), st.integers(2, 3))
def test_the_mean_over_all_batches_of_actions_is_the_fisher_matrix_of_their_states(rng, B, k):
    policy, x = Policy(None, Linear(2, k), Categorical(k)), rng.normal(size=(B, 2))
    theta = rng.normal(size=policy.n_params)
    p, mean = special.softmax(policy.eta(theta, x), axis=1), 0
    for a in product(range(k), repeat=B):
        mean = mean + p[np.arange(B), a].prod() * policy.empirical_fisher(theta, x, np.array(a))
    agree(mean, policy.fisher(theta, x), 100)


@pytest.mark.equation("9.18")
@given(S.problems())
def test_no_element_of_the_fisher_matrix_varies_more_with_the_state_than_that_of_the_empirical_one(p):
    d, pi = p.mdp.visitation(p.policy, p.theta, normalized=True), p.mdp.policy_matrix(p.policy, p.theta)
    u, v = p.rng.normal(size=(2, len(p.theta)))
    mean = u @ p.mdp.fisher(p.policy, p.theta, normalized=True) @ v
    exact, empirical = np.zeros(len(d)), np.zeros(pi.shape)
    for s in range(len(d)):
        x = p.policy.features(np.array([s]))
        exact[s] = u @ p.policy.fisher(p.theta, x) @ v
        for a in range(pi.shape[1]):
            empirical[s, a] = u @ p.policy.empirical_fisher(p.theta, x, np.array([a])) @ v
    agree(d @ (pi * empirical).sum(axis=1), mean, 1e3)
    assert d @ (exact - mean) ** 2 <= d @ (pi * (empirical - mean) ** 2).sum(axis=1) + 1e-12


@pytest.mark.equation("9.18")
@given(S.instances())
def test_the_empirical_fisher_matrix_is_symmetric_and_its_rank_at_most_the_number_of_rows(i):
    empirical = i.policy.empirical_fisher(i.theta, i.x, i.a)
    agree(empirical, empirical.T, np.abs(empirical).max())
    values = np.linalg.eigvalsh(empirical)
    rounding = 1e-13 * max(values[-1], 1e-300)
    assert values[0] >= -rounding
    assert np.count_nonzero(values > rounding) <= len(i.a)


@pytest.mark.equation("9.18")
def test_the_empirical_fisher_matrix_of_few_rows_has_their_number_as_its_rank():
    policy, rng = GaussianLinear(F.Fourier(BOX, 2), F.Constant(), 1), np.random.default_rng(0)
    for B in (1, 3, 7):
        x, theta = policy.features(rng.uniform(-1, 1, size=(B, 2))), np.zeros(policy.n_params)
        a = policy.sample(theta, x, rng)
        assert np.linalg.matrix_rank(policy.empirical_fisher(theta, x, a), hermitian=True) == B < policy.n_params


@pytest.mark.equation("9.18")
@given(S.generators, st.integers(1, 8), st.integers(1, 4))
def test_empirical_fisher_and_gradient_give_the_least_squares_fit_of_advantages_on_scores(rng, B, d):
    policy = Policy(None, Linear(d, 3), Categorical(3))
    x, theta, A = rng.normal(size=(B, d)), rng.normal(scale=0.3, size=3 * d), rng.normal(size=B)
    a = rng.integers(3, size=B)
    psi = policy.score(theta, x, a)
    singular = np.linalg.svd(psi, compute_uv=False)
    assume(singular[singular > 1e-12][-1] > 0.05)
    g, empirical = policy.weighted_score(theta, x, a, A / B), policy.empirical_fisher(theta, x, a)
    u = np.linalg.pinv(empirical, rcond=1e-10, hermitian=True) @ g
    fit = np.linalg.lstsq(psi, A, rcond=1e-10)[0]
    agree(empirical @ fit, g, 1e3)  # its normal equations
    agree(u, fit, 1e6)  # the shortest of the fits; the condition number is below 1e5
    least = ((psi @ u - A) ** 2).sum()
    assert all(((psi @ (u + change) - A) ** 2).sum() >= least - 1e-9 for change in rng.normal(size=(10, 3 * d)))


@pytest.mark.equation("9.18")
@pytest.mark.parametrize(("B", "expected"), [(1, 0.1250), (2, 0.2132), (4, 0.3226), (16, 0.4672)])
def test_the_natural_gradient_of_the_empirical_fisher_matrix_is_biased_though_both_factors_are_not(B, expected):
    policy, theta, p = SoftmaxLinear(F.Constant(), 2), np.log([0.2, 0.8]), np.array([0.2, 0.8])
    x, reward, fisher, gradient, natural = np.ones((B, 1)), np.array([1.0, 0.0]), 0, 0, 0
    for good in range(B + 1):  # of the B actions; their order does not matter
        a, mass = np.where(np.arange(B) < good, 0, 1), stats.binom.pmf(good, B, 0.2)
        empirical = policy.empirical_fisher(theta, x, a)
        pinv = np.linalg.pinv(empirical, rcond=1e-10, hermitian=True)
        g = policy.weighted_score(theta, x, a, reward[a] / B)
        fisher, gradient, natural = fisher + mass * empirical, gradient + mass * g, natural + mass * pinv @ g
        with_advantages = pinv @ policy.weighted_score(theta, x, a, (reward[a] - 0.2) / B)
        np.testing.assert_allclose(with_advantages, [0.5, -0.5], rtol=1e-12)  # they are linear in the score
    np.testing.assert_allclose(fisher, policy.fisher(theta, x), rtol=1e-12)
    np.testing.assert_allclose(gradient, p[0] * p[1] * np.array([1, -1]), rtol=1e-12)
    exact = np.linalg.pinv(policy.fisher(theta, x), hermitian=True) @ gradient
    np.testing.assert_allclose(exact, [0.5, -0.5], rtol=1e-12)
    np.testing.assert_allclose(natural, [expected, -expected], rtol=0, atol=5e-5)


@pytest.mark.equation("9.18")
def test_where_states_tell_of_actions_the_empirical_fisher_matrix_may_vary_less():
    """A first action of probability 0.2 leads to a state without features, the other to one with the feature √2.4."""
    policy, theta = Policy(None, Linear(2, 2), Categorical(2)), np.array([np.log(0.25), 0.0, 0.0, 0.0])
    traces, masses, means = [], [], [0, 0]
    for first, second in product(range(2), repeat=2):
        x, a = np.array([[1.0, 0.0], [0.0, first * np.sqrt(2.4)]]), np.array([first, second])
        masses.append(np.exp(policy.log_prob(theta, x, a).sum()))
        both = policy.fisher(theta, x, np.ones(2)), policy.empirical_fisher(theta, x, a, np.ones(2))
        means = [mean + masses[-1] * matrix for mean, matrix in zip(means, both, strict=True)]
        traces.append([np.trace(matrix) for matrix in both])
    agree(means[0], means[1], 10)
    exact, empirical = np.array(traces).T
    np.testing.assert_allclose(empirical / 2, 0.64, rtol=1e-12)
    np.testing.assert_allclose(exact / 2, [0.16, 0.16, 0.76, 0.76], rtol=1e-12)


# Sampling


@pytest.mark.equation("2.9")
def test_softmax_sampling_frequencies_match_the_probabilities_in_every_state():
    n, policy, theta = 100_000, SoftmaxLinear(F.OneHot(3), 3), np.random.default_rng(0).normal(size=9)
    states = np.repeat(np.arange(3), n)
    actions = policy.sample(theta, policy.features(states), np.random.default_rng(1))
    for s in range(3):
        p = special.softmax(theta.reshape(3, 3)[:, s])
        counts = np.bincount(actions[states == s], minlength=3)
        assert (np.abs(counts - n * p) <= Z_BOUND * np.sqrt(n * p * (1 - p))).all()


def test_gaussian_samples_have_the_mean_and_spread_of_each_state():
    n, policy = 100_000, GaussianLinear(F.OneHot(2), F.OneHot(2), 2)
    W_mu, W_sigma = np.array([[1.0, -2.0], [3.0, 0.5]]), np.array([[-1.0, 0.3], [0.0, 1.2]])
    states = np.tile([0, 1], n)
    theta = np.concatenate([W_mu.ravel(), W_sigma.ravel()])
    actions = policy.sample(theta, policy.features(states), np.random.default_rng(2))
    for s in range(2):
        z = (actions[states == s] - W_mu[:, s]) / np.exp(W_sigma[:, s])
        assert (np.abs(z.mean(axis=0)) <= Z_BOUND / np.sqrt(n)).all()
        assert (np.abs((z**2).mean(axis=0) - 1) <= Z_BOUND * np.sqrt(2 / n)).all()
        assert all(stats.kstest(column, "norm").pvalue > 1e-6 for column in z.T)


@given(S.instances(), S.seeds)
def test_sampling_is_reproducible_and_mode_is_the_most_probable_action(i, seed):
    first, second = (i.policy.sample(i.theta, i.x, np.random.default_rng(seed)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    best = i.policy.log_prob(i.theta, i.x, i.policy.mode(i.theta, i.x))
    assert (best >= i.policy.log_prob(i.theta, i.x, first)).all()
    assert (best >= i.policy.log_prob(i.theta, i.x, i.a)).all()


@given(S.policies, S.seeds)
def test_the_initial_policy_is_uniform_or_standard_normal(kind, seed):
    policy, space = kind
    theta = policy.init(np.random.default_rng(seed))
    space.seed(0)
    x = policy.features(np.array([space.sample() for _ in range(3)]))
    assert theta.shape == (policy.n_params,)
    m = policy.distribution.n_actions
    expected = np.zeros((3, m if is_softmax(policy) else 2 * m))
    np.testing.assert_array_equal(policy.eta(theta, x), expected)
    agree(policy.entropy(theta, x), np.log(m) if is_softmax(policy) else m * stats.norm.entropy(), 10)


# Extremes


def everything(policy, theta, other, x, a, w, v):
    """The value of every method, by name."""
    return {
        "mode": policy.mode(theta, x),
        "sample": policy.sample(theta, x, np.random.default_rng(0)),
        "log_prob": policy.log_prob(theta, x, a),
        "score": policy.score(theta, x, a),
        "weighted_score": policy.weighted_score(theta, x, a, w),
        "entropy": policy.entropy(theta, x),
        "entropy_grad": policy.entropy_grad(theta, x, w),
        "kl": policy.kl(theta, other, x),
        "kl_grad": policy.kl_grad(theta, other, x, w),
        "fisher": policy.fisher(theta, x),
        "empirical_fisher": policy.empirical_fisher(theta, x, a),
        "fisher_vector_product": policy.fisher_vector_product(theta, x, v),
    }


@given(S.instances(extreme=True), st.data())
def test_extreme_parameters_give_finite_values_of_every_method(i, data):
    other, v = data.draw(S.thetas(i.policy, extreme=True)), data.draw(S.reals(i.policy.n_params))
    for name, value in everything(i.policy, i.theta, other, i.x, i.a, i.w, v).items():
        assert np.isfinite(value).all(), name


def test_softmax_with_logits_of_1e4_has_the_values_of_a_deterministic_policy():
    policy, x = SoftmaxLinear(F.Constant(), 3), np.ones((2, 1))
    theta, other = np.array([1e4, -1e4, 0.0]), np.array([-1e4, 1e4, 0.0])
    w, v = np.array([2.0, 5.0]), np.array([1.0, 2.0, 3.0])
    expected = {
        "mode": [0, 0],
        "sample": [0, 0],
        "log_prob": [-2e4, 0],
        "score": [[-1, 1, 0], [0, 0, 0]],
        "weighted_score": [-2, 2, 0],
        "entropy": [0, 0],
        "entropy_grad": [0, 0, 0],
        "kl": [2e4, 2e4],
        "kl_grad": [-7, 7, 0],
        "fisher": np.zeros((3, 3)),
        "empirical_fisher": [[0.5, -0.5, 0], [-0.5, 0.5, 0], [0, 0, 0]],
        "fisher_vector_product": [0, 0, 0],
    }
    values = everything(policy, theta, other, x, np.array([1, 0]), w, v)
    assert values.keys() == expected.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.parametrize("sigma", [1e-6, 1e6])
def test_gaussian_with_extreme_sigma_has_the_values_of_the_closed_forms(sigma):
    policy, x = GaussianLinear(F.Constant(), F.Constant(), 1), (np.ones((1, 1)),) * 2
    mu, log_sigma = 1e4, np.log(sigma)
    theta, other = np.array([mu, log_sigma]), np.array([mu - 1, -log_sigma])
    a, w, v = np.array([[mu + sigma]]), np.array([3.0]), np.array([1.0, -2.0])
    z = (a.item() - mu) / sigma
    values = everything(policy, theta, other, x, a, w, v)
    expected = {
        "mode": [[mu]],
        "log_prob": [-0.5 * z**2 - log_sigma - 0.5 * np.log(2 * np.pi)],
        "score": [[z / sigma, z**2 - 1]],
        "weighted_score": [3 * z / sigma, 3 * (z**2 - 1)],
        "entropy": [log_sigma + 0.5 * np.log(2 * np.pi * np.e)],
        "entropy_grad": [0, 3],
        "kl": [0.5 * (sigma**4 - 1 - 4 * log_sigma) + 0.5 * sigma**2],
        "kl_grad": [-3 * sigma**2, 3 * (1 - sigma**4 - sigma**2)],
        "fisher": [[sigma**-2, 0], [0, 2]],
        "fisher_vector_product": [sigma**-2, -4],
    }
    for name, value in expected.items():
        # exp(log σ) is off by |log σ| ε = 3e-15. z² − 1 cancels where z is near 1, to a size of ε.
        np.testing.assert_allclose(values[name], value, rtol=1e-13, atol=1e-14, err_msg=name)


@pytest.mark.parametrize(
    ("policy", "obs"),
    [
        (SoftmaxLinear(F.Affine(BOX), 3), np.zeros((0, 2))),
        (SoftmaxLinear(F.OneHot(4), 3), np.zeros(0, dtype=int)),
        (GaussianLinear(F.Affine(BOX), F.Constant(), 2), np.zeros((0, 2))),
        (GaussianLinear(F.OneHot(4), F.OneHot(4), 1), np.zeros(0, dtype=int)),
    ],
    ids=["softmax", "tabular", "Gaussian", "tabular Gaussian"],
)
def test_an_empty_batch_gives_no_rows_and_zero_sums(policy, obs):
    x, theta, n = policy.features(obs), np.ones(policy.n_params), policy.n_params
    event = () if is_softmax(policy) else (policy.distribution.n_actions,)
    a = np.zeros((0, *event), dtype=int if is_softmax(policy) else float)
    values = everything(policy, theta, theta + 1, x, a, np.zeros(0), np.ones(n))
    shapes = {"mode": event, "sample": event, "log_prob": (), "score": (n,), "entropy": (), "kl": ()}
    for name, value in values.items():
        if name in shapes:
            assert value.shape == (0, *shapes[name]), name
        else:
            np.testing.assert_array_equal(value, np.zeros((n, n) if name.endswith("fisher") else n), err_msg=name)


def test_one_action_and_one_feature_leave_nothing_to_learn():
    policy, x, theta = SoftmaxLinear(F.Constant(), 1), np.ones((1, 1)), np.array([3.0])
    a, w = np.array([0]), np.array([2.0])
    for name, value in everything(policy, theta, theta - 5, x, a, w, np.ones(1)).items():
        np.testing.assert_array_equal(value, np.zeros_like(value), err_msg=name)


# Memory


@pytest.mark.equation("3.4", "3.9", "3.11")
@pytest.mark.parametrize("kind", ["softmax", "tabular", "Gaussian"])
def test_batch_products_never_allocate_an_array_of_rows_by_parameters(kind):
    rows, d, rng = 5_000, 100, np.random.default_rng(0)
    policy = {
        "softmax": Policy(None, Linear(d, 4), Categorical(4)),
        "tabular": SoftmaxLinear(F.OneHot(d), 4),
        "Gaussian": GaussianLinear(F.RandomFourier(BOX, n_features=d), F.RandomFourier(BOX, n_features=d), 2),
    }[kind]
    dense_x = rng.normal(size=(rows, d))
    x = {"softmax": dense_x, "tabular": rng.integers(d, size=(rows, 1)), "Gaussian": (dense_x, dense_x)}[kind]
    theta, w = np.zeros(policy.n_params), np.ones(rows)
    a = policy.sample(theta, x, rng)
    for batch_product in [
        lambda: policy.weighted_score(theta, x, a, w),
        lambda: policy.fisher_vector_product(theta, x, theta),
        lambda: policy.entropy_grad(theta, x, w),
        lambda: policy.kl_grad(theta, theta, x, w),
    ]:
        tracemalloc.start()
        batch_product()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < rows * policy.n_params * 8 / 8  # n = 400; a dozen (rows, 4) arrays are an eighth of (rows, n)


# Errors


ONE_OF_EACH = pytest.mark.parametrize(
    "policy",
    [SoftmaxLinear(F.Affine(BOX), 3), SoftmaxLinear(F.OneHot(4), 3), GaussianLinear(F.Affine(BOX), F.Constant(), 2)],
    ids=["softmax", "tabular", "Gaussian"],
)


def arguments(policy):
    """Valid arguments of all methods for a batch of two."""
    obs = np.array([0, 1]) if isinstance(policy.features, F.OneHot) else np.zeros((2, 2))
    theta, x = np.zeros(policy.n_params), policy.features(obs)
    a = policy.mode(theta, x)
    return {"theta": theta, "x": x, "a": a, "w": np.ones(2), "v": np.zeros(policy.n_params)}


def calls(policy, theta, x, a, w, v):
    """One call of every method, with the names of the arguments it takes."""
    rng = np.random.default_rng(0)
    return [
        (("theta", "x"), lambda: policy.sample(theta, x, rng)),
        (("theta", "x"), lambda: policy.mode(theta, x)),
        (("theta", "x", "a"), lambda: policy.log_prob(theta, x, a)),
        (("theta", "x", "a"), lambda: policy.score(theta, x, a)),
        (("theta", "x", "a", "w"), lambda: policy.weighted_score(theta, x, a, w)),
        (("theta", "x"), lambda: policy.entropy(theta, x)),
        (("theta", "x", "w"), lambda: policy.entropy_grad(theta, x, w)),
        (("theta", "x"), lambda: policy.kl(theta, theta, x)),
        (("theta", "x", "w"), lambda: policy.kl_grad(theta, theta, x, w)),
        (("theta", "x", "w"), lambda: policy.fisher(theta, x, w)),
        (("theta", "x", "a", "w"), lambda: policy.empirical_fisher(theta, x, a, w)),
        (("theta", "x", "v", "w"), lambda: policy.fisher_vector_product(theta, x, v, w)),
    ]


def assert_every_call_names(policy, name, **wrong):
    for takes, call in calls(policy, **(arguments(policy) | wrong)):
        if name in takes:
            with pytest.raises(ValueError, match=rf"^{name} must"):
                call()


@ONE_OF_EACH
@pytest.mark.parametrize("change", [lambda t: t[:-1], lambda t: np.append(t, 0.0), lambda t: t[None]])
def test_theta_of_the_wrong_shape_is_an_error_that_names_it(policy, change):
    assert_every_call_names(policy, "theta", theta=change(arguments(policy)["theta"]))


@ONE_OF_EACH
def test_theta_q_of_the_wrong_shape_is_an_error_that_names_theta(policy):
    arg = arguments(policy)
    with pytest.raises(ValueError, match=r"^theta must"):
        policy.kl(arg["theta"], arg["theta"][:-1], arg["x"])
    with pytest.raises(ValueError, match=r"^theta must"):
        policy.kl_grad(arg["theta"], arg["theta"][:-1], arg["x"], arg["w"])


@ONE_OF_EACH
def test_x_of_the_wrong_shape_is_an_error_that_names_it(policy):
    wrong = [np.zeros((2, 7)), np.zeros(3), np.zeros((1, 2, 3))]
    if isinstance(policy.features, F.Pair):
        wrong += [(np.zeros((2, 3)),), (np.zeros((2, 7)), np.ones((2, 1))), (np.zeros((2, 3)), np.ones((2, 2)))]
    else:
        wrong += [(np.zeros((2, 3)), np.ones((2, 1)))]
    for x in wrong:
        assert_every_call_names(policy, "x", x=x)


def test_a_pair_of_inputs_with_different_numbers_of_rows_is_an_error_that_names_x():
    policy = GaussianLinear(F.Affine(BOX), F.Constant(), 2)
    assert_every_call_names(policy, "x", x=(np.zeros((2, 3)), np.ones((3, 1))))


@ONE_OF_EACH
def test_a_of_the_wrong_shape_is_an_error_that_names_it(policy):
    a = arguments(policy)["a"]
    for wrong in (a[:1], a[None], a[..., None], np.concatenate([a, a])):
        assert_every_call_names(policy, "a", a=wrong)


@pytest.mark.parametrize("a", [[0, 3], [-1, 0], [0.0, 1.0]], ids=["too large", "negative", "floats"])
def test_a_that_is_no_action_of_a_softmax_policy_is_an_error_that_names_it(a):
    assert_every_call_names(SoftmaxLinear(F.Affine(BOX), 3), "a", a=np.array(a))


@ONE_OF_EACH
@pytest.mark.parametrize("w", [np.ones(1), np.ones(3), np.ones((2, 1)), np.array(1.0)], ids=lambda w: str(w.shape))
def test_w_of_the_wrong_shape_is_an_error_that_names_it(policy, w):
    assert_every_call_names(policy, "w", w=w)


@ONE_OF_EACH
def test_v_of_the_wrong_shape_is_an_error_that_names_it(policy):
    v = arguments(policy)["v"]
    for wrong in (v[:-1], np.append(v, 0.0), v[None]):
        assert_every_call_names(policy, "v", v=wrong)


def test_a_model_whose_outputs_do_not_fit_the_distribution_is_an_error():
    with pytest.raises(ValueError, match=r"model has 3 outputs, but .* takes 4"):
        Policy(F.Affine(BOX), Linear(3, 3), DiagonalGaussian(2))


# The constructor from spaces


@pytest.mark.parametrize("observation", [BOX, spaces.Discrete(4, start=2)], ids=["Box", "Discrete"])
@pytest.mark.parametrize(
    "action", [spaces.Box(-2.0, 2.0, (2, 3)), spaces.Discrete(5, start=-1)], ids=["Box", "Discrete"]
)
def test_make_policy_picks_the_distribution_from_the_action_space_and_the_features_from_the_observations(
    observation, action
):
    policy = make_policy(observation, action)
    obs = np.array([observation.sample() for _ in range(3)])
    theta = policy.init(np.random.default_rng(0))
    a = policy.sample(theta, policy.features(obs), np.random.default_rng(0))
    expected = F.OneHot(observation) if isinstance(observation, spaces.Discrete) else F.Affine(observation)
    if isinstance(action, spaces.Discrete):
        assert policy.distribution == Categorical(5)
        assert policy.features == expected
        assert a.shape == (3,)
    else:
        assert policy.distribution == DiagonalGaussian(6)
        assert policy.features == F.Pair(expected, F.Constant())
        assert a.shape == (3, 6)


def test_make_policy_uses_the_features_given():
    fourier, affine = F.Fourier(BOX), F.Affine(BOX)
    assert make_policy(BOX, spaces.Discrete(2), fourier).features is fourier
    assert make_policy(BOX, spaces.Box(-1.0, 1.0, (1,)), fourier).features == F.Pair(fourier, F.Constant())
    assert make_policy(BOX, spaces.Box(-1.0, 1.0, (1,)), fourier, affine).features == F.Pair(fourier, affine)


def test_make_policy_takes_a_scalar_box_as_one_action():
    assert make_policy(BOX, spaces.Box(-1.0, 1.0, ())).distribution == DiagonalGaussian(1)


UNSUPPORTED = pytest.mark.parametrize(
    "space",
    [
        spaces.MultiDiscrete([2, 3]),
        spaces.MultiBinary(3),
        spaces.Tuple((BOX, BOX)),
        spaces.Dict({"a": BOX}),
        spaces.Text(5),
        spaces.Sequence(BOX),
    ],
    ids=lambda space: type(space).__name__,
)


@UNSUPPORTED
@pytest.mark.parametrize("features", [None, F.Constant()])
def test_make_policy_refuses_other_action_spaces_and_names_them(space, features):
    with pytest.raises(TypeError, match=rf"action space must be Box or Discrete, got {type(space).__name__}"):
        make_policy(BOX, space, features)


@UNSUPPORTED
@pytest.mark.parametrize("features", [None, F.Constant()])
def test_make_policy_refuses_other_observation_spaces_and_names_them(space, features):
    with pytest.raises(TypeError, match=rf"observation space must be Box or Discrete, got {type(space).__name__}"):
        make_policy(space, spaces.Discrete(2), features)


def test_make_policy_needs_a_scale_for_unbounded_observations():
    with pytest.raises(ValueError, match=r"infinite bounds.*give scale"):
        make_policy(spaces.Box(-np.inf, np.inf, (2,)), spaces.Discrete(2))


def test_gaussian_policy_computes_shared_features_once_and_keeps_them_once():
    affine = F.Affine(BOX)
    x_mu, x_sigma = GaussianLinear(affine, affine, 1).features(np.zeros((3, 2)))
    assert x_mu is x_sigma


def test_default_features_are_one_hot_or_affine():
    actions = spaces.Discrete(2)
    assert make_policy(spaces.Discrete(3), actions).features == F.OneHot(3)
    assert make_policy(BOX, actions).features == F.Affine(BOX)
