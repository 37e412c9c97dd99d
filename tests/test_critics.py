"""Linear values and their fits; more on the ridge fit is with its equation in test_reinforce.py."""

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from npg.critics import LinearValue, least_mean_squares, ridge_least_squares
from npg.features import OneHot, Polynomial
from npg.gradcheck import numerical_gradient


@pytest.mark.equation("1.14")
@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_ridge_fit_is_the_least_squares_fit_of_the_rows_and_of_sqrt_kappa_rows(d, seed):
    rng = np.random.default_rng(seed)
    x, y, ridge = rng.normal(size=(30, d)), rng.normal(size=30), 0.7
    augmented = np.vstack([x, np.sqrt(ridge) * np.eye(d)]), np.concatenate([y, np.zeros(d)])
    expected = np.linalg.lstsq(*augmented, rcond=None)[0]
    assert np.allclose(ridge_least_squares(x, y, ridge), expected, rtol=1e-9, atol=1e-11)


def test_fit_on_noiseless_values_recovers_them():
    rng = np.random.default_rng(0)
    v = LinearValue(Polynomial(spaces.Box(-1, 1, (2,)), degree=2))
    obs, w = rng.uniform(-1, 1, size=(50, 2)), rng.normal(size=v.n_params)
    assert np.allclose(ridge_least_squares(v.x(obs), v.value(w, obs), 0.0), w)


def test_tabular_value_is_a_table_and_its_fit_the_mean_of_each_state():
    v = LinearValue(OneHot(3))
    obs, targets = np.array([0, 0, 2]), np.array([1.0, 3.0, 5.0])
    w = ridge_least_squares(v.x(obs), targets, 1e-12)
    assert np.allclose(w, [2, 0, 5])
    assert np.array_equal(v.value(w, np.array([2, 1])), w[[2, 1]])


@pytest.mark.parametrize("ridge", [0.0, 1.0])
def test_a_fit_to_what_is_not_finite_says_so(ridge):
    with np.errstate(invalid="ignore"), pytest.raises(FloatingPointError, match="not finite"):
        ridge_least_squares(np.eye(2), np.array([1.0, np.inf]), ridge)


def rows_of_data(seed: int, n: int, d: int):
    rng = np.random.default_rng(seed)
    return rng.normal(size=d), rng.normal(size=(n, d)), rng.normal(size=n)


@pytest.mark.equation("1.14")
@given(seeds, st.integers(1, 6))
def test_the_incremental_step_of_a_row_is_half_alpha_down_the_gradient_of_its_squared_error(seed, d):
    w, x, y = rows_of_data(seed, 1, d)
    gradient, _ = numerical_gradient(lambda w: ((x @ w - y) ** 2).sum(), w, "complex")
    after, before = least_mean_squares(w, x, y, 0.3)
    assert np.allclose(after, w - 0.15 * gradient, rtol=1e-12, atol=1e-13)
    assert np.allclose(before, x @ w, rtol=1e-12, atol=1e-13)


@given(seeds, st.integers(0, 8), st.integers(1, 6))
def test_an_incremental_fit_goes_row_by_row_in_order_and_leaves_its_arguments_alone(seed, split, d):
    w, x, y = rows_of_data(seed, 8, d)
    given_ = w.copy(), x.copy(), y.copy()
    half, before = least_mean_squares(w, x[:split], y[:split], 0.3)
    rest = least_mean_squares(half, x[split:], y[split:], 0.3)
    whole = least_mean_squares(w, x, y, 0.3)
    assert np.array_equal(whole[0], rest[0])
    assert np.array_equal(whole[1], [*before, *rest[1]])
    assert all(map(np.array_equal, given_, (w, x, y)))


@given(seeds)
def test_on_a_constant_feature_the_incremental_fit_is_an_exponential_average(seed):
    (w,), _, y = rows_of_data(seed, 10, 1)
    recency = 0.3 * 0.7 ** np.arange(10)[::-1]
    after, _ = least_mean_squares(np.array([w]), np.ones((10, 1)), y, 0.3)
    assert np.allclose(after, 0.7**10 * w + recency @ y, rtol=1e-12, atol=1e-13)
