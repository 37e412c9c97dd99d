"""The linear model and its products, Eqs. (3.1), (3.2), (3.13), against sums written out by index."""

import tracemalloc

import numpy as np
import pytest
import strategies as S
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from npg.features import dense
from npg.gradcheck import numerical_gradient
from npg.models import Linear, Parallel


def close(actual, expected):
    """Sums of some ten products of numbers below 3, each rounding at 1e-15."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-13)


@st.composite
def linear(draw, active=None, rows=None):
    """A linear model and a batch x for it, dense or of active indices (with repeats)."""
    model = Linear(draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    rows = draw(S.batch_sizes) if rows is None else rows
    if draw(st.booleans()) if active is None else active:
        shape, index = (rows, draw(st.integers(1, 4))), st.integers(0, model.n_features - 1)
        return model, draw(arrays(np.int64, shape, elements=index, fill=st.nothing()))
    return model, draw(S.reals((rows, model.n_features)))


@st.composite
def parallel(draw):
    """Two linear models side by side and the pair of their inputs."""
    rows = draw(S.batch_sizes)
    (first, x1), (second, x2) = draw(linear(rows=rows)), draw(linear(rows=rows))
    return Parallel(first, second), (x1, x2)


MODELS = linear() | parallel()


@st.composite
def problems(draw, models=MODELS):
    """A model with its x, θ, a direction v in θ and a batch u in η."""
    model, x = draw(models)
    rows = len(x[0] if isinstance(x, tuple) else x)
    theta, v = draw(S.reals(model.n_params)), draw(S.reals(model.n_params))
    return model, x, theta, v, draw(S.reals((rows, model.n_outputs)))


@pytest.mark.equation("3.1", defining=True)
@given(problems(linear(active=False)))
def test_linear_output_i_is_the_sum_over_j_of_theta_at_i_d_plus_j_times_x_j(problem):
    model, x, theta, _, _ = problem
    d, k = model.n_features, model.n_outputs
    expected = [[sum(theta[i * d + j] * row[j] for j in range(d)) for i in range(k)] for row in x]
    close(model.forward(theta, x), expected)


@pytest.mark.equation("3.1")
@given(problems(parallel()))
def test_parallel_puts_the_two_maps_and_their_parameters_one_after_the_other(problem):
    model, x, theta, _, _ = problem
    n = model.first.n_params
    assert model.n_params == n + model.second.n_params
    expected = [model.first.forward(theta[:n], x[0]), model.second.forward(theta[n:], x[1])]
    np.testing.assert_array_equal(model.forward(theta, x), np.hstack(expected))


@pytest.mark.equation("3.2")
@given(problems(linear(active=False)))
def test_linear_jacobian_is_identity_kron_x(problem):
    model, x, theta, _, _ = problem
    expected = [np.kron(np.eye(model.n_outputs), row) for row in x]
    np.testing.assert_array_equal(model.jacobian(theta, x), expected)


@pytest.mark.equation("3.2")
@given(problems())
def test_jacobian_is_the_derivative_of_forward(problem):
    model, x, theta, _, u = problem
    J = model.jacobian(theta, x)
    for b, i in np.ndindex(u.shape):
        gradient, _ = numerical_gradient(lambda th, b=b, i=i: model.forward(th, x)[b, i], theta, "complex")
        close(J[b, i], gradient)


@pytest.mark.equation("3.2", defining=True)
@given(problems())
def test_vjp_and_jvp_are_products_with_the_jacobian(problem):
    model, x, theta, v, u = problem
    J = model.jacobian(theta, x)
    close(model.vjp(theta, x, u), sum(J_i.T @ u_i for J_i, u_i in zip(J, u, strict=True)))
    close(model.jvp(theta, x, v), [J_i @ v for J_i in J])


@pytest.mark.equation("3.2", "3.13")
@given(problems())
def test_vjp_is_the_adjoint_of_jvp(problem):
    model, x, theta, v, u = problem
    size = 1 + np.abs(u).sum() * np.abs(v).sum() * 4
    assert abs((u * model.jvp(theta, x, v)).sum() - model.vjp(theta, x, u) @ v) <= 1e-14 * size


@pytest.mark.equation("3.4")
@given(problems(linear(active=False)))
def test_vjp_is_the_flattened_matrix_product_of_u_transposed_and_x(problem):
    model, x, theta, _, u = problem
    d, k = model.n_features, model.n_outputs
    expected = [sum(u[b, i] * x[b, j] for b in range(len(x))) for i in range(k) for j in range(d)]
    close(model.vjp(theta, x, u), expected)


@st.composite
def shared(draw):
    """Two linear models on the same features, and the pair of one array twice."""
    first, x = draw(linear())
    return Parallel(first, Linear(first.n_features, draw(st.integers(1, 4)))), (x, x)


@pytest.mark.equation("3.2", "3.13")
@given(problems(MODELS | shared()), st.booleans())
def test_accumulate_adds_to_each_row_its_own_jacobian_transposed_times_u(problem, strided):
    model, x, theta, v, u = problem
    J, before = model.jacobian(theta, x), np.outer(1 + np.arange(len(u)), v)
    room = np.full((len(u), model.n_params + 2), 7.0)
    z = room[:, 1:-1] if strided else np.empty_like(before)
    z[:] = before
    parts = [part.copy() for part in (x if isinstance(x, tuple) else (x,))]
    u_before = u.copy()
    assert model.accumulate(theta, z, x, u) is None
    close(z, [z_i + J_i.T @ u_i for z_i, J_i, u_i in zip(before, J, u, strict=True)])
    assert (room[:, [0, -1]] == 7).all()
    assert all(map(np.array_equal, parts, x if isinstance(x, tuple) else (x,)))
    np.testing.assert_array_equal(u, u_before)


@pytest.mark.equation("3.2", "3.13")
@given(problems(MODELS | shared()))
def test_the_rows_that_accumulate_adds_have_vjp_for_their_sum(problem):
    model, x, theta, _, u = problem
    z = np.zeros((len(u), model.n_params))
    model.accumulate(theta, z, x, u)
    close(z.sum(axis=0), model.vjp(theta, x, u))


@pytest.mark.equation("3.13")
@pytest.mark.parametrize("rows", [1, 3])
def test_accumulate_counts_a_repeated_index_twice_in_one_row_or_several(rows):
    model, z = Linear(3, 2), np.ones((rows, 6))
    x, u = np.array([[0, 2, 2], [1, 1, 1], [0, 1, 2]]), np.array([[5.0, 6], [7, 8], [1, -1]])
    model.accumulate(np.zeros(6), z, x[:rows], u[:rows])
    expected = np.array([[6, 1, 11, 7, 1, 13], [1, 22, 1, 1, 25, 1], [2, 2, 2, 0, 0, 0]])
    np.testing.assert_array_equal(z, expected[:rows])


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64])
def test_accumulate_takes_active_indices_of_any_integer_type(dtype, rows):
    z = np.zeros((rows, 400))
    Linear(200, 2).accumulate(
        np.zeros(400), z, np.array([[100], [3]])[:rows].astype(dtype), np.array([[1.0, 2], [3, 4]])[:rows]
    )
    assert z[0, [100, 300]].tolist() == [1, 2]
    assert z[-1, [3, 203]].tolist() == ([3, 4] if rows == 2 else [0, 0])
    assert np.count_nonzero(z) == 2 * rows


@pytest.mark.equation("3.13", defining=True)
@given(problems(linear(active=True)))
def test_active_indices_and_their_dense_form_give_the_same_numbers(problem):
    model, x, theta, v, u = problem
    full = dense(x, model.n_features)
    close(model.forward(theta, x), model.forward(theta, full))
    close(model.vjp(theta, x, u), model.vjp(theta, full, u))
    close(model.jvp(theta, x, v), model.jvp(theta, full, v))
    np.testing.assert_array_equal(model.jacobian(theta, x), model.jacobian(theta, full))


@pytest.mark.equation("3.13")
def test_active_indices_sum_columns_and_a_repeated_index_counts_twice():
    model, theta, x = Linear(3, 2), np.array([1.0, 2, 3, 10, 20, 30]), np.array([[0, 2], [1, 1]])
    np.testing.assert_array_equal(model.forward(theta, x), [[4, 40], [4, 40]])
    np.testing.assert_array_equal(model.vjp(theta, x, np.array([[5.0, 6], [7, 8]])), [5, 14, 5, 6, 16, 6])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64])
def test_active_indices_may_have_any_integer_type(dtype):
    model, theta, x = Linear(200, 2), np.arange(400.0), np.array([[100], [3]])
    np.testing.assert_array_equal(model.forward(theta, x.astype(dtype)), [[100, 300], [3, 203]])
    gradient = model.vjp(theta, x.astype(dtype), np.array([[1.0, 2], [3, 4]]))
    assert gradient[[100, 300, 3, 203]].tolist() == [1, 2, 3, 4]
    assert np.count_nonzero(gradient) == 4


@given(problems())
def test_every_row_of_a_batch_is_computed_alone(problem):
    model, x, theta, v, u = problem
    for b in range(len(u)):
        row = tuple(part[b : b + 1] for part in x) if isinstance(x, tuple) else x[b : b + 1]
        close(model.forward(theta, x)[b : b + 1], model.forward(theta, row))
        close(model.jvp(theta, x, v)[b : b + 1], model.jvp(theta, row, v))
        only_b = np.where(np.arange(len(u))[:, None] == b, u, 0.0)
        close(model.vjp(theta, x, only_b), model.vjp(theta, row, u[b : b + 1]))


@pytest.mark.parametrize("x", [np.zeros((0, 3)), np.zeros((0, 2), dtype=int)], ids=["dense", "active"])
def test_an_empty_batch_gives_no_rows_and_a_zero_gradient(x):
    single, theta = Linear(3, 2), np.ones(6)
    pair = Parallel(single, single)
    for model, inputs, parameters in ((single, x, theta), (pair, (x, x), np.tile(theta, 2))):
        k, n = model.n_outputs, model.n_params
        assert model.forward(parameters, inputs).shape == model.jvp(parameters, inputs, parameters).shape == (0, k)
        assert model.jacobian(parameters, inputs).shape == (0, k, n)
        np.testing.assert_array_equal(model.vjp(parameters, inputs, np.zeros((0, k))), np.zeros(n))
        model.accumulate(np.zeros(n), np.zeros((0, n)), inputs, np.zeros((0, k)))


@pytest.mark.equation("3.4", "3.13")
@pytest.mark.parametrize("active", [False, True], ids=["dense", "active"])
def test_products_never_allocate_an_array_of_rows_by_parameters(active):
    rows, model = 5_000, Linear(100, 4)
    x = np.zeros((rows, 8), dtype=int) if active else np.zeros((rows, 100))
    theta, u = np.zeros(model.n_params), np.zeros((rows, 4))
    tracemalloc.start()
    model.vjp(theta, x, u)
    model.jvp(theta, x, theta)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < rows * model.n_params * 8 / 3  # indices of 8 active features take 2/25 of it for each array


@pytest.mark.parametrize("sizes", [(0, 2), (3, 0)])
def test_a_linear_model_needs_a_feature_and_an_output(sizes):
    with pytest.raises(ValueError, match="must be an integer of at least 1, got 0"):
        Linear(*sizes)


@pytest.mark.parametrize("x", [np.zeros((2, 4)), np.zeros(3), np.zeros((1, 2, 3)), (np.zeros((2, 3)),) * 2])
def test_inputs_of_the_wrong_shape_are_an_error_that_names_x(x):
    model = Linear(3, 2)
    for product in (model.forward, model.jvp):
        with pytest.raises(ValueError, match=r"^x must be an array of one row of 3 features"):
            product(np.zeros(6), x, *[np.zeros(6)] * (product == model.jvp))
    with pytest.raises(ValueError, match=r"^x must be an array of one row of 3 features"):
        model.vjp(np.zeros(6), x, np.zeros((2, 2)))


@pytest.mark.parametrize("x", [np.zeros((2, 3)), (np.zeros((2, 3)),) * 3])
def test_parallel_inputs_that_are_not_a_pair_are_an_error_that_names_x(x):
    with pytest.raises(ValueError, match="x must be the pair"):
        Parallel(Linear(3, 2), Linear(3, 2)).forward(np.zeros(12), x)


def test_an_active_index_beyond_the_features_is_an_error():
    with pytest.raises(IndexError):
        Linear(3, 2).forward(np.zeros(6), np.array([[3]]))
