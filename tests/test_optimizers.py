"""Ascent, Adam and RMSProp against transcriptions of their papers, their state, and clipping by the norm."""

import numpy as np
import pytest
import strategies as S
from hypothesis import given
from hypothesis import strategies as st

from npg.optimizers import OPTIMIZERS, Adam, Ascent, RMSProp, clip_norm

EVERY_OPTIMIZER = pytest.mark.parametrize("name", OPTIMIZERS)


def gradients(steps, n=3, seed=0):
    return np.random.default_rng(seed).normal(size=(steps, n)) * [1e-3, 1.0, 1e3][:n]


def kingma_and_ba(theta, gradients, alpha, beta1, beta2, epsilon):
    """Algorithm 1 of Kingma & Ba (2015), which minimises, line by line and component by component."""
    theta = list(theta)
    m, v, t = [0.0] * len(theta), [0.0] * len(theta), 0
    for g in gradients:
        t = t + 1
        for i in range(len(theta)):
            m[i] = beta1 * m[i] + (1 - beta1) * g[i]
            v[i] = beta2 * v[i] + (1 - beta2) * g[i] ** 2
            m_hat = m[i] / (1 - beta1**t)
            v_hat = v[i] / (1 - beta2**t)
            theta[i] = theta[i] - alpha * m_hat / (v_hat**0.5 + epsilon)
    return theta


def run(optimizer, theta, gradients):
    for g in gradients:
        theta = optimizer.step(theta, g)
    return theta


@pytest.mark.equation("1.16")
@given(st.integers(1, 5).flatmap(lambda n: st.tuples(S.reals(n), S.reals(n))), st.floats(1e-3, 100))
def test_ascent_adds_alpha_times_the_gradient(vectors, alpha):
    theta, g = vectors
    expected = [t + alpha * h for t, h in zip(theta, g, strict=True)]
    np.testing.assert_array_equal(Ascent(len(theta), alpha).step(theta, g), expected)


@pytest.mark.parametrize("settings", [{}, {"beta1": 0.5, "beta2": 0.9, "epsilon": 1e-3}, {"beta1": 0.0}])
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_adam_is_algorithm_1_of_kingma_and_ba_upwards(steps, settings):
    theta, g = np.array([1.0, -2.0, 0.5]), gradients(steps)
    parameters = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8} | settings
    expected = kingma_and_ba(theta, -g, 0.1, **parameters)
    np.testing.assert_allclose(run(Adam(3, 0.1, **settings), theta, g), expected, rtol=0, atol=1e-13)


@given(st.sampled_from([1e-6, 1.0, 1e6]), st.sampled_from([-1.0, 1.0]))
def test_the_first_step_of_adam_is_alpha_in_the_direction_of_the_sign(size, sign):
    step = Adam(1, 0.1).step(np.zeros(1), np.array([sign * size]))
    np.testing.assert_allclose(step, [0.1 * sign * size / (size + 1e-8)], rtol=1e-14)


def mnih_et_al(theta, gradients, alpha, beta2, epsilon):
    """RMSProp as in Mnih et al. (2016), Eq. S2 and S3, upwards: line by line and component by component."""
    theta, m = list(theta), [0.0] * len(theta)
    for g in gradients:
        for i in range(len(theta)):
            m[i] = beta2 * m[i] + (1 - beta2) * g[i] ** 2
            theta[i] = theta[i] + alpha * g[i] / (m[i] + epsilon) ** 0.5
    return theta


@pytest.mark.equation("8.14")
@pytest.mark.parametrize("settings", [{}, {"beta2": 0.5, "epsilon": 1e-3}, {"beta2": 0.0}])
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_rmsprop_is_that_of_mnih_et_al_with_epsilon_under_the_root(steps, settings):
    theta, g = np.array([1.0, -2.0, 0.5]), gradients(steps)
    expected = mnih_et_al(theta, g, 0.1, **{"beta2": 0.99, "epsilon": 1e-5} | settings)
    np.testing.assert_allclose(run(RMSProp(3, 0.1, **settings), theta, g), expected, rtol=0, atol=1e-13)


@pytest.mark.equation("8.14")
def test_where_gradients_are_small_epsilon_under_the_root_makes_smaller_steps():
    optimizer, theta, g = RMSProp(1, 1.0, epsilon=1e-5), np.zeros(1), np.array([1e-3])
    for _ in range(5000):
        before, theta = theta, optimizer.step(theta, g)
    assert theta - before == pytest.approx([0.30], abs=0.005)
    assert optimizer.state()["v"] == pytest.approx([1e-6], rel=1e-12)


@pytest.mark.equation("8.14")
@given(st.lists(st.floats(-1e6, 1e6).map(lambda g: round(g, 6)), min_size=1, max_size=20), st.sampled_from([0.9, 0.99]))
def test_no_component_of_rmsprop_moves_by_more_than_alpha_over_the_root_of_one_minus_beta(components, beta2):
    optimizer, theta = RMSProp(1, 0.1, beta2), np.zeros(1)
    for g in components:
        before, theta = theta, optimizer.step(theta, np.array([g]))
        assert abs(theta - before)[0] <= 0.1 / np.sqrt(1 - beta2) * (1 + 1e-12) + 1e-14
        assert optimizer.v[0] >= (1 - beta2) * g**2


@pytest.mark.equation("8.14")
def test_the_state_of_rmsprop_is_its_mean_square():
    optimizer = RMSProp(3, 0.1)
    run(optimizer, np.zeros(3), np.ones((2, 3)))
    assert optimizer.state().keys() == {"v"}
    np.testing.assert_allclose(optimizer.state()["v"], 1 - 0.99**2, rtol=1e-13)


@pytest.mark.equation("8.13")
@given(st.integers(1, 5).flatmap(S.reals), st.sampled_from([1e-3, 0.5, 1.0, 10.0, 1e9]))
def test_clipping_bounds_the_norm_and_keeps_the_direction(g, c):
    before, norm = g.copy(), np.sqrt(sum(part**2 for part in g))
    clipped = clip_norm(g, c)
    np.testing.assert_array_equal(g, before)
    if norm <= c * (1 - 1e-12):
        np.testing.assert_array_equal(clipped, g)
    else:
        np.testing.assert_allclose(clipped, g / norm * min(norm, c), rtol=1e-12)


@pytest.mark.equation("8.13")
@pytest.mark.parametrize("c", [1e-3, 0.5, 10.0, 1e300])
def test_clipping_leaves_zero_at_zero(c):
    np.testing.assert_array_equal(clip_norm(np.zeros(3), c), np.zeros(3))
    np.testing.assert_allclose(clip_norm(np.array([0.0, 1e-150]), c), [0, 1e-150])


@pytest.mark.equation("8.13")
def test_the_mean_of_clipped_gradients_may_point_the_other_way():
    mean = 0.1 * np.array([10.0]) + 0.9 * np.array([-0.5])
    clipped = 0.1 * clip_norm(np.array([10.0]), 0.5) + 0.9 * clip_norm(np.array([-0.5]), 0.5)
    assert mean == pytest.approx([0.55])
    assert clipped == pytest.approx([-0.4])


@EVERY_OPTIMIZER
def test_a_step_goes_up(name):
    theta = np.array([3.0, -4.0])
    for _ in range(20):
        before, theta = theta, OPTIMIZERS[name](2, 0.01).step(theta, -2 * theta)  # of J = −‖θ‖²
        assert theta @ theta < before @ before


@EVERY_OPTIMIZER
def test_a_zero_gradient_at_the_start_changes_nothing(name):
    theta = np.array([3.0, -4.0])
    np.testing.assert_array_equal(OPTIMIZERS[name](2, 0.1).step(theta, np.zeros(2)), theta)


@EVERY_OPTIMIZER
def test_a_step_leaves_its_arguments_as_they_were(name):
    theta, g = np.array([3.0, -4.0]), np.array([1.0, 2.0])
    optimizer = OPTIMIZERS[name](2, 0.1)
    new = run(optimizer, theta, [g, g])
    assert not np.shares_memory(new, theta)
    np.testing.assert_array_equal(theta, [3, -4])
    np.testing.assert_array_equal(g, [1, 2])


@EVERY_OPTIMIZER
@pytest.mark.parametrize("before", [0, 1, 7])
def test_a_restored_optimizer_continues_identically(name, before):
    g, theta = gradients(before + 10), np.ones(3)
    original = OPTIMIZERS[name](3, 0.1)
    theta = run(original, theta, g[:before])
    restored = OPTIMIZERS[name](3, 0.1)
    restored.step(theta, g[0])  # whatever it was before is forgotten
    restored.load_state(original.state())
    np.testing.assert_array_equal(run(restored, theta, g[before:]), run(original, theta, g[before:]))
    assert restored.state().keys() == original.state().keys()
    for key, array in original.state().items():
        np.testing.assert_array_equal(restored.state()[key], array)
        assert restored.state()[key].dtype == array.dtype


def test_the_state_of_adam_is_its_moments_and_step_count():
    optimizer = Adam(3, 0.1)
    run(optimizer, np.zeros(3), np.ones((2, 3)))
    state = optimizer.state()
    assert state.keys() == {"m", "v", "t"}
    np.testing.assert_allclose(state["m"], 1 - 0.9**2, rtol=1e-15)
    np.testing.assert_allclose(state["v"], 1 - 0.999**2, rtol=1e-13)
    assert state["t"] == 2
    assert Ascent(3, 0.1).state() == {}


def test_a_saved_state_is_a_copy_both_ways():
    optimizer, g = Adam(3, 0.1), gradients(4)
    run(optimizer, np.zeros(3), g[:2])
    saved = optimizer.state()
    before = {key: array.copy() for key, array in saved.items()}
    optimizer.step(np.zeros(3), g[2])
    for key, array in saved.items():
        np.testing.assert_array_equal(array, before[key])
    optimizer.load_state(saved)
    for copy in (saved, optimizer.state()):
        copy["m"][:] = copy["v"][:] = np.nan
    optimizer.step(np.zeros(3), g[3])
    assert np.isfinite(optimizer.state()["m"]).all()
    assert np.isfinite(optimizer.state()["v"]).all()


@pytest.mark.parametrize(
    "change",
    [
        {"m": np.zeros(4)},
        {"v": np.zeros((3, 1))},
        {"t": np.zeros(1)},
        {"extra": np.zeros(3)},
        {"v": None},
    ],
    ids=["m too long", "v a column", "t a vector", "a name too many", "a name too few"],
)
def test_a_state_with_wrong_names_or_shapes_is_an_error_that_changes_nothing(change):
    optimizer = Adam(3, 0.1)
    run(optimizer, np.zeros(3), gradients(2))
    before = optimizer.state()
    wrong = {
        key: array
        for key, array in ({"m": np.ones(3), "v": np.ones(3), "t": np.array(9)} | change).items()
        if array is not None
    }
    with pytest.raises(ValueError, match="state must hold arrays of shapes"):
        optimizer.load_state(wrong)
    for key, array in optimizer.state().items():
        np.testing.assert_array_equal(array, before[key])


def test_the_state_of_another_optimizer_is_an_error():
    with pytest.raises(ValueError, match="state must hold arrays of shapes"):
        Ascent(3, 0.1).load_state(Adam(3, 0.1).state())
    with pytest.raises(ValueError, match="state must hold arrays of shapes"):
        Adam(3, 0.1).load_state(Ascent(3, 0.1).state())


@pytest.mark.equation("8.13")
def test_a_gradient_whose_squares_overflow_is_clipped_and_one_that_is_not_finite_is_left_alone():
    np.testing.assert_allclose(clip_norm(np.array([3e200, 4e200]), 0.5), [0.3, 0.4], rtol=1e-14)
    assert np.isnan(clip_norm(np.array([np.nan, 1.0]), 0.5)[0])
    assert np.isinf(clip_norm(np.array([np.inf, 1.0]), 0.5)[0])
    np.testing.assert_array_equal(clip_norm(np.array([3.0, 4.0]), np.inf), [3, 4])
