"""The closed forms of chapter 2, each against its definition: a sum over actions or a Gauss–Hermite quadrature."""

from functools import partial
from itertools import product

import numpy as np
import pytest
import strategies as S
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from npg.distributions import Categorical, DiagonalGaussian
from npg.gradcheck import check_gradient, numerical_gradient

KINDS = pytest.mark.parametrize("which", [S.categoricals, S.gaussians], ids=["Categorical", "DiagonalGaussian"])
BOTH = pytest.mark.parametrize("distribution", [Categorical(3), DiagonalGaussian(2)], ids=repr)
Z_BOUND = 6.0  # two-sided tail probability 2e-9 per comparison


def outcomes(distribution, eta):
    """(action of every row, its probability (B,)) pairs whose sums are expectations: exact to rounding for a
    categorical, and for a Gaussian for polynomials in a of degree ≤ 5 in each component."""
    if isinstance(distribution, Categorical):
        for a in range(distribution.n_actions):
            yield np.full(len(eta), a), special.softmax(eta, axis=1)[:, a]
        return
    m = distribution.n_actions
    nodes, masses = np.polynomial.hermite_e.hermegauss(3)
    for index in product(range(3), repeat=m):
        mass = np.prod(masses[list(index)]) / (2 * np.pi) ** (m / 2)
        yield eta[:, :m] + np.exp(eta[:, m:]) * nodes[list(index)], np.full(len(eta), mass)


def mean(distribution, eta, f):
    """E[f(a)] for each row, with f(a) of shape (B, …)."""
    return sum((np.asarray(f(a)).T * mass).T for a, mass in outcomes(distribution, eta))


def assert_gradient(f, grad, eta, floor=None):
    """Row i of ``grad`` is the derivative of f(η_i, i), by central differences and by the complex step."""
    for i, method in product(range(len(eta)), ("central", "complex")):
        check = check_gradient(
            lambda e, i=i: f(e[None], slice(i, i + 1))[0], grad[i], eta[i], method=method, floor=floor
        )
        assert check.passed, (method, check)


def jacobian(f, row):
    """Derivative (k, k) of the vector f(η) at one row, by the complex step."""
    return np.array([numerical_gradient(lambda e, j=j: f(e[None])[0, j], row, "complex")[0] for j in range(len(row))])


def agree(actual, expected, size):
    """Equal to 1e-13 of ``size``, the magnitude of the terms added up: some hundred roundings of them."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-13 * np.max(size))


def inverse_variance(distribution, eta):
    """The largest 1/σ², which sets the size of a Gaussian's derivatives; 1 for a categorical."""
    return 1.0 if isinstance(distribution, Categorical) else np.exp(-2 * eta[:, distribution.n_actions :].min()) + 1


def pairs(which, extreme=False):
    """A distribution, a batch of p's and q's parameters."""
    return which.flatmap(
        lambda d: S.batch_sizes.flatmap(
            lambda rows: st.tuples(st.just(d), S.etas(d, rows, extreme), S.etas(d, rows, extreme))
        )
    )


# What holds for both distributions


@pytest.mark.equation("2.3", "2.11")
@KINDS
@given(data=st.data())
def test_score_is_the_derivative_of_log_prob(which, data):
    p, eta, a = data.draw(S.distribution_batches(which))
    assert_gradient(lambda e, i: p.log_prob(e, a[i]), p.score(eta, a), eta)


@pytest.mark.equation("2.3", "2.11")
@KINDS
@given(data=st.data())
def test_score_has_zero_mean(which, data):
    p, eta, _ = data.draw(S.distribution_batches(which))
    agree(mean(p, eta, lambda a: p.score(eta, a)), 0, 10 * inverse_variance(p, eta))


@pytest.mark.equation("2.1", defining=True)
@pytest.mark.equation("2.8", "2.16")
@KINDS
@given(data=st.data())
def test_fisher_is_the_second_moment_of_the_score(which, data):
    p, eta, _ = data.draw(S.distribution_batches(which))
    moment = mean(p, eta, lambda a: np.einsum("bi,bj->bij", p.score(eta, a), p.score(eta, a)))
    agree(p.fisher(eta), moment, 10 * inverse_variance(p, eta))


@pytest.mark.equation("2.1", "2.8", "2.16")
@KINDS
@given(data=st.data())
def test_fisher_is_minus_the_mean_hessian_of_log_prob(which, data):
    p, eta, _ = data.draw(S.distribution_batches(which))
    hessians = mean(p, eta, lambda a: [jacobian(partial(p.score, a=b[None]), e) for e, b in zip(eta, a, strict=True)])
    agree(p.fisher(eta), -hessians, 10 * inverse_variance(p, eta))


@pytest.mark.equation("2.1", "2.8", "2.16")
@KINDS
@given(data=st.data())
def test_fisher_is_the_hessian_of_the_divergence_at_equality(which, data):
    p, eta, _ = data.draw(S.distribution_batches(which))
    hessians = np.array([jacobian(partial(p.kl_grad, e[None]), e) for e in eta])
    agree(p.fisher(eta), hessians, 10 * inverse_variance(p, eta))


@pytest.mark.equation("2.8", "2.16")
@KINDS
@given(data=st.data())
def test_fisher_product_is_the_fisher_matrix_times_the_vector(which, data):
    p, eta, _ = data.draw(S.distribution_batches(which))
    u = data.draw(S.reals(eta.shape))
    agree(p.fisher_product(eta, u), np.einsum("bij,bj->bi", p.fisher(eta), u), 10 * inverse_variance(p, eta))


@KINDS
@given(data=st.data())
def test_fisher_is_symmetric_and_positive_semidefinite(which, data):
    p, eta, _ = data.draw(S.distribution_batches(which))
    F = p.fisher(eta)
    agree(F, F.transpose(0, 2, 1), 1)
    assert np.linalg.eigvalsh(F).min() >= -1e-14 * inverse_variance(p, eta)


@pytest.mark.equation("2.4", "2.12")
@KINDS
@given(data=st.data())
def test_entropy_is_minus_the_mean_log_prob(which, data):
    p, eta, _ = data.draw(S.distribution_batches(which))
    agree(p.entropy(eta), mean(p, eta, lambda a: -p.log_prob(eta, a)), 10)


@pytest.mark.equation("2.5", "2.13")
@KINDS
@given(data=st.data())
def test_entropy_grad_is_the_derivative_of_entropy(which, data):
    p, eta, _ = data.draw(S.distribution_batches(which))
    assert_gradient(lambda e, i: p.entropy(e), p.entropy_grad(eta), eta)


@pytest.mark.equation("2.6", "2.14")
@KINDS
@given(data=st.data())
def test_kl_is_the_mean_log_ratio(which, data):
    p, eta_p, eta_q = data.draw(pairs(which))
    expected = mean(p, eta_p, lambda a: p.log_prob(eta_p, a) - p.log_prob(eta_q, a))
    agree(p.kl(eta_p, eta_q), expected, 10 + np.abs(expected).max() + inverse_variance(p, eta_q) * np.exp(3))


@pytest.mark.equation("2.6", "2.14")
@KINDS
@given(data=st.data())
def test_kl_is_not_negative_and_zero_at_equality(which, data):
    p, eta_p, eta_q = data.draw(pairs(which))
    assert p.kl(eta_p, eta_q).min() >= -1e-14
    agree(p.kl(eta_p, eta_p), 0, 0)
    agree(p.kl_grad(eta_p, eta_p), 0, 0)


@pytest.mark.equation("2.7", "2.15")
@KINDS
@given(data=st.data())
def test_kl_grad_is_the_derivative_of_kl_in_its_second_argument(which, data):
    p, eta_p, eta_q = data.draw(pairs(which))
    # Where p and q are close the gradient vanishes, but the truncation error does not: compare absolutely.
    assert_gradient(lambda e, i: p.kl(eta_p[i], e), p.kl_grad(eta_p, eta_q), eta_q, floor=1.0)


@KINDS
@given(data=st.data())
def test_every_row_of_a_batch_is_computed_alone(which, data):
    p, eta, a = data.draw(S.distribution_batches(which))
    eta_q, u = eta[::-1] + 1, eta + 0.5
    for i in range(len(eta)):
        one = slice(i, i + 1)
        for whole, alone in [
            (p.mode(eta), p.mode(eta[one])),
            (p.log_prob(eta, a), p.log_prob(eta[one], a[one])),
            (p.score(eta, a), p.score(eta[one], a[one])),
            (p.entropy(eta), p.entropy(eta[one])),
            (p.entropy_grad(eta), p.entropy_grad(eta[one])),
            (p.kl(eta, eta_q), p.kl(eta[one], eta_q[one])),
            (p.kl_grad(eta, eta_q), p.kl_grad(eta[one], eta_q[one])),
            (p.fisher(eta), p.fisher(eta[one])),
            (p.fisher_product(eta, u), p.fisher_product(eta[one], u[one])),
        ]:
            np.testing.assert_allclose(whole[one], alone, rtol=1e-14, atol=1e-14)


@BOTH
def test_an_empty_batch_gives_empty_results_of_the_right_shape(distribution):
    k, m = distribution.n_eta, distribution.n_actions
    eta, u = np.zeros((0, k)), np.zeros((0, k))
    event = () if isinstance(distribution, Categorical) else (m,)
    a = distribution.sample(eta, np.random.default_rng(0))
    assert a.shape == distribution.mode(eta).shape == (0, *event)
    assert distribution.log_prob(eta, a).shape == distribution.entropy(eta).shape == (0,)
    assert distribution.kl(eta, eta).shape == (0,)
    for value in (distribution.score(eta, a), distribution.entropy_grad(eta), distribution.kl_grad(eta, eta)):
        assert value.shape == (0, k)
    assert distribution.fisher(eta).shape == (0, k, k)
    assert distribution.fisher_product(eta, u).shape == (0, k)


@pytest.mark.parametrize("cls", [Categorical, DiagonalGaussian])
@pytest.mark.parametrize("n", [0, -1])
def test_a_distribution_needs_an_action(cls, n):
    with pytest.raises(ValueError, match=f"n_actions must be an integer of at least 1, got {n}"):
        cls(n)


@KINDS
@given(data=st.data())
def test_extreme_parameters_give_finite_values(which, data):
    p, eta_p, eta_q = data.draw(pairs(which, extreme=True))
    a = p.sample(eta_p, np.random.default_rng(0))
    values = [p.log_prob(eta_p, a), p.score(eta_p, a), p.entropy(eta_p), p.entropy_grad(eta_p)]
    values += [
        p.kl(eta_p, eta_q),
        p.kl_grad(eta_p, eta_q),
        p.fisher(eta_p),
        p.fisher_product(eta_p, eta_q),
        p.mode(eta_p),
    ]
    assert all(np.isfinite(value).all() for value in values)
    assert (p.kl(eta_p, eta_q) >= -1e-11).all()  # log-probabilities are at most 2e4, with an ulp of 4e-12


# Categorical


@pytest.mark.equation("2.2", defining=True)
@given(S.distribution_batches(S.categoricals))
def test_categorical_log_prob_is_the_logit_minus_the_log_partition_function(row):
    p, eta, a = row
    expected = [e[i] - np.log(np.exp(e).sum()) for e, i in zip(eta, a, strict=True)]
    agree(p.log_prob(eta, a), expected, 10)
    agree(p.probabilities(eta).sum(axis=1), 1, 1)


@pytest.mark.equation("2.2")
@given(S.distribution_batches(S.categoricals), st.floats(-100, 100))
def test_categorical_ignores_a_constant_added_to_all_logits(row, c):
    p, eta, a = row
    agree(p.log_prob(eta + c, a), p.log_prob(eta, a), 100)


@pytest.mark.equation("2.3", "2.4", "2.5", "2.6", "2.7", "2.8", defining=True)
@given(pairs(S.categoricals))
def test_categorical_closed_forms(batch):
    dist, eta_p, eta_q = batch
    k = dist.n_actions
    for i, (ep, eq) in enumerate(zip(eta_p, eta_q, strict=True)):
        p, q = np.exp(ep) / np.exp(ep).sum(), np.exp(eq) / np.exp(eq).sum()
        H = -sum(p[j] * np.log(p[j]) for j in range(k))
        for a in range(k):
            agree(dist.score(eta_p, np.full(len(eta_p), a))[i], [(j == a) - p[j] for j in range(k)], 10)
        agree(dist.entropy(eta_p)[i], H, 10)
        agree(dist.entropy_grad(eta_p)[i], [-p[j] * (np.log(p[j]) + H) for j in range(k)], 10)
        agree(dist.kl(eta_p, eta_q)[i], sum(p[j] * (np.log(p[j]) - np.log(q[j])) for j in range(k)), 10)
        agree(dist.kl_grad(eta_p, eta_q)[i], q - p, 10)
        agree(dist.fisher(eta_p)[i], [[p[j] * ((j == l) - p[l]) for l in range(k)] for j in range(k)], 10)


@pytest.mark.equation("2.8")
@given(S.distribution_batches(S.categoricals))
def test_categorical_fisher_has_rank_one_less_than_actions_and_null_vector_one(row):
    p, eta, _ = row
    agree(p.fisher_product(eta, np.ones_like(eta)), 0, 1)
    agree(p.fisher(eta).sum(axis=2), 0, 1)
    smallest = special.softmax(eta, axis=1).min()  # the other eigenvalues are at least the smallest probability
    assert (np.linalg.eigvalsh(p.fisher(eta))[:, 1:] > smallest / 2).all()


@pytest.mark.equation("2.4", "2.5")
@given(S.distribution_batches(S.categoricals))
def test_categorical_entropy_lies_between_zero_and_log_k(row):
    p, eta, _ = row
    k = p.n_actions
    assert (p.entropy(eta) >= 0).all()
    assert (p.entropy(eta) <= np.log(k) + 1e-15 * k).all()
    agree(p.entropy(np.full((1, k), 1.7)), np.log(k), 1)
    agree(p.entropy_grad(eta).sum(axis=1), 0, 10)
    agree(p.entropy_grad(np.full((1, k), 1.7)), 0, 1)


@pytest.mark.equation("2.2", "2.3", "2.4", "2.5", "2.6", "2.7", "2.8")
def test_categorical_with_logits_of_1e4_has_the_limits_of_a_deterministic_policy():
    p = Categorical(3)
    eta, other, a = np.array([[1e4, -1e4, 0.0]] * 3), np.array([[-1e4, 1e4, 0.0]] * 3), np.arange(3)
    np.testing.assert_array_equal(p.log_prob(eta, a), [0, -2e4, -1e4])
    np.testing.assert_array_equal(p.score(eta, a), [[0, 0, 0], [-1, 1, 0], [-1, 0, 1]])
    np.testing.assert_array_equal(p.kl(eta, other), 2e4)
    np.testing.assert_array_equal(p.kl_grad(eta, other), [[-1, 1, 0]] * 3)
    np.testing.assert_array_equal(p.mode(eta), 0)
    np.testing.assert_array_equal(p.sample(eta, np.random.default_rng(0)), 0)
    for zero in (p.entropy(eta), p.entropy_grad(eta), p.fisher(eta), p.fisher_product(eta, other)):
        np.testing.assert_array_equal(zero, 0)


@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_categorical_with_equal_logits_of_1e4_is_uniform(offset):
    p, eta = Categorical(4), np.full((4, 4), offset)
    agree(p.log_prob(eta, np.arange(4)), -np.log(4), 1)
    agree(p.entropy(eta), np.log(4), 1)
    agree(p.fisher(eta), np.tile(np.eye(4) / 4 - 1 / 16, (4, 1, 1)), 1)


@given(S.reals((3, 1), 1e4))
def test_categorical_with_one_action_has_nothing_to_learn(eta):
    p, a = Categorical(1), np.zeros(3, dtype=int)
    for zero in (p.log_prob(eta, a), p.score(eta, a), p.entropy(eta), p.entropy_grad(eta)):
        np.testing.assert_array_equal(zero, 0)
    for zero in (p.kl(eta, -eta), p.kl_grad(eta, -eta), p.fisher(eta), p.sample(eta, np.random.default_rng(0))):
        np.testing.assert_array_equal(zero, 0)


@given(S.distribution_batches(S.categoricals))
def test_categorical_mode_is_the_most_probable_action(row):
    p, eta, _ = row
    best = p.log_prob(eta, p.mode(eta))
    assert all((best >= p.log_prob(eta, np.full(len(eta), a))).all() for a in range(p.n_actions))


@pytest.mark.equation("2.9", defining=True)
@pytest.mark.parametrize("eta", [[0.0, 1.0, -2.0, 0.5], [0.0, 0.0], [5.0, 0.0, 5.0], [-1e4, 1e4 - 1, 1e4], [2.0]])
def test_categorical_sampling_frequencies_match_the_probabilities(eta):
    n, k = 200_000, len(eta)
    a = Categorical(k).sample(np.tile(eta, (n, 1)), np.random.default_rng(1))
    p = special.softmax(eta)
    counts = np.bincount(a, minlength=k)
    sd = np.sqrt(n * p * (1 - p))
    assert (np.abs(counts - n * p) <= Z_BOUND * sd + 1e-9).all(), counts / n
    assert counts.sum() == n


@pytest.mark.equation("2.9")
def test_categorical_rows_are_sampled_independently():
    n = 100_000
    a = Categorical(2).sample(np.zeros((n, 2)), np.random.default_rng(2))
    agreements = (a[0::2] == a[1::2]).sum()  # binomial(n/2, 1/2) if neighbours are independent
    assert abs(agreements - n / 4) <= Z_BOUND * np.sqrt(n / 8)


# Diagonal Gaussian


@pytest.mark.equation("2.10", defining=True)
@given(S.distribution_batches(S.gaussians))
def test_gaussian_log_prob_is_the_log_density_of_independent_normals(row):
    p, eta, a = row
    mu, sigma = eta[:, : p.n_actions], np.exp(eta[:, p.n_actions :])
    agree(p.log_prob(eta, a), stats.norm.logpdf(a, mu, sigma).sum(axis=1), 100)


@pytest.mark.equation("2.10")
@pytest.mark.parametrize("sigma", [0.05, 1.0, 20.0])
def test_gaussian_density_integrates_to_one(sigma):
    p, z = DiagonalGaussian(1), np.linspace(-12, 12, 2001)
    eta = np.tile([0.7, np.log(sigma)], (len(z), 1))
    density = np.exp(p.log_prob(eta, 0.7 + sigma * z[:, None]))
    # The trapezoidal rule converges geometrically for a Gaussian: rounding is all that is left.
    assert density.sum() * sigma * (z[1] - z[0]) == pytest.approx(1, rel=1e-12)


@pytest.mark.equation("2.11", "2.12", "2.13", "2.14", "2.15", "2.16", defining=True)
@given(pairs(S.gaussians), st.data())
def test_gaussian_closed_forms(batch, data):
    dist, eta_p, eta_q = batch
    m = dist.n_actions
    a = data.draw(S.actions(dist, eta_p))
    size = 1e3 * inverse_variance(dist, np.vstack([eta_p, eta_q]))
    for i in range(len(eta_p)):
        (mu_p, mu_q), (s_p, s_q) = (eta_p[i, :m], eta_q[i, :m]), np.exp((eta_p[i, m:], eta_q[i, m:]))
        score = [(a[i] - mu_p) / s_p**2, (a[i] - mu_p) ** 2 / s_p**2 - 1]
        agree(dist.score(eta_p, a)[i], np.concatenate(score), size)
        agree(dist.entropy(eta_p)[i], sum(0.5 * np.log(2 * np.pi * np.e * s**2) for s in s_p), 10)
        agree(dist.entropy_grad(eta_p)[i], [0] * m + [1] * m, 1)
        textbook = np.log(s_q / s_p) + (s_p**2 + (mu_p - mu_q) ** 2) / (2 * s_q**2) - 0.5
        agree(dist.kl(eta_p, eta_q)[i], textbook.sum(), size)
        grad = [(mu_q - mu_p) / s_q**2, 1 - (s_p**2 + (mu_p - mu_q) ** 2) / s_q**2]
        agree(dist.kl_grad(eta_p, eta_q)[i], np.concatenate(grad), size)
        agree(dist.fisher(eta_p)[i], np.diag(np.concatenate([1 / s_p**2, [2] * m])), size)


@pytest.mark.equation("2.14")
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-7, 1e-8, -1e-8])
def test_gaussian_kl_between_close_scales_keeps_its_digits(delta):
    p = DiagonalGaussian(1)
    kl = p.kl(np.array([[0.0, delta]]), np.zeros((1, 2)))[0]
    series = sum((2 * delta) ** n / special.factorial(n) for n in range(2, 12)) / 2
    # One subtraction of numbers of size 2|Δ|, each good to an ulp, with a difference of 2Δ²: ε/|Δ|, times two.
    assert kl == pytest.approx(series, rel=2 * np.finfo(float).eps / abs(delta), abs=0)


@pytest.mark.equation("2.10", "2.11", "2.12", "2.14", "2.15", "2.16")
@pytest.mark.parametrize("sigma", [1e-6, 1e6])
def test_gaussian_with_extreme_sigma_has_the_values_of_the_closed_forms(sigma):
    p, z, mu = DiagonalGaussian(1), 1.5, 1e4
    eta, a = np.array([[mu, np.log(sigma)]]), np.array([[mu + z * sigma]])
    z = (a - mu).item() / sigma  # of the rounded action; the subtraction is exact
    other = np.array([[mu, -np.log(sigma)]])
    # exp(log σ) is off by |log σ| ε = 3e-15, its square and products of it by a few times that.
    close = {"rtol": 3e-14}
    np.testing.assert_allclose(p.log_prob(eta, a), -0.5 * z**2 - np.log(sigma) - 0.5 * np.log(2 * np.pi), **close)
    np.testing.assert_allclose(p.score(eta, a), [[z / sigma, z**2 - 1]], **close)
    np.testing.assert_allclose(p.entropy(eta), np.log(sigma) + 0.5 * np.log(2 * np.pi * np.e), **close)
    np.testing.assert_allclose(p.kl(eta, other), (sigma**4 - 1) / 2 - 2 * np.log(sigma), **close)
    np.testing.assert_allclose(p.kl_grad(eta, other), [[0, 1 - sigma**4]], **close)
    np.testing.assert_allclose(p.fisher(eta), [[[sigma**-2, 0], [0, 2]]], **close)
    np.testing.assert_allclose(p.fisher_product(eta, np.array([[3.0, -5.0]])), [[3 / sigma**2, -10]], **close)


@given(S.distribution_batches(S.gaussians))
def test_gaussian_mode_is_the_mean_and_not_a_view(row):
    p, eta, _ = row
    mode = p.mode(eta)
    np.testing.assert_array_equal(mode, eta[:, : p.n_actions])
    assert not np.shares_memory(mode, eta)


@pytest.mark.parametrize("log_sigma", [(-1.0, 0.7), (np.log(1e-6), np.log(1e6))])
def test_gaussian_samples_have_the_moments_of_the_distribution(log_sigma):
    n, mu, sigma = 200_000, np.array([2.0, -3.0]), np.exp(log_sigma)
    a = DiagonalGaussian(2).sample(np.tile([*mu, *log_sigma], (n, 1)), np.random.default_rng(3))
    z = (a - mu) / sigma
    assert (np.abs(z.mean(axis=0)) <= Z_BOUND / np.sqrt(n)).all()
    assert (np.abs((z**2).mean(axis=0) - 1) <= Z_BOUND * np.sqrt(2 / n)).all()  # Var z² = 2
    assert abs((z[:, 0] * z[:, 1]).mean()) <= Z_BOUND / np.sqrt(n)
    assert (np.abs((z[1:] * z[:-1]).mean(axis=0)) <= Z_BOUND / np.sqrt(n - 1)).all()
    assert all(stats.kstest(column, "norm").pvalue > 1e-6 for column in z.T)
